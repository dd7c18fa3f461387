"""Planted defects: which gates catch a damaged artifact, at how many samples, and how often a good one is refused.

    python benchmarks/planted_defects.py [RECIPE] [--items N] [--windows N] [--draws N] [--controls N]
        [--only NAME,NAME] [--set KEY=VALUE ...] --out FOLDER

Builds the recipe's artifact, damages it in known ways (damage_checkpoint.py), and puts each through a real vLLM server
once: first questions, held-out text, tasks. The controls are other quantizations of equal quality: the same recipe with
other calibration seeds, each an artifact of its own; they are asked the held-out text alone, which is what is cheap
enough for many. Sample counts are then drawn (with replacement) from those per-sample results, without a server. Gates
are set from the undamaged artifact's own evidence, as a team would that guards a release it is content with.

What was measured is kept in FOLDER, so a run that was stopped goes on; the tables go to stdout as Markdown.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from planted_tables import Answers, tables

from evals import accuracy, canary, compare, divergence, perplexity, serving, suite
from qpack import describe, plan, questions, recipe
from qpack.build import STAGES, fetch, hold_out, run
from qpack.build import quantize as quantize_stage
from qpack.commands import options
from qpack.console import open_console
from qpack.errors import EvaluateError
from qpack.results import Accuracy, Canary, Language
from qpack.work import Build, need
from registry import serving_manifest

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
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="laid over the recipe")
    parser.add_argument("--out", type=Path, required=True)
    ask = parser.parse_args()
    good = built(ask, [])
    baseline = need(good.fetched).folder / "checkpoint"
    reference = measured(good, "baseline", baseline, ask.out, tasks=True)
    found = {"good": measured(good, "good", need(good.quantized).folder / "checkpoint", ask.out, tasks=True)}
    told: dict[str, str] = {}
    for name in ask.only.split(",") if ask.only else DAMAGES:
        checkpoint = damaged(good, name, ask.out)
        try:
            found[name] = measured(good, name, checkpoint, ask.out, tasks=True)
        except EvaluateError as error:
            told[name] = f"refused: {error.what}"
            continue
        first = [canary_of(ask.out, who) for who in ("baseline", name)]
        said = [f"refused, {problem.what}" for problem in compare.asked_otherwise(*first)]
        if name == "template":
            said.append(f"suite:chat: {chat_tasks(good, name, checkpoint, ask.out)}")
        if said:
            told[name] = "; ".join(said)
    controls = {}
    for seed in range(1, ask.controls + 1):
        other = built(ask, [f"calibration.seed={seed}"])
        checkpoint = need(other.quantized).folder / "checkpoint"
        controls[f"control {seed}"] = measured(good, f"control-{seed}", checkpoint, ask.out, tasks=False)
    print("\n".join(tables(reference, found, controls, told, ask.draws)))
    return 0


def canary_of(folder: Path, name: str) -> Canary:
    """The first questions and answers of a subject that was measured."""
    return Canary.model_validate_json((folder / "evidence" / name / "canary.json").read_text())


def built(ask: argparse.Namespace, more: list[str]) -> Build:
    """The recipe's build as far as the quantized checkpoint."""
    settings = [*ask.set, *more]
    if ask.windows:
        settings.append(f"evaluate.perplexity.windows={ask.windows}")
    loaded = recipe.load(ask.recipe, settings)
    if ask.items:
        tasks = range(len(loaded.recipe.evaluate.tasks))
        loaded = recipe.load(ask.recipe, [*settings, *(f"evaluate.tasks.{i}.samples={ask.items}" for i in tasks)])
    store = options.store()
    with open_console() as console:
        build = Build(plan.make(loaded, store, thorough=True), store, console, options.registry_folder())
        until = STAGES[: STAGES.index(quantize_stage) + 1]
        assert until[:2] == (fetch, hold_out)
        return run(build, until)


