"""What a build would run, and its time: from shapes, from what is asked, and from measured rates.

A step's time follows from its work (parameters, rows, tokens, requests) and from rates (`qpack.pipeline.rates`); what
ran here before corrects them. Where nothing comparable was measured there is no time.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evals.gates.gates import SPEED_GATES
from evals.parts.collect_evidence import PARTS, undisturbed
from qpack.core import seals
from qpack.core.store import Store, envelope_of
from qpack.pipeline import rates
from qpack.pipeline.planned import Plan
from qpack.pipeline.rates import Estimate, Ran, Work
from qpack.pipeline.stages.calibrate import CALIBRATED
from qpack.pipeline.stages.fetch import FETCHED
from qpack.pipeline.stages.hold_out import HELD_OUT
from qpack.pipeline.stages.judge import JUDGED
from qpack.pipeline.stages.quantize import QUANTIZED
from qpack.recipe import eval_requests
from qpack.runtime import hardware

if TYPE_CHECKING:
    from qpack.core.records import Hardware
    from qpack.core.store import Entry
    from qpack.pipeline.stage_keys import Step
    from qpack.recipe.models import Calibration

_KEPT = 100
"""Runs that are remembered of one machine."""
_SAMPLED = 300
"""Rows of a calibration text that are looked at for their length."""
_CHARACTERS = 4.3
"""Characters a token: BoolQ's passages in SmolLM2's tokenizer (English prose)."""


@dataclass(frozen=True)
class StepEstimate:
    """One step: done or to do; `seconds` is None where nothing comparable was measured, else known within a factor."""

    stage: str
    key: str | None
    done: bool
    seconds: float | None
    basis: str
    within: float | None = None


def steps(plan: Plan, store: Store) -> list[StepEstimate]:
    """Every keyed step of the plan, in order."""
    earlier, like = recall(store, plan.hardware), rates.machine_class(plan.hardware, hardware.instructions())
    found = []
    for name, step in plan.steps.items():
        done = step.key is not None and store.holds(step.stage, step.key, seals.GLANCE) and _of_use(plan, store, step)
        kind, work = kind_of(plan, step.stage), work_of(plan, step.stage, store)
        time = rates.estimate(kind, work, plan.hardware, like, earlier) if work is not None else None
        if time is None:
            found.append(StepEstimate(name, step.key, done, None, "nothing comparable was measured"))
        else:
            found.append(StepEstimate(name, step.key, done, time.seconds, time.basis, time.within))
    return found


def _of_use(plan: Plan, store: Store, step: Step) -> bool:
    """Whether a stored step needn't be made again: a gate on speed needs a load that nothing disturbed."""
    kind = PARTS.get(step.stage)
    if kind is None or step.key is None or SPEED_GATES.isdisjoint(plan.recipe.gates.bounds()):
        return True
    entry = store.get(step.stage, step.key, kind)
    return entry is None or undisturbed(entry.result)


def total(found: list[StepEstimate]) -> tuple[float, float] | None:
    """(seconds, factor) of the steps to do that have a time; None where none has."""
    todo = [step for step in found if not step.done and step.seconds is not None and step.within is not None]
    return rates.total([Estimate(step.seconds or 0.0, step.basis, step.within or 1.0) for step in todo])


def kind_of(plan: Plan, stage: str) -> str:
    """What rates of a stage belong to: of quantization, the engine and the method."""
    if stage == FETCHED.stage:
        return f"{stage} {plan.source.kind}"
    if stage != QUANTIZED.stage:
        return _KINDS.get(stage, stage)
    return rates.quantize_kind(plan.engine.NAME, plan.request)


def work_of(plan: Plan, stage: str, store: Store) -> Work | None:
    """What a stage has to do; None where it isn't counted, or the model's shapes aren't known."""
    count = _WORK.get(stage)
    return count(plan, store) if count is not None and plan.source.tensors else None


def _quantize(plan: Plan, store: Store) -> Work:
    ask, (layers, _) = plan.recipe.calibration, plan.source.split(plan.request.ignore)
    linears, rows = sum(len(kind.names) for kind in layers), ask.samples if ask else 0
    return rates.quantizing(plan.source.parameters, linears, rows, calibration_tokens(plan, store))


