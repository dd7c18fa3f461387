"""Every engine x method x scheme on SmolLM2-135M: what it costs, what it makes, and that vLLM serves it.

    python benchmarks/engines.py [RECIPE] [--only ENGINE[:METHOD:SCHEME],...] [--stored] [--docs FILE]

The rows are the engines' own WAYS. Each is a build as far as the checkpoint, with the same calibration rows, and one
vLLM server that is asked for held-out text (qpack's own evals); the source is served once. A way that the plan refuses
for a CPU is made and served all the same, so that the table has the words of the engine or of vLLM. Everything is in
the work store (QPACK_HOME), so a run that was killed goes on, and a row is made again only when its inputs change.

The table goes to stdout as Markdown, or between the marks in FILE. `--stored` runs nothing: it prints the rows that the
store has.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import re
import resource
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from evals import divergence, perplexity, serving, stats
from qpack import describe
from qpack import plan as plans
from qpack import recipe as recipes
from qpack.build import STAGES, run
from qpack.build import quantize as quantize_stage
from qpack.commands import options
from qpack.console import open_console
from qpack.errors import EvaluateError, Interrupted, QpackError, RecipeError
from qpack.plan import Plan, Stage
from qpack.results import Language, Quantized
from qpack.store import Entry, key_of
from qpack.work import Build, from_store, need
from quantize.engine import Request
from quantize.engines import ENGINES
from quantize.schemes import SCHEMES
from registry import serving_manifest

ROOT = Path(__file__).parent.parent
TO_THE_CHECKPOINT = STAGES[: STAGES.index(quantize_stage) + 1]
MARKS = ("<!-- figures: engines -->", "<!-- /figures -->")
# 16 rows of 256 tokens: every engine gets the same ones, and the slowest ends within the hour on two cores.
SETTINGS = (
    "calibration.samples=16",
    "calibration.max_length=256",
    "evaluate.perplexity.windows=40",
    "gates={size_ratio: 1.0}",
)
# The way that stands in for one that the plan refuses: only what can be planned has keys.
STAND_IN = {"gptqmodel": ("gptq", "W4A16"), "gram": ("gptq", "W4A16"), "llmcompressor": ("gptq", "W4A16")}
_KERNEL = re.compile(r"(?:Using|Selected) (\w+?)(?:LinearKernel|ScaledMMLinearKernel|Kernel)? for \S*")
_MIB = 2**20


@dataclass(frozen=True)
class Way:
    """One row that is asked for. `more` are settings beyond method and scheme."""

    engine: str
    method: str
    scheme: str
    more: tuple[str, ...] = ()
    note: str = ""

    @property
    def settings(self) -> list[str]:
        """As `--set` takes them. The model's layers divide by 64."""
        group = 64 if SCHEMES[self.scheme].grouped else "null"
        named = [f"quantize.engine={self.engine}", f"quantize.method={self.method}", f"quantize.scheme={self.scheme}"]
        return [*SETTINGS, *named, f"quantize.group_size={group}", *self.more]

    def wanted(self, only: str | None) -> bool:
        """Whether `--only` asks for it."""
        name = f"{self.engine}:{self.method}:{self.scheme}"
        return only is None or any(name == one or name.startswith(f"{one}:") for one in only.split(","))


@dataclass(frozen=True)
class Row:
    """What became of a way. Ratios and divergence are None when no server answered; `served` says why, or how."""

    way: Way
    made: Quantized | None = None
    processor_seconds: float | None = None
    size_ratio: float | None = None
    perplexity: float | None = None
    kl: float | None = None
    served: str = ""


def ways() -> Iterator[Way]:
    """Every way of every engine."""
    for engine in ENGINES.values():
        for method, scheme in sorted(engine.WAYS, key=lambda way: (list(SCHEMES).index(way[1]), way[0])):
            yield Way(engine.NAME, method, scheme)


