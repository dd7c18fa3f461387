"""Every engine x method x scheme on SmolLM2-135M: what it costs, what it makes, and that vLLM serves it.

    python benchmarks/engines.py --out FOLDER [--only NAME,...] [--recipe RECIPE]
    python benchmarks/engines_table.py FOLDER [--docs docs/benchmarks/engines.md]

The rows are the engines' own SUPPORTED, in every format that they save, and what only some engines make: other schemes
for some layers, an FP8 KV cache, a budget of bits. Each is a build as far as the checkpoint, with the same calibration
rows, and a checkup of what it made (`qpack doctor`). Then vLLM loads each, with the arguments of its serving manifest,
and scores held-out text (`engines_vllm.py`); where it has no kernel here, it loads the artifact's 16-bit twin
(`evaluate.emulate`). A way that the plan refuses all the same is made and loaded nevertheless, so that the table has
the words of the engine or of vLLM; where vLLM refuses it, its twin is scored too.

A finished row is a file in FOLDER and stays; delete the file to have it made again. What a killed run had finished is
in the work store (QPACK_HOME), so the next one goes on from there. `--list` prints the ways by name.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import fnmatch
import json
import math
import os
import re
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from evals.measure import divergence, perplexity
from evals.stats import estimates
from qpack.cli import options
from qpack.core.console import open_console
from qpack.core.errors import EvaluateError, Interrupted, QpackError, RecipeError
from qpack.core.records import Quantized
from qpack.core.store import Store, key_of
from qpack.pipeline import cpu_support, estimate, planned_serving, requirements
from qpack.pipeline import plan as plans
from qpack.pipeline.context import Context
from qpack.pipeline.planned import Plan
from qpack.pipeline.run import run
from qpack.pipeline.stage_keys import Step
from qpack.pipeline.stages import calibrate, quantize
from qpack.pipeline.stages.calibrate import CALIBRATED
from qpack.pipeline.stages.catalog import until
from qpack.pipeline.stages.fetch import FETCHED
from qpack.pipeline.stages.quantize import QUANTIZED
from qpack.pipeline.state import Build
from qpack.recipe import recipe_file
from qpack.runtime import environments
from quantize.doctor import checkup as doctor
from quantize.emulate import twin
from quantize.engines.catalog import ENGINES
from quantize.schemes.schemes import FORMATS, SCHEMES
from registry.serving import serving_manifest

ROOT = Path(__file__).parent.parent
BEFORE = until(calibrate.STAGE)
# Every way gets the same rows and windows; the slowest engine ends within ten minutes on one core.
SETTINGS = (
    "calibration.samples=8",
    "calibration.max_length=256",
    "evaluate.perplexity.windows=24",
    "gates={size_ratio: 1.0}",
    "evaluate.emulate=when-needed",
)
WINDOWS, TOP_K = 3, 16  # of held-out text, 256 tokens each: without AVX-512 in bfloat16 one takes ten seconds
GROUP = 64  # divides every layer of the model
# The way that stands in for one that the plan refuses: only what can be planned has keys.
STAND_IN = ("gptq", "W4A16")
_KERNEL = re.compile(r"(?:Using|Selected) (\w+?)(?:LinearKernel|ScaledMMLinearKernel|Kernel)? for \S*")


@dataclass(frozen=True)
class Way:
    """One row that is asked for. `form` None is the engine's own format; `more` are settings beyond these, and `note`
    says what they ask for.
    """

    engine: str
    method: str
    scheme: str
    form: str | None = None
    more: tuple[str, ...] = ()
    note: str = ""

    @property
    def name(self) -> str:
        """What `--only` takes, and the row's file is called."""
        rest = [part for part in (self.form, self.note.replace(" ", "-")) if part]
        return ":".join([self.engine, self.method, self.scheme, *rest])

    @property
    def group_size(self) -> int | None:
        """Input channels that share a scale."""
        return GROUP if SCHEMES[self.scheme].grouped else None

    @property
    def settings(self) -> list[str]:
        """As `--set` takes them."""
        named = [f"quantize.engine={self.engine}", f"quantize.method={self.method}", f"quantize.scheme={self.scheme}"]
        form = [f"quantize.format={self.form}"] if self.form else []
        return [*SETTINGS, *named, *form, f"quantize.group_size={self.group_size or 'null'}", *self.more]


def _others(layers: str, scheme: str) -> tuple[str, ...]:
    return (f"quantize.overrides=[{{layers: {layers}, scheme: {scheme}}}]",)


