from __future__ import annotations

from typing import Any

import pytest

import tests.unit.registry_examples as examples
from evals import flags
from registry import lint
from registry.serving_manifest import ServingManifest

LLAMA: dict[str, Any] = {
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
    "quantization_config": {
        "quant_method": "compressed-tensors",
        "config_groups": {"group_0": {"weights": {"group_size": 128}}},
    },
}
GIB = 2**30


def manifest(**more: Any) -> ServingManifest:
    data = {**examples.serving().model_dump(by_alias=True), "arguments": {}, "hardware": "hopper"}
    return ServingManifest.model_validate({**data, "kv_cache_memory_bytes": 16 * GIB, **more})


def problems(
    made: ServingManifest, config: dict[str, Any] = LLAMA, device: int | None = None, **more: Any
) -> list[str]:
    settings = {"weights_bytes": 5 * GIB, "device_bytes": device, "chat_template": True, **more}
    return [f"{problem.where}: {problem.what}" for problem in lint.check(made, config, **settings)]


def test_a_manifest_that_can_be_served_has_no_problem() -> None:
    assert problems(manifest(arguments={"tensor-parallel-size": 2}), device=80 * GIB) == []


@pytest.mark.parametrize(
    ("parts", "config", "says"),
    [
        (3, {}, "32 attention heads can't be split over 3 GPUs"),
        (16, {"num_key_value_heads": 6}, "6 key-value heads can't be split"),
        (4, {"intermediate_size": 14340}, "groups of 128 channels don't fit into 3585"),
    ],
)
def test_shapes_that_tensor_parallelism_cant_split_are_named(parts: int, config: dict[str, Any], says: str) -> None:
    found = problems(manifest(arguments={"tensor-parallel-size": parts}), {**LLAMA, **config})
    assert any(says in problem for problem in found), found


def test_fewer_key_value_heads_than_gpus_are_copied_and_no_problem() -> None:
    assert problems(manifest(arguments={"tensor-parallel-size": 16}), {**LLAMA, "intermediate_size": 32768}) == []


def test_memory_that_doesnt_fit_is_told_in_gibibytes() -> None:
    found = problems(manifest(), device=20 * GIB)
    assert found == [
        "kv_cache_memory_bytes: 5.0 GiB of weights and 16.0 GiB of KV cache don't fit into the 18.4 GiB that one "
        "device has for them."
    ]
    assert problems(manifest(arguments={"tensor-parallel-size": 2}), device=24 * GIB) == []


def test_a_cache_too_small_for_one_request_is_a_problem() -> None:
    # 2 x 32 layers x 8 heads x 128 x 2 bytes = 128 KiB a token.
    assert lint.cache_bytes(manifest(max_model_len=8192), LLAMA) == 8192 * 128 * 1024
    found = problems(manifest(max_model_len=8192, kv_cache_memory_bytes=GIB // 2))
    assert any("one request of 8192 tokens needs 1.00 GiB" in problem for problem in found)


def test_more_tokens_than_the_model_was_made_for_are_a_problem() -> None:
    assert any("8193 tokens are more than the 8192" in problem for problem in problems(manifest(max_model_len=8193)))


def test_an_override_that_contradicts_the_checkpoint_is_a_problem() -> None:
    overrides = {"hf-overrides": {"quantization_config": {"quant_method": "awq"}}}
    assert any(
        "quantized with awq, and they are with compressed-tensors" in p for p in problems(manifest(arguments=overrides))
    )


@pytest.mark.parametrize(("revision", "count"), [("main", 1), ("1" * 40, 0)])
def test_a_draft_model_is_pinned_by_its_commit(revision: str, count: int) -> None:
    config = {"model": "org/draft", "num_speculative_tokens": 3, "revision": revision}
    assert len(problems(manifest(arguments={"speculative-config": config}))) == count


def test_drafts_from_the_prompt_need_no_pin() -> None:
    config = {"method": "ngram", "num_speculative_tokens": 3}
    assert problems(manifest(arguments={"speculative-config": config})) == []


def test_tools_need_a_parser_and_a_chat_template() -> None:
    assert any("no parser reads" in p for p in problems(manifest(arguments={"enable-auto-tool-choice": True})))
    both = manifest(arguments={"enable-auto-tool-choice": True, "tool-call-parser": "hermes"})
    assert problems(both) == []
    assert any("chat template" in p for p in problems(both, chat_template=False))


@pytest.mark.parametrize(("found", "fits"), [("0.32.0", True), ("0.32.4", True), ("0.33.0", False), ("0.31.9", False)])
def test_a_manifest_is_for_one_minor_version_of_vllm(found: str, fits: bool) -> None:
    assert (lint.version(manifest(), found) == []) is fits


def test_weights_that_this_vllm_cant_load_are_named() -> None:
    assert lint.loadable(LLAMA, ("awq", "compressed-tensors"), "0.32.0") == []
    assert "quantized with compressed-tensors" in lint.loadable(LLAMA, ("awq",), "0.32.0")[0].what


@pytest.mark.parametrize(
    ("flag", "hint"),
    [
        ("guided-decoding-backend", "Use structured-outputs-config"),
        ("no-enable-metrics", "Leave it out: metrics are always"),
        ("max-num-seq", "Did you mean 'max-num-seqs'?"),
        ("zzzzzz", "See `vllm serve --help=all`."),
    ],
)
def test_a_flag_that_vllm_hasnt_is_told_with_what_to_write(flag: str, hint: str) -> None:
    problem = flags.unknown(flag, "0.32.0", ["max-num-seqs", "dtype"])
    assert problem.where == f"arguments.{flag}"
    assert problem.hint.startswith(hint)
