"""Models that are refused whatever the scheme, each for its true reason."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from quantize.checkpoint import sources
from quantize.checkpoint.headers import Tensor
from quantize.checkpoint.source import Source
from quantize.engines import source_copy
from quantize.engines.protocol import Request
from quantize.preflight import preflight, served_models, sizes
from tests.unit.recipes import checkpoint

EYE = Tensor("visual.blocks.0.attn.qkv.weight", "BF16", (96, 32))


def refused(config: dict[str, Any], target: str = "cpu", *, own: bool = False, eye: bool = False) -> list[str]:
    layer = Tensor("model.layers.0.mlp.up_proj.weight", "BF16", (64, 64))
    model = Source("m", "folder", "m", None, None, (layer, EYE) if eye else (layer,), config)
    return [problem.code.name for problem in served_models.check(model, target, own_vllm=own)]


@pytest.mark.parametrize(
    "config",
    [
        {"architectures": ["T5ForConditionalGeneration"], "is_encoder_decoder": True},
        {"architectures": ["BertModel"]},
        {"architectures": ["Qwen3Model"]},
        {"architectures": ["LlamaForSequenceClassification"]},
    ],
)
def test_what_generates_no_text_is_refused_on_every_target(config: dict[str, Any]) -> None:
    assert refused(config) == refused(config, "hopper", own=True) == ["no-text-generation"]


def test_an_architecture_that_this_vllm_dropped_needs_an_environment_of_its_own() -> None:
    config = {"architectures": ["BambaForCausalLM"]}
    assert refused(config, "hopper") == ["model-not-served"]
    assert refused(config, "hopper", own=True) == []


def test_a_model_that_reads_images_is_not_served_by_the_environment_for_cpus() -> None:
    config = {"architectures": ["Qwen2VLForConditionalGeneration"], "vision_config": {"depth": 1}}
    assert refused(config, eye=True) == ["model-not-served"]
    assert refused(config, "hopper", eye=True) == refused(config, own=True, eye=True) == []


def test_what_neither_vllm_nor_its_transformers_backend_runs_is_refused() -> None:
    for name in ("RwkvForCausalLM", "GPTNeoForCausalLM", "XGLMForCausalLM"):
        assert refused({"architectures": [name]}, "hopper") == ["model-not-served"]
        assert refused({"architectures": [name]}, "hopper", own=True) == []
    # vLLM has no class of that name either, and runs transformers' own.
    assert refused({"architectures": ["HeliumForCausalLM"]}, "hopper") == []
    assert refused({"architectures": ["PhimoeForCausalLM"]}, "hopper") == ["model-not-served"]
    assert refused({"architectures": ["MixtralForCausalLM"]}, "hopper") == []


def test_a_key_that_vllm_reads_has_to_be_in_the_config() -> None:
    for name, keys in (("Lfm2ForCausalLM", ("block_dim",)), ("MiniMaxM2ForCausalLM", ("rotary_dim", "scoring_func"))):
        whole = {"architectures": [name], **dict.fromkeys(keys, 64)}
        assert refused(whole, "hopper") == []
        for key in keys:
            assert refused({k: v for k, v in whole.items() if k != key}, "hopper") == ["model-not-served"]


def test_latent_attention_has_kernels_for_some_widths() -> None:
    config = {"model_type": "deepseek_v3", "kv_lora_rank": 512, "qk_rope_head_dim": 64}
    assert refused(config, "hopper") == refused(config) == []
    narrow = {**config, "kv_lora_rank": 256}
    assert refused(narrow, "hopper") == []
    assert refused(narrow) == ["model-not-served"]
    assert refused({**config, "kv_lora_rank": 128}, "hopper") == ["model-not-served"]
    # It has such keys, and no latent attention in vLLM.
    assert refused({**narrow, "model_type": "minicpm3"}) == []
    chosen = {**config, "model_type": "deepseek_v32", "index_topk": 64}
    assert (refused(chosen, "hopper"), refused(chosen)) == ([], ["model-not-served"])


def test_mamba_1_runs_on_gpus_alone() -> None:
    block = "model.layers.0.mamba"
    tensors = (Tensor(f"{block}.in_proj.weight", "BF16", (64, 32)), Tensor(f"{block}.A_log", "F32", (64, 16)))
    model = Source("m", "folder", "m", None, None, tensors, {"num_hidden_layers": 1})
    assert [problem.code.name for problem in served_models.check(model, "cpu", own_vllm=False)] == ["model-not-served"]
    assert served_models.check(model, "hopper", own_vllm=False) == []


def test_experts_without_a_gate_and_modules_that_need_torchvision_run_on_gpus_alone() -> None:
    names = ("up_proj", "down_proj")
    tensors = tuple(
        Tensor(f"model.layers.0.mlp.experts.{i}.{name}.weight", "BF16", (64, 64)) for i in (0, 1) for name in names
    )
    gate = Tensor("model.layers.0.mlp.experts.0.gate_proj.weight", "BF16", (64, 64))
    for held, target, codes in (
        (tensors, "cpu", ["model-not-served"]),
        (tensors, "hopper", []),
        ((*tensors, gate), "cpu", []),
    ):
        model = Source("m", "folder", "m", None, None, held, {"num_hidden_layers": 1})
        assert [problem.code.name for problem in served_models.check(model, target, own_vllm=False)] == codes
    text = {"architectures": ["Qwen3_5ForCausalLM"]}
    assert (refused(text), refused(text, "hopper")) == (["model-not-served"], [])


def test_names_that_say_nothing_are_no_reason() -> None:
    for config in ({}, {"architectures": None}, {"architectures": [1]}, {"architectures": ["GPT2LMHeadModel"]}):
        assert refused(config) == []


def test_a_source_that_is_quantized_is_released_as_it_is_and_starts_nothing_else() -> None:
    for config, method in (
        ({"quantization_config": {"quant_method": "fp8"}}, "fp8"),
        ({"quantization_config": {}}, "unnamed"),
        ({"text_config": {"quantization_config": {"quant_algo": "NVFP4"}}}, "NVFP4"),
    ):
        model = Source("m", "folder", "m", None, None, (EYE,), config)
        assert model.quantization == method
        (complaint,) = served_models.quantized_already(model, "rtn")
        assert complaint.code.name == "quantized-already"
        assert served_models.quantized_already(model, "none") == []
        asked = Request("none", "BF16", None, (), 0.01, False)
        assert [problem.code.name for problem in source_copy.check(asked, model)] == ["not-bf16"]
        as_it_is = replace(asked, scheme="SOURCE")
        assert source_copy.check(as_it_is, model) == preflight.check(as_it_is, model, "cpu", 1) == []
        assert sizes.weights_bytes(model, as_it_is) == 96 * 32 * 2


def test_a_tower_as_transformers_5_saves_it_is_refused() -> None:
    config = {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "vision_config": {"model_type": "siglip_vision_model"},
    }
    layer = Tensor("language_model.model.layers.0.mlp.up_proj.weight", "BF16", (64, 64))

    def problems(name: str) -> list[str]:
        model = Source("m", "folder", "m", None, None, (layer, Tensor(name, "BF16", (64, 64))), config)
        return [problem.code.name for problem in served_models.check(model, "hopper", own_vllm=False)]

    assert problems("vision_tower.encoder.layers.0.mlp.fc1.weight") == ["model-not-served"]
    assert problems("model.vision_tower.encoder.layers.0.mlp.fc1.weight") == ["model-not-served"]
    assert problems("vision_tower.vision_model.encoder.layers.0.mlp.fc1.weight") == []


@pytest.mark.parametrize(
    ("file", "method", "why"),
    [
        ("hf_quant_config.json", "modelopt", []),
        # vLLM reads these two only where a flag says that it is quantized.
        ("quantize_config.json", "gptq", ["model-not-served"]),
        ("quant_config.json", "awq", ["model-not-served"]),
    ],
)
def test_a_quantization_config_in_a_file_of_its_own_is_read(
    file: str, method: str, why: list[str], tmp_path: Path
) -> None:
    folder = checkpoint(tmp_path / "model")
    found, _ = sources.find(str(folder), tmp_path, None)
    assert found is not None
    assert found.quantization is None
    (folder / file).write_text('{"quantization": {"quant_algo": "NVFP4"}, "bits": 4}')
    found, _ = sources.find(str(folder), tmp_path, None)
    assert found is not None
    assert found.quantization == method
    assert [problem.code.name for problem in served_models.quantized_already(found, "rtn")] == ["quantized-already"]
    assert [problem.code.name for problem in served_models.check(found, "cpu", own_vllm=False)] == why


def test_biases_that_vllms_class_has_whatever_the_config_says_have_to_be_stored() -> None:
    config = {"architectures": ["PhiMoEForCausalLM"], "attention_bias": False}
    stem = "model.layers.0.self_attn"
    weights = [Tensor(f"{stem}.{name}_proj.weight", "BF16", (64, 64)) for name in "qkvo"]
    biases = [Tensor(f"{stem}.{name}_proj.bias", "BF16", (64,)) for name in "qkvo"]

    def problems(*tensors: Tensor) -> list[str]:
        model = Source("m", "folder", "m", None, None, tensors, config)
        return [problem.code.name for problem in served_models.check(model, "hopper", own_vllm=False)]

    assert problems(*weights) == ["model-not-served"]
    assert problems(*weights, *biases) == ["model-not-served"]
    assert problems(*weights, *biases, Tensor("lm_head.bias", "BF16", (128,))) == []
    # Without headers nothing is known.
    assert problems() == []
