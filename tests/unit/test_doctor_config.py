# ruff: noqa: ARG005
"""Configs that don't describe their tensors, as public reports have them, and neighbours of each report."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantize.doctor import checkup
from tests.unit import packed
from tests.unit.packed import Array

Tensors = dict[str, Array]
Config = dict[str, Any]
Change = Callable[[Tensors, Config], object]

H, E, LAYERS = 64, 4, 6
GROUP = {"targets": ["Linear"], "weights": {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"}}


def halves(*shape: int) -> Array:
    return np.random.default_rng(len(shape)).normal(size=shape).astype(np.float16)


def mixture() -> tuple[Tensors, Config]:
    """A mixture of experts, as Qwen3's are named."""
    config: Config = {
        "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "hidden_size": H, "vocab_size": 32,
        "num_hidden_layers": LAYERS, "num_attention_heads": 2, "num_key_value_heads": 2, "num_experts": E,
        "num_experts_per_tok": 2, "moe_intermediate_size": 128, "tie_word_embeddings": False, "eos_token_id": 2,
        "layer_types": ["full_attention"] * LAYERS,
    }  # fmt: skip
    tensors = {"model.embed_tokens.weight": halves(32, H), "lm_head.weight": halves(32, H),
               "model.norm.weight": halves(H)}  # fmt: skip
    for i in range(LAYERS):
        tensors |= {f"model.layers.{i}.self_attn.{name}_proj.weight": halves(H, H) for name in "qkvo"}
        tensors |= {f"model.layers.{i}.{name}_layernorm.weight": halves(H) for name in ("input", "post_attention")}
        tensors[f"model.layers.{i}.mlp.gate.weight"] = halves(E, H)
        for e in range(E):
            stem = f"model.layers.{i}.mlp.experts.{e}"
            tensors |= {f"{stem}.{part}_proj.weight": halves(128, H) for part in ("gate", "up")}
            tensors[f"{stem}.down_proj.weight"] = halves(H, 128)
    return tensors, config


def quantized() -> tuple[Tensors, Config]:
    """The same with attention in 8 bits."""
    tensors, config = mixture()
    for name in [name for name in tensors if "self_attn" in name]:
        tensors[name] = np.ones((H, H), np.int8)
        tensors[f"{name}_scale"] = np.full((H, 1), 0.01, np.float16)
    config["quantization_config"] = {
        "quant_method": "compressed-tensors", "format": "int-quantized", "config_groups": {"group_0": GROUP},
        "ignore": ["lm_head", "re:.*mlp.*"],
    }  # fmt: skip
    return tensors, config


def kinds(tmp_path: Path, tensors: Tensors, config: Config, *files: tuple[str, str]) -> list[tuple[str, str]]:
    packed.save(tmp_path / "model.safetensors", tensors)
    plain = [("config.json", json.dumps(config)), ("tokenizer.json", "{}"), ("tokenizer_config.json", "{}")]
    for name, text in (*plain, *files):
        (tmp_path / name).write_text(text)
    return [(finding.severity, finding.code.name) for finding in checkup.examine(tmp_path).findings]


def test_good_ones_are_not_accused(tmp_path: Path) -> None:
    for number, made in enumerate((mixture, quantized)):
        (tmp_path / str(number)).mkdir()
        assert kinds(tmp_path / str(number), *made()) == []


def fused(tensors: Tensors, config: Config, *, transposed: bool = False) -> None:
    """Experts in one tensor, as transformers 5 keeps them."""
    for name in [name for name in tensors if ".experts." in name]:
        del tensors[name]
    for i in range(LAYERS):
        stem = f"model.layers.{i}.mlp.experts"
        tensors[f"{stem}.gate_up_proj"] = halves(E, H, 256) if transposed else halves(E, 256, H)
        tensors[f"{stem}.down_proj"] = halves(E, H, 128)


def gpt_oss(tensors: Tensors, config: Config) -> None:
    fused(tensors, config)
    config["model_type"] = "gpt_oss"
    for i in range(LAYERS):
        tensors[f"model.layers.{i}.self_attn.sinks"] = halves(2)


def sees(tensors: Tensors, config: Config) -> None:
    """The config of a model that reads images, with its text part alone."""
    text = dict(config)
    config.clear()
    config |= {"architectures": ["OddForConditionalGeneration"], "model_type": "odd", "text_config": text,
               "vision_config": {"depth": 2}, "image_token_id": 5}  # fmt: skip


def tower(tensors: Tensors, config: Config) -> None:
    sees(tensors, config)
    tensors |= {f"visual.blocks.{i}.attn.qkv.weight": halves(96, 32) for i in range(2)}


def zero_experts(tensors: Tensors, config: Config) -> None:
    """LongCat: two more experts hand on their input; transformers writes a part of them, as random weights."""
    config["zero_expert_num"] = 2
    for i in range(LAYERS):
        tensors[f"model.layers.{i}.mlp.gate.weight"] = halves(E + 2, H)
        for e in (E, E + 1):
            tensors[f"model.layers.{i}.mlp.experts.{e}.gate_proj.weight"] = halves(128, H)


