"""What a server says of its memory, what a checkpoint says of its weights, and options that aren't what they seem."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evals.measure import bench
from evals.server import footprint
from evals.server.footprint import Footprint
from qpack.cli import options
from qpack.core.errors import EvaluateError, RecipeError, RegistryError, UsageError
from qpack.core.problems import Location
from qpack.core.speed import Objective
from qpack.serve import bench as benches
from tests.codes import coded

GIB = 2**30
# The format strings of gpu_worker.py, gpu_model_runner.py and kv_cache_utils.py of vLLM 0.26 and 0.32.
GPU_LOG = """\
INFO [gpu_model_runner.py:5149] Model loading took 14.96 GiB memory and 1.3 seconds
INFO [gpu_worker.py:759] Available KV cache memory: 48.5 GiB
INFO [kv_cache_utils.py:2327] GPU KV cache size: 316,208 tokens, Maximum concurrency for \
8,192 tokens per request: 38.60x
INFO [gpu_model_runner.py:6582] Graph capturing finished in 3 secs, took 0.60 GiB
INFO [gpu_worker.py:1040] Free memory on device (78.5/79.1 GiB) on startup. Desired GPU memory utilization is \
(0.92, 72.8 GiB). Actual usage is 15.2 GiB for consumed memory (weights + non-torch), 1.25 GiB for peak activation, \
and 0.6 GiB for CUDAGraph memory. Replace gpu_memory_utilization
"""


def held(**changes: Any) -> Footprint:
    found = footprint.read(GPU_LOG, "", resident_bytes=None, max_model_len=8192)
    return found.model_copy(update=changes)


def test_a_gpu_server_tells_weights_activations_graphs_and_kv_cache():
    found = held()
    assert found.weights_loaded_bytes == round(14.96 * GIB)
    assert found.activation_bytes == round(1.25 * GIB)
    assert found.graph_bytes == round(0.6 * GIB)
    assert found.kv_cache_bytes == round(48.5 * GIB)
    assert found.longest_context_tokens == 8192


def test_what_a_server_does_not_say_is_none():
    lines = [line for line in GPU_LOG.splitlines() if "KV cache" in line]
    found = footprint.read("\n".join(lines), "", resident_bytes=None, max_model_len=400_000)
    assert (found.weights_loaded_bytes, found.activation_bytes, found.graph_bytes) == (None, None, None)
    assert found.longest_context_tokens == 316_208, "the cache is the limit"
    assert footprint.smallest(found, 1000) is None


@given(st.integers(1, 3_000_000), st.integers(1, 3_000_000))
def test_a_larger_kv_cache_never_fits_a_smaller_gpu(one: int, other: int):
    names = [name for name, _ in footprint._ACCELERATORS]
    small, large = (footprint.smallest(held(), tokens) for tokens in sorted((one, other)))
    assert large is None or (small is not None and names.index(small) <= names.index(large))


def test_the_smallest_gpu_leaves_what_vllm_leaves():
    a_gib_of_tokens = 316_208 / 48.5
    assert footprint.smallest(held(), round(3 * a_gib_of_tokens)) == "L4 24 GB"
    assert footprint.smallest(held(), round(5 * a_gib_of_tokens)) == "A100 40 GB"
    assert footprint.smallest(held(), round(400 * a_gib_of_tokens)) is None


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (None, "bfloat16"),
        ({"quant_method": "awq", "bits": 4, "group_size": 128}, "awq 4 bits g128"),
        ({"quant_method": "gptq", "bits": 4, "group_size": -1}, "gptq 4 bits"),
        ({"quant_method": "fp8"}, "fp8"),
    ],
)
def test_a_quantization_is_told_from_the_config(said: dict[str, Any] | None, told: str):
    assert bench.quantization({"dtype": "bfloat16", **({"quantization_config": said} if said else {})}) == told


@pytest.mark.parametrize(
    ("weights", "inputs", "told"),
    [
        ({"num_bits": 4, "type": "int", "group_size": 64}, None, "W4A16 g64"),
        ({"num_bits": 8, "type": "float"}, {"num_bits": 8}, "FP8 W8A8"),
        ({"num_bits": 8, "type": "int"}, {"num_bits": 8}, "INT8 W8A8"),
    ],
)
def test_compressed_tensors_schemes_are_told_by_their_bits(weights: dict[str, Any], inputs: Any, told: str):
    groups = {"group_0": {"weights": weights, "input_activations": inputs}}
    said = {"quant_method": "compressed-tensors", "config_groups": groups}
    assert bench.quantization({"quantization_config": said}) == told


@pytest.mark.parametrize(
    ("flag", "option"), [("max-model-len=512", "--max-model-len"), ("--kv-cache-memory-bytes=1", "--kv-cache-gib")]
)
def test_a_flag_that_has_an_option_of_its_own_is_an_error_that_names_it(flag: str, option: str):
    with pytest.raises(RecipeError) as caught:
        benches.flags([flag])
    assert [(p.code.name, p.hint) for p in caught.value.problems] == [("invalid-option", f"Use {option}.")]


def test_flags_are_yaml_and_a_bare_one_is_true():
    assert benches.flags(["enforce-eager", "max-num-seqs=64", "--x=[1, 2]"]) == {
        "enforce-eager": True,
        "max-num-seqs": 64,
        "x": [1, 2],
    }


def test_an_objective_is_a_known_name_and_a_time():
    assert benches.objective([]) is None
    assert benches.objective(["ttft_ms=200"]) == Objective(ttft_ms=200)
    for wrong in ("ttft=200", "ttft_ms", "ttft_ms=fast", "ttft_ms=-1"):
        with pytest.raises(RecipeError) as caught:
            benches.objective([wrong])
        assert caught.value.problems[0].code.name == "invalid-option"


def test_lists_of_numbers_name_their_option_when_they_are_none():
    assert options.numbers("1, 4,16", int, "--concurrency") == [1, 4, 16]
    assert options.numbers("", float, "--rate") == []
    for wrong in ("a", "0", "-1", "1;2", ","):
        with pytest.raises(UsageError):
            options.numbers(wrong, int, "--concurrency")


@pytest.mark.parametrize("text", ["[" * 100_000, "[]", "7", "{", '{"a": 1, "a": 2}', "\udcff"])
def test_a_config_that_is_none_is_an_error(text: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(EvaluateError, check=coded("unreadable-file"), match=r"config\.json"):
        bench.config_of(path)
    with pytest.raises(RecipeError):
        benches._longest(path)


@pytest.mark.parametrize(
    "said",
    [
        7,
        "awq",
        [1],
        {"quant_method": "awq", "group_size": "x"},
        {"quant_method": "compressed-tensors", "config_groups": [1]},
    ],
)
def test_a_config_of_other_types_says_nothing(said: Any) -> None:
    assert bench.quantization({"quantization_config": said}) == "unknown"


@pytest.mark.parametrize("positions", ["2048", {"a": 1}, -1, 1.5])
def test_positions_that_are_no_number_are_a_problem(positions: Any, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"max_position_embeddings": positions}))
    with pytest.raises(RecipeError):
        benches._longest(path)


def test_every_target_is_looked_for_before_one_is_measured(tmp_path: Path) -> None:
    here = str(tmp_path)
    benches.check_targets(["http://127.0.0.1:9", here], tmp_path / "registry")
    with pytest.raises(RecipeError) as refused:
        benches.check_targets([here, f"{here}/gone"], tmp_path / "registry")
    assert [problem.where.file for problem in refused.value.problems] == [f"{here}/gone"]
    with pytest.raises(RegistryError):
        benches.check_targets([here, "gone:1"], tmp_path / "registry")


@pytest.mark.parametrize("value", ["0000-01-01", "2026-13-01", "[" * 5000])
def test_a_flag_whose_value_is_no_yaml_is_refused(value: str) -> None:
    with pytest.raises(RecipeError):
        benches.flags([f"seed={value}"])


def test_a_prompt_that_is_too_deep_is_refused_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "one"}\n' + "[" * 100_000 + "\n")
    with pytest.raises(RecipeError) as caught:
        benches.check_prompts(file)
    assert [(p.code.name, p.where) for p in caught.value.problems] == [("bad-prompt", Location(str(file), 2))]
