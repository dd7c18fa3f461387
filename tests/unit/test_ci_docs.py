"""Claims about the workflows in docs/guides/ci: they parse, and every qpack command in them is one that qpack takes."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from qpack.cli.app import app
from qpack.core.errors import GateFailed, GateUndecided
from tests.unit.test_docs import LEAVES

CI = Path(__file__).parents[2] / "docs" / "guides" / "ci"
FILES = sorted(CI.glob("*.yml"))


def parsed(name: str) -> Any:
    # BaseLoader: `on:` stays a word, as GitHub reads it.
    return yaml.load((CI / name).read_text(), Loader=yaml.BaseLoader)


def scripts(data: Any) -> list[str]:
    """Every shell line, wherever it stands."""
    if isinstance(data, dict):
        own = [data["run"]] if isinstance(data.get("run"), str) else []
        own += [line for key in ("before_script", "script") for line in data.get(key, [])]
        return own + [line for value in data.values() for line in scripts(value)]
    return [line for item in data for line in scripts(item)] if isinstance(data, list) else []


def calls(text: str) -> list[list[str]]:
    """The qpack command lines in a script, as words; variables stay as they are."""
    found = []
    for line in text.splitlines():
        for match in re.finditer(r"(?:^|[;&|] *)qpack ((?:[^;&|\"]|\"[^\"]*\")+)", line):
            found.append(shlex.split(match[1]))
    return found


def test_there_is_a_workflow_for_github_and_one_for_gitlab():
    assert [path.name for path in FILES] == ["github-actions.yml", "gitlab-ci.yml"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_qpack_command_of_a_workflow_is_taken_by_the_parser(path: Path):
    group = typer.main.get_command(app)
    words = [call for text in scripts(parsed(path.name)) for call in calls(text)]
    assert {call[0] for call in words} == {"check", "build", "gate", "report"}
    for call in words:
        command = group.commands[call[0]]  # type: ignore[attr-defined]
        assert f"qpack {call[0]}" in LEAVES
        context = command.make_context(call[0], call[1:])
        given = {value for value in context.params.values() if isinstance(value, str)} | {
            str(value) for value in context.params.values() if isinstance(value, Path)
        }
        assert "$RECIPE" in given, "the recipe is what RECIPE names"


def test_the_github_workflow_has_what_github_needs():
    data = parsed("github-actions.yml")
    assert set(data) == {"name", "on", "permissions", "jobs"}
    (job,) = data["jobs"].values()
    assert {"runs-on", "steps", "env"} <= set(job)
    assert all(("uses" in step) != ("run" in step) for step in job["steps"])
    assert data["permissions"]["pull-requests"] == "write"
    outputs = " ".join(scripts(data))
    for file in job["steps"][-1]["with"]["path"].split():
        assert file in outputs, f"{file} is uploaded and nothing writes it"


def test_the_gitlab_workflow_has_what_gitlab_needs():
    data = parsed("gitlab-ci.yml")
    job = data["quantize"]
    assert job["stage"] in data["stages"]
    outputs = " ".join(job["script"])
    for file in [*job["artifacts"]["paths"], job["artifacts"]["reports"]["junit"]]:
        assert file in outputs, f"{file} is kept and nothing writes it"
    assert job["allow_failure"]["exit_codes"] == [str(GateUndecided.exit_code)]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_only_findings_about_the_model_are_left_to_the_gate(path: Path):
    (build,) = (line for text in scripts(parsed(path.name)) for line in text.splitlines() if "qpack build" in line)
    let_through = {int(code) for code in re.findall(r'"\$code" -eq (\d+)', build)}
    assert let_through == {GateFailed.exit_code, GateUndecided.exit_code}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_where_results_are_kept_is_what_is_cached(path: Path):
    text = path.read_text()
    assert re.search(r"QPACK_HOME: \S+.*/\.qpack", text)
    assert re.search(r"path(s)?: \[?\.qpack", text)
