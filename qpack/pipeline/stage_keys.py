"""The inputs of each stage's key, by name, so that `plan --why` can show which one differs.

`after` are the keys of the stages before it, `code` the closure of the modules that make it (`qpack.pipeline.closure`),
`environments` the digests of the engines' environments; the rest is what the recipe asks, as the data that is handed to
those modules, and where it runs.

Hardware: speed and memory belong to the machine (its model, cores, accelerators). Figures of text and tasks, and the
artifact, belong to the kernels: the target, a GPU's model, and on a CPU its instruction sets and not its model, since
kernels are chosen by those. Texts become the same tokens everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

from qpack.core.frozen import Frozen
from qpack.core.records import Hardware
from qpack.core.store import Inputs, key_of
from qpack.pipeline import closure
from qpack.recipe.models import Recipe
from qpack.runtime import hardware
from qpack.runtime.environments import Environment
from quantize.checkpoint.source import Source
from quantize.engines.protocol import Engine, Request
from registry.serving.serving_manifest import ServingManifest


@dataclass(frozen=True)
class Step:
    """One result in the store: its key (None while an input is unknown) and what went into the key.

    `late` are the values that inputs known only during the build can have.
    """

    name: str
    key: str | None
    inputs: Inputs
    late: tuple[Inputs, ...] = ()

    @property
    def stage(self) -> str:
        """The folder of the store: `accuracy` of `baseline.accuracy`."""
        return self.name.rpartition(".")[2]

    @property
    def after(self) -> Mapping[str, str | None]:
        """The keys of the steps before it, by name."""
        after: Mapping[str, str | None] = self.inputs["after"]
        return after

    def keyed(self, **late: Any) -> tuple[Inputs, str]:
        """(inputs, key) with values of late inputs."""
        inputs = {**self.inputs, **late}
        return inputs, key_of(inputs)


@dataclass(frozen=True)
class Known:
    """What keys are made from: all that a plan knows. `variables` are those that a measured server gets from here,
    `text` is the recipe as it is published.
    """

    recipe: Recipe
    request: Request
    source: Source
    engine: Engine
    machine: Hardware
    target: str
    environments: Mapping[str, Environment]
    serving: ServingManifest
    held_out: Sequence[str | None]
    calibration: str | None
    variables: Mapping[str, str]
    text: str
    digest: Callable[[Path], str | None]
    code: closure.Reader
    emulation: Mapping[str, Any] = field(default_factory=dict)
    """Inputs of the evidence of a twin; empty where the artifact itself is served."""
    packed: Source | None = None
    """The source as it is stored, where it is measured beside the unpacked one."""


def step(
    name: str,
    before: Mapping[str, Step],
    after: Sequence[str],
    code: Mapping[str, str],
    inputs: Inputs,
    late: tuple[Inputs, ...] = (),
) -> Step:
    """A step after those of `before` that `after` names, made by the modules of `code`."""
    keys = {one: before[one].key for one in after}
    whole = {"stage": name.rpartition(".")[2], "after": keys, "code": code, **inputs}
    known = not late and all(keys.values()) and all(value is not None for value in inputs.values())
    return Step(name, key_of(whole) if known else None, whole, late)


def plain(value: Any) -> Any:
    """A question as data for JSON."""
    if isinstance(value, Frozen):
        return value.model_dump(mode="json")
    if is_dataclass(value):
        return {each.name: plain(getattr(value, each.name)) for each in fields(value)}
    return [plain(each) for each in value] if isinstance(value, tuple | list) else value


def worker(known: Known, *names: str) -> dict[str, dict[str, Any]]:
    """The digests of the environments where workers run, and the variables that are set for them."""
    return {
        "environments": digests(known, *names),
        "variables": {name: dict(known.environments[name].variables) for name in names},
    }


def digests(known: Known, *names: str) -> dict[str, str]:
    """Environment -> digest of its lock."""
    return {name: known.environments[name].digest for name in names}


def machine(here: Hardware) -> dict[str, Any]:
    """The machine as an input of speed and memory."""
    # Memory differs a little from boot to boot.
    return {**here.model_dump(mode="json", exclude={"memory_bytes"}), "instructions": hardware.instructions()}


def kernels(here: Hardware, target: str) -> dict[str, Any]:
    """The hardware as an input of the artifact and of figures of text and tasks."""
    if target == "cpu":
        return {"target": target, "instructions": hardware.instructions()}
    return {"target": target, "name": here.name}