def runs_again(tensors: Tensors, config: Config) -> None:
    """HRM: two stacks that run several times each, and every time counts as layers."""
    config |= {"num_layers_per_stack": LAYERS, "num_hidden_layers": 4 * LAYERS}
    del config["layer_types"]
    for name in [name for name in tensors if ".layers." in name]:
        stored = tensors.pop(name)
        tensors[name.replace("model.", "model.H_module.")] = tensors[name.replace("model.", "model.L_module.")] = stored


def another_head(tensors: Tensors, config: Config) -> None:
    """DeepSeek V4's output layer is `head`."""
    tensors["head.weight"] = tensors.pop("lm_head.weight")


@pytest.mark.parametrize("change", [zero_experts, runs_again, another_head])
def test_neither_are_unusual_ones(change: Change, tmp_path: Path) -> None:
    tensors, config = mixture()
    change(tensors, config)
    assert kinds(tmp_path, tensors, config) == []


@pytest.mark.parametrize(
    ("change", "lost", "code"),
    [
        (zero_experts, "model.layers.1.mlp.experts.1.down_proj.weight", "lost-tensor"),
        (zero_experts, "model.layers.1.mlp.experts.3.", "expert-count"),
        (runs_again, "model.H_module.layers.5.", "layer-count"),
        (another_head, "head.weight", "no-head"),
    ],
)
def test_what_unusual_ones_lose_is_found(change: Change, lost: str, code: str, tmp_path: Path) -> None:
    tensors, config = mixture()
    change(tensors, config)
    both = (lost, lost.replace("H_module", "L_module"))
    for name in [name for name in tensors if name.startswith(both)]:
        del tensors[name]
    assert code in [name for _, name in kinds(tmp_path, tensors, config)]


