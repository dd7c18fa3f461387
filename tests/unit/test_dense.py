"""Quantized sources that qpack unpacks itself: headers promise what is written; what can't be is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantize.checkpoint import sources
from quantize.checkpoint.source import Source
from quantize.doctor import checkpoint as checkpoints
from quantize.doctor import checkup
from quantize.emulate import dense
from quantize.engines.protocol import Request
from quantize.preflight import served_models, stored, targets
from tests.unit import damage, packed

UP = "model.layers.0.mlp.experts.gate_up_proj"
EXPERTS, OUT, IN = 2, 128, 576


def source(folder: Path, *, linked: bool = False) -> Source:
    found, problems = sources.find(str(folder), folder, None, linked=linked)
    assert found is not None, problems
    return found


def found_names(model: Source) -> set[str]:
    return {tensor.name for tensor in model.tensors}


def gpt_oss(folder: Path) -> Path:
    """gpt-oss's experts in MXFP4: the code of a value is its place modulo 16, the exponent of a block its number."""
    folder.mkdir()
    codes = (np.arange(EXPERTS * OUT * IN) % 16).astype(np.uint8).reshape(EXPERTS, OUT, IN // 32, 16, 2)
    blocks = codes[..., 0] | (codes[..., 1] << 4)
    scales = (126 + np.arange(EXPERTS * OUT * IN // 32) % 4).astype(np.uint8).reshape(EXPERTS, OUT, IN // 32)
    damage.store(
        folder / "model.safetensors",
        {
            f"{UP}_blocks": ("U8", list(blocks.shape), blocks.tobytes()),
            f"{UP}_scales": ("U8", list(scales.shape), scales.tobytes()),
            f"{UP}_bias": ("BF16", [EXPERTS, OUT], bytes(2 * EXPERTS * OUT)),
            "model.layers.0.self_attn.q_proj.weight": ("BF16", [64, 64], bytes(2 * 64 * 64)),
        },
    )
    config = {"architectures": ["GptOssForCausalLM"], "model_type": "gpt_oss", "num_hidden_layers": 1,
              "num_local_experts": EXPERTS, "quantization_config": {"quant_method": "mxfp4"}}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text("{}")
    return folder


def written(folder: Path, target: Path) -> damage.Raw:
    found, problems = checkpoints.read(folder, sample=0)
    assert problems == []
    dense.write(found, dense.claims_of(found), target, lambda *_: None)
    made: damage.Raw = {}
    for file in sorted(target.glob("*.safetensors")):
        made |= damage.load(file)
    return made


@pytest.mark.parametrize("form", ["awq", "gptq", "mxfp4"])
def test_headers_alone_promise_what_is_written(form: str, tmp_path: Path) -> None:
    folder = gpt_oss(tmp_path / "m") if form == "mxfp4" else packed.checkpoint(tmp_path / "m", form)
    (folder / "tokenizer.json").write_text("{}")
    found = source(folder)
    assert found.quantization == form
    promised = dense.of(found)
    assert promised is not None
    assert (promised.quantization, promised.unpack) == (None, f"4 bits ({form})")
    made = written(folder, tmp_path / "out")
    assert {tensor.name: (tensor.dtype, list(tensor.shape)) for tensor in promised.tensors} == {
        name: (dtype, list(shape)) for name, (dtype, shape, _) in made.items()
    }
    assert source(tmp_path / "out", linked=True).tensors == promised.tensors
    assert source(tmp_path / "out", linked=True).quantization is None
    unpacked = {tensor.name: tensor.dtype for tensor in promised.tensors if tensor.name not in found_names(found)}
    assert len(unpacked) == (1 if form == "mxfp4" else 14)
    assert set(unpacked.values()) == {"BF16"}


def test_shards_get_an_index_of_what_is_in_them(tmp_path: Path) -> None:
    folder = packed.checkpoint(tmp_path / "m", "awq")
    (folder / "tokenizer.json").write_text("{}")
    damage.shards(folder)
    made = written(folder, tmp_path / "out")
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())["weight_map"]
    assert set(index) == set(made)
    assert all(name in damage.load(tmp_path / "out" / file) for name, file in index.items())


def test_experts_in_mxfp4_are_their_codes_times_powers_of_two_turned(tmp_path: Path) -> None:
    (dtype, shape, raw) = written(gpt_oss(tmp_path / "m"), tmp_path / "out")[UP]
    assert (dtype, list(shape)) == ("BF16", [EXPERTS, IN, OUT])
    got = (np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view(np.float32).reshape(shape)
    for place in range(EXPERTS * OUT * IN):
        expert, row, column = np.unravel_index(place, (EXPERTS, OUT, IN))
        size = (0, 0.5, 1, 1.5, 2, 3, 4, 6)[place % 8] * (-1 if place % 16 > 7 else 1)
        assert got[expert, column, row] == size * 2.0 ** (place // 32 % 4 - 1)


def _lose(name: str) -> Callable[[damage.Raw], object]:
    return lambda tensors: tensors.pop(name)


@pytest.mark.parametrize(
    ("form", "change"),
    [
        ("mxfp4", _lose(f"{UP}_scales")),
        ("mxfp4", lambda tensors: tensors.update({f"{UP}_scales": ("U8", [2], b"11")})),
        ("awq", lambda tensors: tensors.update({"a.experts.up_packed": ("I32", [2, 2, 2], bytes(32))})),
        ("awq", lambda tensors: tensors.update({"a.experts.up": ("F8_E4M3", [2, 2, 2], bytes(8))})),
        ("awq", lambda tensors: tensors.update({"a.up.qweight": ("I32", [2, 2, 2], bytes(32))})),
    ],
)
def test_what_can_not_be_unpacked_is_no_start(form: str, change: Any, tmp_path: Path) -> None:
    folder = gpt_oss(tmp_path / "m") if form == "mxfp4" else packed.checkpoint(tmp_path / "m", form)
    (folder / "tokenizer.json").write_text("{}")
    damage.tensors(folder, change)
    found = source(folder)
    assert dense.of(found) is None
    assert [problem.code.name for problem in served_models.quantized_already(found, "rtn")] == ["quantized-already"]


def test_other_methods_and_unquantized_sources_are_not_unpacked(tmp_path: Path) -> None:
    folder = packed.checkpoint(tmp_path / "m", None)
    (folder / "tokenizer.json").write_text("{}")
    plain = source(folder)
    assert dense.of(plain) is None
    other = replace(plain, config={**plain.config, "quantization_config": {"quant_method": "another"}})
    assert dense.of(other) is None
    # A config alone makes nothing quantized.
    assert dense.of(replace(plain, config={**plain.config, "quantization_config": {"quant_method": "mxfp4"}})) is None


def test_gpt_oss_as_it_is_needs_kernels_of_its_experts(tmp_path: Path) -> None:
    found = source(gpt_oss(tmp_path / "m"))
    asked = Request("none", "SOURCE", None, (), 0.01, False)
    (part,) = stored.parts(asked, found)
    assert part.request.scheme == "MXFP4A16"
    assert sum(len(kind.names) for kind in part.layers) == 2 * EXPERTS
    assert stored.schemes(found.config) == ("MXFP4A16",)
    served = {each.target: each.kernels for each in targets.served(asked, found, 1)}
    assert served["cpu"] == ()
    assert "Marlin" in served["ampere"]


def test_the_doctor_accuses_no_experts_in_mxfp4(tmp_path: Path) -> None:
    codes = {finding.code.name for finding in checkup.examine(gpt_oss(tmp_path / "m")).findings}
    assert not codes & {"experts-transposed", "expert-count", "expert-names", "not-quantized"}


def test_a_source_that_is_unpacked_is_named_so(tmp_path: Path) -> None:
    made = dense.of(source(gpt_oss(tmp_path / "m")))
    assert made is not None
    (note,) = served_models.unpacked(made)
    assert (note.code.name, note.severity) == ("unpacked", "note")
    assert served_models.unpacked(source(tmp_path / "m")) == []
