"""`qpack plan`."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from qpack.cli.render.text import emit, line, plain, table
from qpack.core.console import seconds
from qpack.pipeline import estimate
from qpack.pipeline.differences import ABSENT, Difference
from qpack.pipeline.estimate import StepEstimate
from qpack.pipeline.planned import Plan
from qpack.pipeline.planned_items import PlannedItems
from qpack.pipeline.requirements import Requirement, artifact_bytes
from qpack.pipeline.stages.quantize import resumption
from quantize.checkpoint import model_facts
from quantize.preflight import defaults, stored, targets
from quantize.schemes.schemes import AS_IT_IS

if TYPE_CHECKING:
    # Not at run time: it imports everything that a build needs.
    from qpack.pipeline.text_counts import Counted
    from qpack.pipeline.why import Input, Why
from qpack.cli.render.recipes import advice, texts, unchecked

_MIB = 2**20
_DIGESTS = ("after", "code", "data", "environments")  # whose values are digests
_DIFFERENCES = 30  # shown of an input


def planned(
    plan: Plan,
    steps: list[StepEstimate],
    needed: list[Requirement],
    counted: Counted,
    not_reused: tuple[str, ...] = (),
    *,
    items: tuple[PlannedItems, ...] = (),
    as_json: bool,
) -> None:
    """What would run, why stored baselines aren't reused (`not_reused`), and how many items the gates take."""
    size = artifact_bytes(plan)
    if as_json:
        emit(
            {
                "recipe": plan.recipe.model_dump(mode="json"),
                "source": plan.source.resolved,
                "engine": plan.engine.NAME,
                "engine_reason": plan.why_engine,
                "format": plan.request.format,
                "resumable": plan.engine.RESUMABLE,
                "hardware": plan.hardware.model_dump(),
                "target": plan.target,
                "kernels": [dataclasses.asdict(served) for served in plan.kernels],
                "environments": {
                    e.name: {"variant": e.variant, "lock": e.digest, "made": e.ready}
                    for e in plan.environments.values()
                },
                "steps": [dataclasses.asdict(step) for step in steps],
                "artifact_bytes": size,
                "model": dataclasses.asdict(model_facts.of(plan.source)),
                "layers": [dataclasses.asdict(row) for row in defaults.table(plan.request, plan.source)],
                "requirements": [dataclasses.asdict(need) for need in needed],
                "advice": [note.as_json() for note in plan.advice],
                "texts": [dataclasses.asdict(one) for one in counted.counts],
                "unchecked": unchecked(plan, counted),
                "baselines_not_reused": not_reused,
                "items": [{**dataclasses.asdict(each), "enough": each.enough} for each in items],
            }
        )
        return
    r = plan.recipe
    print(
        f"{r.name}: {_how(plan)}"
        + (f" in groups of {r.quantize.group_size}" if r.quantize.group_size else "")
        + (f" within {r.quantize.budget:g} bits a weight" if r.quantize.budget else "")
    )
    line("model", f"{plan.source.resolved}{_facts(plan)}")
    line("engine", ": ".join(filter(None, (plan.engine.NAME, plan.why_engine))))
    line("format", plan.request.format or "")
    line("if stopped", resumption(plan))
    here = f"{plan.hardware.target} ({plan.hardware.name})"
    line("serves on", here if plan.target == plan.hardware.target else f"{plan.target}; this machine is {here}")
    for kernel in targets.plain(plan.kernels):
        line("kernels", kernel)
    if size is not None:
        line("weights", f"{size / _MIB:,.0f} MiB expected, from shapes and bits")
    advice(plan, needed)
    texts(counted)
    for environment in plan.environments.values():
        if not environment.ready:
            print(f"  environment {environment.name} ({environment.variant}) will be created first")
    _layers(plan)
    print()
    table(
        ("step", "state", "time", "basis"),
        (
            (s.stage, "done" if s.done else "to do", "" if s.done else _time(s), "" if s.done else s.basis)
            for s in steps
        ),
    )
    todo = [s for s in steps if not s.done]
    if todo:
        unknown = sum(s.seconds is None for s in todo)
        without = f"{unknown} step{'s' if unknown > 1 else ''} without an estimate"
        time = estimate.total(steps)
        parts = (f"about {_known(*time)}" if time else "", without if unknown else "")
        print(f"\nto do: {', and '.join(filter(None, parts))}")
    if items:
        print()
        table(
            ("gate", "bound", "items per task", "needed (80 % power)", "basis"),
            (
                (
                    f"{each.gate}[{each.task}]" if each.task else each.gate,
                    f"{each.bound:g}",
                    "all" if each.asked is None else f"{each.asked:,}",
                    _items(each),
                    each.basis,
                )
                for each in items
            ),
        )
    for why in not_reused:
        print(f"\n{why}")
    for left in unchecked(plan, counted):
        print(f"\nnot checked: {left}")


