"""Every engine x method x scheme on SmolLM2-135M: what it costs, what it makes, and that vLLM serves it.

    python benchmarks/engines.py --out FOLDER [--only WAY,...] [--recipe RECIPE]
    python benchmarks/engines_table.py FOLDER [--docs docs/engines.md]

The rows are the engines' own WAYS, in every format that they save, and what only some engines make: other schemes for
some layers, an FP8 KV cache, a budget of bits. Each is a build as far as the checkpoint, with the same calibration
rows, a checkup of what it made (`qpack doctor`), and one vLLM server that is asked for held-out text (qpack's own
evals); the source is served once. A way that the plan refuses for a CPU is made and served all the same, so that the
table has the words of the engine or of vLLM.

A finished row is a file in FOLDER and stays; delete the file to have it made again. What a killed run had finished is
in the work store (QPACK_HOME), so the next one goes on from there. `--list` prints the ways by name.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import re
import resource
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from evals import divergence, perplexity, serving, stats
from qpack import describe, estimate, needs
from qpack import plan as plans
from qpack import recipe as recipes
from qpack.build import STAGES, run
from qpack.build import quantize as quantize_stage
from qpack.commands import options
from qpack.console import open_console
from qpack.errors import EvaluateError, Interrupted, QpackError, RecipeError
from qpack.plan import Plan, Stage
from qpack.results import Language, Quantized
from qpack.store import Entry, Store, key_of
from qpack.work import Build, need
from quantize import doctor
from quantize.engines import ENGINES
from quantize.schemes import FORMATS, SCHEMES
from registry import serving_manifest

ROOT = Path(__file__).parent.parent
BEFORE = STAGES[: STAGES.index(quantize_stage)]
# Every way gets the same rows and windows; the slowest engine ends within ten minutes of one core.
SETTINGS = (
    "calibration.samples=16",
    "calibration.max_length=256",
    "evaluate.perplexity.windows=24",
    "gates={size_ratio: 1.0}",
)
GROUP = 64  # divides every layer of the model
# The way that stands in for one that the plan refuses: only what can be planned has keys.
STAND_IN = {"gptqmodel": ("gptq", "W4A16"), "gram": ("gptq", "W4A16"), "llmcompressor": ("gptq", "W4A16")}
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

    def wanted(self, only: str | None) -> bool:
        """Whether `--only` asks for it: by its name, or by the beginning of it."""
        return only is None or any(self.name == one or self.name.startswith(f"{one}:") for one in only.split(","))


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
    """Every way of every engine, in every format that it saves, and the extra ones."""
    for engine in ENGINES.values():
        for method, scheme in sorted(engine.WAYS, key=lambda way: (list(SCHEMES).index(way[1]), way[0])):
            for form in engine.FORMATS:
                if scheme in FORMATS[form]:
                    yield Way(engine.NAME, method, scheme, None if form == engine.FORMATS[0] else form)
        yield from (way for way in EXTRA if way.engine == engine.NAME)


def main() -> int:
    """Make the rows that aren't there; 1 when time was up before all were."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", type=Path, default=ROOT / "recipes" / "smollm2-135m-gptq.yaml")
    parser.add_argument("--out", type=Path, help="the folder that keeps a file for each row")
    parser.add_argument("--only", help="ENGINE, ENGINE:METHOD, ... as far as wanted, several with commas")
    parser.add_argument("--minutes", type=float, default=math.inf, help="start no row later than this")
    parser.add_argument("--list", action="store_true", help="print the names of all ways, and run nothing")
    ask = parser.parse_args()
    wanted = [way for way in ways() if way.wanted(ask.only)]
    if ask.list:
        print("\n".join(way.name for way in wanted))
        return 0
    if ask.out is None:
        parser.error("--out is needed")
    end = time.monotonic() + 60 * ask.minutes
    ask.out.mkdir(parents=True, exist_ok=True)
    for way in wanted:
        file = ask.out / f"{way.name}.json"
        if file.exists():
            continue
        if time.monotonic() > end:
            return 1
        print(f"== {way.name}", file=sys.stderr, flush=True)
        row = row_of(ask.recipe, way)
        part = file.with_suffix(".part")
        part.write_text(json.dumps(row, indent=1) + "\n")
        part.replace(file)
    return 0


