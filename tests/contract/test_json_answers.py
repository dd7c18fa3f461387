"""Claims about --json, over every command that has it: stdout is one JSON document, on success and on failure, and the
exit code is that of the command without it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from qpack.cli.app import app
from registry.local.registry import LocalRegistry
from tests.fuzz.command import Finished, qpack
from tests.unit.laid_out import publish
from tests.unit.recipes import workspace

NOBODY = "http://127.0.0.1:9"
DOCS = Path(__file__).parents[2] / "docs"
BAD, GOOD = "bad.yaml", "tiny.yaml"

# Command -> (arguments, exit code) of calls that get no result. No environment is made and no server started.
FAILING: dict[str, list[tuple[tuple[str, ...], int]]] = {
    "build": [((BAD,), 2), (("gone.yaml",), 2), ((GOOD, "--set", "quantize.scheme=W3"), 2)],
    "demo": [(("--set", "quantize.nosuch=1"), 2)],
    "check": [((BAD,), 2), (("gone.yaml",), 2), ((GOOD, "--set", "nosuch=1"), 2)],
    "plan": [((BAD,), 2), ((GOOD, "--why", "nosuch"), 2)],
    "report": [(("gone:1",), 8), ((GOOD,), 8)],
    "sweep": [((BAD, "--vary", "quantize.damping=0.1"), 2), ((GOOD, "--vary", "nosuch"), 2)],
    "reproduce": [(("gone:1",), 8)],
    "list": [(("../x",), 8)],
    "show": [(("gone:1",), 8)],
    "compare": [(("small:1", "gone:1"), 8), (("small:1", "small:1"), 2)],
    "history": [(("../x",), 8)],
    "publish": [(("gone:1", "--to", "oci://127.0.0.1:9/x"), 8)],
    "pull": [(("gone:1", "out"), 8)],
    "alias": [(("small:1", "../x"), 8)],
    "promote": [(("small:1", "production", "--policy", "gone.yaml"), 8)],
    "rollback": [(("small", "production"), 8)],
    "sign": [(("small:1", "--key", "gone.pem"), 2)],
    "verify": [(("gone:1",), 8), (("small:1", "--key", "gone.pem"), 2)],
    "remove": [(("gone:1", "--why", "a test"), 8)],
    "gc": [],
    "batch": [((NOBODY, "gone.jsonl", "-o", "answers.jsonl"), 2)],
    "canary": [(("gone:1",), 8)],
    "drift": [((NOBODY, "gone:1"), 8), ((NOBODY, "small:1"), 5)],
    "bench": [((NOBODY, "--concurrency", "none"), 2), (("gone:1",), 8)],
    "export": [
        (("gone:1", "--to", "vllm"), 8),
        (("small:1", "--to", "nosuch"), 2),
        (("small:1", "--to", "kubernetes"), 2),
    ],
    "gate": [(("gone:1",), 8), (("small:1", "--policy", "gone.yaml"), 2)],
    "doctor": [(("gone",), 8), (("model", "--fix"), 2), (("model", "--vllm", "new"), 2)],
    "manifest lint": [(("gone:1",), 8)],
    "envs list": [],
}

# Calls that need no engine, in this order.
ANSWERED: list[tuple[str, ...]] = [
    ("check", GOOD),
    ("plan", GOOD),
    ("plan", GOOD, "--why", "quantize"),
    ("report", "small:1", "-o", "page.html"),
    ("list",),
    ("show", "small:1"),
    ("compare", "small:1", "small:2"),
    ("history",),
    ("alias", "small:1", "staging"),
    ("promote", "small:1", "production"),
    ("verify", "small:1"),
    ("pull", "small:1", "pulled"),
    ("export", "small:1", "--to", "compose", "-o", "out"),
    ("export", "small:1", "--to", "vllm"),
    ("gate", "small:1"),
    ("doctor", "model"),
    ("doctor",),
    ("envs", "list"),
    ("gc", "--dry-run"),
    ("remove", "small:1", "--why", "a test", "--drop-aliases"),
    ("list",),
]


def with_json(group: Any, before: tuple[str, ...] = ()) -> Iterator[str]:
    """Every command that has --json."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from with_json(command, (*before, name))
        elif any("--json" in parameter.opts for parameter in command.params):
            yield " ".join((*before, name))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with a release, and a recipe that works beside one that doesn't."""
    place = tmp_path_factory.mktemp("json")
    for number in range(2):
        publish(LocalRegistry(place / "home" / "registry"), "small", place / f"scratch{number}", number)
    workspace(place / "work")
    (place / "work" / BAD).write_text("name: x\nmodel: {source: model}\nquantise: 3\n")
    return place


def run(place: Path, *words: str) -> Finished:
    return qpack(words, place / "work", place / "home")


DECLARED = {
    "usage",
    *re.findall(r"^\| `([a-z0-9-]+)` \|", (DOCS / "reference" / "problems.md").read_text(), re.MULTILINE),
}


def documents(text: str) -> list[Any]:
    """Every JSON document of a text that holds nothing else."""
    found, at = [], 0
    while text[at:].strip():
        at += len(text[at:]) - len(text[at:].lstrip())
        document, at = json.JSONDecoder().raw_decode(text, at)
        found.append(document)
    return found


def test_every_command_with_json_is_here() -> None:
    assert set(FAILING) == set(with_json(typer.main.get_command(app)))


@pytest.mark.parametrize(
    ("command", "arguments", "code"),
    [(command, arguments, code) for command, calls in FAILING.items() for arguments, code in calls],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else str(value),
)
def test_a_command_that_fails_prints_its_error_as_the_one_document(
    command: str, arguments: tuple[str, ...], code: int, place: Path
) -> None:
    plain = run(place, *command.split(), *arguments)
    done = run(place, *command.split(), *arguments, "--json")
    assert (plain.code, done.code) == (code, code), done.err
    (answer,) = documents(done.out)
    assert (answer["ok"], answer["error"]["exit_code"]) == (False, code)
    assert answer["error"]["code"] in DECLARED
    assert answer["error"]["what"]
    assert answer["error"]["what"].splitlines()[0] in done.err
    assert all(problem["code"] for problem in answer["problems"])
    assert not (place / "home" / "envs").exists(), "an environment was made for a command that can't run"
    assert done.err.count("error[") == sum(problem["severity"] == "error" for problem in answer["problems"])


def test_problems_of_a_recipe_have_their_codes_and_lines(place: Path) -> None:
    answer = json.loads(run(place, "check", BAD, "--json").out)
    assert answer["error"]["kind"] == "recipe"
    assert ("no-such-key", 3) in [(p["code"], p["location"]["line"]) for p in answer["problems"]]


@pytest.mark.parametrize("command", list(FAILING))
def test_an_unknown_option_is_one_document_too(command: str, place: Path) -> None:
    done = run(place, *command.split(), "--json", "--nosuch")
    (answer,) = documents(done.out)
    assert (done.code, answer["error"]["kind"], answer["error"]["exit_code"]) == (2, "usage", 2)
    assert "--nosuch" in answer["error"]["what"]


def test_a_command_that_succeeds_prints_one_document(place: Path) -> None:
    for words in ANSWERED:
        done = run(place, *words, "--json")
        assert done.code == 0 or words == ("doctor",), (words, done)
        assert len(documents(done.out)) == 1, (words, done)


def test_without_json_a_failure_leaves_stdout_empty(place: Path) -> None:
    assert run(place, "check", BAD).out == ""
    assert run(place, "compare", "gone:1", "--", "--json").out == "", "it is the name of a release there"
