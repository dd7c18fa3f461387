"""Why a baseline that is in the store isn't reused: what differs from the one that is asked for, by name.

A baseline's key holds the model's digest (its chat template is among the files), what is asked and the tasks' data, the
code and the environments, how it is served, and the hardware. When all agree it is reused; here is what to say when
something doesn't.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from qpack.core import seals
from qpack.core.store import Store
from qpack.pipeline.differences import Difference, differences
from qpack.pipeline.plan import Plan

_NAMES = {
    "environments.vllm": "vLLM's environment",
    "environments.lm-eval": "lm-eval's environment",
    "code": "qpack's code for it",
    "ask": "what is asked",
    "serving": "serving",
    "data": "the tasks' data",
    "inherited": "variables",
    "after.hold_out": "the held-out text",
}
_PARTS = ("performance", "language", "continuations", "needle", "accuracy")


def refused(plan: Plan, store: Store) -> tuple[str, ...]:
    """For each part of the baseline's evidence that isn't in the store while another of the same model is: what differs
    from the nearest one, in one line.
    """
    said = []
    for part in _PARTS:
        stage = plan.stages.get(f"baseline.{part}")
        if stage is None or stage.key is None or store.holds(part, stage.key, seals.GLANCE):
            continue
        others = [reasons(stage.inputs, inputs) for inputs in _stored(store, part, stage.inputs["after"]["fetch"])]
        if others:
            nearest = min(others, key=lambda found: len(found))
            said.append(f"a stored baseline's {part} isn't reused: {'; '.join(nearest)}")
    return tuple(said)


def reasons(asked: Mapping[str, Any], stored: Mapping[str, Any]) -> list[str]:
    """Where the inputs of two results differ, each as `name: what is asked for, not what is stored`. Pure."""
    return list(dict.fromkeys(map(_sentence, differences(asked, stored))))


def _sentence(found: Difference) -> str:
    group = found.at.partition(".")[0]
    if group in ("code", "data"):
        return f"{_NAMES[group]} changed"
    return f"{_name(found.at)}: {found.now}, not {found.then}" if found.short else f"{_name(found.at)} changed"


def _stored(store: Store, part: str, model: str) -> Iterator[Mapping[str, Any]]:
    """The inputs of every stored result of this part and model."""
    for _, envelope in store.stored(part):
        inputs = envelope["inputs"]
        after = inputs.get("after")
        # Parts of a run in looks have no evidence of their own, and only an artifact has a rule for stopping.
        if isinstance(after, dict) and after.get("fetch") == model and not inputs.keys() & {"part", "stop"}:
            yield inputs


def _name(at: str) -> str:
    """The place in words where it has some: `ask.seed` is `what is asked, seed`."""
    if at in _NAMES:
        return _NAMES[at]
    first, _, rest = at.partition(".")
    return f"{_NAMES.get(first, first)}, {rest}" if rest else _NAMES.get(first, first)
