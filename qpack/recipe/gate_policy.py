"""A policy file: gates that stored evidence is judged by, in place of those of its recipe.

gates:
accuracy_drop: 0.02
perplexity_ratio: 1.1
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from evals.gates.gates import Gates
from qpack.core import yamlfile
from qpack.core.errors import RecipeError, RegistryError
from qpack.core.problems import Code, Location, Problem
from qpack.core.records import Release
from qpack.core.yamlfile import INVALID_VALUE, NO_MAPPING, NO_SUCH_KEY
from qpack.recipe.models import Section
from qpack.recipe.recipe_file import NO_GATE, problem_of

_UNKNOWN_GATES = Code("unknown-gates", "A release's recipe has gates that no recipe can set.")
_BAD_POLICY = Code("bad-policy", "A gate policy has problems.")


class Policy(Section):
    """The whole file: the `gates` section of a recipe and nothing else."""

    gates: Gates


@dataclass(frozen=True)
class Bounds:
    """Gates that are set, and the place of each (empty for those of a published release)."""

    values: Mapping[str, float]
    where: Mapping[str, Location]


def load(path: Path) -> Bounds:
    """Read a policy file. Raises RecipeError with every problem, each with file:line."""
    file, problems = yamlfile.load(path)
    if file is None:
        raise _refused(problems)
    if not isinstance(file.data, dict):
        raise _refused([Problem(NO_MAPPING, "a policy is a mapping with the key `gates`", Location(str(path), 1))])
    try:
        policy = Policy.model_validate_json(json.dumps(file.data), strict=True)
    except ValidationError as error:
        # `known_keys` in the hints are those of a recipe, where `gates` is one section of many.
        raise _refused(
            problems + [_in_a_policy(problem_of(file, details), details) for details in error.errors()]
        ) from None
    values = policy.gates.bounds()
    if not values:
        problems.append(
            Problem(NO_GATE, "no gate is set", file.where(("gates",)), "For example `accuracy_drop: 0.02`.")
        )
    if problems:
        raise _refused(problems)
    return Bounds(values, {gate: file.where(("gates", gate)) for gate in values})


def of_release(release: Release) -> Bounds:
    """The gates of the recipe that a release was built from. Raises RegistryError for gates that no recipe can set: a
    release can be anybody's.
    """
    try:
        return Bounds(Gates.model_validate(release.recipe.get("gates") or {}).bounds(), {})
    except ValidationError as error:
        problems = tuple(
            Problem(INVALID_VALUE, details["msg"], Location("release.json", key=("recipe", "gates", *details["loc"])))
            for details in error.errors()
        )
        raise RegistryError(
            _UNKNOWN_GATES,
            f"the gates in {release.name}'s recipe aren't gates that a recipe can set: {problems[0].where}: "
            f"{problems[0].message}",
            hint="qpack didn't write it. Judge it by your own gates with --policy.",
            problems=problems,
        ) from None


def _in_a_policy(problem: Problem, details: Any) -> Problem:
    """The hint of an unknown key names those of a recipe, where `gates` is one section of many."""
    if len(details["loc"]) == 1 and problem.code == NO_SUCH_KEY:
        return replace(problem, hint="A policy has one key: gates.")
    return problem


def _refused(problems: list[Problem]) -> RecipeError:
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    return RecipeError(_BAD_POLICY, f"{count} in the policy; nothing was judged", problems=tuple(problems))
