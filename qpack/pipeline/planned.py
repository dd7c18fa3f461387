"""A plan: what a recipe means on this machine. Pure data, made by `qpack.pipeline.plan`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from qpack.core.errors import EnvironmentFailed
from qpack.core.problems import Code, Problem
from qpack.core.records import Hardware
from qpack.pipeline import planned_serving
from qpack.pipeline.stage_keys import Step
from qpack.recipe.models import Recipe
from qpack.recipe.recipe_file import Loaded
from qpack.runtime.environments import Environment
from quantize.checkpoint.source import Source
from quantize.engines.protocol import Engine, Request
from quantize.preflight.targets import Served
from quantize.schemes.schemes import AS_IT_IS
from registry.serving.serving_manifest import ServingManifest

_NOT_PLANNED = Code("not-planned", "The model's content is unknown, so that no key can be made.")


@dataclass(frozen=True)
class Plan:
    """`steps` are the store's, by name (evidence parts as `baseline.accuracy`), in order; `late` those whose
    key needs a result of the build.
    """

    loaded: Loaded
    source: Source
    engine: Engine
    why_engine: str
    request: Request
    hardware: Hardware
    target: str
    environments: Mapping[str, Environment]
    serving: ServingManifest
    steps: Mapping[str, Step]
    late: Mapping[str, Step]
    held_out: tuple[Path, ...]
    calibration: Path | None
    unchecked: tuple[str, ...]
    advice: tuple[Problem, ...] = ()
    kernels: tuple[Served, ...] = ()
    emulated: str | None = None
    """Why the artifact's twin is served in its place; None where the artifact is."""
    emulation_inputs: Mapping[str, Any] = field(default_factory=dict)
    packed: Source | None = None
    """The source as it is stored, where it is measured beside the unpacked one."""

    @property
    def recipe(self) -> Recipe:
        """The recipe."""
        return self.loaded.recipe

    def served(self, *, quantized: bool) -> ServingManifest:
        """The serving manifest of the artifact, or of the source model."""
        emulated = self.emulated is not None
        asked = (self.serving, self.hardware, self.source, self.request)
        share = planned_serving.share(*asked, quantized=quantized, emulated=emulated)
        return planned_serving.served(self.serving, self.recipe, share, quantized=quantized)

    def native(self) -> Plan:
        """The plan of the source as it is stored, served as the unpacked one is. Only with `packed`."""
        if self.packed is None:
            raise AssertionError("the plan has no packed source")
        request = replace(self.request, method="none", scheme=AS_IT_IS)
        return replace(self, source=self.packed, request=request, emulated=None, emulation_inputs={})

    def key(self, stage: str) -> str:
        """The key of a step. Raises EnvironmentFailed if the model can't be reached: its content is unknown."""
        key = self.steps[stage].key
        if key is None:
            raise EnvironmentFailed(
                _NOT_PLANNED,
                f"the build can't start: {'; '.join(self.unchecked) or 'the model is not resolved'}",
                hint="Connect to the hub (HF_ENDPOINT, HF_TOKEN, proxies), or name a model folder in model.source.",
            )
        return key

    def made_from(self, stage: str) -> tuple[str, ...]:
        """`stage` and every step that depends on it, in order."""
        found = [stage]
        for name, step in self.steps.items():
            if not step.after.keys().isdisjoint(found):
                found.append(name)
        return tuple(found)
