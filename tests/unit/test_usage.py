"""Claims about the help of commands: values have names of the field, not Python types."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from qpack.cli.app import app
from qpack.core.errors import UsageError
from tests.unit.recipes import workspace
from tests.unit.test_docs import LEAVES

_TYPE = re.compile(r"<[a-z][^>]*>|\[\[|\{")


def help_of(name: str) -> str:
    ran = CliRunner().invoke(app, [*name.split()[1:], "--help"], prog_name="qpack", terminal_width=200)
    assert ran.exit_code == 0
    return ran.output


@pytest.mark.parametrize("name", sorted(LEAVES))
def test_help_shows_no_type_of_python(name: str) -> None:
    assert not _TYPE.search(help_of(name))


@pytest.mark.parametrize(
    ("name", "usage"),
    [
        ("qpack build", "qpack build [OPTIONS] RECIPE"),
        ("qpack pull", "qpack pull [OPTIONS] REF|PLACE [FOLDER]"),
        ("qpack bench", "qpack bench [OPTIONS] TARGET..."),
        ("qpack envs check", "qpack envs check [OPTIONS] [NAME]..."),
    ],
)
def test_usage_is_written_as_most_command_lines_do(name: str, usage: str) -> None:
    assert help_of(name).splitlines()[0] == f"Usage: {usage}"


@pytest.mark.parametrize(
    ("name", "option"),
    [("qpack serve", "--port PORT"), ("qpack sweep", "--on here|ray"), ("qpack gate", "--policy FILE"),
     ("qpack chat", "--max-tokens TOKENS")],
)  # fmt: skip
def test_a_value_is_called_by_its_choices_or_by_its_option(name: str, option: str) -> None:
    assert option in help_of(name)


@pytest.mark.parametrize(
    ("words", "option"),
    [
        ("check recipe.yaml --config none.json", "--config"),
        ("plan recipe.yaml --config none.json", "--config"),
        ("bench m --prompts none.jsonl", "--prompts"),
        ("batch m none.txt --output out", "PROMPTS"),
        ("reproduce m --base none", "--base"),
        ("verify m --key none.pem", "--key"),
        ("verify m --identity me", "--identity"),
        ("sign m", "--key"),
        ("doctor --whole", "CHECKPOINT"),
        ("doctor m --fix", "--fix"),
        ("sweep recipe.yaml", "--vary"),
        ("bench m --slo fast", "--slo fast"),
        ("bench m --concurrency many", "--concurrency"),
        ("publish m --to ./there --as image", "--as"),
        ("pull oci://127.0.0.1:1/m --signatures s", "--signatures"),
    ],
)
def test_an_option_that_cannot_work_is_an_error_of_usage_at_that_option(
    words: str, option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before a release is looked for, a server is started or a registry is asked."""
    workspace(tmp_path)
    (tmp_path / "recipe.yaml").write_bytes((tmp_path / "tiny.yaml").read_bytes())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("QPACK_HOME", str(tmp_path / "home"))
    error = CliRunner().invoke(app, words.split()).exception
    assert isinstance(error, UsageError)
    assert [problem.where.option for problem in error.problems] == [option]