def row_of(recipe: Path, way: Way) -> dict[str, Any]:
    """What became of a way, as JSON: `not_made` or `not_served` say why there is nothing more."""
    store = options.store()
    plan, refused = planned(recipe, way, store)
    row: dict[str, Any] = {**dataclasses.asdict(way), "cores": len(os.sched_getaffinity(0))}
    row |= {"form": way.form or ENGINES[way.engine].FORMATS[0], "group_size": way.group_size, "check": refused}
    row["expected"] = expected(plan, store)
    with open_console() as console:
        build = run(Build(plan, store, console, options.registry_folder()), BEFORE)
        source = need(build.fetched)
        row["calibration"] = {name: getattr(need(build.calibrated).result, name) for name in ("rows", "tokens")}
        row["source"] = {"weights_bytes": source.result.weights_bytes}
        note, before = f"benchmark-{plan.key('quantize')}", _processor_seconds()
        try:
            build = quantize_stage(build)
        except Interrupted:
            raise
        except QpackError as error:
            return row | {"not_made": one_line(error)}
        entry = need(build.quantized)
        if not entry.reused:
            # Of every process that has ended below this one: what other work on the machine does isn't in it.
            store.remember(note, {"processor_seconds": _processor_seconds() - before, "stage_seconds": entry.seconds})
        checkpoint = entry.folder / "checkpoint"
        row["made"] = _made(entry.result, store.recall(note), source.folder, checkpoint)
        checkup = doctor.examine(checkpoint, against=source.folder / "checkpoint")
        row["doctor"] = [f"{one.severity} {one.kind}: {one.what}" for one in checkup.findings]
        baseline = language(build, "baseline", source.folder / "checkpoint")
        row["source"]["perplexity"] = _perplexity(baseline.result)
        try:
            artifact = language(build, "artifact", checkpoint)
        except EvaluateError as error:
            return row | {"not_served": one_line(error)}
    b, a = (divergence.load(one.folder / perplexity.LOGPROBS_FILE) for one in (baseline, artifact))
    served = json.loads((artifact.folder / "served.json").read_text())
    kl = divergence.kl_by_position(b, a)
    return row | {
        "served": {**served, "perplexity": _perplexity(artifact.result), "kl": float(kl.mean()), "positions": len(kl)}
    }


def planned(recipe: Path, way: Way, store: Store) -> tuple[Plan, str]:
    """The plan, and why qpack refuses this way here; then the plan is that of a way it takes, with this one's request
    and keys of its own.
    """
    try:
        return plans.make(recipes.load(recipe, way.settings), store, thorough=True), ""
    except RecipeError as error:
        refused = error
    plan = plans.make(recipes.load(recipe, Way(way.engine, *STAND_IN[way.engine]).settings), store, thorough=True)
    request = dataclasses.replace(
        plan.request, method=way.method, scheme=way.scheme, group_size=way.group_size, format=way.form
    )
    changed = {
        name: Stage(name, key_of({"instead of": plan.key(name), "request": dataclasses.asdict(request)}), stage.inputs)
        for name, stage in plan.stages.items()
        if name == "quantize" or name.startswith("artifact.")
    }
    return dataclasses.replace(plan, request=request, stages={**plan.stages, **changed}), one_line(refused)


def expected(plan: Plan, store: Store) -> dict[str, Any]:
    """What `qpack plan` says before anything runs: bytes, and seconds where earlier runs tell."""
    took = {step.stage: step.seconds for step in estimate.steps(plan, store)}
    told = needs.expected(plan)
    return {
        "peak_memory_bytes": told["expected_peak_memory_bytes"],
        "weights_bytes": told["expected_weights_bytes"],
        "disk_bytes": next((one.bytes for one in needs.needs(plan) if one.what == "disk"), None),
        "seconds": took["quantize"],
    }


def language(build: Build, who: str, checkpoint: Path) -> Entry[Language]:
    """Held-out text under a model, from a vLLM server that is started for it, as a build would ask for it."""
    r, key = build.plan.recipe, build.plan.key(f"{who}.language")
    manifest, log = describe.serving(build, "subject", "", who), build.store.log(f"{who}-language", key)

    def arguments(host: str, port: int) -> list[str]:
        return serving_manifest.vllm_arguments(manifest, checkpoint, host=host, port=port)

    def make(out: Path) -> Language:
        vllm = build.environment("vllm")
        command = serving.Command(vllm.python, arguments, {**vllm.variables, **manifest.environment})
        start = r.limits.server_start_minutes * 60
        with serving.running(command, model="subject", log=log, timeout=start, progress=build.console.progress) as up:
            found = perplexity.measure(
                base_url=up.base_url,
                model=up.model,
                windows=need(build.held_out).folder / "tokens.jsonl",
                out=out,
                top_k=r.evaluate.top_k,
                progress=build.console.progress,
            )
        kernels = list(dict.fromkeys(found.group(1) for found in _KERNEL.finditer(log.read_text(errors="replace"))))
        told = {"kernels": kernels, "start_seconds": up.start_seconds, "vllm": up.version}
        (out / "served.json").write_text(json.dumps(told))
        return found

    # A key of its own: a build's language stage leaves no served.json.
    key = key_of({"benchmark": "engines", "language": key})
    return build.store.once("language", key, Language, make, inputs=build.plan.stages[f"{who}.language"].inputs)


def _made(made: Quantized, cost: dict[str, Any], source: Path, checkpoint: Path) -> dict[str, Any]:
    told = made.model_dump(mode="json", exclude={"files", "sites", "digest"})
    # As the plan counts: what was fetched, and the artifact in the store and in the registry.
    return told | cost | {"disk_bytes": _bytes_below(source) + 2 * _bytes_below(checkpoint)}


def _bytes_below(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def _perplexity(found: Language) -> float:
    return stats.perplexity(
        np.array([window.nll for window in found.windows]), np.array([float(window.tokens) for window in found.windows])
    )


def _processor_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def one_line(error: QpackError) -> str:
    """The error's words without a path of this machine."""
    whole = "; ".join([error.what, *(problem.what for problem in error.problems)])
    return " ".join(whole.replace(os.fspath(options.home()), "").split())


if __name__ == "__main__":
    raise SystemExit(main())