def calibration_tokens(plan: Plan, store: Store) -> float:
    """Tokens of all calibration rows: as they were made, else by the texts' lengths, else the most there can be."""
    ask, step = plan.recipe.calibration, plan.steps.get(CALIBRATED.stage)
    if ask is None:
        return 0.0
    if step is not None and step.key is not None and (made := envelope_of(store.folder(step.stage, step.key))):
        tokens = made["result"].get("tokens")
        if isinstance(tokens, int):
            return float(tokens)
    return ask.samples * (row_tokens(plan.calibration, ask) if plan.calibration else ask.max_length)


def row_tokens(texts: Path, ask: Calibration) -> float:
    """Mean tokens of a row, by the number of characters of the first texts; the most there can be where they can't be
    read as rows.
    """
    try:
        with texts.open(encoding="utf-8", errors="replace") as lines:
            read = [_text(line, ask.field, texts.suffix) for line in itertools.islice(lines, _SAMPLED)]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return float(ask.max_length)
    lengths = [len(text) / _CHARACTERS for text in read if len(text) / _CHARACTERS >= ask.min_length]
    cut = [min(length, float(ask.max_length)) for length in lengths]
    return sum(cut) / len(cut) if cut else float(ask.max_length)


def _text(line: str, field: str | None, suffix: str) -> str:
    if suffix != ".jsonl":
        return line
    value: Any = json.loads(line)
    return str(value[field]) if field else str(value)


def _performance(plan: Plan, _: Store) -> Work:
    return rates.loading(plan.source.parameters, eval_requests.specs(plan.recipe).performance.load)


def _language(plan: Plan, _: Store) -> Work:
    ask = plan.recipe.evaluate.perplexity
    return rates.reading(plan.source.parameters, len(ask.each()) * ask.windows * ask.window_tokens)


def _accuracy(plan: Plan, _: Store) -> Work:
    asked = [choice.max_samples or choice.samples or 1000 for choice in plan.recipe.evaluate.tasks]
    return rates.answering(plan.source.parameters, sum(asked))


def _size(plan: Plan, _: Store) -> Work:
    return {"parameters": float(plan.source.parameters)}


_WORK: Mapping[str, Callable[[Plan, Store], Work]] = {
    FETCHED.stage: _size,
    HELD_OUT.stage: _size,
    CALIBRATED.stage: _size,
    QUANTIZED.stage: _quantize,
    "performance": _performance,
    "proof": _size,
    "language": _language,
    "accuracy": _accuracy,
    JUDGED.stage: _size,
}
_KINDS = {HELD_OUT.stage: "windows", CALIBRATED.stage: "rows", JUDGED.stage: "verdict"}
"""The rates of stages that have other names there."""


def recall(store: Store, machine: Hardware) -> list[Ran]:
    """What ran on this machine before."""
    found = []
    ran = store.recall(_note(machine)).get("ran")
    for each in ran if isinstance(ran, list) else ():
        try:
            work = {str(name): float(amount) for name, amount in each["work"].items()}
            ran_once = Ran(str(each["kind"]), work, float(each["seconds"]))
        except (LookupError, TypeError, ValueError, AttributeError):
            continue
        if ran_once.seconds > 0:
            found.append(ran_once)
    return found


def remember(plan: Plan, store: Store, entries: Mapping[str, Entry[Any]]) -> None:
    """Keep how long steps took that were run just now."""
    new = []
    for name, entry in entries.items():
        step = plan.steps.get(name)
        if entry.reused or step is None or (work := work_of(plan, step.stage, store)) is None:
            continue
        new.append(Ran(kind_of(plan, step.stage), work, entry.seconds))
    if new:
        kept = [*recall(store, plan.hardware), *new][-_KEPT:]
        store.remember(_note(plan.hardware), {"ran": [asdict(each) for each in kept]})


def _note(machine: Hardware) -> str:
    name = f"{machine.target} {machine.name} {machine.cores} {machine.accelerators}"
    return f"rates-{hashlib.sha256(name.encode()).hexdigest()[:16]}"