def damaged(build: Build, kind: str, out: Path) -> Path:
    """The good artifact with one defect planted, made once."""
    target = out / "checkpoints" / kind
    if not target.exists():
        part = target.with_suffix(".part")
        shutil.rmtree(part, ignore_errors=True)
        part.parent.mkdir(parents=True, exist_ok=True)
        python = build.environment("transformers").python
        source = need(build.quantized).folder / "checkpoint"
        script = Path(__file__).parent / "damage_checkpoint.py"
        subprocess.run([python, script, source, part, kind], check=True, stdout=sys.stderr)
        part.rename(target)
    return target


def measured(build: Build, name: str, checkpoint: Path, folder: Path, *, tasks: bool) -> Answers:
    """First questions, held-out text and tasks of one model, from one server; each part is kept in `folder`."""
    out = folder / "evidence" / name
    parts = ("canary", "language", "accuracy") if tasks else ("canary", "language")
    if not all((out / f"{part}.json").exists() for part in parts):
        out.mkdir(parents=True, exist_ok=True)
        _measure(build, name, checkpoint, out, tasks)
    return Answers(
        Accuracy.model_validate_json((out / "accuracy.json").read_text()) if tasks else None,
        Language.model_validate_json((out / "language.json").read_text()),
        divergence.load(out / "logprobs.npz"),
    )


def chat_tasks(build: Build, name: str, checkpoint: Path, folder: Path) -> str:
    """What `suite:chat` answers for a checkpoint, kept in `folder`."""
    kept = folder / "evidence" / name / "chat.txt"
    if not kept.exists():
        asked = suite.expand(suite.TaskRequest("suite:chat", 4))
        with _server(build, checkpoint, kept.parent / "chat-server.log") as up:
            try:
                _accuracy(build, up, checkpoint, asked, kept.parent / "chat")
                kept.write_text("answered")
            except EvaluateError as error:
                kept.write_text(error.what)
    return kept.read_text()


def _server(build: Build, checkpoint: Path, log: Path) -> AbstractContextManager[serving.Server]:
    manifest, vllm = describe.serving(build, "subject", ""), build.environment("vllm")

    def arguments(host: str, port: int) -> list[str]:
        return serving_manifest.vllm_arguments(manifest, checkpoint, host=host, port=port)

    print(f"starting vLLM on {checkpoint}", file=sys.stderr, flush=True)
    command = serving.Command(vllm.python, arguments, {**vllm.variables, **manifest.environment})
    start = build.plan.recipe.limits.server_start_minutes * 60
    return serving.running(command, model="subject", log=log.resolve(), timeout=start, progress=build.console.progress)


def _accuracy(
    build: Build, up: serving.Server, checkpoint: Path, asked: Sequence[suite.TaskRequest], out: Path
) -> Accuracy:
    r = build.plan.recipe
    return accuracy.measure(
        build.environment("lm-eval"),
        base_url=up.base_url,
        model=up.model,
        tokenizer=checkpoint,
        max_length=r.serve.max_model_len,
        tasks=asked,
        seed=r.evaluate.seed,
        out=out,
        log=out.with_suffix(".log").resolve(),
        timeout=build.limit,
    )


def _measure(build: Build, name: str, checkpoint: Path, out: Path, tasks: bool) -> None:
    def keep(part: str, measure: Callable[[], Canary | Language | Accuracy]) -> None:
        if not (out / f"{part}.json").exists():
            (out / f"{part}.json").write_text(measure().model_dump_json())

    with _server(build, checkpoint, out / "server.log") as up:
        url, model, top_k = up.base_url, up.model, build.plan.recipe.evaluate.top_k
        windows = need(build.held_out).folder / "tokens.jsonl"
        chat = canary.has_chat_template(checkpoint)
        keep("canary", lambda: canary.measure(base_url=url, model=model, chat=chat))
        keep("language", lambda: perplexity.measure(base_url=url, model=model, windows=windows, out=out, top_k=top_k))
        if tasks:
            keep(
                "accuracy",
                lambda: _accuracy(build, up, checkpoint, questions.tasks(build.plan.recipe), out / "lm-eval"),
            )
    print(f"{name} is measured", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
