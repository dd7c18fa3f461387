"""What moves which stage's key, and what `plan --why` says of it."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from evals.measure import suite
from qpack.cli.app import app
from qpack.core.errors import RecipeError
from qpack.core.records import Accuracy, Window
from qpack.core.store import Store, key_of
from qpack.pipeline import plan, why
from qpack.pipeline.planned import Plan
from qpack.pipeline.stage_keys import Step
from qpack.recipe import recipe_file
from qpack.runtime import hardware
from tests.unit.recipes import RECIPE, workspace

MEASURED = {f"{who}.{part}" for who in ("baseline", "artifact") for part in ("performance", "language", "accuracy")}
TEXT = {stage for stage in MEASURED if not stage.endswith("performance")}
SPEED = MEASURED - TEXT
PROOF = {"artifact.proof"}
ARTIFACT = {stage for stage in MEASURED | PROOF if stage.startswith("artifact")}
ACCURACY = {"baseline.accuracy", "artifact.accuracy"}
JUDGE = {"judge"}


def made(folder: Path, text: str = RECIPE, settings: list[str] | None = None) -> Plan:
    path = folder / "ws" / "tiny.yaml"
    if not path.exists():
        workspace(folder / "ws", text)
    path.write_text(text)
    return plan.make(recipe_file.load(path, settings), Store(folder / "home"), thorough=True)


def moved(one: Plan, other: Plan) -> set[str]:
    """The steps whose keys differ, and `package` where its inputs do."""
    found = {name for name in one.steps if one.key(name) != other.key(name)}
    return found | {name for name in one.late if one.late[name].inputs != other.late[name].inputs}


AFTER_ARTIFACT = {"quantize"} | ARTIFACT | JUDGE
EVERY = {"fetch", "hold_out", "calibrate"} | AFTER_ARTIFACT | MEASURED


@pytest.mark.parametrize(
    ("setting", "stages"),
    [
        ("quantize.damping=0.02", AFTER_ARTIFACT),
        ("quantize.ignore=[lm_head, 're:.*q_proj']", AFTER_ARTIFACT),
        ("quantize.group_size=64", AFTER_ARTIFACT),
        ("calibration.samples=5", {"calibrate"} | AFTER_ARTIFACT),
        ("calibration.seed=1", {"calibrate"} | AFTER_ARTIFACT),
        ("model.trust_remote_code=true", EVERY - {"fetch"}),
        ("evaluate.perplexity.windows=3", EVERY - {"fetch"} - SPEED - ACCURACY - PROOF - {"quantize"} | AFTER_ARTIFACT),
        ("evaluate.top_k=10", {"baseline.language", "artifact.language"} | JUDGE),
        ("evaluate.perplexity.whole_positions=3", {"baseline.language", "artifact.language"} | JUDGE),
        ("evaluate.seed=1", SPEED | ACCURACY | JUDGE),
        ("evaluate.few_shot=2", ACCURACY | JUDGE),
        ("measure.repeats=2", SPEED | JUDGE),
        ("serve.dtype=float32", MEASURED | PROOF | JUDGE),
        ("serve.max_model_len=512", MEASURED | PROOF | JUDGE),
        ("serve.arguments={max-num-seqs: 4}", MEASURED | PROOF | JUDGE),
        ("serve.environment={VLLM_CPU_KVCACHE_SPACE: '2'}", MEASURED | PROOF | JUDGE),
        ("gates.accuracy_drop=0.2", JUDGE),
        ("model.license=mit", set()),
        ("model.base_model=org/name", set()),
        ("publish.alias=other", set()),
        ("limits.stage_minutes=99", set()),
    ],
)
def test_a_setting_moves_the_stages_that_it_decides_and_no_other(
    tmp_path: Path, setting: str, stages: set[str]
) -> None:
    assert moved(made(tmp_path), made(tmp_path, settings=[setting])) == stages | {"package"}


def test_a_reworded_recipe_moves_the_release_alone(tmp_path: Path) -> None:
    assert moved(made(tmp_path), made(tmp_path, f"# a comment\n{RECIPE}")) == {"package"}


def test_a_variable_that_a_measured_server_gets_moves_its_evidence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = made(tmp_path)
    monkeypatch.setenv("A_VARIABLE_OF_NOBODY", "1")
    monkeypatch.setenv("HF_TOKEN", "secret")
    assert moved(before, made(tmp_path)) == set()
    monkeypatch.setenv("VLLM_CPU_SGL_KERNEL", "1")
    assert moved(before, made(tmp_path)) == MEASURED | PROOF | AFTER_ARTIFACT | {"package"}


def test_the_cpus_instructions_move_figures_and_artifact_and_its_name_moves_speed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = made(tmp_path)
    here = hardware.detect()
    monkeypatch.setattr(hardware, "detect", lambda: here.model_copy(update={"name": "Another CPU"}))
    assert moved(before, made(tmp_path)) == SPEED | JUDGE | {"package"}
    monkeypatch.setattr(hardware, "detect", lambda: here.model_copy(update={"memory_bytes": here.memory_bytes + 1}))
    assert moved(before, made(tmp_path)) == set()
    flags = hardware.cpu_flags()
    monkeypatch.setattr(hardware, "cpu_flags", lambda: flags | {"a_flag_that_chooses_no_kernel"})
    assert moved(before, made(tmp_path)) == set()
    monkeypatch.setattr(hardware, "cpu_flags", lambda: flags ^ {"amx_tile", "amx_bf16"})
    assert moved(before, made(tmp_path)) == MEASURED | PROOF | AFTER_ARTIFACT | {"package"}


def test_the_data_of_a_task_moves_accuracy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = made(tmp_path)
    data = tmp_path / "data.jsonl"
    data.write_text("{}\n")
    monkeypatch.setattr(suite, "data_file", lambda _: data)
    other = made(tmp_path)
    assert moved(before, other) == ACCURACY | JUDGE | {"package"}
    data.write_text("[]\n")
    assert moved(other, made(tmp_path)) == ACCURACY | JUDGE | {"package"}
    monkeypatch.setattr(suite, "data_file", lambda _: None)
    assert made(tmp_path).key("baseline.accuracy"), "a package that isn't installed leaves a key"


def test_an_environments_lock_moves_what_runs_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = made(tmp_path)
    for name, stages in {
        "transformers": EVERY - {"fetch"} - SPEED - ACCURACY - PROOF - {"quantize"} | AFTER_ARTIFACT,
        "llmcompressor": AFTER_ARTIFACT,
        "vllm": MEASURED | PROOF | JUDGE,
        "lm-eval": ACCURACY | JUDGE,
        "canary": PROOF | JUDGE,
    }.items():
        with monkeypatch.context() as patched:
            whole = plan.envs.resolve

            def resolve(spec: Any, *rest: Any, name: str = name, whole: Callable[..., Any] = whole) -> Any:
                found = whole(spec, *rest)
                return plan.replace(found, digest="0" * 64) if spec.name == name else found

            patched.setattr(plan.envs, "resolve", resolve)
            assert moved(before, made(tmp_path)) == stages | {"package"}, name


def keep(store: Store, stage: str, inputs: Any) -> None:
    store.once(stage, key_of(inputs), Accuracy, lambda _: Accuracy(lm_eval_version="0", tasks=()), inputs=inputs)


def test_a_stage_that_is_done_says_so_and_what_it_is_made_of(tmp_path: Path) -> None:
    planned, store = made(tmp_path), Store(tmp_path / "home")
    (before,) = why.why(planned, store, "baseline.accuracy")
    assert (before.state, before.nearest) == ("to do", None)
    keep(store, "accuracy", planned.steps["baseline.accuracy"].inputs)
    (after,) = why.why(planned, store, "baseline.accuracy")
    assert after.state == "done"
    assert after.key == planned.key("baseline.accuracy")
    names = {one.name for one in after.inputs}
    assert names == {"after", "code", "serving", "inherited", "environments", "variables", "data", "ask", "hardware"}
    assert not any(one.differs for one in after.inputs)


@pytest.mark.parametrize(
    ("change", "at"),
    [
        (lambda x: x["code"].update({"evals/server/client.py": "0"}), {"code.evals/server/client.py"}),
        (lambda x: x["code"].pop("evals/server/client.py"), {"code.evals/server/client.py"}),
        (lambda x: x["environments"].update(vllm="0"), {"environments.vllm"}),
        (lambda x: x["ask"].update(seed=9), {"ask.seed"}),
        (lambda x: x["data"].update({"PIQA/validation.jsonl": "0"}), {"data.PIQA/validation.jsonl"}),
        (lambda x: x["hardware"].update(instructions=[]), None),
        (lambda x: x["inherited"].update(OMP_NUM_THREADS="2"), {"inherited.OMP_NUM_THREADS"}),
        (lambda x: x["after"].update(fetch="0"), {"after.fetch"}),
    ],
)
def test_what_differs_from_the_nearest_stored_result_is_named(
    tmp_path: Path, change: Callable[[Any], Any], at: set[str] | None
) -> None:
    planned, store = made(tmp_path), Store(tmp_path / "home")
    then = copy.deepcopy(dict(planned.steps["baseline.accuracy"].inputs))
    change(then)
    keep(store, "accuracy", then)
    (found,) = why.why(planned, store, "baseline.accuracy")
    assert found.state == "to do"
    assert found.nearest is not None
    assert found.nearest.key == key_of(then)
    told = {difference.at for one in found.inputs for difference in one.differs}
    assert told == at if at is not None else all(name.startswith("hardware.instructions") for name in told) and told


def test_the_nearest_has_the_fewest_differences_and_parts_of_looks_do_not_count(tmp_path: Path) -> None:
    planned, store = made(tmp_path), Store(tmp_path / "home")
    inputs = dict(planned.steps["baseline.accuracy"].inputs)
    near, far = {**inputs, "ask": {"seed": 7}}, {**inputs, "ask": {"seed": 7}, "hardware": "hopper"}
    for one in (far, near, {**inputs, "part": [0.0, 0.25]}):
        keep(store, "accuracy", one)
    (found,) = why.why(planned, store, "baseline.accuracy")
    assert found.nearest is not None
    assert found.nearest.key == key_of(near)


@pytest.mark.parametrize(
    "text",
    [
        *("[]", "1", "null", "{", "", '{"inputs": []}', '{"inputs": {}}', '{"inputs": {"after": ["x"]}}'),
        *('{"inputs": {"after": {"fetch": null}, "code": "abc"}, "seconds": "x"}', "[" * 100_000),
        '{"result": {}, "seconds": 1.0, "inputs": {"stage": "accuracy", "after": ["k"], "code": "0", "vllm": "1"}}',
    ],
)
def test_results_of_older_code_and_damaged_ones_break_nothing(tmp_path: Path, text: str) -> None:
    planned, store = made(tmp_path), Store(tmp_path / "home")
    for name in ("old", planned.key("baseline.accuracy")):
        folder = store.folder("accuracy", name)
        folder.mkdir(parents=True)
        (folder / "result.json").write_text(text)
        (folder.parent / f"{name}-folder" / "result.json").mkdir(parents=True)
        (folder.parent / f"{name}-file").write_text(text)
    (found,) = why.why(planned, store, "baseline.accuracy")
    assert found.state == "to do"
    assert plan.make(recipe_file.load(tmp_path / "ws" / "tiny.yaml"), store, thorough=True).steps == planned.steps
    assert CliRunner().invoke(app, ["plan", str(tmp_path / "ws" / "tiny.yaml")]).exit_code == 0
    keep(store, "accuracy", planned.steps["baseline.accuracy"].inputs)
    assert store.holds("accuracy", planned.key("baseline.accuracy"))


@pytest.mark.parametrize(
    "there", [Path.touch, lambda path: path.symlink_to("nothing"), lambda path: path.symlink_to("..")]
)
def test_whatever_stands_where_a_result_belongs_is_replaced(tmp_path: Path, there: Callable[[Path], None]) -> None:
    store, inputs = Store(tmp_path), {"a": 1}
    store.folder("accuracy", "x").parent.mkdir(parents=True)
    there(store.folder("accuracy", key_of(inputs)))
    keep(store, "accuracy", inputs)
    assert store.holds("accuracy", key_of(inputs))


def test_a_group_of_steps_is_told_by_its_stage(tmp_path: Path) -> None:
    planned, store = made(tmp_path), Store(tmp_path / "home")
    assert {one.stage for one in why.why(planned, store, "artifact")} == ARTIFACT
    for name in (*planned.steps, "package"):
        (one,) = why.why(planned, store, name)
        assert one.stage == name
        assert "code" in {each.name for each in one.inputs}


@pytest.mark.parametrize(
    ("name", "hint"),
    [("quantise", "quantize"), ("artifakt", "artifact"), ("baseline.acuracy", "baseline.accuracy"), ("xyz", "fetch")],
)
def test_an_unknown_stage_is_an_error_of_the_command_line(tmp_path: Path, name: str, hint: str) -> None:
    with pytest.raises(RecipeError) as raised:
        why.why(made(tmp_path), Store(tmp_path / "home"), name)
    assert raised.value.exit_code == 2
    assert hint in raised.value.problems[0].hint


def test_a_model_that_can_not_be_reached_leaves_keys_unknown(tmp_path: Path) -> None:
    planned = made(tmp_path)
    unknown = Step("quantize", None, planned.steps["quantize"].inputs)
    package = planned.late["package"]
    late = {"package": Step("package", None, {**package.inputs, "after": {"judge": None}}, package.late)}
    offline = plan.replace(planned, steps={**planned.steps, "quantize": unknown}, late=late)
    store = Store(tmp_path / "home")
    assert why.why(offline, store, "quantize")[0].state == "not known"
    assert why.why(offline, store, "package")[0].state == "not known"


def test_the_command_prints_a_step_and_its_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QPACK_HOME", str(tmp_path / "home"))
    planned, store = made(tmp_path), Store(tmp_path / "home")
    then = copy.deepcopy(dict(planned.steps["quantize"].inputs))
    then["code"]["quantize/engines/llmcompressor.py"] = "0"
    store.once("quantize", key_of(then), Window, lambda _: Window(nll=1, tokens=1), inputs=then)
    path = str(tmp_path / "ws" / "tiny.yaml")
    text = CliRunner().invoke(app, ["plan", path, "--why", "quantize"])
    assert text.exit_code == 0
    assert "code.quantize/engines/llmcompressor.py: " in text.output
    told = json.loads(CliRunner().invoke(app, ["plan", path, "--why", "quantize", "--json"]).output)
    (code,) = [one for one in told[0]["inputs"] if one["name"] == "code"]
    assert [difference["at"] for difference in code["differs"]] == ["code.quantize/engines/llmcompressor.py"]
    assert told[0]["nearest"]["qpack"]
