"""What a serving manifest says of a GPU: what it ran on, and how much of the GPU has to be free."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evals.server.vllm_server import hint_for
from qpack.cli.render import plan as render
from qpack.core import hashing, seals
from qpack.core.records import Hardware
from qpack.core.store import Store
from qpack.pipeline import plan, planned_serving
from qpack.pipeline.estimate import StepEstimate
from qpack.pipeline.plan import Plan
from qpack.pipeline.text_counts import Counted
from qpack.recipe import recipe_file
from qpack.runtime import hardware
from quantize.checkpoint.headers import Tensor
from quantize.checkpoint.source import Source
from quantize.engines.protocol import Request
from registry.serving import lint
from registry.serving.serving_manifest import GPU_SHARE, ServedModel, ServingEngine, ServingManifest
from tests.unit.recipes import RECIPE, workspace

GIB = 2**30
H200 = Hardware(
    target="hopper", name="NVIDIA H200", cores=16, memory_bytes=128 * GIB, accelerators=1,
    accelerator_memory_bytes=140 * GIB,
)  # fmt: skip
CPU = Hardware(target="cpu", name="a CPU", cores=2, memory_bytes=16 * GIB)
FOR_AMPERE = RECIPE.replace("target: cpu", "target: ampere\n  kv_cache_gib: 8").replace(
    "32\ne", "32\n  engine: llmcompressor\ne"
)


def planned(folder: Path, machine: Hardware, monkeypatch: pytest.MonkeyPatch, text: str = FOR_AMPERE) -> Plan:
    monkeypatch.setattr(hardware, "detect", lambda: machine)
    return plan.make(recipe_file.load(workspace(folder, text)), Store(folder / "home"), thorough=True)


@pytest.mark.parametrize(
    ("machine", "text", "hardware_", "target"),
    [
        (H200, FOR_AMPERE, "hopper", "ampere"),
        (H200, FOR_AMPERE.replace("ampere", "hopper"), "hopper", None),
        (H200, FOR_AMPERE.replace("ampere", "auto"), "hopper", None),
        (H200, RECIPE, "cpu", None),
        (CPU, FOR_AMPERE, "ampere", None),
    ],
)
def test_a_manifest_names_what_it_ran_on_and_the_recipes_target_apart(
    machine: Hardware, text: str, hardware_: str, target: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = planned(tmp_path, machine, monkeypatch, text)
    assert (made.serving.hardware, made.serving.target) == (hardware_, target)
    assert ServingManifest.from_json(made.serving.to_json()) == made.serving


def test_json_is_compact_unless_the_recipe_says_how_it_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    by_itself = planned(tmp_path / "a", CPU, monkeypatch, RECIPE).serving
    assert by_itself.json_argument("structured-outputs-config") == planned_serving.COMPACT_JSON
    set_ = "kv_cache_gib: 8\n  arguments: {structured-outputs-config: {backend: guidance}}"
    own = FOR_AMPERE.replace("kv_cache_gib: 8", set_)
    made = planned(tmp_path / "b", H200, monkeypatch, own).serving
    assert made.json_argument("structured-outputs-config") == {"backend": "guidance"}


def test_a_server_asks_for_the_share_of_a_gpu_that_its_model_and_cache_need(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = planned(tmp_path, H200, monkeypatch)
    # The weights are some KB: 8 GiB of cache and 4 to compute with, of 140.
    shares = {quantized: made.served(quantized=quantized).arguments[GPU_SHARE] for quantized in (False, True)}
    assert shares == {False: 0.09, True: 0.09}
    assert f"--{GPU_SHARE}=0.09" in made.steps["artifact.performance"].inputs["serving"]["arguments"]
    own = FOR_AMPERE.replace("kv_cache_gib: 8", f"kv_cache_gib: 8\n  arguments: {{{GPU_SHARE}: 0.5}}")
    assert planned(tmp_path / "own", H200, monkeypatch, own).served(quantized=True).arguments[GPU_SHARE] == 0.5
    assert GPU_SHARE not in planned(tmp_path / "cpu", CPU, monkeypatch, RECIPE).served(quantized=True).arguments


MANIFEST = ServingManifest(
    model=ServedModel(name="m", digest="", served_model_name="m"),
    engine=ServingEngine(version="0.32.0"),
    hardware="hopper",
    dtype="auto",
    max_model_len=8192,
    kv_cache_memory_bytes=8 * GIB,
)
REQUEST = Request("rtn", "W8A8", None, ("lm_head",), 0.01, False)


@given(st.integers(2**20, 2**38), st.integers(8, 300), st.integers(1, 8))
def test_the_share_holds_weights_and_cache_and_leaves_the_rest(parameters: int, gib: int, devices: int) -> None:
    arguments = {"tensor-parallel-size": devices} if devices > 1 else {}
    manifest = MANIFEST.model_copy(update={"arguments": arguments})
    tensor = Tensor("model.embed_tokens.weight", "BF16", (parameters, 1))
    source = Source("m", "folder", "m", None, None, tensors=(tensor,))
    machine = H200.model_copy(update={"accelerator_memory_bytes": gib * GIB})
    share = planned_serving.share(manifest, machine, source, REQUEST, quantized=False)
    held = 2 * parameters / devices + 8 * GIB
    if share is None:
        assert held + planned_serving._RUNTIME_BYTES > (planned_serving.MOST_OF_A_GPU - 0.01) * gib * GIB
    else:
        assert held + planned_serving._RUNTIME_BYTES <= share * gib * GIB < held + 4 * GIB + 0.011 * gib * GIB


def test_a_model_whose_size_is_not_known_leaves_the_share_to_vllm() -> None:
    assert planned_serving.share(MANIFEST, H200, Source("m", "hub", "m", None, None), REQUEST, quantized=False) is None
    assert planned_serving.share(MANIFEST.model_copy(update={"kv_cache_memory_bytes": None}), H200,
                                 Source("m", "hub", "m", None, None), REQUEST, quantized=False) is None  # fmt: skip


def test_a_manifest_with_a_small_share_fits_where_its_weights_and_cache_do() -> None:
    manifest = MANIFEST.model_copy(update={"arguments": {GPU_SHARE: 0.09}})
    problems = lint.check(manifest, {}, weights_bytes=14 * GIB, device_bytes=24 * GIB, chat_template=True)
    assert [problem for problem in problems if problem.code.name == "device-memory"] == []
    assert lint.check(manifest, {}, weights_bytes=15 * GIB, device_bytes=24 * GIB, chat_template=True)


def test_a_gpu_that_something_else_holds_is_told_with_the_flag() -> None:
    why = (
        "ValueError: Free memory on device cuda:0 (9.1/139.8 GiB) on startup is less than desired GPU memory "
        "utilization (0.2, 27.96 GiB). Decrease GPU memory utilization or reduce GPU memory used by other processes."
    )
    assert f"serve.arguments.{GPU_SHARE}" in hint_for(why)
    assert GPU_SHARE not in hint_for("ValueError: something else")


def test_large_files_are_named_while_they_are_hashed_and_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seals, "GLANCE", 2**14)
    monkeypatch.setattr(hashing, "settled", lambda *_: True)
    told: list[str] = []
    loaded = recipe_file.load(workspace(tmp_path))
    for _ in range(2):
        plan.make(loaded, Store(tmp_path / "home"), thorough=True, report=told.append)
    assert [line.partition(",")[0] for line in told].count("hashing model.safetensors") == 1
    assert len(told) == len(set(told))


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[2] / "recipes").glob("llama3-*.yaml")), ids=str)
def test_recipes_of_models_that_were_not_at_hand_gate_what_random_weights_would_lose(path: Path) -> None:
    recipe = recipe_file.load(path).recipe
    if recipe.quantize.method != "none":
        assert recipe.gates.bounds().keys() >= {"flip_rate", "kl_divergence", "task_accuracy_drop"}


def test_plan_adds_up_what_is_to_do_and_says_what_never_ran(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = planned(tmp_path, CPU, monkeypatch, RECIPE)
    took = {"fetch": (60.0, 1.2), "quantize": (30.0, 1.5), "judge": (None, None)}
    todo = [StepEstimate(name, "k", False, seconds, "", within) for name, (seconds, within) in took.items()]
    render.planned(made, [*todo, StepEstimate("hold_out", "k", True, 999.0, "", 1.1)], [], Counted(), as_json=False)
    assert "to do: about 1 min 30 s, within x1.3, and 1 step without an estimate" in capsys.readouterr().out
