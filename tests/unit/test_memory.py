"""Lines that vLLM writes, safetensors headers, and figures that aren't there."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from evals.server import memory
from evals.server.memory import effective_defaults
from qpack.core.errors import EvaluateError
from qpack.core.findings import EffectiveDefaults
from tests.codes import coded

# As vLLM 0.32.0 writes them on a CPU (some dates cut).
CPU_LOG = """\
(Worker pid=4079) INFO 11-23 22:05:09 [default_loader.py:501] Loading weights took 1.32 seconds
(Worker pid=4079) INFO 11-23 22:05:11 [cpu_worker.py:260] Explicitly set (1.0/7.96) GiB for KV cache on node 0.
(EngineCore pid=4033) INFO [kv_cache_utils.py:2327] CPU KV cache size: 46,592 tokens, Maximum concurrency \
for 2,048 tokens per request: 22.75x
(APIServer pid=3936) INFO 11-23 22:05:46 [loggers.py:335] Engine 000: Running: 0 reqs, CPU KV cache usage: 0.0%
"""
CPU_AUTO_LOG = CPU_LOG.replace("Explicitly set (1.0/7.96)", "Auto set (3.5/7.96)")
# The format strings of gpu_model_runner.py, gpu_worker.py and kv_cache_utils.py of the same version.
GPU_LOG = """\
(Worker_TP0 pid=11) INFO [gpu_model_runner.py:5149] Model loading took 18.96 GiB memory and 41.317000 seconds
(Worker_TP1 pid=12) INFO [gpu_model_runner.py:5149] Model loading took 18.9 GiB memory and 41.404000 seconds
(Worker_TP0 pid=11) INFO 11-23 22:05:11 [gpu_worker.py:759] Available KV cache memory: 48.5 GiB
(Worker_TP1 pid=12) INFO 11-23 22:05:11 [gpu_worker.py:759] Available KV cache memory: 48.25 GiB
(EngineCore pid=10) INFO [kv_cache_utils.py:2327] GPU KV cache size: 316,208 tokens, Maximum concurrency \
for 8,192 tokens per request: 38.60x
"""
METRICS = """\
# TYPE vllm:cache_config_info gauge
vllm:cache_config_info{block_size="128",cache_dtype="auto",engine="0",kv_cache_memory_bytes="1073741824",\
kv_cache_size_tokens="46592",num_gpu_blocks="364"} 1.0
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.0
"""


def test_the_metrics_tell_the_kv_cache_to_the_byte():
    assert memory.kv_cache("", METRICS) == memory.KvCache(bytes=1 << 30, tokens=46592)


def test_a_label_that_says_none_is_read_from_the_log_instead():
    metrics = METRICS.replace('"1073741824"', '"None"').replace('"46592"', '"None"')
    assert memory.kv_cache(CPU_LOG, metrics) == memory.KvCache(bytes=1 << 30, tokens=46592)


@pytest.mark.parametrize(
    ("log", "gib", "tokens"), [(CPU_LOG, 1.0, 46592), (CPU_AUTO_LOG, 3.5, 46592), (GPU_LOG, 48.25, 316208)]
)
def test_the_log_tells_the_kv_cache_of_one_worker(log: str, gib: float, tokens: int):
    assert memory.kv_cache(log, "") == memory.KvCache(bytes=round(gib * 2**30), tokens=tokens)


def test_what_the_server_ran_with_is_in_its_metrics_and_log():
    line = "Initializing a V1 LLM engine (v0.32.0) with config: model='m', kv_cache_dtype=auto, device_config=cpu, "
    log = line + "seed=0, enable_prefix_caching=True, enable_chunked_prefill=True, pooler_config=None"
    assert effective_defaults(log, "") == EffectiveDefaults(
        kv_cache_dtype="auto", prefix_caching=True, chunked_prefill=True
    )
    metrics = 'vllm:cache_config_info{cache_dtype="fp8",enable_prefix_caching="False"} 1.0\n'
    assert effective_defaults(log, metrics) == EffectiveDefaults(
        kv_cache_dtype="fp8", prefix_caching=False, chunked_prefill=True
    )
    assert effective_defaults("", "") == EffectiveDefaults()


def test_loaded_weights_are_the_largest_worker_s_and_unknown_on_a_cpu():
    assert memory.weights_loaded_bytes(GPU_LOG) == round(18.96 * 2**30)
    assert memory.weights_loaded_bytes("Model loading took 14.9596 GiB and 3.21 seconds") == round(14.9596 * 2**30)
    assert memory.weights_loaded_bytes(CPU_LOG) is None


@pytest.mark.parametrize(
    ("log", "line"),
    [
        ("", "KV cache size: N tokens"),
        (
            "\n".join(line for line in GPU_LOG.splitlines() if "Available" not in line),
            "Available KV cache memory: N GiB",
        ),
    ],
)
def test_a_figure_that_is_not_there_is_an_error_that_names_its_line(log: str, line: str):
    with pytest.raises(EvaluateError, check=coded("no-log-line"), match=line):
        memory.kv_cache(log, "")


def test_the_weights_are_the_sum_of_all_tensors_of_all_files(tmp_path: Path):
    save_file({"a": np.zeros((3, 5), np.float16)}, tmp_path / "model-1.safetensors", metadata={"format": "pt"})
    save_file({"b": np.zeros(7, np.float32), "c": np.zeros(2, np.int8)}, tmp_path / "model-2.safetensors")
    assert memory.weights_bytes(tmp_path) == 3 * 5 * 2 + 7 * 4 + 2


def test_a_file_that_the_index_does_not_name_counts_nothing(tmp_path: Path):
    save_file({"a": np.zeros(4, np.float32)}, tmp_path / "model-1.safetensors")
    save_file({"a": np.zeros(4, np.float32)}, tmp_path / "consolidated.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-1.safetensors"}}')
    assert memory.weights_bytes(tmp_path) == 16


@pytest.mark.parametrize("keep", [0, 4, 30, -1])
def test_a_truncated_file_is_an_error_that_names_it(tmp_path: Path, keep: int):
    file = tmp_path / "model.safetensors"
    save_file({"a": np.zeros(64, np.float32)}, file)
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(EvaluateError, check=coded("unreadable-weights"), match=r"model\.safetensors"):
        memory.weights_bytes(tmp_path)


def test_no_safetensors_file_is_an_error(tmp_path: Path):
    with pytest.raises(EvaluateError, check=coded("unreadable-weights")):
        memory.weights_bytes(tmp_path)


def test_resident_memory_grows_with_what_a_process_touches():
    before = memory.resident_bytes(os.getpid())
    block = np.ones(256 << 20, np.int8)
    assert memory.resident_bytes(os.getpid()) >= before + block.nbytes // 2


def test_a_watched_peak_is_at_least_what_was_seen_at_its_ends():
    with memory.watch(os.getpid(), interval=60) as peak:
        assert peak.bytes > 0


def test_a_process_that_is_gone_is_an_error():
    with pytest.raises(EvaluateError, check=coded("process-memory")):
        memory.resident_bytes(2**22 + 1)


@pytest.mark.parametrize(
    "index",
    [
        '{"weight_map": {"w": "../outside.safetensors"}}',
        '{"weight_map": {"w": "/outside.safetensors"}}',
        '{"weight_map": {"w": ".."}}',
        '{"weight_map": {"w": 7}}',
        '{"weight_map": {"w": ["a"]}}',
        '{"weight_map": []}',
        '{"weight_map": {}, "weight_map": {"w": "model.safetensors"}}',
        "[" * 100_000,
        "[]",
        "\udcff",
    ],
)
def test_an_index_that_is_none_or_leads_out_of_the_folder_is_an_error(index: str, tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    for folder in (tmp_path, model):
        save_file({"w": np.zeros(4, np.float32)}, folder / "outside.safetensors")
    (model / "model.safetensors.index.json").write_bytes(index.encode("utf-8", "surrogateescape"))
    with pytest.raises(EvaluateError, check=coded("unreadable-weights"), match=r"index\.json"):
        memory.weights_bytes(model)


@pytest.mark.parametrize("header", [b"[" * 100_000, b"[]", b'{"w": []}', b'{"w": {"data_offsets": []}}', b"\xff{}"])
def test_a_header_that_is_none_is_an_error(header: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(EvaluateError, check=coded("unreadable-weights")):
        memory.weights_bytes(tmp_path)
