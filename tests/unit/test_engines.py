"""The adapters: what they refuse, what their workers get, and which of them `auto` takes."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest

from qpack.core.errors import QuantizeError
from qpack.core.problems import Location
from quantize.checkpoint import config_compat
from quantize.checkpoint.headers import Tensor
from quantize.checkpoint.source import Source
from quantize.engines import autoawq, autogptq, catalog, gptqmodel, llmcompressor, source_copy
from quantize.engines.protocol import Override, Paths, Request
from tests.codes import coded
from tests.unit import packed

ROOT = Path(__file__).parents[2]


def request(method: str, scheme: str, group_size: int | None = 32, ignore: tuple[str, ...] = ("lm_head",)) -> Request:
    return Request(method, scheme, group_size, ignore, 0.01, False)


def source(**config: Any) -> Source:
    return Source("m", "folder", "m", None, None, (), config)


def test_auto_takes_the_preferred_engine_and_names_the_others() -> None:
    engine, why = catalog.choose("auto", "awq", "W4A16_ASYM")
    assert engine is not None
    assert engine.NAME == "llmcompressor"
    assert "format compressed-tensors" in why
    assert "autoawq makes it too (format awq)" in why


def test_a_named_engine_that_can_not_do_it_gets_one_that_can() -> None:
    engine, why = catalog.choose("autoawq", "gptq", "W4A16")
    assert engine is None
    assert why == "autoawq doesn't make gptq W4A16; it is made by llmcompressor, gram, gptqmodel, autogptq"


def test_an_engine_without_gpus_is_taken_there_only_when_it_is_named() -> None:
    engine, why = catalog.choose("auto", "gptq", "W4A16", "hopper")
    assert engine is not None
    assert (engine.NAME, "on GPUs" in why) == ("llmcompressor", True)
    engine, why = catalog.choose("autogptq", "gptq", "W4A16", "hopper")
    assert engine is autogptq
    assert "works on the CPU" in why


@pytest.mark.parametrize("engine", catalog.ENGINES.values(), ids=list(catalog.ENGINES))
def test_every_engine_has_a_lock_and_a_worker_that_keeps_the_protocol(engine: Any) -> None:
    assert engine.ENVIRONMENT.lock("cpu").exists()
    assert "qpack_worker.main(work, Job)" in engine.WORKER.read_text()


@pytest.mark.parametrize("engine", [autoawq, autogptq], ids=["autoawq", "autogptq"])
def test_old_engines_get_a_config_that_they_understand_and_their_artifact_one_that_all_do(
    engine: Any, tmp_path: Path
) -> None:
    folder = packed.checkpoint(tmp_path / "model", None)
    new = {"model_type": "llama", "dtype": "bfloat16", "rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}}
    (folder / "config.json").write_text(json.dumps(new))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "TokenizersBackend"}))
    job = engine.job(request("awq", "W4A16_ASYM"), Paths(folder, tmp_path / "tokens.jsonl", tmp_path))
    assert job.config["rope_theta"] == 5e5
    assert "rope_parameters" not in job.config
    if engine is autoawq:  # AutoGPTQ gets tokens, and loads no tokenizer.
        assert job.tokenizer_config["tokenizer_class"] == "PreTrainedTokenizerFast"
        assert job.tokenizer_config["chat_template"] == "{{ messages }}"
    for reader in (config_compat.to_4, config_compat.to_5):
        assert config_compat.rope(reader(job.artifact_config)) == config_compat.rope(new)
        assert config_compat.dtype(reader(job.artifact_config)) == "float16"


@pytest.mark.parametrize(
    ("asked", "model", "code"),
    [
        (request("awq", "W4A16_ASYM", None), {}, "no-group-size"),
        (request("awq", "W4A16_ASYM", ignore=("re:.*x",)), {}, "unsupported-pattern"),
        (request("awq", "W4A16_ASYM"), {"model_type": "gemma3"}, "unknown-model"),
        (request("awq", "W4A16_ASYM"), {"auto_map": {}}, "own-code"),
        (request("awq", "W4A16_ASYM"), {"rope_parameters": {"full": {"rope_theta": 1.0}}}, "unknown-model"),
    ],
)
def test_what_autoawq_can_not_do_is_told_before_it_starts(asked: Request, model: dict[str, Any], code: str) -> None:
    (complaint,) = autoawq.check(asked, source(**model))
    assert complaint.code.name == code


@pytest.mark.parametrize("engine", [autoawq, autogptq], ids=["autoawq", "autogptq"])
@pytest.mark.parametrize("text", ["{", "[]", '{"a": 1, "a": 2}'])
def test_a_config_that_can_not_be_read_is_an_error_that_names_the_file(engine: Any, text: str, tmp_path: Path) -> None:
    folder = packed.checkpoint(tmp_path / "model", None)
    (folder / "config.json").write_text(text)
    with pytest.raises(QuantizeError, check=coded("unreadable-file"), match=r"model/config\.json"):
        engine.job(request("awq", "W4A16_ASYM"), Paths(folder, tmp_path / "tokens.jsonl", tmp_path))


def test_what_gptqmodel_skips_matches_what_the_recipe_ignores(tmp_path: Path) -> None:
    paths = Paths(tmp_path, tmp_path / "tokens.jsonl", tmp_path)
    job = gptqmodel.job(request("gptq", "W8A16", None, ("lm_head", "re:.*mlp", "o_proj")), paths)
    assert (job.bits, job.group_size) == (8, -1)
    names = ("model.layers.0.mlp.up_proj", "model.layers.0.self_attn.o_proj", "model.layers.0.self_attn.q_proj")
    assert [any(re.match(skip, name) for skip in job.skip) for name in names] == [True, True, False]


def test_a_copy_converts_nothing() -> None:
    half = dataclasses.replace(source(), tensors=(Tensor("model.layers.0.mlp.up_proj.weight", "F16", (8, 8)),))
    (complaint,) = source_copy.check(request("none", "BF16", None), half)
    where = Location(key=("quantize", "scheme"), name="model.layers.0.mlp.up_proj.weight")
    assert (complaint.code.name, complaint.where) == ("not-bf16", where)
    assert source_copy.check(request("none", "BF16", None), dataclasses.replace(half, kind="gguf")) == []


@pytest.mark.parametrize(
    ("asked", "model", "code"),
    [
        (request("gptq", "W4A16", ignore=("lm_head", "down_proj")), {}, "unsupported-pattern"),
        (request("gptq", "W4A16"), {"model_type": "qwen3"}, "unknown-model"),
        (request("gptq", "W4A16"), {"auto_map": {}}, "own-code"),
        (request("gptq", "W4A16"), {"rope_parameters": {"full": {"rope_theta": 1.0}}}, "unknown-model"),
    ],
)
def test_what_autogptq_can_not_do_is_told_before_it_starts(asked: Request, model: dict[str, Any], code: str) -> None:
    (complaint,) = autogptq.check(asked, source(**model))
    assert complaint.code.name == code


@pytest.mark.parametrize("name", ["gram", "gptqmodel", "autoawq", "autogptq", "copy"])
def test_engines_that_make_one_scheme_refuse_overrides_and_a_cache(name: str) -> None:
    asked = dataclasses.replace(
        request("gptq", "W4A16"), overrides=(Override("down_proj", "W8A8", None),), kv_cache="fp8"
    )
    found = catalog.ENGINES[name].check(asked, source(model_type="llama"))
    assert [problem.code.name for problem in found] == ["one-scheme", "one-scheme"]
    assert [problem.where.key for problem in found] == [("quantize", "overrides"), ("quantize", "kv_cache")]


def test_what_needs_no_texts_is_done_without_the_model(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")

    def tokens(asked: Request) -> Any:
        return llmcompressor.job(asked, Paths(tmp_path, tmp_path / "tokens.jsonl", tmp_path)).tokens

    assert tokens(request("rtn", "W4A16")) is None
    assert tokens(request("gptq", "W4A16")) is not None
    assert tokens(request("rtn", "FP8")) is not None
    assert tokens(dataclasses.replace(request("rtn", "FP8_DYNAMIC"), kv_cache="fp8")) is not None


def test_a_key_holds_only_what_was_asked_for() -> None:
    plain = request("gptq", "W4A16")
    assert list(plain.key("compressed-tensors").values()) == ["gptq", "W4A16", 32, ("lm_head",), 0.01, False]
    for more in ({"kv_cache": "fp8"}, {"overrides": (Override("a", "W8A8", None),)}):
        assert dataclasses.replace(plain, **more).key("compressed-tensors") != plain.key("compressed-tensors")