def main() -> int:
    """Make the rows that aren't there, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe", nargs="?", type=Path, default=ROOT / "recipes" / "smollm2-135m-gptq.yaml")
    parser.add_argument("--only", help="ENGINE, ENGINE:METHOD or ENGINE:METHOD:SCHEME, several with commas")
    parser.add_argument("--stored", action="store_true", help="run nothing; the rows that the store has")
    parser.add_argument("--docs", type=Path, help="put the table between the marks in this file")
    ask = parser.parse_args()
    rows = []
    for way in ways():
        if not way.wanted(ask.only):
            continue
        print(f"== {' '.join(dataclasses.astuple(way)[:3])}", file=sys.stderr, flush=True)
        try:
            row = row_of(ask.recipe, way, ask.stored)
        except Interrupted:
            raise
        except QpackError as error:
            row = Row(way, served=f"not made: {_one_line(error)}")
        if row is not None:
            rows.append(row)
    text = "\n".join(table(rows))
    if ask.docs:
        whole = ask.docs.read_text()
        before, rest = whole.split(MARKS[0], 1)
        ask.docs.write_text(f"{before}{MARKS[0]}\n{text}\n{MARKS[1]}{rest.split(MARKS[1], 1)[1]}")
    else:
        print(text)
    return 0


def row_of(recipe: Path, way: Way, stored: bool) -> Row | None:
    """The row, made where it isn't in the store; None when `stored` and nothing is there."""
    plan, refused = planned(recipe, way)
    store = options.store()
    note = f"benchmark-engines-{plan.key('artifact.language')}"
    with open_console() as console:
        build = Build(plan, store, console, options.registry_folder())
        if stored:
            build = from_store(build)
            if build.quantized is None:
                return Row(way, served=failure) if (failure := store.recall(note).get("failure")) else None
        else:
            before = _processor_seconds()
            try:
                build = run(build, TO_THE_CHECKPOINT)
            except QpackError as error:
                if not isinstance(error, Interrupted):
                    store.remember(note, {"failure": f"not made: {_one_line(error)}"})
                raise
            if not need(build.quantized).reused:
                store.remember(f"{note}-cost", {"processor_seconds": _processor_seconds() - before})
        made = need(build.quantized).result
        source = need(build.fetched)
        row = Row(
            way,
            made,
            store.recall(f"{note}-cost").get("processor_seconds"),
            made.weights_bytes / source.result.weights_bytes,
        )
        if stored and (failure := store.recall(note).get("failure")):
            return dataclasses.replace(row, served=failure)
        try:
            baseline = language(build, "baseline", source.folder / "checkpoint", stored)
            artifact = language(build, "artifact", need(build.quantized).folder / "checkpoint", stored)
        except EvaluateError as error:
            why = _one_line(error) + (f" (`qpack check`: {refused})" if refused else "")
            store.remember(note, {"failure": f"no: {why}"})
            return dataclasses.replace(row, served=f"no: {why}")
        if baseline is None or artifact is None:
            return row
        b, a = (divergence.load(one.folder / perplexity.LOGPROBS_FILE) for one in (baseline, artifact))
        windows = artifact.result.windows
        return dataclasses.replace(
            row,
            perplexity=stats.perplexity(
                np.array([w.nll for w in windows]), np.array([float(w.tokens) for w in windows])
            ),
            kl=float(divergence.kl_by_position(b, a).mean()),
            served=_kernels(artifact),
        )


def planned(recipe: Path, way: Way) -> tuple[Plan, str]:
    """The plan, and why qpack refuses this way here; then the plan is that of a way it takes, with this one's request
    and keys of its own.
    """
    store = options.store()
    try:
        return plans.make(recipes.load(recipe, way.settings), store, thorough=True), ""
    except RecipeError as error:
        refused = error
    method, scheme = STAND_IN[way.engine]
    plan = plans.make(recipes.load(recipe, Way(way.engine, method, scheme).settings), store, thorough=True)
    group = 64 if SCHEMES[way.scheme].grouped else None
    request: Request = dataclasses.replace(plan.request, method=way.method, scheme=way.scheme, group_size=group)
    changed = {
        name: Stage(name, key_of({"instead of": plan.key(name), "request": dataclasses.asdict(request)}), stage.inputs)
        for name, stage in plan.stages.items()
        if name == "quantize" or name.startswith("artifact.")
    }
    return dataclasses.replace(plan, request=request, stages={**plan.stages, **changed}), _one_line(refused)


def language(build: Build, who: str, checkpoint: Path, stored: bool) -> Entry[Language] | None:
    """Held-out text under a model, from a vLLM server that is started for it, as a build would ask for it."""
    r, key = build.plan.recipe, build.plan.key(f"{who}.language")
    if stored:
        return build.store.get("language", key, Language)
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
        (out / "kernels.txt").write_text(_named_kernels(log.read_text(errors="replace")))
        return found

    inputs = build.plan.stages[f"{who}.language"].inputs
    return build.store.once("language", key, Language, make, inputs=inputs)


def table(rows: list[Row]) -> list[str]:
    """The rows as Markdown."""
    lines = [
        "| Engine | Method | Scheme | Seconds | Processor seconds | Peak, MiB | Size | Perplexity | KL, nats | vLLM |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        way, made = row.way, row.made
        cells = [
            way.engine,
            way.method,
            f"`{way.scheme}`{f' {way.note}' if way.note else ''}",
            f"{made.seconds:,.0f}" if made else "",
            f"{row.processor_seconds:,.0f}" if row.processor_seconds else "",
            f"{made.peak_memory_bytes / _MIB:,.0f}" if made else "",
            f"x{row.size_ratio:.3f}" if row.size_ratio else "",
            f"{row.perplexity:.2f}" if row.perplexity else "",
            f"{row.kl:.4f}" if row.kl is not None else "",
            row.served.replace("|", "\\|"),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _processor_seconds() -> float:
    """Of every process that has ended below this one: what other work on the machine does isn't in it."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _named_kernels(log: str) -> str:
    return ", ".join(dict.fromkeys(found.group(1) for found in _KERNEL.finditer(log)))


def _kernels(entry: Entry[Language]) -> str:
    file = entry.folder / "kernels.txt"
    named = file.read_text() if file.exists() else ""
    return f"yes ({named})" if named else "yes"


def _one_line(error: QpackError) -> str:
    whole = "; ".join([error.what, *(problem.what for problem in error.problems)])
    return " ".join(whole.replace(os.fspath(options.home()), "").split())[:400]


if __name__ == "__main__":
    raise SystemExit(main())
