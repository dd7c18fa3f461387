"""Planted defects: which gates catch a damaged artifact, at how many samples, and how often a good one is refused.

    python benchmarks/planted_defects.py [RECIPE] [--items N] [--windows N] [--draws N] [--controls N]
        [--only NAME,NAME] [--part PART] [--ask-controls] [--share K/N] [--unpack | --ask-unpacked]
        [--set KEY=VALUE ...] --out FOLDER

Builds the recipe's artifact, damages it in known ways (damage_checkpoint.py), and puts each through a real vLLM server
once: first questions, held-out text, tasks. The controls are other quantizations of equal quality: the same recipe with
other calibration seeds, each an artifact of its own; they are asked the held-out text alone, through vLLM's engine in
one process (score_windows.py), which is cheap enough for many. With `--ask-controls` each gets a server and the tasks,
as the others do; on a machine with many cores several runs each measure a share of them. Sample counts are then drawn
(with replacement) from those per-sample results, without a server. Gates are set from the undamaged artifact's own
evidence, as a team would that guards a release it is content with.

What was measured is kept in FOLDER, so a run that was stopped goes on; the tables go to stdout as Markdown.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
from planted_tables import Answers, Paired, tables

from evals.comparison import compare
from evals.gates.gates import figure
from evals.measure import accuracy, divergence, perplexity, suite
from evals.measure.eval_specs import TasksSpec
from evals.server import first_questions
from evals.server import vllm_server as serving
from evals.server.client import Endpoint
from evals.server.session import Limits, Session, Workspace
from qpack.cli import options
from qpack.core.console import open_console
from qpack.core.errors import EvaluateError
from qpack.core.records import Accuracy, Canary, Language, Window
from qpack.pipeline import plan, planned_serving
from qpack.pipeline.context import Context
from qpack.pipeline.run import run
from qpack.pipeline.stages import quantize
from qpack.pipeline.stages.catalog import until
from qpack.pipeline.stages.fetch import FETCHED
from qpack.pipeline.stages.hold_out import HELD_OUT
from qpack.pipeline.stages.quantize import QUANTIZED
from qpack.pipeline.state import Build
from qpack.recipe import eval_requests, recipe_file
from qpack.runtime.workerlib import qpack_protocol
from quantize.checkpoint.workers.tokens_job import RowsJob
from quantize.engines import gram
from quantize.engines.protocol import Paths
from registry.serving import serving_manifest

ROOT = Path(__file__).parent.parent
DAMAGES = ("scales", "rope", "template", "flips")


def main() -> int:
    """Measure what isn't measured yet, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe", nargs="?", type=Path, default=ROOT / "recipes" / "smollm2-135m-gram.yaml")
    parser.add_argument("--items", type=int, help="items of each task (default: the recipe's)")
    parser.add_argument("--windows", type=int, help="windows of held-out text (default: the recipe's)")
    parser.add_argument("--draws", type=int, default=50, help="draws for each sample count")
    parser.add_argument("--controls", type=int, default=20, help="quantizations with other calibration seeds")
    parser.add_argument("--only", help="damages to measure, with commas: " + ", ".join(DAMAGES))
    parser.add_argument(
        "--part", choices=("all", "subjects", "quantize", "controls"), default="all", help="do this alone"
    )
    parser.add_argument("--ask-controls", action="store_true", help="ask the controls the tasks too, from servers")
    parser.add_argument("--share", default="1/1", metavar="K/N", help="of the controls asked, every Nth from K")
    parser.add_argument("--unpack", action="store_true", help="text alone, of weights that are unpacked to float32")
    parser.add_argument("--ask-unpacked", action="store_true", help="everything, of weights unpacked to float32")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="laid over the recipe")
    parser.add_argument("--out", type=Path, required=True)
    ask = parser.parse_args()
    good = built(ask)
    if ask.unpack:
        return text_alone(good, ask)
    if ask.part in ("all", "subjects"):
        reference, found, told = subjects(good, ask)
    if ask.part != "subjects":
        checkpoints = quantized_again(good, range(1, ask.controls + 1), ask.out)
    if ask.part in ("all", "controls") and ask.ask_controls:
        k, n = (int(number) for number in ask.share.split("/"))
        mine = list(checkpoints)[k - 1 :: n]
        controls = {name: measured(good, name.replace(" ", "-"), checkpoints[name], ask.out) for name in mine}
    elif ask.part in ("all", "controls"):
        controls = scored(good, {"good": good.require(QUANTIZED).folder / "checkpoint", **checkpoints}, ask.out)
        again = controls.pop("good")
        if ask.part == "all":
            print(f"The undamaged artifact once more, as the controls are: {compare_ways(found['good'], again)}.\n")
    if ask.part == "all":
        print("\n".join(tables(reference, found, controls, told, ask.draws)))
    return 0


