"""The source model's evidence, from one server; from the store if any recipe asked the same before."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from qpack.pipeline.slots import Slot
from qpack.pipeline.stage import Stage
from qpack.pipeline.stages.fetch import FETCHED
from qpack.pipeline.stages.hold_out import HELD_OUT

if TYPE_CHECKING:
    from evals.parts.collect_evidence import CollectedEvidence
    from evals.server.session import ServedModel
    from qpack.core.store import Store
    from qpack.pipeline.differences import Difference
    from qpack.pipeline.planned import Plan
    from qpack.pipeline.stage_keys import Known, Step
    from qpack.pipeline.state import Build

NAME = "baseline"
BASELINE: Slot[CollectedEvidence] = Slot(NAME)

_NAMES = {
    "environments.vllm": "vLLM's environment",
    "environments.lm-eval": "lm-eval's environment",
    "code": "qpack's code for it",
    "ask": "what is asked",
    "serving": "serving",
    "data": "the tasks' data",
    "inherited": "variables",
    f"after.{HELD_OUT.stage}": "the held-out text",
}


def steps(known: Known, before: Mapping[str, Step]) -> Iterator[Step]:
    """The parts of the evidence."""
    from qpack.pipeline import evidence_keys

    side = evidence_keys.Side(NAME, FETCHED.stage, HELD_OUT.stage, quantized=False)
    yield evidence_keys.performance(known, side, before)
    yield from evidence_keys.shared(known, side, before, stop=None)


def title(plan: Plan) -> str:
    """What is measured."""
    names = ", ".join(choice.task for choice in plan.recipe.evaluate.tasks)
    return f"the source model in vLLM: {names}, held-out text, load"


def run(build: Build) -> Build:
    """Measure what the store doesn't have, and report why. Raises EvaluateError."""
    if not build.missing(NAME):  # nothing of what measures is loaded then
        return build.having(BASELINE, build.observed(NAME))
    from qpack.pipeline import measuring

    for why in refused(build.plan, build.store):
        build.console.report(why)
    return build.having(BASELINE, measuring.collect(build, measuring.Measured(NAME, served(build))))


def stored(build: Build) -> Build:
    """With the stored evidence."""
    return build.having(BASELINE, build.observed(NAME))


def summary(build: Build) -> str:
    """Means of the tasks."""
    return means(build.require(BASELINE))


def means(evidence: CollectedEvidence) -> str:
    """The tasks' means, for a stage's summary."""
    accuracy = evidence.accuracy.result
    found = ", ".join(f"{task.task} {task.mean:.3f}" for task in accuracy.tasks)
    look = accuracy.look
    return found + (f", stopped at look {look.number} of {look.looks}" if look is not None else "")


def served(build: Build, without: tuple[str, ...] | None = None) -> ServedModel:
    """The source model and its server. `without` isn't None for a server beside the artifact's: flags to leave out."""
    from qpack.pipeline import emulation, measuring

    source = build.require(FETCHED)
    twin = emulation.folder(build) if emulation.of_baseline(build.plan) and build.missing(NAME) else None
    model = measuring.Model(NAME, source.result.digest, source.folder / "checkpoint", twin)
    return measuring.served(build, model, without, quantized=False)


def refused(plan: Plan, store: Store) -> tuple[str, ...]:
    """Why a stored baseline of this model isn't reused: for each part that is missing, what differs from the nearest
    stored one, in one line.
    """
    from qpack.core import seals

    lines = []
    for name, step in plan.steps.items():
        if not name.startswith(f"{NAME}.") or step.key is None or store.holds(step.stage, step.key, seals.GLANCE):
            continue
        others = [reasons(step.inputs, inputs) for inputs in _stored(store, step)]
        if others:
            nearest = min(others, key=lambda found: len(found))
            lines.append(f"a stored baseline's {step.stage} isn't reused: {'; '.join(nearest)}")
    return tuple(lines)


def reasons(asked: Mapping[str, Any], stored: Mapping[str, Any]) -> list[str]:
    """Where the inputs of two results differ, each as `name: what is asked for, not what is stored`. Pure."""
    from qpack.pipeline.differences import differences

    return list(dict.fromkeys(map(_sentence, differences(asked, stored))))


def _sentence(found: Difference) -> str:
    group = found.at.partition(".")[0]
    if group in ("code", "data"):
        return f"{_NAMES[group]} changed"
    return f"{_name(found.at)}: {found.now}, not {found.then}" if found.short else f"{_name(found.at)} changed"


def _stored(store: Store, step: Step) -> Iterator[Mapping[str, Any]]:
    """The inputs of every stored result of the same part and model."""
    model = step.after[FETCHED.stage]
    for _, envelope in store.stored(step.stage):
        inputs = envelope["inputs"]
        after = inputs.get("after")
        # Parts of a run in looks have no evidence of their own, and only an artifact has a rule for stopping.
        if isinstance(after, dict) and after.get(FETCHED.stage) == model and not inputs.keys() & {"part", "stop"}:
            yield inputs


def _name(at: str) -> str:
    """The place in words if it has some: `ask.seed` is `what is asked, seed`."""
    if at in _NAMES:
        return _NAMES[at]
    first, _, rest = at.partition(".")
    return f"{_NAMES.get(first, first)}, {rest}" if rest else _NAMES.get(first, first)


STAGE = Stage(NAME, title, run, summary=summary, steps=steps, stored=stored)
