from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qpack.core import yamlfile
from qpack.core.errors import RecipeError
from qpack.core.problems import dotted
from qpack.recipe import eval_requests, recipe_file
from tests.unit.recipes import RECIPE, workspace

ROOT = Path(__file__).parents[2]


def problems(path: Path, settings: list[str] | None = None) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        recipe_file.load(path, settings)
    return [problem.text for problem in caught.value.problems]


def codes(path: Path, settings: list[str] | None = None) -> list[tuple[str, str]]:
    """Code and key of every problem, each of which has a line of the file."""
    with pytest.raises(RecipeError) as caught:
        recipe_file.load(path, settings)
    assert all(problem.where.file == str(path) and problem.where.line for problem in caught.value.problems)
    return [(problem.code.name, dotted(problem.where.key)) for problem in caught.value.problems]


def test_every_recipe_that_ships_is_valid() -> None:
    shipped = sorted((ROOT / "recipes").glob("*.yaml"))
    assert len(shipped) == 21
    for path in shipped:
        loaded = recipe_file.load(path)
        assert loaded.recipe.name == path.stem


def test_the_schema_for_editors_is_current() -> None:
    written = json.loads((ROOT / "recipes" / "recipe.schema.json").read_text())
    assert written == recipe_file.schema(), "run `qpack schema > recipes/recipe.schema.json`"


def test_the_schema_accepts_every_recipe_that_ships_and_refuses_a_typo() -> None:
    import jsonschema

    validator = jsonschema.Draft202012Validator(recipe_file.schema())
    for path in (ROOT / "recipes").glob("*.yaml"):
        file, _ = yamlfile.load(path)
        assert file is not None
        validator.validate(file.data)
        with pytest.raises(jsonschema.ValidationError):
            validator.validate({**file.data, "quantise": {}})


def test_a_typo_is_named_with_file_line_and_suggestion(tmp_path: Path) -> None:
    path = workspace(tmp_path, RECIPE.replace("group_size", "gruop_size"))
    assert problems(path) == [f"{path}:12: quantize.gruop_size: unknown key. Did you mean 'group_size'?"]


def test_a_key_like_no_other_gets_the_list_of_known_ones(tmp_path: Path) -> None:
    path = workspace(tmp_path, RECIPE.replace("  target: cpu", "  target: cpu\n  xyzzy: 1"))
    assert "unknown key. Known: acceptance_floor, arguments, dtype, environment," in problems(path)[0]


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    text = (
        RECIPE.replace("method: gptq", "method: gtpq")
        .replace("samples: 4", "samples: four")
        .replace("name: tiny", "nmae: tiny")
    )
    assert set(codes(workspace(tmp_path, text))) == {
        ("invalid-value", "quantize.method"),
        ("invalid-value", "calibration.samples"),
        ("missing-key", "name"),
        ("no-such-key", "nmae"),
    }


@pytest.mark.parametrize(
    ("old", "new", "code", "key"),
    [
        (
            "scheme: W4A16\n  group_size: 32",
            "scheme: FP8_BLOCK",
            *("method-scheme", "quantize.method"),
        ),
        (
            "  method: gptq\n",
            "  method: gptq\n  format: awq\n",
            *("format-scheme", "quantize.format"),
        ),
        (
            "  method: gptq\n",
            "  method: gptq\n  format: gptq\n  budget: 4.5\n",
            *("budget-scheme", "quantize.budget"),
        ),
        (
            "scheme: W4A16\n",
            "scheme: W8A16\n  budget: 9\n",
            *("budget-scheme", "quantize.budget"),
        ),
        (
            "  method: gptq\n  scheme: W4A16",
            "  method: gptq\n  scheme: W8A8",
            *("no-groups", "quantize.group_size"),
        ),
        (
            "  method: gptq\n",
            "  method: gptq\n  choices: [{layers: 're:.*', schemes: [W4A16, BF16]}]\n",
            *("no-budget", "quantize.choices"),
        ),
        ("  method: gptq\n", "  method: gptq\n  budget_per: token\n", "no-budget", "quantize.budget_per"),
        (
            "  method: gptq\n",
            "  method: gptq\n  budget: 9\n  choices: [{layers: 're:.*', schemes: [BF16, FP8]}]\n",
            *("method-scheme", "quantize.choices[0].schemes"),
        ),
        (
            "  method: gptq\n",
            "  method: gptq\n  budget: 9\n  choices: [{layers: 're:.*', schemes: [W8A8, BF16], group_size: 32}]\n",
            *("no-groups", "quantize.choices[0].group_size"),
        ),
        ("min_length: 8", "min_length: 64", "lengths", "calibration.min_length"),
        ("  accuracy_drop: 0.1", "  accuracy_drop: null", "no-gate", "gates"),
        (
            *("  target: cpu", "  target: cpu\n  arguments: {quantization: awq}"),
            *("managed-flag", "serve.arguments.quantization"),
        ),
        (
            "  target: cpu",
            "  target: cpu\n  arguments: {--enforce-eager: true}",
            *("flag-spelling", "serve.arguments.--enforce-eager"),
        ),
        (
            "  target: cpu",
            "  target: cpu\n  max_model_len: 64\nmeasure: {input_tokens: 60, output_tokens: 60}",
            *("above-max-model-len", "measure.input_tokens"),
        ),
        (
            *("      samples: 10", "      samples: 10\n    - task: qpack_piqa"),
            *("duplicate-name", "evaluate.tasks[1].task"),
        ),
    ],
)
def test_an_impossible_combination_is_named(tmp_path: Path, old: str, new: str, code: str, key: str) -> None:
    assert codes(workspace(tmp_path, RECIPE.replace(old, new))) == [(code, key)]