def text_alone(good: Build, ask: argparse.Namespace) -> int:
    """The study where vLLM can't serve 4-bit weights: held-out text through its engine, and what the doctor says."""
    source, whole = good.require(FETCHED).folder / "checkpoint", good.require(QUANTIZED).folder / "checkpoint"
    names = ask.only.split(",") if ask.only else list(DAMAGES)
    checkpoints = {"baseline": source, "good": whole} | {name: damaged(good, name, ask.out) for name in names}
    seeds = quantized_again(good, range(1, ask.controls + 1), ask.out)
    found = scored(good, checkpoints | seeds, ask.out, unpack=True)
    subjects = {name: found[name] for name in ("good", *names)}
    told = {name: doctors(checkpoints[name], source, ask.out / "doctor" / f"{name}.txt") for name in subjects}
    print("\n".join(tables(found["baseline"], subjects, {name: found[name] for name in seeds}, told, ask.draws)))
    return 0


def doctors(checkpoint: Path, source: Path, kept: Path) -> str:
    """What `qpack doctor --against SOURCE` finds wrong with the files of a checkpoint; kept in a file."""
    if not kept.exists():
        command = [
            sys.executable,
            "-m",
            "qpack.cli.start",
            "doctor",
            checkpoint,
            "--against",
            source,
            "--whole",
            "--json",
        ]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        said = "; ".join(finding["what"] for finding in json.loads(done.stdout)["findings"]) or "nothing"
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(said)
    return kept.read_text()


def subjects(good: Build, ask: argparse.Namespace) -> tuple[Answers, dict[str, Answers], dict[str, str]]:
    """The source model, the undamaged artifact and the damaged ones, and what was said before any gate."""
    shown = unpacked if ask.ask_unpacked else lambda _build, _name, checkpoint, _out: checkpoint
    reference = measured(good, "baseline", good.require(FETCHED).folder / "checkpoint", ask.out)
    whole = shown(good, "good", good.require(QUANTIZED).folder / "checkpoint", ask.out)
    found = {"good": measured(good, "good", whole, ask.out)}
    told: dict[str, str] = {}
    for name in ask.only.split(",") if ask.only else DAMAGES:
        checkpoint = shown(good, name, damaged(good, name, ask.out), ask.out)
        try:
            found[name] = measured(good, name, checkpoint, ask.out)
        except EvaluateError as error:
            told[name] = f"refused: {error.what}"
            continue
        first = [canary_of(ask.out, who) for who in ("baseline", name)]
        said = [f"refused, {problem.message}" for problem in compare.first_question_problems(*first)]
        if name == "template":
            said.append(f"suite:chat: {(ask.out / 'evidence' / name / 'chat.txt').read_text()}")
        if said:
            told[name] = "; ".join(said)
    return reference, found, told


def canary_of(folder: Path, name: str) -> Canary:
    """The first questions and answers of a subject that was measured."""
    return Canary.model_validate_json((folder / "evidence" / name / "canary.json").read_text())


def built(ask: argparse.Namespace) -> Build:
    """The recipe's build as far as the quantized checkpoint."""
    settings = [*(["serve.dtype=float32"] if ask.ask_unpacked else []), *ask.set]
    if ask.windows:
        settings.append(f"evaluate.perplexity.windows={ask.windows}")
    loaded = recipe_file.load(ask.recipe, settings)
    if ask.items:
        tasks = range(len(loaded.recipe.evaluate.tasks))
        loaded = recipe_file.load(ask.recipe, [*settings, *(f"evaluate.tasks.{i}.samples={ask.items}" for i in tasks)])
    store = options.store()
    with open_console() as console:
        context = Context(store, options.registry_folder(), console)
        return run(Build(plan.make(loaded, store, thorough=True), context), until(quantize.STAGE))