EXTRA = (
    Way("llmcompressor", "gptq", "W4A16", None, _others("down_proj", "W8A8"), "down_proj W8A8"),
    Way("llmcompressor", "rtn", "W4A16", None, _others("down_proj", "FP8_DYNAMIC"), "down_proj FP8_DYNAMIC"),
    Way("llmcompressor", "rtn", "FP8_DYNAMIC", None, ("quantize.kv_cache=fp8",), "FP8 KV cache"),
    Way("llmcompressor", "gptq", "W4A16", None, ("quantize.kv_cache=fp8",), "FP8 KV cache"),
    Way("gram", "awq+gptq", "W4A16", None, ("quantize.budget=5.0",), "5 bits a weight"),
)


def ways() -> Iterator[Way]:
    """Every way of every engine that quantizes, in every format that it saves, and the extra ones."""
    for engine in (engine for engine in ENGINES.values() if engine.NAME != "copy"):
        for method, scheme in sorted(engine.SUPPORTED, key=lambda way: (list(SCHEMES).index(way[1]), way[0])):
            for form in engine.FORMATS:
                if scheme in FORMATS[form]:
                    yield Way(engine.NAME, method, scheme, None if form == engine.FORMATS[0] else form)
        yield from (way for way in EXTRA if way.engine == engine.NAME)


def chosen(only: str | None) -> list[Way]:
    """The ways that `--only` asks for, in its order; all without it."""
    every = list(ways())
    if only is None:
        return every
    found = [way for pattern in only.split(",") for way in every if fnmatch.fnmatchcase(way.name, pattern)]
    return list(dict.fromkeys(found))


