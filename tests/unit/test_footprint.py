"""What memory an engine is expected to take: from shapes, and held against what was measured."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from quantize.checkpoint import from_config
from quantize.checkpoint.source import Source
from quantize.engines import catalog, memory
from quantize.engines.protocol import Request
from quantize.preflight.sizes import weights_bytes

SMOLLM2 = {
    "model_type": "llama",
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "tie_word_embeddings": True,
}
WIDE = {
    **SMOLLM2,
    "hidden_size": 256,
    "intermediate_size": 2048,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "tie_word_embeddings": False,
}
AWQ = Request("awq", "W4A16_ASYM", 64, ("lm_head",), 0.01, False)
GPTQ = replace(AWQ, method="gptq", scheme="W4A16")


def parts(engine: str, request: Request, config: dict[str, Any], rows: int, length: int) -> dict[str, int]:
    model = from_config.filled(Source("m", "folder", "m", None, None, (), config), config)
    return dict(memory.parts(catalog.ENGINES[engine], request, model, weights_bytes(model, request), rows, length))


@pytest.mark.parametrize(("engine", "request_", "config", "rows", "length", "measured"), [
    ("autoawq", AWQ, SMOLLM2, 8, 256, 1595),
    ("autoawq", AWQ, WIDE, 64, 512, 2151),
    ("autogptq", GPTQ, SMOLLM2, 8, 256, 1373),
    ("gptqmodel", GPTQ, SMOLLM2, 8, 256, 886),
    ("llmcompressor", GPTQ, SMOLLM2, 48, 512, 1312),
    ("llmcompressor", replace(GPTQ, method="rtn"), SMOLLM2, 0, 0, 1032),
    ("gram", GPTQ, SMOLLM2, 8, 256, 738),
])  # fmt: skip
def test_what_was_measured_is_within_a_quarter_of_what_is_expected(
    engine: str, request_: Request, config: dict[str, Any], rows: int, length: int, measured: int
) -> None:
    """Peaks in MiB, from docs/benchmarks/engines.md."""
    expected = sum(parts(engine, request_, config, rows, length).values()) / 2**20
    assert 0.75 < expected / measured < 1.25


def test_archived_engines_hold_single_precision_on_a_cpu() -> None:
    """AutoGPTQ has no environment for GPUs, so it is on a CPU beside one too."""
    hopper = replace(AWQ, target="hopper")
    there, here = parts("autoawq", hopper, SMOLLM2, 8, 256), parts("autoawq", AWQ, SMOLLM2, 8, 256)
    assert here["weights in 32 bits"] == 2 * there["weights in 16 bits"]
    assert "products of weights and inputs" in set(here) - set(there)
    assert "weights in 32 bits" in parts("autogptq", replace(GPTQ, target="hopper"), SMOLLM2, 8, 256)
    assert "weights in 16 bits" in parts("llmcompressor", GPTQ, SMOLLM2, 8, 256)


def test_autoawq_holds_what_all_rows_give_to_a_block() -> None:
    few, many = (parts("autoawq", AWQ, SMOLLM2, rows, 512) for rows in (64, 640))
    inputs = "inputs of one block's layers"
    assert many[inputs] == 10 * few[inputs] == 10 * 64 * 512 * (6 * 576 + 1536) * 4
    # Clipping takes a sample of the tokens; with so many rows it is the MLP that counts.
    assert few["products of weights and inputs"] < many["products of weights and inputs"] == 3 * 640 * 512 * 1536 * 4


def test_experts_are_not_counted_as_if_each_saw_every_token() -> None:
    experts = {**WIDE, "model_type": "qwen3_moe", "num_experts": 8, "moe_intermediate_size": 2048}
    inputs = "inputs of one block's layers"
    assert parts("autoawq", AWQ, experts, 64, 512)[inputs] < parts("autoawq", AWQ, WIDE, 64, 512)[inputs]