def damaged(build: Build, kind: str, out: Path) -> Path:
    """The good artifact with one defect planted, made once."""
    target = out / "checkpoints" / kind
    if not target.exists():
        # A damage's name may end in a fraction, which isn't a suffix.
        part = target.with_name(f"{target.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        part.parent.mkdir(parents=True, exist_ok=True)
        python = build.environment("transformers").python
        source = build.require(QUANTIZED).folder / "checkpoint"
        script = Path(__file__).parent / "damage_checkpoint.py"
        subprocess.run([python, script, source, part, kind], check=True, stdout=sys.stderr)
        part.rename(target)
    return target


def unpacked(build: Build, name: str, checkpoint: Path, out: Path) -> Path:
    """A checkpoint's weights as float32, for CPUs whose vLLM multiplies no 4-bit weights; made once."""
    target = out / "unpacked" / name
    if not target.exists():
        part = target.with_suffix(".part")
        shutil.rmtree(part, ignore_errors=True)
        part.parent.mkdir(parents=True, exist_ok=True)
        work = f"from unpack_checkpoint import unpack; unpack({str(checkpoint)!r}, {str(part)!r})"
        subprocess.run([build.environment("transformers").python, "-c", work], check=True, cwd=Path(__file__).parent)
        part.rename(target)
    return target


def measured(build: Build, name: str, checkpoint: Path, folder: Path) -> Answers:
    """First questions, held-out text and tasks of one model, from one server; each part is kept in `folder`."""
    out = folder / "evidence" / name
    if not all((out / f"{part}.json").exists() for part in ("canary", "language", "accuracy")):
        out.mkdir(parents=True, exist_ok=True)
        _measure(build, name, checkpoint, out)
    return Answers(
        Accuracy.model_validate_json((out / "accuracy.json").read_text()),
        Language.model_validate_json((out / "language.json").read_text()),
        divergence.load(out / "logprobs.npz"),
    )


def quantized_again(build: Build, seeds: Iterable[int], folder: Path) -> dict[str, Path]:
    """The build's artifact with other calibration seeds, each made once, all in one process (quantize_controls.py)."""
    r, engine, source = build.plan.recipe, build.plan.engine, build.require(FETCHED).folder / "checkpoint"
    assert engine is gram
    assert r.calibration is not None
    ask, held_out = r.calibration, build.require(HELD_OUT).result.row_digests
    made, controls = {}, []
    for seed in seeds:
        out = (folder / "controls" / str(seed)).resolve()
        rows = RowsJob(
            checkpoint=str(source),
            trust_remote_code=r.model.trust_remote_code,
            texts=str(build.plan.calibration),
            held_out=held_out,
            **{**ask.model_dump(exclude={"source"}), "seed": seed},
        )
        job = engine.job(build.plan.request, Paths(source, out / "tokens.jsonl", out / "scratch"))
        controls.append({"out": str(out), "tokens": qpack_protocol.encode(rows), "gram": qpack_protocol.encode(job)})
        made[f"control {seed}"] = out / "checkpoint"
    if not all((checkpoint.parent / "made").exists() for checkpoint in made.values()):
        workers = {
            "tokens_worker": str(ROOT / "quantize/checkpoint/workers/tokens_worker.py"),
            "gram": str(engine.WORKER),
        }
        in_one_process(build, engine.ENVIRONMENT.name, "quantize_controls", {**workers, "controls": controls}, folder)
    return made


def in_one_process(build: Build, name: str, script: str, job: dict[str, Any], folder: Path) -> None:
    """Run a script of this folder in an engine's environment; its output goes to a log in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    # Several processes may share the folder, each with a job of its own.
    asked = folder / f"{script}-{os.getpid()}.json"
    asked.write_text(json.dumps(job))
    environment, serving = build.environment(name), build.plan.recipe.serve.environment
    variables = {
        **os.environ,
        **environment.variables,
        **serving,
        "PYTHONPATH": str(ROOT / "qpack" / "runtime" / "workerlib"),
    }
    command = [environment.python, Path(__file__).parent / f"{script}.py", asked]
    with (folder / f"{script}.log").open("ab") as log:
        subprocess.run(command, check=True, env=variables, stdout=log, stderr=log)


def scored(build: Build, checkpoints: Mapping[str, Path], folder: Path, *, unpack: bool = False) -> dict[str, Answers]:
    """Held-out text alone, of many models through vLLM's engine in one process; each is kept in `folder`."""
    files = {name: (folder / "scored" / f"{name.replace(' ', '-')}.json").resolve() for name in checkpoints}
    windows, top_k = build.require(HELD_OUT).folder / "tokens.jsonl", build.plan.recipe.evaluate.top_k
    if not all(file.exists() for file in files.values()):
        flags = serving_manifest.settings(
            planned_serving.named(build.plan.served(quantized=True), "subject", ""), "", host="", port=0
        )
        engine = {
            name.replace("-", "_"): value
            for name, value in flags.items()
            if name not in ("model", "served-model-name", "host", "port")
        }
        if unpack:
            engine["dtype"] = "float32"
        asked = [[str(checkpoints[name]), str(file)] for name, file in files.items()]
        job = {"windows": str(windows), "top_k": top_k, "engine": engine, "unpack": unpack, "subjects": asked}
        in_one_process(build, "vllm", "score_windows", job, folder)
    rows = perplexity.read_windows(windows)
    return {name: _answers(rows, json.loads(file.read_text()), top_k) for name, file in files.items()}


def _answers(rows: Sequence[Sequence[int]], told: Sequence[list[Any]], top_k: int) -> Answers:
    """What `perplexity.measure` makes of a server's answers, of answers that were kept."""
    parsed = [perplexity.parse(answer, row, top_k) for answer, row in zip(told, rows, strict=True)]
    top = divergence.TopK(
        np.concatenate([ids for _, ids, _ in parsed]),
        np.concatenate([logprobs for _, _, logprobs in parsed]),
        np.repeat(np.arange(len(rows), dtype=np.int32), [len(row) - 1 for row in rows]),
    )
    windows = tuple(
        Window(nll=-math.fsum(own), tokens=len(row) - 1) for (own, _, _), row in zip(parsed, rows, strict=True)
    )
    return Answers(None, Language(top_k=top_k, windows=windows, text_digest=perplexity.digest(rows)), top)


def compare_ways(server: Answers, engine: Answers) -> str:
    """How far the same checkpoint is from itself, through a server and through the engine alone."""
    pair = Paired.of(server, engine).figures(0)
    return ", ".join(
        f"{name} {figure(pair[name].value)}" for name in ("perplexity_ratio", "kl_divergence", "flip_rate")
    )


def _chat_tasks(session: Session) -> str:
    """What `suite:chat` answers for a checkpoint, in words."""
    try:
        accuracy.measure(session, TasksSpec(suite.expand(suite.TaskRequest("suite:chat", 4)), seed=0))
    except EvaluateError as error:
        return error.what
    return "answered"


def _server(build: Build, checkpoint: Path, log: Path) -> AbstractContextManager[serving.Server]:
    manifest = planned_serving.named(planned_serving.measured(build.plan.served(quantized=True)), "subject", "")
    vllm = build.environment("vllm")

    def arguments(host: str, port: int) -> list[str]:
        return serving_manifest.vllm_arguments(manifest, checkpoint, host=host, port=port)

    print(f"starting vLLM on {checkpoint}", file=sys.stderr, flush=True)
    command = serving.Command(vllm.python, arguments, {**vllm.variables, **manifest.environment})
    start = build.plan.recipe.limits.server_start_minutes * 60
    return serving.running(command, model="subject", log=log.resolve(), timeout=start, progress=build.console.progress)


def _session(build: Build, up: serving.Server, checkpoint: Path, out: Path) -> Session:
    tools = {"lm-eval": build.environment("lm-eval")}
    return Session(
        endpoint=Endpoint(up.base_url, up.model, first_questions.has_chat_template(checkpoint)),
        workspace=Workspace(tools, out, (out / "server.log").resolve(), limits=Limits(tool=build.limit)),
        tokenizer=checkpoint,
        max_model_len=build.plan.recipe.serve.max_model_len,
        windows=build.require(HELD_OUT).folder / "tokens.jsonl",
    )


def _measure(build: Build, name: str, checkpoint: Path, out: Path) -> None:
    def keep(part: str, measure: Callable[[], Canary | Language | Accuracy]) -> None:
        if not (out / f"{part}.json").exists():
            (out / f"{part}.json").write_text(measure().model_dump_json())

    with _server(build, checkpoint, out / "server.log") as up:
        session, specs = _session(build, up, checkpoint, out), eval_requests.specs(build.plan.recipe)
        keep("canary", lambda: first_questions.measure(session.endpoint))
        keep("language", lambda: perplexity.measure(session, specs.language))
        if not session.endpoint.chat and not (out / "chat.txt").exists():
            (out / "chat.txt").write_text(_chat_tasks(session))
        keep("accuracy", lambda: accuracy.measure(session, specs.tasks))
    print(f"{name} is measured", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