def _facts(plan: Plan) -> str:
    """Parameters, layers and experts in words; empty without headers."""
    if not plan.source.tensors:
        return ""
    facts = model_facts.of(plan.source)
    found = [f"{facts.parameters / 1e6:,.0f} million parameters", f"{facts.layers} layers"]
    if facts.experts:
        found.append(
            f"{facts.experts} experts of which {facts.active_experts} answer a token "
            f"({facts.active_parameters / 1e6:,.0f} million parameters)"
        )
    if facts.draft_layers:
        found.append(f"{facts.draft_layers} for speculative decoding")
    return f", {', '.join(found)}"


def _how(plan: Plan) -> str:
    """Method and scheme; of a quantized source that is released as it is, the schemes that it is stored in."""
    q = plan.recipe.quantize
    if q.method != "none":
        return f"{q.method} {q.scheme}"
    if q.scheme != AS_IT_IS:
        return f"not quantized, {q.scheme}"
    found = dict.fromkeys(part.request.scheme for part in stored.own(plan.request, plan.source))
    return f"as it is, stored in {', '.join(found)}" if found else "as it is"


def _layers(plan: Plan) -> None:
    """Every kind of linear layer: its scheme, or why it has none."""
    rows = defaults.table(plan.request, plan.source)
    if not rows or (plan.request.method == "none" and not stored.own(plan.request, plan.source)):
        return
    print()
    table(
        ("layers", "count", "shape", "scheme", "not quantized because"),
        (
            (
                plain(row.name, 120),
                str(row.count),
                " x ".join(map(str, row.shape)),
                f"{row.scheme} {row.group_size}" if row.scheme and row.group_size else row.scheme or "-",
                row.reason,
            )
            for row in rows
        ),
    )


def _time(step: StepEstimate) -> str:
    return "" if step.seconds is None or step.within is None else _known(step.seconds, step.within)


def _known(count: float, within: float) -> str:
    """`1 min 42 s, within x1.5`."""
    return f"{seconds(count)}, within x{within:.1f}"


def _items(each: PlannedItems) -> str:
    if each.needed is None:
        return "?"
    return f"{each.needed:,}" + ("" if each.enough in (True, None) else ": too few are asked")


def explained(steps: tuple[Why, ...], *, as_json: bool) -> None:
    """Why steps are to do or done."""
    if as_json:
        emit([dataclasses.asdict(step) for step in steps])
        return
    for number, step in enumerate(steps):
        print(f"{chr(10) if number else ''}{step.stage}: {step.state}{_against(step)}")
        for path in step.changed:
            print(f"  changed since it was stored: {path}")
        differing = [each for each in step.inputs if each.differs]
        table(
            ("  input", "value", "" if step.nearest is None else "stored"),
            ((f"  {each.name}", plain(each.value), _input_line(each, step)) for each in step.inputs),
        )
        for each in differing:
            for found in each.differs[:_DIFFERENCES]:
                digests = not found.short or each.name in _DIGESTS
                shown = _changed(found) if digests else f"{plain(found.now)}, was {plain(found.then)}"
                print(f"    {found.at}: {shown}")
            if (more := len(each.differs) - _DIFFERENCES) > 0:
                print(f"    {each.name}: {more} more")


def _against(step: Why) -> str:
    if step.nearest is None:
        return "; nothing of this stage is stored"
    when = f"{step.nearest.key[:12]} of {step.nearest.at}, by qpack {step.nearest.qpack}"
    return f", as {when}" if step.state == "done" else f"; the nearest stored result is {when}"


def _input_line(each: Input, step: Why) -> str:
    return "" if step.nearest is None else "differs" if each.differs else "same"


def _changed(found: Difference) -> str:
    return "new" if found.then == ABSENT else "gone" if found.now == ABSENT else "changed"
