"""Builds whose time was measured (measured_builds.yaml), and what the rates of `qpack plan` predict for each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from evals.measure.eval_specs import Load
from qpack.pipeline import rates
from qpack.pipeline.rates import Work

FILE = Path(__file__).with_suffix(".yaml")


@dataclass(frozen=True)
class MeasuredBuild:
    """`seconds` were measured, `predicted` follow from the rates. `page` of docs/benchmarks has the figure; `fitted`
    says that rates rest on it.
    """

    build: str
    machine: str
    page: str
    fitted: bool
    seconds: float
    predicted: float


def read() -> list[MeasuredBuild]:
    """Every build of the file. Raises KeyError for a step that no rate is for."""
    return [_build(one) for one in yaml.safe_load(FILE.read_text())]


def _build(one: Mapping[str, Any]) -> MeasuredBuild:
    predicted = sum(
        rates.RATES[step["kind"], one["like"]].seconds(work_of(step), one["cores"]) for step in one["steps"]
    )
    measured = sum(step["seconds"] for step in one["steps"])
    return MeasuredBuild(one["build"], one["machine"], one["from"], one["fitted"], measured, predicted)


def work_of(step: Mapping[str, Any]) -> Work:
    """The work of a step of the file. Raises KeyError for a step without any."""
    (name,) = step.keys() & _WORKS.keys()
    return _WORKS[name](*step[name])


def _loading(parameters: float, load: dict[str, Any]) -> Work:
    return rates.loading(parameters, Load(**{**load, "concurrency": tuple(load["concurrency"])}))


_WORKS: Mapping[str, Callable[..., Work]] = {
    "size": lambda parameters: {"parameters": parameters},
    "quantizing": rates.quantizing,
    "reading": rates.reading,
    "answering": rates.answering,
    "loading": _loading,
}
