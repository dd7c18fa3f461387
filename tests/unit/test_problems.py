"""Claims about problems: codes are declared once, each is on the page, and a problem is printed in one form."""

from __future__ import annotations

import ast
import json
import re
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qpack.core import problems
from qpack.core.errors import RecipeError, UsageError, invalid_option
from qpack.core.problems import Code, Location, Problem, of_layers, worst_first
from tests.unit.test_docs_generated import generate  # noqa: F401
from tests.unit.test_structure import sources, tree_of

ROOT = Path(__file__).parents[2]

CODES = st.from_regex(r"\A[a-z][a-z0-9]*(-[a-z0-9]+){0,3}\Z").map(lambda name: Code(name, "A title."))
LOCATIONS = st.builds(
    Location,
    file=st.text(max_size=5),
    line=st.none() | st.integers(1, 99),
    option=st.text(max_size=5),
    key=st.lists(st.text(max_size=3) | st.integers(0, 9), max_size=3).map(tuple),
    name=st.text(max_size=5),
    more=st.integers(0, 9),
)
PROBLEMS = st.builds(
    Problem, CODES, st.text(max_size=9), LOCATIONS, st.text(max_size=9), st.sampled_from(["error", "warning", "note"])
)


def calls(name: str) -> list[tuple[Path, ast.Call, bool]]:
    """Every call of a class in the packages, and whether it is assigned to a name at the top of its module."""
    found = []
    for path in sources():
        if f"{name}(" not in path.read_text():
            continue
        tree = tree_of(path)
        top = [node.value for node in tree.body if isinstance(node, ast.Assign)]
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == name:
                found.append((path, node, node in top))
    return found


def test_a_code_is_declared_at_the_top_of_its_module_and_once(generate) -> None:  # noqa: F811
    declared = [code.name for _, code in generate.problem_codes()]
    assert len(declared) > 130
    assert [name for name, count in Counter(declared).items() if count > 1] == []
    # `from_json` makes those that another process declared.
    elsewhere = [path.name for path, _, top in calls("Code") if not top and path.name != "problems.py"]
    assert elsewhere == []


def test_a_problem_has_a_declared_code_and_no_text_in_its_place() -> None:
    made = calls("Problem")
    assert len(made) > 130
    assert [f"{path}:{node.lineno}" for path, node, _ in made if isinstance(node.args[0], ast.Constant)] == []


def test_every_code_is_used() -> None:
    text = {path: path.read_text() for path in sources()}
    uses = Counter(word for each in text.values() for word in re.findall(r"\w+", each))
    for path, node, top in calls("Code"):
        if top:
            (name,) = (
                each.targets[0].id  # type: ignore[attr-defined]
                for each in tree_of(path).body
                if isinstance(each, ast.Assign) and each.lineno == node.lineno
            )
            assert uses[name] > 1, f"{path}: {name}"


def test_every_code_is_on_the_page_once(generate) -> None:  # noqa: F811
    page = (ROOT / "docs" / "reference" / "problems.md").read_text()
    assert sorted(re.findall(r"^\| `([a-z0-9-]+)` \|", page, re.MULTILINE)) == sorted(
        code.name for _, code in generate.problem_codes()
    )


def test_a_title_is_one_sentence_of_one_line(generate) -> None:  # noqa: F811
    for _, code in generate.problem_codes():
        assert code.title.endswith(".")
        assert len(code.title) <= 110, code
        assert "\n" not in code.title


@pytest.mark.parametrize("name", ["", "Group", "group_size", "group size", "-group", "group-", "a--b"])
def test_a_code_is_kebab_case(name: str) -> None:
    with pytest.raises(ValueError, match="kebab"):
        Code(name, "A title.")


CODE = Code("group-size", "Groups don't divide the input channels.")


@pytest.mark.parametrize(
    ("where", "place"),
    [
        (Location(), ""),
        (Location("r.yaml"), "r.yaml: "),
        (Location("r.yaml", 3, key=("evaluate", "tasks", 0, "task")), "r.yaml:3: evaluate.tasks[0].task: "),
        (Location(option="--set", key=("a", "b")), "--set a.b: "),
        (Location(name="a.q_proj", more=2), "a.q_proj and 2 more: "),
        (Location("r.yaml", 3, key=("a",), name="b"), "r.yaml:3: a: b: "),
    ],
)
def test_a_problem_is_printed_as_severity_code_place_message_and_hint(where: Location, place: str) -> None:
    assert str(Problem(CODE, "is wrong", where, "Use 64.")) == f"error[group-size] {place}is wrong. Use 64."
    assert str(Problem(CODE, "is wrong", where, severity="note")) == f"note[group-size] {place}is wrong"


@given(PROBLEMS)
def test_json_of_a_problem_is_the_same_problem(problem: Problem) -> None:
    again = problems.from_json(json.loads(json.dumps(problem.as_json())))
    assert again.as_json() == problem.as_json()
    assert str(again) == str(problem)


@given(st.lists(PROBLEMS, max_size=8))
def test_worst_first_keeps_all_and_their_order(found: list[Problem]) -> None:
    ordered = worst_first(found)
    assert Counter(ordered) == Counter(found)
    for severity in ("error", "warning", "note"):
        assert [p for p in ordered if p.severity == severity] == [p for p in found if p.severity == severity]
    assert [p.severity for p in ordered] == sorted([p.severity for p in found], key=("error", "warning", "note").index)


def test_the_same_problem_of_several_layers_is_one() -> None:
    one, other = Problem(CODE, "128"), Problem(CODE, "64")
    found = of_layers([("a", "scales", one), ("b", "scales", one), ("b", "scales", other), ("c", "qweight", one)])
    assert [(p.message, p.where.name, p.where.more) for p in found] == [
        ("128", "a.scales", 1),
        ("64", "b.scales", 0),
        ("128", "c.qweight", 0),
    ]


def test_a_wrong_option_is_an_error_of_usage_and_a_wrong_recipe_one_of_the_recipe() -> None:
    wrong = invalid_option("--to", "no such format")
    assert (wrong.title, wrong.code.name, wrong.exit_code) == ("usage", "invalid-option", 2)
    assert isinstance(wrong, UsageError)
    recipe = RecipeError.of([Problem(problems.INVALID_OPTION, "", Location(option="--set a"))])
    assert (recipe.title, recipe.code.name, recipe.exit_code) == ("recipe", "bad-recipe", 2)
