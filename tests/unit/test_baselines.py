"""A stored baseline is reused when everything agrees; else what differs is named."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from qpack.core.records import Accuracy
from qpack.core.store import Store, key_of
from qpack.pipeline import plan
from qpack.pipeline.planned import Plan
from qpack.pipeline.stages import baseline
from qpack.recipe import recipe_file
from tests.unit.recipes import RECIPE, workspace


@pytest.fixture
def planned(tmp_path: Path) -> tuple[Plan, Store]:
    store = Store(tmp_path / "home")
    return plan.make(recipe_file.load(workspace(tmp_path)), store, thorough=True), store


def kept(store: Store, inputs: dict[str, Any]) -> None:
    """A stored baseline that was made from these inputs."""
    made = Accuracy(lm_eval_version="0", tasks=())
    store.once("accuracy", key_of(inputs), Accuracy, lambda _: made, inputs=inputs)


def asked(planned: Plan) -> dict[str, Any]:
    """The inputs of the plan's own baseline, to be changed."""
    return copy.deepcopy(dict(planned.steps["baseline.accuracy"].inputs))


def test_one_that_agrees_in_everything_is_reused(planned: tuple[Plan, Store]) -> None:
    wanted, store = planned
    kept(store, asked(wanted))
    assert store.get("accuracy", wanted.key("baseline.accuracy"), Accuracy)
    assert baseline.refused(wanted, store) == ()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda x: x["environments"].update(vllm="0" * 64), "vLLM's environment changed"),
        (lambda x: x["environments"].update({"lm-eval": "0" * 64}), "lm-eval's environment changed"),
        (lambda x: x["data"].update({"qpack_piqa.yaml": "0" * 64}), "the tasks' data changed"),
        (lambda x: x["code"].update({"evals/server/client.py": "0" * 16}), "qpack's code for it changed"),
        (lambda x: x["code"].update(dict.fromkeys(x["code"], "0")), "qpack's code for it changed"),
        (lambda x: x["hardware"].update(target="hopper"), 'hardware, target: "cpu", not "hopper"'),
        (lambda x: x["ask"].update(seed=7), "what is asked, seed: 0, not 7"),
        (lambda x: x["ask"]["tasks"][0].update(few_shot=3), "what is asked, tasks.0.few_shot: 0, not 3"),
        (lambda x: x["ask"]["tasks"][0].update(chat=True), "what is asked, tasks.0.chat: false, not true"),
        (lambda x: x["serving"].update(hardware="ada"), 'serving, hardware: "cpu", not "ada"'),
        (lambda x: x["inherited"].update(VLLM_X="1"), "variables"),
    ],
)
def test_what_differs_is_named_and_nothing_else(planned: tuple[Plan, Store], change: Any, told: str) -> None:
    wanted, store = planned
    other = asked(wanted)
    change(other)
    kept(store, other)
    (said,) = baseline.refused(wanted, store)
    assert said.startswith(f"a stored baseline's accuracy isn't reused: {told}")
    assert ";" not in said


def test_the_source_as_a_release_is_measured_once_and_proved(tmp_path: Path) -> None:
    none = RECIPE.replace("method: gptq", "method: none").replace("scheme: W4A16", "scheme: BF16")
    none = none.replace("  group_size: 32\n", "")
    steps = plan.make(recipe_file.load(workspace(tmp_path, none)), Store(tmp_path / "home"), thorough=True).steps
    for part in ("performance", "language", "accuracy"):
        assert steps[f"artifact.{part}"].key == steps[f"baseline.{part}"].key
    assert steps["artifact.proof"].key


def test_the_nearest_of_several_is_told(planned: tuple[Plan, Store]) -> None:
    wanted, store = planned
    for more in ({"hardware": "hopper", "environments": {"vllm": "0" * 64}}, {"hardware": "hopper"}):
        kept(store, asked(wanted) | more)
    (said,) = baseline.refused(wanted, store)
    assert "vLLM" not in said


def test_another_models_baseline_is_not_spoken_of(planned: tuple[Plan, Store]) -> None:
    wanted, store = planned
    kept(store, asked(wanted) | {"after": {"fetch": "0" * 64}, "hardware": "hopper"})
    assert baseline.refused(wanted, store) == ()


def test_results_that_can_not_be_read_are_passed_over(planned: tuple[Plan, Store]) -> None:
    wanted, store = planned
    kept(store, asked(wanted) | {"hardware": "hopper"})
    for name, text in (("broken", "{"), ("other", "[]"), ("old", '{"inputs": {"after": ["0"]}}')):
        folder = store.home / "store" / "accuracy" / name
        folder.mkdir()
        (folder / "result.json").write_text(text)
    assert len(baseline.refused(wanted, store)) == 1
