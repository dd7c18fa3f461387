"""Why a stage is done or to do: the inputs of its key, and how they differ from the nearest stored result.

Nearest is the one with the fewest inputs that differ, of the same model where there is one; the newest of several.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from qpack.core import seals
from qpack.core.errors import RecipeError, invalid_option
from qpack.core.store import Store, envelope_of, key_of
from qpack.pipeline import closure
from qpack.pipeline.differences import Difference, differences
from qpack.pipeline.planned import Plan
from qpack.pipeline.stages.catalog import STAGES

State = Literal["done", "to do", "not known"]


@dataclass(frozen=True)
class Input:
    """One thing that a key is made of: its digest or its value, and what of it differs from the stored result's."""

    name: str
    value: str
    differs: tuple[Difference, ...]


@dataclass(frozen=True)
class Stored:
    """A stored result: its key, when it was made, and by which qpack."""

    key: str
    at: str
    qpack: str


@dataclass(frozen=True)
class Why:
    """One step of the work store. `changed` are files of the stored result that were changed since, by hand or on a
    disk; `nearest` is None when nothing of the stage is stored.
    """

    stage: str
    key: str | None
    state: State
    inputs: tuple[Input, ...]
    nearest: Stored | None
    changed: tuple[str, ...] = ()


def why(plan: Plan, store: Store, stage: str) -> tuple[Why, ...]:
    """The steps of `stage`: `artifact` and `baseline` have several. Raises RecipeError for a stage that
    this recipe hasn't got.
    """
    steps = {name: (step.key, step.inputs) for name, step in plan.steps.items()}
    steps |= {name: _late(plan, store, name) for name in plan.late}
    wanted = [name for name in steps if name == stage or name.startswith(f"{stage}.")]
    if not wanted:
        raise _unknown(stage, steps)
    return tuple(_why(store, name, *steps[name]) for name in wanted)


def _why(store: Store, name: str, key: str | None, inputs: Mapping[str, Any]) -> Why:
    stage = name.rpartition(".")[2]
    changed: tuple[str, ...] = ()
    if key is not None and (envelope := envelope_of(store.folder(stage, key))) is not None:
        changed = seals.broken(store.folder(stage, key), seals.GLANCE)
        if not changed:
            return Why(name, key, "done", _inputs(inputs, inputs), _of(key, envelope))
    near, then = _nearest(store, stage, inputs)
    state: State = "to do" if key is not None else "not known"
    return Why(name, key, state, _inputs(inputs, then), near, changed)


def _inputs(now: Mapping[str, Any], then: Mapping[str, Any] | None) -> tuple[Input, ...]:
    found = differences(now, then) if then is not None else ()
    by_name: dict[str, list[Difference]] = {name: [] for name in now if name != "stage"}
    for difference in found:
        by_name.setdefault(difference.at.partition(".")[0], []).append(difference)
    return tuple(Input(name, _value(now.get(name)), tuple(by_name[name])) for name in by_name)


def _value(value: Any) -> str:
    """A digest of much, or the value itself."""
    if isinstance(value, Mapping) and value and all(isinstance(each, str) for each in value.values()):
        count = f"{len(value)} " if len(value) > 1 else ""
        return f"{count}{', '.join(value)}" if len(value) < 4 else f"{count}of digest {closure.digest_of(value)[:12]}"
    return str(value) if len(str(value)) <= 64 else f"digest {key_of({'value': value})[:12]}"


def _of(key: str, envelope: Mapping[str, Any]) -> Stored:
    made = envelope["made"]
    return Stored(key, str(made.get("at", "an unknown time")), str(made.get("qpack", "older than 0.2")))


def _nearest(store: Store, stage: str, inputs: Mapping[str, Any]) -> tuple[Stored | None, Mapping[str, Any] | None]:
    def distance(envelope: Mapping[str, Any]) -> tuple[bool, int]:
        then = envelope["inputs"]
        names = {found.at.partition(".")[0] for found in differences(inputs, then)}
        return then.get("after") != inputs.get("after"), len(names)

    # Parts of a run in looks have no evidence of their own.
    kept = [
        (folder, envelope)
        for folder, envelope in store.stored(stage)
        if ("part" in envelope["inputs"]) == ("part" in inputs)
    ]
    if not kept:
        return None, None
    folder, envelope = min(kept, key=lambda one: (*distance(one[1]), -one[0].stat().st_mtime_ns))
    return _of(folder.name, envelope), envelope["inputs"]


def _late(plan: Plan, store: Store, name: str) -> tuple[str | None, Mapping[str, Any]]:
    """The key and inputs of a step that needs a result of the build: of a stored one, or the last that it can have."""
    step = plan.late[name]
    if None in step.after.values():
        return None, step.keyed(**step.late[-1])[0]
    for values in step.late:
        inputs, key = step.keyed(**values)
        if (store.folder(step.stage, key) / "result.json").exists():
            break
    return key, inputs


def _unknown(stage: str, steps: Iterable[str]) -> RecipeError:
    names = [*dict.fromkeys((*(each.name for each in STAGES), *steps))]
    there = [name for name in names if any(step == name or step.startswith(f"{name}.") for step in steps)]
    near = difflib.get_close_matches(stage, there, n=1, cutoff=0.5)
    hint = f"Did you mean '{near[0]}'?" if near else f"One of: {', '.join(there)}."
    what = f"'{stage}' is not a stage of this recipe."
    if stage in names:
        what = f"'{stage}' keeps nothing in the store for this recipe."
    return invalid_option("--why", what, hint)
