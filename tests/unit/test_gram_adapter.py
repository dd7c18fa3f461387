from __future__ import annotations

from pathlib import Path
from typing import Any

from quantize import engines, gram_adapter
from quantize.engine import Request
from quantize.headers import Tensor
from quantize.source import Source


def source(kind: str | None, *names: str) -> Source:
    tensors = tuple(Tensor(f"{name}.weight", "BF16", (64, 64)) for name in names)
    config: dict[str, Any] = {"model_type": kind} if kind else {}
    return Source("m", "folder", "m", None, None, tensors, config)


def request(scheme: str = "W4A16", ignore: tuple[str, ...] = ("lm_head",), group_size: int | None = 64) -> Request:
    return Request("awq+gptq", scheme, group_size, ignore, 0.01, False)


def test_gram_is_named_as_another_that_makes_awq_and_gptq_together() -> None:
    engine, why = engines.choose("auto", "awq+gptq", "W4A16")
    assert engine is engines.ENGINES["llmcompressor"]
    assert "gram makes it too" in why
    assert engines.choose("gram", "awq+gptq", "W4A16")[0] is gram_adapter


def test_auto_stays_with_llm_compressor_for_what_both_make() -> None:
    engine, _ = engines.choose("auto", "gptq", "W4A16")
    assert engine is engines.ENGINES["llmcompressor"]


def test_gram_is_not_asked_for_what_it_does_not_make() -> None:
    engine, why = engines.choose("gram", "rtn", "FP8_DYNAMIC")
    assert engine is None
    assert why == "gram doesn't make rtn FP8_DYNAMIC; it is made by llmcompressor"


def test_an_architecture_that_is_not_in_the_table_is_named_with_those_that_are() -> None:
    (complaint,) = gram_adapter.check(request(), source("mixtral", "model.layers.0.mlp.up_proj"))
    assert complaint.what == "gram doesn't know the architecture 'mixtral'; it knows llama, mistral, qwen2, qwen3."
    assert complaint.at == ("quantize", "engine")
    assert complaint.hint == "Take `engine: llmcompressor`."


def test_a_layer_outside_the_decoder_has_to_be_ignored() -> None:
    model = source("llama", "model.layers.0.mlp.up_proj", "lm_head")
    assert not gram_adapter.check(request(), model)
    (complaint,) = gram_adapter.check(request(ignore=()), model)
    assert complaint.what == "gram quantizes decoder layers alone, and lm_head isn't in one."
    assert complaint.at == ("quantize", "ignore")


def test_a_model_whose_headers_are_not_known_yet_is_left_to_the_worker() -> None:
    assert not gram_adapter.check(request(), source(None))


def test_the_job_says_the_scheme_in_bits() -> None:
    job = gram_adapter.job(request("W4A16_ASYM"), Path("checkpoint"), Path("tokens"))
    assert (job["bits"], job["symmetric"], job["group_size"]) == (4, False, 64)
    job = gram_adapter.job(request("W8A16", group_size=None), Path("checkpoint"), None)
    assert (job["bits"], job["symmetric"], job["group_size"], job["tokens"]) == (8, True, None, None)
