"""What is stored of each layer means what compressed-tensors, which made it, computes with it."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from evals.server.eval_environments import VLLM
from qpack.runtime import environments, hardware
from qpack.runtime.environments import Environment
from qpack.runtime.workerlib import qpack_protocol
from quantize.doctor import checkpoint, quantization_config, unpacked
from quantize.emulate import dense, twin
from quantize.engines import llmcompressor
from quantize.engines.protocol import Paths, Request
from tests.scenarios.command import ROOT
from tests.scenarios.quantized import WAYS
from tests.unit import damage

pytestmark = pytest.mark.engines

DRIVER = Path(__file__).parent / "decompress_tiny.py"
# One scheme each: the driver takes one.
ONE = [way for way, asked in WAYS.items() if not asked.overrides and asked.kv_cache is None]


@pytest.fixture(scope="module")
def computed(
    artifacts: Path, tiny_model: Path, compressor: Environment, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Weights of each artifact by compressed-tensors itself, in 32 bits."""
    out = tmp_path_factory.mktemp("computed")
    subprocess.run(
        [compressor.python, DRIVER, tiny_model, out, *(artifacts / way for way in ONE)],
        env={**os.environ, **compressor.variables},
        check=True,
        capture_output=True,
        timeout=300,
    )
    return out


def _read(path: Path) -> dict[str, np.ndarray]:
    from quantize.checkpoint.headers import read_spans

    spans, problems = read_spans(path)
    assert problems == []
    raw = path.read_bytes()
    return {
        span.tensor.name: np.frombuffer(raw, "<f4", span.tensor.elements, span.start).reshape(span.tensor.shape)
        for span in spans
    }


@pytest.mark.parametrize("way", ONE)
def test_unpacked_weights_are_those_of_compressed_tensors(way: str, artifacts: Path, computed: Path) -> None:
    found, problems = checkpoint.read(artifacts / way / "checkpoint", sample=0)
    claims = quantization_config.read(found)
    assert problems == []
    assert claims is not None
    assert claims.unread == ""
    expected = _read(computed / f"{way}.safetensors")
    layers = [layer for layer in found.layers.values() if layer.quantized]
    assert len(layers) == 14
    for layer in layers:
        want = expected[f"{layer.name}.unpacked"]
        rows, columns = (np.arange(size) for size in want.shape)
        got = unpacked.weights(found, layer, claims.of(layer), rows, columns)
        # The global scale is divided by here and there in another order.
        np.testing.assert_allclose(got, want, rtol=3e-7, atol=0)


@pytest.mark.parametrize("way", [way for way in ONE if WAYS[way].method == "rtn"])
def test_rounding_to_nearest_is_fake_quantization_of_the_source(way: str, computed: Path) -> None:
    expected = _read(computed / f"{way}.safetensors")
    for name in [name for name in expected if name.endswith(".unpacked")]:
        rounded, source = (expected[name.replace(".unpacked", part)] for part in (".rounded", ".source"))
        # In 16 bits, as the engine rounds, a weight may be half-way between two values; then either is as near.
        nearest = np.abs(rounded - source) + 2**-7 * np.abs(source).max(1, keepdims=True)
        assert (np.abs(expected[name] - source) <= nearest).all(), name
        assert np.isclose(expected[name], rounded, rtol=1e-6, atol=0).mean() > 0.75, name