def main() -> int:
    """Make the rows that aren't there; 1 when time was up before all were."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", type=Path, default=ROOT / "recipes" / "smollm2-135m-gptq.yaml")
    parser.add_argument("--out", type=Path, help="the folder that keeps a file for each row")
    parser.add_argument("--only", help="names or patterns (gram:*), several with commas, in the order to make them")
    parser.add_argument("--minutes", type=float, default=math.inf, help="start nothing later than this")
    parser.add_argument("--load", choices=("yes", "no", "only"), default="yes", help="whether vLLM loads what is there")
    parser.add_argument("--list", action="store_true", help="print the names of all ways, and run nothing")
    ask = parser.parse_args()
    wanted = chosen(ask.only)
    if ask.list:
        print("\n".join(way.name for way in wanted))
        return 0
    if ask.out is None:
        parser.error("--out is needed")
    end = time.monotonic() + 60 * ask.minutes
    ask.out.mkdir(parents=True, exist_ok=True)
    for way in wanted if ask.load != "only" else ():
        file = ask.out / f"{way.name}.json"
        if file.exists():
            continue
        if time.monotonic() > end:
            return 1
        print(f"== {way.name}", file=sys.stderr, flush=True)
        write(file, row_of(ask.recipe, way))
    return 0 if ask.load == "no" else load(ask.recipe, ask.out, wanted, end)


def write(file: Path, row: Mapping[str, Any]) -> None:
    """Whole or not at all."""
    part = file.with_suffix(".part")
    part.write_text(json.dumps(row, indent=1) + "\n")
    part.replace(file)


def row_of(recipe: Path, way: Way) -> dict[str, Any]:
    """What became of a way, as JSON; `not_made` says why there is no checkpoint."""
    store = options.store()
    plan, refused = planned(recipe, way, store)
    row: dict[str, Any] = {**dataclasses.asdict(way), "cores": len(os.sched_getaffinity(0))}
    row |= {"form": way.form or ENGINES[way.engine].FORMATS[0], "group_size": way.group_size}
    lacks = None if plan.emulated else cpu_support.lacking(plan.request, plan.source)
    row["check"] = refused or (lacks.message if lacks else "")
    row["expected"] = expected(plan, store)
    with open_console() as console:
        build = run(Build(plan, Context(store, options.registry_folder(), console)), BEFORE)
        source = build.require(FETCHED)
        row["calibration"] = {name: getattr(build.require(CALIBRATED).result, name) for name in ("rows", "tokens")}
        row["source_weights_bytes"] = source.result.weights_bytes
        note, before = f"benchmark-{plan.key('quantize')}", _processor_seconds()
        resumed = store.scratch("quantize", plan.key("quantize")).exists()
        try:
            build = quantize.run(build)
        except Interrupted:
            raise
        except QpackError as error:
            return row | {"not_made": one_line(error)}
    entry = build.require(QUANTIZED)
    if not entry.reused:
        # Of every process that has ended below this one: what other work on the machine does isn't in it.
        store.remember(note, {"processor_seconds": _processor_seconds() - before, "stage_seconds": entry.seconds})
    checkpoint = entry.folder / "checkpoint"
    row["key"] = entry.key
    row["made"] = _made(entry.result, store.recall(note), source.folder, checkpoint)
    if resumed:
        # A killed run had made a part of it: what this one took isn't what the whole takes.
        row["made"] |= dict.fromkeys(("processor_seconds", "stage_seconds", "seconds", "peak_memory_bytes"))
    checkup = doctor.examine(checkpoint, against=source.folder / "checkpoint")
    row["doctor"] = [f"{one.severity} {one.code.name}: {one.message}" for one in checkup.findings]
    return row


def load(recipe: Path, out: Path, wanted: Sequence[Way], end: float) -> int:
    """Every checkpoint that no vLLM has loaded yet, and the source, in one process after the other; then the twins of
    those that vLLM refused. 1 when time was up before all were.
    """
    store = options.store()
    plan, _ = planned(recipe, next(iter(ways())), store)
    held_out, source = (store.folder(stage, plan.key(stage)) for stage in ("hold_out", "fetch"))
    (out / "vllm").mkdir(exist_ok=True)

    def subject(name: str, plan: Plan, checkpoint: Path, *, quantized: bool, emulated: bool) -> dict[str, Any]:
        manifest = planned_serving.named(plan.served(quantized=quantized), name, "")
        own: dict[str, str] = {}
        stem = f"{name}.twin" if emulated else name
        if emulated:
            folder = out / "vllm" / stem
            if not folder.exists():
                twin.make(checkpoint, folder)
            checkpoint, own = folder / "checkpoint", twin.variables(folder)
        arguments = serving_manifest.vllm_arguments(manifest, checkpoint, host="localhost", port=1)
        told = {"name": stem, "arguments": arguments, "variables": manifest.environment, "own": own}
        return told | {kind: str(out / "vllm" / f"{stem}.{kind}") for kind in ("log", "out")}

    def ask(subjects: Sequence[dict[str, Any]]) -> None:
        missing = [one for one in subjects if not Path(one["out"]).exists()]
        if not missing:
            return
        job = {
            "subjects": missing,
            "windows": str(held_out / "tokens.jsonl"),
            "count": WINDOWS,
            "top_k": TOP_K,
            "seconds": min(end - time.monotonic(), 1e9),
            "limit": 600,
        }
        (out / "vllm" / "job.json").write_text(json.dumps(job))
        with open_console() as console:
            vllm = environments.ensure(plan.environments["vllm"], store.home, console.report)
        command = [str(vllm.python), str(ROOT / "benchmarks" / "engines_vllm.py"), str(out / "vllm" / "job.json")]
        subprocess.run(command, env={**os.environ, **vllm.variables, **missing[0]["variables"]}, check=True)

    whole = subject("source", plan, source / "checkpoint", quantized=False, emulated=False)
    windows = perplexity.read_windows(held_out / "tokens.jsonl")[:WINDOWS]
    first, again = {}, {}
    for way in wanted:
        file = out / f"{way.name}.json"
        if file.exists() and "made" in (row := json.loads(file.read_text())) and "loaded" not in row:
            own, _ = planned(recipe, way, store)
            checkpoint = store.folder("quantize", row["key"]) / "checkpoint"
            first[way.name] = subject(way.name, own, checkpoint, quantized=True, emulated=own.emulated is not None)
            if own.emulated is None:
                again[way.name] = (own, checkpoint)
    ask([whole, *first.values()])
    baseline = _answer(Path(whole["out"]), windows)
    if "prompt_logprobs" not in baseline:
        return 1
    answers = {name: _answer(Path(one["out"]), windows) for name, one in first.items() if Path(one["out"]).exists()}
    refused = {name: answer["failed"] for name, answer in answers.items() if "failed" in answer and name in again}
    twins = {}
    for name in refused:
        with contextlib.suppress(EvaluateError):  # a format without a twin: its row has vLLM's words alone
            twins[name] = subject(name, *again[name], quantized=True, emulated=True)
    ask(list(twins.values()))
    for name, one in {**first, **twins}.items():
        if not Path(one["out"]).exists():
            continue
        loaded = _loaded(baseline, _answer(Path(one["out"]), windows), Path(one["log"]))
        if one["own"] or one["name"].endswith(".twin"):
            loaded["kernels"] = ["emulated"]
        if name in refused:
            loaded["refused"] = " ".join(refused[name].split())
        file = out / f"{name}.json"
        write(file, json.loads(file.read_text()) | {"loaded": loaded})
    return 0 if all(Path(one["out"]).exists() for one in {**first, **twins}.values()) else 1


def _answer(file: Path, windows: Sequence[Sequence[int]]) -> dict[str, Any]:
    """What vLLM said of a checkpoint; its log-probabilities as `nll`, `tokens` and `top`."""
    answer: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    if "prompt_logprobs" in answer:
        try:
            parsed = [
                perplexity.parse(entries, window, TOP_K)
                for entries, window in zip(answer["prompt_logprobs"][: len(windows)], windows, strict=True)
            ]
        except EvaluateError as error:
            return {"vllm": answer["vllm"], "failed": one_line(error)}
        answer["nll"] = [-math.fsum(actual) for actual, _, _ in parsed]
        answer["tokens"] = [float(len(actual)) for actual, _, _ in parsed]
        answer["top"] = divergence.TopK(
            np.concatenate([ids for _, ids, _ in parsed]),
            np.concatenate([logprobs for _, _, logprobs in parsed]),
            np.repeat(np.arange(len(parsed), dtype=np.int32), [len(actual) for actual, _, _ in parsed]),
        )
    return answer


def _loaded(baseline: Mapping[str, Any], answer: Mapping[str, Any], log: Path) -> dict[str, Any]:
    """A row's `loaded`: what the artifact is like beside the source, or why vLLM did not load it."""
    kernels = list(dict.fromkeys(found.group(1) for found in _KERNEL.finditer(log.read_text(errors="replace"))))
    told = {"vllm": answer["vllm"], "kernels": kernels}
    if "failed" in answer:
        return told | {"failed": " ".join(answer["failed"].split())}
    kl = divergence.kl_by_position(baseline["top"], answer["top"])
    return told | {
        "perplexity": estimates.perplexity(np.array(answer["nll"]), np.array(answer["tokens"])),
        "source_perplexity": estimates.perplexity(np.array(baseline["nll"]), np.array(baseline["tokens"])),
        "kl": float(kl.mean()),
        "positions": len(kl),
        **{name: answer[name] for name in ("load_seconds", "seconds", "text")},
    }


