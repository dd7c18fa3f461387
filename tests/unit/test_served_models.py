"""Models that are refused whatever the scheme, each for its true reason."""

from __future__ import annotations

from typing import Any

import pytest

from quantize.checkpoint.headers import Tensor
from quantize.checkpoint.source import Source
from quantize.preflight import served_models

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


def test_names_that_say_nothing_are_no_reason() -> None:
    for config in ({}, {"architectures": None}, {"architectures": [1]}, {"architectures": ["GPT2LMHeadModel"]}):
        assert refused(config) == []