FAULTS: dict[str, tuple[str, Change]] = {
    "layer_types is longer": ("layer-count", lambda t, c: c["layer_types"].append("full_attention")),
    "layer_types is shorter": ("layer-count", lambda t, c: c["layer_types"].pop()),
    "another list by layer is longer": ("layer-count", lambda t, c: c.update(no_rope_layers=[1] * 9)),
    "a layer is gone": (
        "layer-count", lambda t, c: [t.pop(n) for n in list(t) if n.startswith("model.layers.5.")]),
    "the config has fewer layers": (
        "layer-count", lambda t, c: c.update(num_hidden_layers=4, layer_types=["full_attention"] * 4)),
    "num_experts is more": ("expert-count", lambda t, c: c.update(num_experts=8)),
    "num_experts is less": ("expert-count", lambda t, c: c.update(num_experts=2)),
    "a router chooses among more": (
        "expert-count", lambda t, c: t.update({"model.layers.1.mlp.gate.weight": halves(8, H)})),
    "one tensor holds fewer experts": (
        "expert-count",
        lambda t, c: (fused(t, c), t.update({"model.layers.1.mlp.experts.down_proj": halves(3, H, 128)}))),
    "an expert is gone": (
        "lost-tensor", lambda t, c: [t.pop(n) for n in list(t) if "layers.2.mlp.experts.1." in n]),
    "a matrix of an expert is gone": (
        "lost-tensor", lambda t, c: t.pop("model.layers.2.mlp.experts.3.down_proj.weight")),
    "a norm is gone": ("lost-tensor", lambda t, c: t.pop("model.layers.3.input_layernorm.weight")),
    "sinks are gone": (
        "lost-tensor", lambda t, c: (gpt_oss(t, c), [t.pop(n) for n in list(t) if n.endswith("sinks")])),
    "sinks of one layer are gone": (
        "lost-tensor", lambda t, c: (gpt_oss(t, c), t.pop("model.layers.0.self_attn.sinks"))),
    "gpt-oss has experts of another layout": ("experts-transposed", gpt_oss),
    "half of the experts' tensors are transposed": (
        "experts-transposed", lambda t, c: fused(t, c, transposed=True)),
    "experts are named as another model's": ("expert-names", lambda t, c: c.update(model_type="phimoe")),
    "packed experts under a name of their own": (
        "expert-names",
        lambda t, c: t.update({"model.layers.0.mlp.experts.gate_up_proj_packed": np.zeros((E, 256, 8), np.int32)})),
    "scales of experts under a name of their own": (
        "expert-names", lambda t, c: t.update({"model.layers.0.mlp.experts.down_proj_scale": halves(E, H, 4)})),
    "all experts packed in one": (
        "expert-names",
        lambda t, c: t.update(
            {"model.layers.0.mlp.experts.down_proj.weight_packed": np.zeros((E, H, 16), np.int32)})),
    "the vocabulary is larger": ("vocabulary", lambda t, c: c.update(vocab_size=64)),
    "an end token is outside": ("vocabulary", lambda t, c: c.update(eos_token_id=[2, 32])),
    "the image token is outside": (
        "vocabulary", lambda t, c: (tower(t, c), c.update(image_token_id=99))),
    "vision_config without a tower": ("no-encoder", sees),
    "audio_config without a tower": (
        "no-encoder", lambda t, c: (tower(t, c), c.update(audio_config={"layers": 2}))),
    "no preprocessor": ("missing-file", tower),
    "a norm is NaN": (
        "weight-not-finite", lambda t, c: t["model.layers.1.input_layernorm.weight"].fill(np.nan)),
    "a bias is infinite": (
        "weight-not-finite",
        lambda t, c: t.update({"model.layers.1.self_attn.q_proj.bias": np.full(H, np.inf, np.float16)})),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_config_that_does_not_describe_its_tensors_is_an_error(tmp_path: Path, fault: str) -> None:
    code, change = FAULTS[fault]
    tensors, config = mixture()
    change(tensors, config)
    assert ("error", code) in kinds(tmp_path, tensors, config)


@pytest.mark.parametrize("key", ["num_nextn_predict_layers", "mtp_num_hidden_layers", "num_mtp_modules"])
def test_draft_layers_that_are_not_there_are_told_of_artifacts_and_noted_of_sources(tmp_path: Path, key: str) -> None:
    for number, (made, severity) in enumerate(((mixture, "note"), (quantized, "warning"))):
        (tmp_path / str(number)).mkdir()
        tensors, config = made()
        config[key] = 1
        assert kinds(tmp_path / str(number), tensors, config) == [(severity, "draft-layers")]
        tensors[f"model.layers.{LAYERS}.eh_proj.weight"] = halves(H, 2 * H)
        if made is mixture:
            assert kinds(tmp_path / str(number), tensors, config) == []


def cache(scale: float | None, dynamic: bool = False, layers: range = range(LAYERS)) -> Change:
    def change(tensors: Tensors, config: Config) -> None:
        scheme = {"num_bits": 8, "type": "float", "strategy": "tensor", "dynamic": dynamic}
        config["quantization_config"]["kv_cache_scheme"] = scheme
        for i in layers:
            if scale is not None:
                names = (f"model.layers.{i}.self_attn.{name}_scale" for name in "kv")
                tensors.update({name: np.array([scale], np.float16) for name in names})

    return change


def groups(*targets: list[str], bits: int = 4) -> Change:
    other = {**GROUP, "weights": {**GROUP["weights"], "num_bits": bits}}  # type: ignore[dict-item]
    made = {f"group_{i}": {**(other if i else GROUP), "targets": named} for i, named in enumerate(targets)}
    return lambda t, c: c["quantization_config"].update(config_groups=made)


QUANTIZED: dict[str, tuple[tuple[str, str] | None, Change]] = {
    "two groups of Linear": (("error", "two-groups"), groups(["Linear"], ["Linear"])),
    "two groups of one expression": (("error", "two-groups"), groups(["re:.*proj"], ["re:.*proj"])),
    "two groups whose expressions overlap": (("warning", "two-groups"), groups(["re:.*_proj"], ["re:.*q_proj"])),
    "an expression before a class": (None, groups(["re:.*q_proj"], ["Linear"], bits=8)),
    "cache scales of zero": (("error", "kv-cache-scale"), cache(0.0)),
    "cache scales that are NaN": (("error", "kv-cache-scale"), cache(float("nan"))),
    "cache scales below zero": (("error", "kv-cache-scale"), cache(-1.0)),
    "no cache scales": (("warning", "kv-cache-scale"), cache(None)),
    "cache scales of some layers": (("warning", "kv-cache-scale"), cache(0.1, layers=range(2))),
    "good cache scales": (None, cache(0.1)),
    "a dynamic cache": (None, cache(None, dynamic=True)),
}


@pytest.mark.parametrize("case", QUANTIZED)
def test_groups_and_cache_scales_that_contradict_themselves(tmp_path: Path, case: str) -> None:
    wanted, change = QUANTIZED[case]
    tensors, config = quantized()
    change(tensors, config)
    found = kinds(tmp_path, tensors, config)
    assert wanted in found if wanted else found == []


@pytest.mark.parametrize(
    ("tokenizer", "jinja", "wanted"),
    [
        ({"chat_template": "a"}, "b", [("warning", "template-differs")]),
        ({"chat_template": [{"name": "default", "template": "a"}]}, "b", [("warning", "template-differs")]),
        ({"chat_template": "a "}, "a\n", []),
        ({"extra_special_tokens": ["<a>"]}, None, [("warning", "special-tokens")]),
        ({"extra_special_tokens": ["<a>"]}, "a", []),
        ({"extra_special_tokens": {"image_token": "<a>"}}, None, []),
        ({"extra_special_tokens": ["<a>", ""]}, "a", [("error", "special-tokens")]),
        ({"additional_special_tokens": [{"content": ""}]}, "a", [("error", "special-tokens")]),
    ],
)
def test_templates_and_special_tokens(tmp_path: Path, tokenizer: Config, jinja: str | None, wanted: list[Any]) -> None:
    template = [("chat_template.jinja", jinja)] if jinja is not None else []
    files = [("tokenizer_config.json", json.dumps(tokenizer)), *template]
    assert kinds(tmp_path, *mixture(), *files) == wanted