def planned(recipe: Path, way: Way, store: Store) -> tuple[Plan, str]:
    """The plan, and why qpack refuses this way here; then the plan is that of a way it takes, with this one's request
    and keys of its own.
    """
    try:
        return plans.make(recipe_file.load(recipe, way.settings), store, thorough=True), ""
    except RecipeError as error:
        refused = error
    plan = plans.make(recipe_file.load(recipe, Way(way.engine, *STAND_IN).settings), store, thorough=True)
    request = dataclasses.replace(
        plan.request, method=way.method, scheme=way.scheme, group_size=way.group_size, format=way.form
    )
    changed = {
        name: Step(name, key_of({"instead of": plan.key(name), "request": dataclasses.asdict(request)}), stage.inputs)
        for name, stage in plan.steps.items()
        if name == "quantize" or name.startswith("artifact.")
    }
    return dataclasses.replace(plan, request=request, steps={**plan.steps, **changed}), one_line(refused)


def expected(plan: Plan, store: Store) -> dict[str, Any]:
    """What `qpack plan` says before anything runs: bytes, and seconds where earlier runs tell."""
    took = {step.stage: step.seconds for step in estimate.steps(plan, store)}
    told = requirements.expected(plan)
    return {
        "peak_memory_bytes": told["expected_peak_memory_bytes"],
        "weights_bytes": told["expected_weights_bytes"],
        "disk_bytes": next((one.bytes for one in requirements.required(plan) if one.what == "disk"), None),
        "seconds": took["quantize"],
    }


def _made(made: Quantized, cost: Mapping[str, Any], source: Path, checkpoint: Path) -> dict[str, Any]:
    told = made.model_dump(mode="json", exclude={"files", "sites", "digest"})
    # As the plan counts: what was fetched, and the artifact in the store and in the registry.
    return told | dict(cost) | {"disk_bytes": _bytes_below(source) + 2 * _bytes_below(checkpoint)}


def _bytes_below(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def _processor_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def one_line(error: QpackError) -> str:
    """The error's words without a path of this machine."""
    whole = "; ".join([error.what, *(problem.message for problem in error.problems)])
    return " ".join(whole.replace(os.fspath(options.home()), "").split())


if __name__ == "__main__":
    raise SystemExit(main())