def test_gptq_without_calibration_texts_is_refused(tmp_path: Path) -> None:
    start, end = RECIPE.index("calibration:"), RECIPE.index("quantize:")
    assert codes(workspace(tmp_path, RECIPE[:start] + RECIPE[end:])) == [("no-calibration", "quantize.method")]


def test_a_key_that_stands_twice_is_a_problem_and_not_an_overwrite(tmp_path: Path) -> None:
    path = workspace(tmp_path, RECIPE + "gates:\n  flip_rate: 1\n")
    assert problems(path) == [f"{path}:25: gates: duplicate key (first in line 21)"]


def test_a_file_that_is_no_yaml_is_named_with_its_line(tmp_path: Path) -> None:
    path = workspace(tmp_path, RECIPE + "x: [1,\n")
    assert problems(path)[0].startswith(f"{path}:26: not YAML: ")


def test_a_missing_recipe_lists_its_neighbours(tmp_path: Path) -> None:
    workspace(tmp_path)
    assert problems(tmp_path / "tinny.yaml") == [f"{tmp_path}/tinny.yaml: no such file. In that folder: tiny.yaml."]


def test_yaml_cannot_run_code(tmp_path: Path) -> None:
    path = workspace(tmp_path, RECIPE.replace("name: tiny", f"name: !!python/object/apply:os.mkdir [{tmp_path}/ran]"))
    assert problems(path) == [
        f"{path}:1: name: a tag (tag:yaml.org,2002:python/object/apply:os.mkdir) has no place in a recipe"
    ]
    assert not (tmp_path / "ran").exists()


def test_a_setting_lies_over_the_file(tmp_path: Path) -> None:
    path = workspace(tmp_path)
    loaded = recipe_file.load(path, ["quantize.group_size=64", "evaluate.tasks.0.samples=20", "gates.flip_rate=1e-1"])
    assert loaded.recipe.quantize.group_size == 64
    assert loaded.recipe.evaluate.tasks[0].samples == 20
    assert loaded.recipe.gates.flip_rate == 0.1


@pytest.mark.parametrize("setting", ["quantize.group_size", "=3", "evaluate.tasks.7.samples=3", "name.x=1"])
def test_a_setting_that_fits_nowhere_is_a_problem(tmp_path: Path, setting: str) -> None:
    assert any(line.startswith("--set ") for line in problems(workspace(tmp_path), [setting]))


def test_a_wrong_setting_is_blamed_on_the_command_line(tmp_path: Path) -> None:
    found = problems(workspace(tmp_path), ["quantize.scheme=W5"])
    assert found[0].startswith("--set quantize.scheme: 'W5' is not known.")


def test_words_that_yaml_1_1_takes_for_booleans_stay_text(tmp_path: Path) -> None:
    path = tmp_path / "words.yaml"
    path.write_text("a: yes\nb: on\nc: 1e-3\nd: 0o17\ne: 1_000\nf:\n")
    file, _ = yamlfile.load(path)
    assert file is not None
    assert file.data == {"a": "yes", "b": "on", "c": 0.001, "d": "0o17", "e": "1_000", "f": None}


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    )
)
def test_whatever_the_data_the_answer_is_a_recipe_or_problems(data: object) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "any.yaml"
        path.write_text(json.dumps(data))
        with pytest.raises(RecipeError):
            recipe_file.load(path)


def test_a_profile_is_checked_like_the_rest_of_the_recipe(tmp_path: Path) -> None:
    profiles = "serve:\n  profiles:\n    big:\n      tensor_paralel: 2\n      arguments:\n        port: 1\n"
    text = RECIPE.replace("serve:\n", profiles)
    with pytest.raises(RecipeError) as caught:
        recipe_file.load(workspace(tmp_path / "a", text))
    (problem,) = caught.value.problems
    assert (problem.code.name, problem.hint) == ("no-such-key", "Did you mean 'tensor_parallel'?")
    assert problem.where.key == ("serve", "profiles", "big", "tensor_paralel")
    with pytest.raises(RecipeError) as caught:
        recipe_file.load(workspace(tmp_path / "b", text.replace("tensor_paralel", "tensor_parallel")))
    first = caught.value.problems[0]
    assert (first.code.name, first.where.key[-1]) == ("managed-flag", "port")


def test_one_wrong_key_of_an_item_is_one_problem_and_problems_are_in_the_order_of_the_file(tmp_path: Path) -> None:
    text = RECIPE.replace("samples: 10", "sample: 60").replace("accuracy_drop: 0.1", "accuracy_dorp: 0.1")
    path = workspace(tmp_path, text.replace("method: gptq", "metod: gptq"))
    lines = path.read_text().splitlines()
    with pytest.raises(RecipeError) as caught:
        recipe_file.load(path)
    wrong = [n for n, line in enumerate(lines, 1) if "sample:" in line or "dorp" in line or "metod" in line]
    found = [problem.where.line for problem in caught.value.problems]
    assert found == sorted(n for n in found if n is not None)
    assert set(wrong) <= set(found)
    assert len([n for n in found if n in wrong]) == 3
    assert not any("at least 1 item" in str(problem) for problem in caught.value.problems)


@pytest.mark.parametrize(("settings", "runs"), [([], 3), (["measure.repeats=2"], 2), (["measure.repeats=5"], 5),
                                                (["measure.repeats=2", "measure.max_repeats=6"], 6)])  # fmt: skip
def test_as_many_runs_as_were_asked_for_are_the_most_unless_more_are_allowed(
    tmp_path: Path, settings: list[str], runs: int
) -> None:
    asked = eval_requests.load(recipe_file.load(workspace(tmp_path), settings).recipe.measure)
    assert max(asked.repeats, asked.max_repeats) == runs
