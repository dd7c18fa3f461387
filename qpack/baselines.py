"""Why a baseline that is in the store isn't reused: what differs from the one that is asked for, by name.

A baseline's key holds the model's digest (its chat template is among the files), what is asked and the task files, the
environments of vLLM and lm-eval, how it is served, and the hardware. When all agree it is reused; here is what to say
when something doesn't.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from qpack.plan import Plan
from qpack.store import Store

_NAMES = {
    "vllm": "vLLM's environment",
    "lm_eval": "lm-eval's environment",
    "code": "qpack's code for it",
    "ask": "what is asked",
    "serving": "serving",
    "task_files": "the task files",
    "after.1": "the held-out text",
}
_DIGEST = 40  # characters: longer values say nothing to a reader
_PARTS = ("performance", "language", "continuations", "needle", "accuracy")


def refused(plan: Plan, store: Store) -> tuple[str, ...]:
    """For each part of the baseline's evidence that isn't in the store while another of the same model is: what differs
    from the nearest one, in one line.
    """
    said = []
    for part in _PARTS:
        stage = plan.stages.get(f"baseline.{part}")
        if stage is None or stage.key is None or (store.folder(part, stage.key) / "result.json").exists():
            continue
        others = [reasons(stage.inputs, inputs) for inputs in _stored(store, part, stage.inputs["after"][0])]
        if others:
            nearest = min(others, key=lambda found: len(found))
            said.append(f"a stored baseline's {part} isn't reused: {'; '.join(nearest)}")
    return tuple(said)


def reasons(asked: Mapping[str, Any], stored: Mapping[str, Any]) -> list[str]:
    """Where the inputs of two results differ, each as `name: what is asked for, not what is stored`. Pure."""
    one, other = dict(_flat(asked, "")), dict(_flat(stored, ""))
    found: dict[str, None] = {}
    for key in (*one, *(key for key in other if key not in one)):
        a, b = one.get(key, "none"), other.get(key, "none")
        if a != b:
            shown = len(a) <= _DIGEST and len(b) <= _DIGEST
            found[f"{_name(key)}: {a}, not {b}" if shown else f"{_name(key)} changed"] = None
    return list(found)


def _stored(store: Store, part: str, model: str) -> Iterator[Mapping[str, Any]]:
    """The inputs of every stored result of this part and model."""
    for path in sorted((store.home / "store" / part).glob("*/result.json")):
        try:
            inputs = json.loads(path.read_text())["inputs"]
            # Parts of a run in looks have no evidence of their own, and only an artifact has a rule for stopping.
            if inputs["after"][0] == model and not inputs.keys() & {"part", "stop"}:
                yield inputs
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            continue


def _flat(value: Any, at: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(inner, f"{at}.{key}" if at else str(key))
    elif isinstance(value, list | tuple):
        for number, inner in enumerate(value):
            yield from _flat(inner, f"{at}.{number}")
    else:
        yield at, json.dumps(value, ensure_ascii=False)


def _name(key: str) -> str:
    """The key in words where it has some: `ask.seed` is `what is asked, seed`."""
    if key in _NAMES:
        return _NAMES[key]
    first, _, rest = key.partition(".")
    return f"{_NAMES.get(first, first)}, {rest}" if rest else _NAMES.get(first, first)
