"""Claims about the licence that a recipe names for its source."""

from __future__ import annotations

from pathlib import Path

import pytest

from qpack.core.store import Store
from qpack.pipeline import plan
from qpack.recipe import recipe_file
from registry.release import card, licences
from tests.unit.recipes import RECIPE, workspace


@pytest.mark.parametrize(
    "identifier",
    [None, "Apache-2.0", "apache-2.0", "MIT OR Apache-2.0", "GPL-2.0-only WITH Classpath-exception-2.0",
     "LicenseRef-Acme", "llama3.1", "Gemma", *licences.HUB],
)  # fmt: skip
def test_an_spdx_expression_or_an_identifier_of_the_hub_is_known(identifier: str | None) -> None:
    assert licences.check(identifier) == []


@pytest.mark.parametrize(
    ("identifier", "says"),
    [("apache 2.0", "'apache-2.0'"), ("Apache-2", "'apache-2.0'"), ("My own", "LicenseRef-"), ("", "LicenseRef-"),
     ("MIT AND", "'mit'")],
)  # fmt: skip
def test_any_other_text_is_a_warning_at_its_key_with_a_way_out(identifier: str, says: str) -> None:
    (found,) = licences.check(identifier)
    assert (found.code, found.severity, found.where.key) == (licences.UNKNOWN, "warning", ("model", "license"))
    assert says in found.hint


def test_a_plan_names_it_at_its_line_and_goes_on(tmp_path: Path) -> None:
    text = RECIPE.replace("model:\n", "model:\n  license: My own\n")
    planned = plan.make(recipe_file.load(workspace(tmp_path, text)), Store(tmp_path / "home"), thorough=False)
    (found,) = [one for one in planned.advice if one.code == licences.UNKNOWN]
    assert found.where.line == text.splitlines().index("  license: My own") + 1
    assert found.where.key == ("model", "license")


def test_the_card_has_another_licence_as_the_hub_wants_it() -> None:
    assert card._license("My own") == {"license": "other", "license_name": "my-own"}
