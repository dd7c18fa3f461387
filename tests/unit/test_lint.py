from __future__ import annotations

from typing import Any

import pytest

import qpack.serve.draft_model
import tests.unit.registry_examples as examples
from evals.server import flags
from quantize.checkpoint import hub
from registry.serving import lint, objectives
from registry.serving.lint import Draft
from registry.serving.serving_manifest import DRAFT, ServingManifest
from tests.unit.recipes import safetensors

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
    return [f"{problem.code} {problem.where}: {problem.message}" for problem in lint.check(made, config, **settings)]


def test_a_manifest_that_can_be_served_has_no_problem() -> None:
    assert problems(manifest(arguments={"tensor-parallel-size": 2}), device=80 * GIB) == []


@pytest.mark.parametrize(
    ("parts", "config", "says"),
    [
        (3, {}, "tensor-parallel arguments.tensor-parallel-size: 3 GPUs can't share 32 attention heads"),
        (16, {"num_key_value_heads": 6}, "tensor-parallel arguments.tensor-parallel-size: 16 GPUs can't share 6 key"),
        (
            4,
            {"intermediate_size": 14340},
            "group-split arguments.tensor-parallel-size: groups of 128 don't fit into 3585",
        ),
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
        "device-memory kv_cache_memory_bytes: 5.0 GiB of weights and 16.0 GiB of KV cache don't fit into the 18.4 GiB "
        "that one device has for them."
    ]
    assert problems(manifest(arguments={"tensor-parallel-size": 2}), device=24 * GIB) == []


def test_a_cache_too_small_for_one_request_is_a_problem() -> None:
    # 2 x 32 layers x 8 heads x 128 x 2 bytes = 128 KiB a token.
    assert lint.cache_bytes(manifest(max_model_len=8192), LLAMA) == 8192 * 128 * 1024
    found = problems(manifest(max_model_len=8192, kv_cache_memory_bytes=GIB // 2))
    assert len(found) == 1
    assert found[0].startswith("kv-cache-size kv_cache_memory_bytes: one request of 8,192 tokens needs 1.00 GiB")
    assert found[0].endswith("0.50 GiB holds 4,096")


def test_more_tokens_than_the_model_was_made_for_are_a_problem() -> None:
    (found,) = problems(manifest(max_model_len=8193))
    assert found.startswith("above-context max_model_len: 8193 tokens are more than the 8192")


def test_an_override_that_contradicts_the_checkpoint_is_a_problem() -> None:
    overrides = {"hf-overrides": {"quantization_config": {"quant_method": "awq"}}}
    assert [p.partition(":")[0] for p in problems(manifest(arguments=overrides))] == [
        "other-method arguments.hf-overrides"
    ]


@pytest.mark.parametrize(("revision", "count"), [("main", 1), ("1" * 40, 0)])
def test_a_draft_model_is_pinned_by_its_commit(revision: str, count: int) -> None:
    config = {"model": "org/draft", "num_speculative_tokens": 3, "revision": revision}
    assert len(problems(manifest(arguments={"speculative-config": config}))) == count


def test_drafts_from_the_prompt_need_no_pin() -> None:
    config = {"method": "ngram", "num_speculative_tokens": 3}
    assert problems(manifest(arguments={"speculative-config": config})) == []


# As TinyLlama: 22 layers of 4 key-value heads, 64 wide.
SMALL = {"num_hidden_layers": 22, "num_attention_heads": 32, "num_key_value_heads": 4, "hidden_size": 2048}
# 2 x 22 layers x 4 heads x 64 x 2 bytes = 22 KiB a token.
SMALL_TOKEN = 22 * 1024


def drafting(parts: int = 1, **more: Any) -> dict[str, Any]:
    config = {"model": "org/draft", "revision": "1" * 40, "num_speculative_tokens": 3, **more}
    return {DRAFT: config, "tensor-parallel-size": parts}


def test_the_weights_of_a_draft_model_are_counted_beside_the_model_s() -> None:
    made = manifest(arguments=drafting())
    # 5 + 16 GiB fit into 0.92 x 23 GiB = 21.16 GiB, and 2 GiB of a draft beside them don't.
    assert problems(made, device=23 * GIB) == []
    assert problems(made, device=23 * GIB, draft=Draft(SMALL, 2 * GIB)) == [
        "device-memory kv_cache_memory_bytes: 5.0 GiB of weights, 2.0 GiB of the draft model and 16.0 GiB of KV cache "
        "don't fit into the 21.2 GiB that one device has for them."
    ]


@pytest.mark.parametrize(
    ("more", "fits"),
    # 5 / 2 GiB of the model and 16 GiB of cache on each of two GPUs with 0.92 x 23 = 21.16 GiB; 4 GiB of a draft are
    # 2 where they are shared (20.5 in all) and 4 where they aren't (22.5).
    [({}, True), ({"draft_tensor_parallel_size": 2}, True), ({"draft_tensor_parallel_size": 1}, False)],
)
def test_a_draft_model_is_shared_by_the_gpus_unless_the_manifest_says_otherwise(
    more: dict[str, Any], fits: bool
) -> None:
    found = problems(manifest(arguments=drafting(2, **more)), device=23 * GIB, draft=Draft(SMALL, 4 * GIB))
    assert (found == []) is fits


@pytest.mark.parametrize(
    ("parts", "more", "budget", "says"),
    # The model takes 128 KiB a token and the draft 22: 8192 tokens are 1 GiB and 0.17, half of it on each of two GPUs.
    [
        (1, {}, 1.15, "needs 1.17 GiB of KV cache on each device, 0.17 GiB of it for the draft model, and"),
        (1, {}, 1.18, None),
        (2, {}, 0.57, "needs 0.59 GiB of KV cache on each device, 0.09 GiB of it for the draft model, and"),
        (2, {}, 0.59, None),
        (2, {"draft_tensor_parallel_size": 1}, 0.59, "needs 0.67 GiB of KV cache on each device, 0.17 GiB of it"),
    ],
)
def test_a_draft_s_keys_and_values_are_counted_in_the_cache_s_budget(
    parts: int, more: dict[str, Any], budget: float, says: str | None
) -> None:
    made = manifest(max_model_len=8192, kv_cache_memory_bytes=int(budget * GIB), arguments=drafting(parts, **more))
    assert lint.cache_bytes(made, SMALL, 1) == 8192 * SMALL_TOKEN
    found = problems(made, draft=Draft(SMALL, 2 * GIB))
    assert (found == []) if says is None else (says in found[0]), found


def test_a_draft_model_that_cant_be_split_is_told() -> None:
    def told(parts: int, **more: Any) -> list[str]:
        return problems(manifest(arguments=drafting(parts, **more)), draft=Draft({**SMALL, "num_attention_heads": 6}))

    where = f"arguments.{DRAFT}: the draft model"
    assert told(4) == [f"tensor-parallel {where}: 4 GPUs can't share 6 attention heads"]
    assert told(4, draft_tensor_parallel_size=1) == []
    assert any(p.startswith("draft-split ") for p in told(4, draft_tensor_parallel_size=2))


def test_what_isnt_known_of_a_draft_model_isnt_counted_and_is_told() -> None:
    made = manifest(arguments=drafting(), max_model_len=8192, kv_cache_memory_bytes=GIB)
    unknown = Draft(why="the hub can't be reached")
    assert problems(made, device=23 * GIB, draft=unknown) == []
    assert lint.unchecked(made, LLAMA, device_bytes=23 * GIB, draft=unknown) == [
        "memory of the draft model org/draft: the size of its weights isn't known (the hub can't be reached).",
        "KV cache of the draft model org/draft: its shapes aren't known (the hub can't be reached).",
    ]
    assert lint.unchecked(made, LLAMA, device_bytes=23 * GIB, draft=Draft(SMALL, GIB)) == []
    assert lint.unchecked(manifest(), LLAMA, device_bytes=None) == [
        "memory: this machine has no hopper. Pass the memory of one device with --memory."
    ]


def test_a_draft_in_a_folder_is_measured_by_its_headers(tmp_path: Any) -> None:
    (tmp_path / "config.json").write_text('{"num_hidden_layers": 2}')
    safetensors(tmp_path / "a.safetensors", {"x.weight": (3, 4), "norm.weight": (4,)})
    safetensors(tmp_path / "b.safetensors", {"y.weight": (5, 4)})
    # 12 + 4 + 20 elements.
    for dtype, size in (("auto", 72), ("bfloat16", 72), ("float32", 144)):
        found = qpack.serve.draft_model.read(manifest(dtype=dtype, arguments=drafting(model=str(tmp_path))))
        assert found == Draft({"num_hidden_layers": 2}, size)
    (tmp_path / "b.safetensors").write_bytes(b"cut")
    found = qpack.serve.draft_model.read(manifest(arguments=drafting(model=str(tmp_path))))
    assert found is not None
    assert found.weights_bytes is None
    assert "is not a whole safetensors file" in found.why


def test_a_draft_on_a_hub_out_of_reach_is_told_and_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*_: object) -> None:
        raise hub._Unreachable("ConnectError")

    monkeypatch.setattr(hub, "_revision", gone)
    found = qpack.serve.draft_model.read(manifest(arguments=drafting(model="org/nowhere")))
    assert found is not None
    assert (dict(found.config), found.weights_bytes) == ({}, None)
    assert "the Hub can't be reached (ConnectError)" in found.why
    refused = qpack.serve.draft_model.read(manifest(arguments=drafting(model="../../x")))
    assert refused is not None
    assert "not of the form" in refused.why


@pytest.mark.parametrize("config", [{"model": "ngram"}, {"method": "ngram"}, {"method": "mtp"}, {"method": "suffix"}])
def test_drafts_without_a_model_of_their_own_have_nothing_to_count(config: dict[str, Any]) -> None:
    made = manifest(arguments={DRAFT: {**config, "num_speculative_tokens": 3}})
    assert qpack.serve.draft_model.read(made) is None
    assert problems(made) == lint.unchecked(made, LLAMA, device_bytes=80 * GIB) == []


def test_tools_need_a_parser_and_a_chat_template() -> None:
    (found,) = problems(manifest(arguments={"enable-auto-tool-choice": True}))
    assert found.startswith("tool-calls arguments.enable-auto-tool-choice: ")
    both = manifest(arguments={"enable-auto-tool-choice": True, "tool-call-parser": "hermes"})
    assert problems(both) == []
    (found,) = problems(both, chat_template=False)
    assert found.startswith("tool-calls arguments.tool-call-parser: ")


@pytest.mark.parametrize(("found", "fits"), [("0.32.0", True), ("0.32.4", True), ("0.33.0", False), ("0.31.9", False)])
def test_a_manifest_is_for_one_minor_version_of_vllm(found: str, fits: bool) -> None:
    assert (lint.version(manifest(), found) == []) is fits


def test_weights_that_this_vllm_cant_load_are_named() -> None:
    assert lint.loadable(LLAMA, ("awq", "compressed-tensors"), "0.32.0") == []
    assert [p.code.name for p in lint.loadable(LLAMA, ("awq",), "0.32.0")] == ["unknown-method"]


@pytest.mark.parametrize(
    ("flag", "hint"),
    [
        ("guided-decoding-backend", "Use structured-outputs-config"),
        ("no-enable-metrics", "Remove it: metrics are always"),
        ("max-num-seq", "Did you mean 'max-num-seqs'?"),
        ("zzzzzz", "See `vllm serve --help=all`."),
    ],
)
def test_a_flag_that_vllm_hasnt_is_told_with_what_to_write(flag: str, hint: str) -> None:
    problem = flags.unknown(flag, "0.32.0", ["max-num-seqs", "dtype"])
    assert (problem.code.name, problem.where.key) == ("unknown-flag", ("arguments", flag))
    assert problem.hint.startswith(hint)


@pytest.mark.parametrize(("seconds", "hint"), [(0.3, "Use 0.5."), (99999.0, "Use a smaller one."), (0.5, None)])
def test_an_objective_that_no_bucket_counts_is_named_with_the_next_that_does(seconds: float, hint: str | None) -> None:
    latency = examples.release().artifact.latency
    (goal, *_) = objectives.from_latency(latency, server="vllm", hardware="an example")
    made = manifest().model_copy(update={"objectives": (goal.model_copy(update={"threshold_seconds": seconds}),)})
    found = lint.check(made, LLAMA, weights_bytes=1, device_bytes=None, chat_template=True)
    assert [(problem.code.name, problem.hint) for problem in found] == ([("uncounted-objective", hint)] if hint else [])
