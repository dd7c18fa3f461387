"""Tensor, pipeline, data and expert parallelism: what one device holds, and what can't be shared."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tests.unit.registry_examples as examples
from qpack.core import model_shapes
from qpack.core.errors import RecipeError, RegistryError
from qpack.core.jsonfile import JsonObject
from qpack.core.records import Hardware
from qpack.core.store import Store
from qpack.pipeline import plan
from qpack.pipeline.ray_sweep import gpus
from qpack.recipe import recipe_file
from qpack.runtime import hardware
from quantize.checkpoint import from_config
from registry.serving import lint, parallel
from registry.serving.exporters.formats import FORMATS
from registry.serving.serving_manifest import ServingManifest, select
from tests.unit.export_examples import export
from tests.unit.recipes import workspace
from tests.unit.test_gpu_serving import FOR_AMPERE, H200

GIB = 2**30
DENSE: dict[str, Any] = {
    "model_type": "llama", "num_hidden_layers": 80, "num_attention_heads": 64, "num_key_value_heads": 8,
    "hidden_size": 8192, "intermediate_size": 28672, "vocab_size": 128256,
}  # fmt: skip
# Qwen3-30B-A3B's config.json.
MOE: dict[str, Any] = {
    "model_type": "qwen3_moe", "num_hidden_layers": 48, "num_attention_heads": 32, "num_key_value_heads": 4,
    "head_dim": 128, "hidden_size": 2048, "intermediate_size": 6144, "moe_intermediate_size": 768, "num_experts": 128,
    "num_experts_per_tok": 8, "vocab_size": 151936, "tie_word_embeddings": False,
}  # fmt: skip


def manifest(hardware_: str = "hopper", **flags: Any) -> ServingManifest:
    arguments = {flag.replace("_", "-"): value for flag, value in flags.items()}
    return examples.serving().model_copy(update={"hardware": hardware_, "arguments": arguments})


def codes(config: JsonObject, group: int | None = None, **flags: Any) -> list[tuple[str, str]]:
    found = parallel.check(manifest(**flags), config, group)
    return [(str(problem.code), str(problem.where.key[-1])) for problem in found]


def test_the_share_of_parameters_in_experts_is_that_of_the_tensors() -> None:
    shapes = from_config.shapes(MOE)
    assert shapes is not None
    routed = sum(math.prod(shape) for name, shape in shapes.items() if ".experts." in name)
    whole = sum(math.prod(shape) for shape in shapes.values())
    assert model_shapes.expert_share(MOE) == pytest.approx(routed / whole, rel=1e-3)
    assert model_shapes.expert_share(DENSE) == 0


@given(
    tensor=st.sampled_from([1, 2, 4]), pipeline=st.sampled_from([1, 2]), data=st.sampled_from([1, 2, 4, 8]),
    config=st.sampled_from([DENSE, MOE]),
)  # fmt: skip
def test_all_devices_together_hold_every_copy_once(tensor: int, pipeline: int, data: int, config: JsonObject) -> None:
    flags = {"tensor_parallel_size": tensor, "pipeline_parallel_size": pipeline, "data_parallel_size": data}
    made = manifest(**flags)
    routed = model_shapes.expert_share(config)
    copies = data * (1 - routed) + routed
    assert made.devices == tensor * pipeline * data
    assert made.devices * parallel.weights_share(made, config) == pytest.approx(copies)
    on_host = manifest("cpu", **flags)
    assert on_host.devices == 0
    assert parallel.weights_share(on_host, config) == pytest.approx(copies)
    assert parallel.cache_share(on_host) == made.devices


@pytest.mark.parametrize(
    ("config", "flags", "found"),
    [
        (MOE, {"tensor_parallel_size": 2, "data_parallel_size": 4, "enable_expert_parallel": True}, []),
        (MOE, {"data_parallel_size": 8}, []),
        # 768 channels of an expert over 2 x 128 GPUs, unless each has whole experts.
        (MOE, {"tensor_parallel_size": 4, "data_parallel_size": 256},
         [("tensor-parallel", "data-parallel-size")]),
        (MOE, {"data_parallel_size": 256, "enable_expert_parallel": True},
         [("expert-parallel", "enable-expert-parallel")]),
        (DENSE, {"enable_expert_parallel": True}, [("expert-parallel", "enable-expert-parallel")]),
        (DENSE, {"data_parallel_size": 3}, []),
        (DENSE, {"tensor_parallel_size": 3},
         [("tensor-parallel", "tensor-parallel-size"), ("tensor-parallel", "tensor-parallel-size")]),
    ],
)  # fmt: skip
def test_what_copies_and_experts_can_t_share_is_named(
    config: JsonObject, flags: dict[str, Any], found: list[tuple[str, str]]
) -> None:
    assert codes(config, **flags)[: len(found) or None] == found


def test_groups_have_to_fit_into_an_expert_s_channels_on_each_gpu_unless_experts_stay_whole() -> None:
    # 768 channels over 4 GPUs are 192: one and a half groups of 128.
    assert codes(MOE, 128, data_parallel_size=4) == [("group-split", "data-parallel-size")]
    assert codes(MOE, 128, data_parallel_size=4, enable_expert_parallel=True) == []


def test_an_expert_s_channels_are_not_cut_by_tensor_parallelism_where_experts_stay_whole() -> None:
    mixtral = {**DENSE, "num_local_experts": 8, "intermediate_size": 14336 + 64}
    assert codes(mixtral, 128, tensor_parallel_size=2) == [("group-split", "tensor-parallel-size")]
    assert codes(mixtral, 128, tensor_parallel_size=2, enable_expert_parallel=True) == []


@pytest.mark.parametrize("flag", ["data-parallel-size", "pipeline-parallel-size"])
@pytest.mark.parametrize("value", [0, -1, "many", 1.5, True])
def test_a_size_that_is_no_number_of_devices_is_refused_in_the_manifest(flag: str, value: object) -> None:
    text = manifest().to_json().replace('"arguments": {}', f'"arguments": {{"{flag}": {str(value).lower()}}}')
    text = text.replace(": many}", ': "many"}')
    with pytest.raises(RegistryError):
        ServingManifest.from_json(text)


def memory_problems(device: int, **flags: Any) -> list[str]:
    made = manifest(**flags).model_copy(update={"kv_cache_memory_bytes": 8 * GIB, "max_model_len": 2048})
    found = lint.check(made, MOE, weights_bytes=60 * GIB, device_bytes=device, chat_template=True)
    return [str(problem.code) for problem in found]


def test_memory_is_counted_with_experts_spread_over_copies() -> None:
    assert memory_problems(40 * GIB) == ["device-memory"]
    # A copy of attention and embeddings each, and an eighth of the experts.
    assert memory_problems(24 * GIB, data_parallel_size=8, enable_expert_parallel=True) == []


def test_two_workers_on_a_host_hold_the_weights_once_and_two_caches() -> None:
    flags = {"hardware_": "cpu", "tensor_parallel_size": 2}
    assert memory_problems(76 * GIB, **flags) == []
    assert memory_problems(75 * GIB, **flags) == ["device-memory"]


IN_PODS = (
    "docker",
    "dockerfile",
    "compose",
    "kubernetes",
    "kserve",
    "llm-d",
    "production-stack",
    "skypilot",
    "systemd",
)


def test_every_export_asks_for_the_gpus_of_all_copies() -> None:
    whole = select(export("two-gpus").manifest, None)
    made = whole.model_copy(update={"arguments": {"tensor-parallel-size": 2, "data-parallel-size": 4,
                                                  "enable-expert-parallel": True}, "environment": {}})  # fmt: skip
    texts = {name: "".join(FORMATS[name].files(export("two-gpus", manifest=made)).values()) for name in IN_PODS}
    assert "--gpus 8" in texts["docker"]
    assert "count: 8" in texts["compose"]
    assert "nvidia.com/gpu: '8'" in texts["kubernetes"]
    assert "H100: 8" in texts["skypilot"]
    for name in IN_PODS:
        # llm-d's chart makes the flag of its own value.
        assert ("data: 4" if name == "llm-d" else "--data-parallel-size=4") in texts[name], name
        assert "--enable-expert-parallel" in texts[name], name
    assert "tensor: 2" in texts["kserve"]


def test_a_plan_refuses_experts_that_a_dense_model_hasn_t(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "detect", lambda: Hardware(**{**H200.model_dump(), "accelerators": 8}))
    set_ = "kv_cache_gib: 8\n  arguments: {enable-expert-parallel: true, data-parallel-size: 2}"
    loaded = recipe_file.load(workspace(tmp_path, FOR_AMPERE.replace("kv_cache_gib: 8", set_)))
    assert gpus(loaded.recipe.serve) == 2
    with pytest.raises(RecipeError) as raised:
        plan.make(loaded, Store(tmp_path / "home"), thorough=True)
    (problem,) = raised.value.problems
    assert (str(problem.code), str(problem.where).partition(": ")[2]) == (
        "expert-parallel",
        "serve.arguments.enable-expert-parallel",
    )
    assert problem.where.line is not None