def test_an_experts_gate_and_up_share_their_global_scale(compressor: Environment, tmp_path: Path) -> None:
    """Servers join them, and take one: without the model, llm-compressor knows those of dense layers alone."""
    drawn = np.random.default_rng(0)
    source: damage.Raw = {}
    shapes = {"gate_proj": (32, 64), "up_proj": (32, 64), "down_proj": (64, 32)}
    for expert in range(2):
        for part, shape in shapes.items():
            size = 1 + expert + 3 * (part == "up_proj")
            values = dense.bfloat16((size * drawn.standard_normal(shape)).astype(np.float32))
            name = f"model.layers.0.mlp.experts.{expert}.{part}.weight"
            source[name] = ("BF16", list(shape), values.tobytes())
    source["model.embed_tokens.weight"] = ("BF16", [8, 64], bytes(1024))
    folder = tmp_path / "source"
    folder.mkdir()
    damage.store(folder / "model.safetensors", source)
    (folder / "config.json").write_text('{"model_type": "qwen3_moe", "num_experts": 2, "tie_word_embeddings": true}')
    asked = Request("rtn", "NVFP4A16", None, ("lm_head",), 0.01, False)
    job = tmp_path / "job.json"
    qpack_protocol.write_order(job, str(tmp_path / "out"), llmcompressor.job(asked, Paths(folder, None, tmp_path)))
    subprocess.run(
        [compressor.python, DRIVER.with_name("quantize_tiny.py"), llmcompressor.WORKER.parent, job],
        env={**os.environ, **compressor.variables, "PYTHONPATH": str(ROOT / "qpack" / "runtime" / "workerlib")},
        check=True,
        capture_output=True,
        timeout=300,
    )
    made = damage.load(tmp_path / "out" / "checkpoint" / "model.safetensors")
    shared = {name: raw for name, (_, _, raw) in made.items() if name.endswith("weight_global_scale")}
    experts = [f"model.layers.0.mlp.experts.{expert}" for expert in range(2)]
    for expert in experts:
        both = {shared[f"{expert}.{part}.weight_global_scale"] for part in ("gate_proj", "up_proj")}
        assert len(both) == 1
    assert len({shared[f"{expert}.gate_proj.weight_global_scale"] for expert in experts}) == 2


@pytest.mark.parametrize("other", ["ct", "vllm"])
def test_inputs_are_rounded_as_others_round_them(other: str, compressor: Environment, engine_home: Path) -> None:
    """By compressed-tensors, as activations are calibrated; by vLLM's own references, as they are served."""
    chosen = compressor
    if other == "vllm":
        chosen = environments.ensure(environments.resolve(VLLM, "cpu", engine_home), engine_home, print)
    done = subprocess.run(
        [chosen.python, DRIVER.with_name("round_inputs.py"), twin.PLUGIN.parent, other],
        env={**os.environ, **chosen.variables},
        check=True,
        capture_output=True,
        timeout=300,
    )
    told = json.loads(done.stdout.splitlines()[-1])
    expected = {"ct": {"nvfp4", "fp8_block", "fp8_token"}, "vllm": {"nvfp4", "mxfp8", "int8_zero_point"}}
    assert set(told) == expected[other]
    for way, (differ, changed) in told.items():
        assert differ < 1e-3, way
        assert 0 < changed < 0.2, way


@pytest.mark.slow("vLLM's real kernels beside twins")
@pytest.mark.skipif(not hardware.has_avx512(), reason="vLLM has a kernel for 4 bits only with AVX-512")
def test_a_twin_answers_as_the_real_kernel_does(artifacts: Path, engine_home: Path, tmp_path: Path) -> None:
    vllm = environments.ensure(environments.resolve(VLLM, "cpu", engine_home), engine_home, print)
    rows = [[(91 * i + 17 * j * j + 5 * j) % 4000 + 10 for j in range(48)] for i in range(3)]
    (tmp_path / "windows.jsonl").write_text("".join(json.dumps({"input_ids": row}) + "\n" for row in rows))
    twin.make(artifacts / "w4a16" / "checkpoint", tmp_path / "twin")
    subjects = []
    for name, folder in (("real", artifacts / "w4a16"), ("twin", tmp_path / "twin")):
        arguments = [f"--model={folder / 'checkpoint'}", "--enforce-eager", "--max-model-len=256", "--dtype=bfloat16",
                     "--kv-cache-memory-bytes=100000000", "--no-enable-prefix-caching"]  # fmt: skip
        files = {kind: str(tmp_path / f"{name}.{kind}") for kind in ("log", "out")}
        subjects.append({"name": name, "arguments": arguments, "own": {}, **files})
    job = {"subjects": subjects, "windows": str(tmp_path / "windows.jsonl"), "count": 3, "top_k": 20, "seconds": 600,
           "limit": 300}  # fmt: skip
    (tmp_path / "job.json").write_text(json.dumps(job))
    script = [vllm.python, ROOT / "benchmarks" / "engines_vllm.py", tmp_path / "job.json"]
    variables = {**os.environ, **vllm.variables, "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    subprocess.run(script, env=variables, check=True, capture_output=True, timeout=700)
    real, other = (json.loads((tmp_path / f"{name}.out").read_text())["prompt_logprobs"] for name in ("real", "twin"))
    assert "CPUWNA16" in (tmp_path / "real.log").read_text()
    assert real == other
