"""Every format and scheme of gram, made by its worker on very small models: sound to the doctor, within the budget, and
vLLM computes with it what the unpacked weights give."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from evals.report import layer_errors as sites
from evals.server.eval_environments import VLLM
from qpack.runtime import environments
from qpack.runtime.hardware import has_avx512
from qpack.runtime.workerlib import qpack_protocol
from quantize.doctor import checkup
from quantize.engines import gram
from quantize.engines.protocol import Choice, Paths, Request
from quantize.engines.workers.engine_answer import Answer

pytestmark = [pytest.mark.engines, pytest.mark.slow("every format of gram, in vLLM's arithmetic")]

HERE = Path(__file__).parent
IGNORED = ("lm_head", "model.layers.1.mlp.down_proj")
# Method, scheme, group size, format, budget.
WAYS: dict[str, tuple[str, str, int | None, str, float | None]] = {
    "w4a16-asym": ("awq+gptq", "W4A16_ASYM", 32, "compressed-tensors", None),
    "awq": ("awq+gptq", "W4A16_ASYM", 32, "awq", None),
    "gptq": ("awq+gptq", "W4A16", 32, "gptq", None),
    "gptq-channel": ("gptq", "W4A16", None, "gptq", None),
    "w8a8": ("smoothquant", "W8A8", None, "compressed-tensors", None),
    "fp8-dynamic": ("gptq", "FP8_DYNAMIC", None, "compressed-tensors", None),
    "mixed": ("awq+gptq", "W4A16", None, "compressed-tensors", 4.4),
    "formats": ("gptq", "W4A16", 32, "compressed-tensors", 9.0),
}
CHOICES = (Choice("re:.*mlp.*", ("W4A16", "W8A8"), 32), Choice("re:.*self_attn.*", ("W8A8", "BF16"), None))
"""What the way `formats` chooses among, within 9 bits a weight."""
# Other architectures, of random weights (gram_models.py).
MODELS = ("gemma3_text", "mixtral", "qwen3_moe")


def run(environment: Any, script: str, *arguments: Any, **variables: str) -> str:
    done = subprocess.run(
        [str(environment.python), str(HERE / script), *map(str, arguments)],
        env={**os.environ, **environment.variables, **variables},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def made(tiny_model: Path, engine_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model in every way, and each artifact's weights unpacked."""
    folder = tmp_path_factory.mktemp("formats")
    environment = environments.ensure(environments.resolve(gram.ENVIRONMENT, "cpu", engine_home), engine_home, print)
    rows = [{"input_ids": [(37 * i + 11 * j) % 4000 + 10 for j in range(48)]} for i in range(6)]
    (folder / "tokens.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run(environment, "gram_models.py", folder / "models")
    requests = {
        way: (tiny_model, Request(method, scheme, size, IGNORED if budget is None else IGNORED[:1], 0.01, False, form,
                                  budget, choices=CHOICES if way == "formats" else ()))
        for way, (method, scheme, size, form, budget) in WAYS.items()
    }  # fmt: skip
    requests |= {
        kind: (folder / "models" / kind, Request("awq+gptq", "W4A16", 32, ("lm_head",), 0.01, False)) for kind in MODELS
    }
    for way, (model, request) in requests.items():
        job = gram.job(request, Paths(model, folder / "tokens.jsonl", folder / f"{way}-scratch"))
        qpack_protocol.write_order(folder / f"{way}.json", str(folder / way), job)
    run(environment, "gram_made.py", gram.WORKER, *(folder / f"{way}.json" for way in requests))
    return folder


def test_experts_of_a_small_calibration_set_are_named_as_such(made: Path) -> None:
    answer = qpack_protocol.read(made / "mixtral" / "answer.json", Answer)
    request = Request("awq+gptq", "W4A16", 32, ("lm_head",), 0.01, False)
    record = gram.read(request, made / "mixtral", answer)
    # 6 rows of 48 tokens to 2 of 4 experts each: 144 an expert on average, in both layers.
    few, count = sites.starved(record.sites)
    assert count == 8
    assert sum(site.routed_tokens or 0 for site in record.sites if site.site.endswith("_down")) == 2 * 2 * 6 * 48
    assert all(tokens < sites.FEW_TOKENS for tokens in few.values())
    assert len(few) > 0


@pytest.mark.parametrize("kind", MODELS)
def test_the_doctor_finds_nothing_wrong_with_other_architectures(kind: str, made: Path) -> None:
    found = checkup.examine(made / kind / "checkpoint", against=made / "models" / kind, whole=True)
    assert [(finding.code.name, finding.where.file) for finding in found.findings] == [("missing-file", "")]
    assert found.quantized == {"gemma3_text": 14, "mixtral": 32, "qwen3_moe": 32}[kind]


@pytest.mark.parametrize("way", WAYS)
def test_the_doctor_finds_nothing_wrong(way: str, made: Path, tiny_model: Path) -> None:
    found = checkup.examine(made / way / "checkpoint", against=tiny_model, whole=True)
    assert found.findings == ()
    quantized = {"mixed": 14, "formats": sum(map(len, targets(made / "formats").values()))}.get(way, 13)
    assert (found.method, found.quantized) == (WAYS[way][3], quantized)


# vLLM has no 4-bit experts on x86 (quantize/schemes/kernels.py).
@pytest.mark.parametrize("name", [*WAYS, "gemma3_text"])
def test_vllm_computes_what_the_unpacked_weights_give(name: str, made: Path, engine_home: Path) -> None:
    scheme = WAYS[name][1] if name in WAYS else "W4A16"
    rounds_inputs = not scheme.endswith("A16") or name == "formats"
    if scheme.startswith("W4") and not has_avx512():
        pytest.skip("vLLM's build for CPUs serves 4 bits with AVX-512 alone")
    vllm = environments.ensure(environments.resolve(VLLM, "cpu", engine_home), engine_home, print)
    found = json.loads(run(vllm, "gram_serves.py", made / name).splitlines()[-1])
    if not rounds_inputs:
        assert found["difference"] < 0.1
        assert found["agree"] > 0.7  # random weights have near ties: 0.87 was seen, other weights give none
        assert found["greedy"] > 0.6
    else:  # activations are rounded too, and random weights answer to that
        assert found["difference"] < 1.0
        assert found["agree"] > 0.3


def targets(folder: Path) -> dict[str, list[str]]:
    """The layers of each group of the config, by the format that they are packed in."""
    config = json.loads((folder / "checkpoint" / "config.json").read_text())["quantization_config"]
    found: dict[str, list[str]] = {}
    for group in config["config_groups"].values():
        found.setdefault(group["format"], []).extend(group["targets"])
    return found


def test_a_budget_mixes_formats_among_what_each_kind_of_layer_may_get(made: Path) -> None:
    """Nine bits a weight: the weights of W4A16 in groups of 32 take 4.5, those of W8A8 8.1 and of BF16 16."""
    config = json.loads((made / "formats" / "checkpoint" / "config.json").read_text())["quantization_config"]
    assert config["format"] == "mixed-precision"
    found = targets(made / "formats")
    assert set(found) == {"pack-quantized", "int-quantized"}
    assert all(".mlp." in name for name in found["pack-quantized"])
    left = {name for name in config["ignore"] if ".self_attn." in name}
    quantized = {name for names in found.values() for name in names}
    assert len(quantized) + len(left) == 14
    assert left
    sites = json.loads((made / "formats" / "checkpoint" / "gram_report.json").read_text())["sites"]
    spent = sum(site["stored_bits"] for site in sites)
    weights = sum(site["weights"] for site in sites)
    # The tiny model's attention layers are 64 x 64 (q, o) and 32 x 64 (k, v): what is left of them takes 16 bits.
    shape = {"q_proj": 64 * 64, "o_proj": 64 * 64, "k_proj": 32 * 64, "v_proj": 32 * 64}
    kept = sum(shape[name.rpartition(".")[2]] for name in left)
    assert spent + 16 * kept <= 9 * (weights + kept)


def test_a_budget_is_kept_in_the_file_and_joined_layers_are_stored_alike(made: Path) -> None:
    config = json.loads((made / "mixed" / "checkpoint" / "config.json").read_text())["quantization_config"]
    groups = config["config_groups"].values()
    assert len(groups) > 1
    size = {name: group["weights"]["group_size"] for group in groups for name in group["targets"]}
    assert len(size) == 14
    for layer in ("model.layers.0", "model.layers.1"):
        assert len({size[f"{layer}.self_attn.{name}_proj"] for name in "qkv"}) == 1
        assert len({size[f"{layer}.mlp.{name}_proj"] for name in ("gate", "up")}) == 1
    sites = json.loads((made / "mixed" / "checkpoint" / "gram_report.json").read_text())["sites"]
    assert sum(site["stored_bits"] for site in sites) <= 4.4 * sum(site["weights"] for site in sites)
