"""Checkpoints as others ship them: DeepSeek's FP8 in blocks with experts and a layer for speculation, Gemma's tied
embeddings. Names and shapes follow deepseek-ai/DeepSeek-V3's index and config, sizes are small.
"""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from quantize.doctor import checkup, decode
from tests.unit import damage, packed

FP8 = {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "weight_block_size": [128, 128]}
ONE = b"\x38"  # 1.0 in E4M3
Q_A = "model.layers.0.self_attn.q_a_proj"


def _fp8(found: damage.Raw, name: str, rows: int, columns: int) -> None:
    """A weight in FP8 and its scales, one for each block of 128 x 128, the last ones cut short."""
    blocks = [-(-rows // 128), -(-columns // 128)]
    found[f"{name}.weight"] = ("F8_E4M3", [rows, columns], ONE * (rows * columns))
    found[f"{name}.weight_scale_inv"] = ("F32", blocks, struct.pack("<f", 0.5) * (blocks[0] * blocks[1]))


def _plain(found: damage.Raw, name: str, *shape: int) -> None:
    size = 2
    for length in shape:
        size *= length
    found[f"{name}.weight"] = ("BF16", list(shape), bytes(size))


@pytest.fixture
def deepseek(tmp_path: Path) -> Path:
    found: damage.Raw = {}
    for layer in (0, 1):  # the second stands behind `num_hidden_layers`: it predicts the token after the next
        block = f"model.layers.{layer}"
        for part, rows, columns in (("q_a_proj", 192, 256), ("q_b_proj", 384, 192), ("kv_a_proj_with_mqa", 192, 256),
                                    ("kv_b_proj", 256, 128), ("o_proj", 256, 128)):  # fmt: skip
            _fp8(found, f"{block}.self_attn.{part}", rows, columns)
        for expert in (*(f"experts.{number}" for number in range(4)), "shared_experts"):
            for part, rows, columns in (("gate_proj", 128, 256), ("up_proj", 128, 256), ("down_proj", 256, 128)):
                _fp8(found, f"{block}.mlp.{expert}.{part}", rows, columns)
        _plain(found, f"{block}.mlp.gate", 4, 256)
        found[f"{block}.mlp.gate.e_score_correction_bias"] = ("F32", [4], bytes(16))
        _plain(found, f"{block}.input_layernorm", 256)
    _plain(found, "model.layers.1.eh_proj", 256, 512)
    _plain(found, "model.layers.1.shared_head.head", 64, 256)
    _plain(found, "model.layers.1.embed_tokens", 64, 256)
    _plain(found, "model.embed_tokens", 64, 256)
    _plain(found, "lm_head", 64, 256)
    folder = tmp_path / "deepseek"
    folder.mkdir()
    damage.store(folder / "model.safetensors", found)
    config = {"model_type": "deepseek_v3", "architectures": ["DeepseekV3ForCausalLM"], "hidden_size": 256,
              "num_hidden_layers": 1, "num_nextn_predict_layers": 1, "kv_lora_rank": 128, "vocab_size": 64,
              "tie_word_embeddings": False, "torch_dtype": "bfloat16", "quantization_config": FP8}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text("{}")
    return folder


def kinds(folder: Path) -> list[tuple[str, str]]:
    return [(finding.severity, finding.code.name) for finding in checkup.examine(folder).findings]


def test_deepseeks_fp8_is_not_accused(deepseek: Path) -> None:
    found = checkup.examine(deepseek)
    assert [str(finding) for finding in found.findings] == []
    assert (found.method, found.quantized) == ("fp8", 40)


def test_a_source_that_is_quantized_itself_is_not_held_against_it(deepseek: Path, tmp_path: Path) -> None:
    """Its own stored values, without their block scales, are no weights to compare with."""
    other = Path(shutil.copytree(deepseek, tmp_path / "other"))
    damage.tensors(
        other, lambda found: found.update({f"{Q_A}.weight": ("F8_E4M3", [192, 256], bytes(range(256)) * 192)})
    )
    assert [str(finding) for finding in checkup.examine(deepseek, against=other).findings] == []


def test_a_block_scale_that_is_missing(deepseek: Path) -> None:
    damage.tensors(deepseek, lambda found: found.pop(f"{Q_A}.weight_scale_inv"))
    assert ("error", "missing-part") in kinds(deepseek)


def test_block_scales_of_another_size(deepseek: Path) -> None:
    damage.quantization(deepseek, lambda found: found.update(weight_block_size=[64, 64]))
    assert ("error", "scale-shape") in kinds(deepseek)


def test_a_block_scale_that_is_no_number(deepseek: Path) -> None:
    damage.tensors(deepseek, damage.fill(f"{Q_A}.weight_scale_inv", struct.pack("<f", float("nan"))))
    assert kinds(deepseek) == [("error", "scale-not-finite")]


@pytest.mark.parametrize("way", ["awq", "gptq"])
def test_gemma_ties_its_embedding_and_stores_no_head(way: str, tmp_path: Path) -> None:
    folder = packed.checkpoint(tmp_path / "made", way)
    damage.config(folder, lambda found: found.update(model_type="gemma2", tie_word_embeddings=True))
    damage.tensors(folder, lambda found: found.pop("lm_head.weight"))
    assert kinds(folder) == []


def _e2m1(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Codes of FP4, two in a byte, the first in the low half."""
    codes = np.abs(np.abs(values)[..., None] - decode.E2M1[:8]).argmin(-1) | (np.signbit(values) << 3)
    return (codes[:, 0::2] | codes[:, 1::2] << 4).astype(np.uint8)


def _e4m3(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    known = decode.floats(bytes(range(127)), "F8_E4M3")
    return np.abs(values[..., None] - known).argmin(-1).astype(np.uint8)


def _nvfp4(found: damage.Raw, name: str, weight: NDArray[np.float32], shared: float) -> None:
    """As Model-Optimizer writes it: `shared` is the largest weight / 448 / 6, and is multiplied."""
    grouped = weight.reshape(len(weight), -1, 16)
    scale = np.abs(grouped).max(-1) / 6 / np.float32(shared)
    stored = _e4m3(scale)
    actual = decode.floats(stored.tobytes(), "F8_E4M3").reshape(scale.shape) * np.float32(shared)
    values = (grouped / np.maximum(actual, 1e-9)[..., None]).reshape(weight.shape)
    rows, columns = weight.shape
    found[f"{name}.weight"] = ("U8", [rows, columns // 2], _e2m1(values).tobytes())
    found[f"{name}.weight_scale"] = ("F8_E4M3", [rows, columns // 16], stored.tobytes())
    found[f"{name}.weight_scale_2"] = ("F32", [], struct.pack("<f", shared))
    found[f"{name}.input_scale"] = ("F32", [], struct.pack("<f", 0.01))


PRODUCER = {"name": "modelopt", "version": "0.29.0"}
LEFT_ALONE = {
    "names": ["lm_head", "model.layers.1.mlp.down_proj"],
    "wildcards": ["lm_head", "model.layers.1.mlp.down*"],
    "parts": ["lm_head", "layers.1.mlp.down"],
}


@pytest.fixture(params=["names", "wildcards", "parts"])
def modelopt(tmp_path: Path, request: pytest.FixtureRequest) -> tuple[Path, Path]:
    """NVFP4 as nvidia/* on the Hub, hf_quant_config.json beside a config that says nothing of it; and its source."""
    drawn = np.random.default_rng(0)
    here: damage.Raw = {}
    there: damage.Raw = {}
    for layer in range(packed.LAYERS):
        weights = {name: drawn.standard_normal(shape).astype(np.float32) for name, shape in packed.SHAPES.items()}
        joined = {
            name: float(max(np.abs(weights[other]).max() for other in weights if _family(other) == _family(name)))
            for name in weights
        }
        for part, weight in weights.items():
            name = f"model.layers.{layer}.{part}"
            there[f"{name}.weight"] = ("F32", list(weight.shape), weight.tobytes())
            if (layer, part) == (1, "mlp.down_proj"):
                here[f"{name}.weight"] = there[f"{name}.weight"]
            else:
                _nvfp4(here, name, weight, joined[part] / 448 / 6)
        for part in ("k", "v"):
            here[f"model.layers.{layer}.self_attn.{part}_proj.{part}_scale"] = ("F32", [], struct.pack("<f", 0.5))
    for found in (here, there):
        for name in ("model.embed_tokens", "lm_head"):
            found[f"{name}.weight"] = ("F32", [32, packed.WIDTH], bytes(32 * packed.WIDTH * 4))
    folders = []
    for name, found in (("made", here), ("source", there)):
        folder = tmp_path / name
        folder.mkdir()
        damage.store(folder / "model.safetensors", found)
        (folder / "config.json").write_text(json.dumps(packed.CONFIG))
        (folder / "tokenizer.json").write_text("{}")
        folders.append(folder)
    quantization = {"quant_algo": "NVFP4", "kv_cache_quant_algo": "FP8", "group_size": 16,
                    "exclude_modules": LEFT_ALONE[request.param]}  # fmt: skip
    said = {"producer": PRODUCER, "quantization": quantization}
    (folders[0] / "hf_quant_config.json").write_text(json.dumps(said))
    return folders[0], folders[1]


def _family(name: str) -> str:
    return {"q_proj": "qkv", "k_proj": "qkv", "v_proj": "qkv", "gate_proj": "gu", "up_proj": "gu"}.get(
        name.rpartition(".")[2], name
    )


def test_modelopts_nvfp4_is_read_and_not_accused(modelopt: tuple[Path, Path]) -> None:
    made, source = modelopt
    found = checkup.examine(made, against=source, whole=True)
    assert [str(finding) for finding in found.findings] == []
    assert (found.method, found.quantized, found.linear) == ("modelopt", 13, 15)


def test_modelopts_config_may_stand_in_config_json(modelopt: tuple[Path, Path]) -> None:
    """Newer releases write it there, with `ignore`."""
    made, _ = modelopt
    said = json.loads((made / "hf_quant_config.json").read_text())["quantization"]
    inner = {"quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": said["exclude_modules"], "producer": PRODUCER}
    damage.config(made, lambda found: found.update(quantization_config=inner))
    assert checkup.examine(made).findings == ()


def _store_inverse(folder: Path) -> None:
    def change(found: damage.Raw) -> None:
        for name, (dtype, shape, raw) in list(found.items()):
            if name.endswith("weight_scale_2"):
                found[name] = (dtype, shape, struct.pack("<f", 1 / struct.unpack("<f", raw)[0]))

    damage.tensors(folder, change)


def test_global_scales_of_the_other_convention_are_found_without_a_source_too(modelopt: tuple[Path, Path]) -> None:
    made, source = modelopt
    _store_inverse(made)
    assert {name for _, name in kinds(made)} == {"scale-inverted"}
    assert not checkup.examine(made, against=source).sound


def test_a_layer_twice_a_hundred_times_as_large_as_the_sources_is_found(modelopt: tuple[Path, Path]) -> None:
    made, source = modelopt
    name = "model.layers.0.mlp.down_proj.weight_scale_2"
    (shared,) = struct.unpack("<f", damage.load(made / "model.safetensors")[name][2])
    damage.tensors(made, damage.fill(name, struct.pack("<f", shared * 200)))
    assert kinds(made) == []
    found = checkup.examine(made, against=source)
    assert [(f.code.name, f.where.name) for f in found.findings] == [("scale-inverted", name.rpartition(".")[0])]


def test_joined_layers_with_global_scales_of_their_own_are_found(modelopt: tuple[Path, Path]) -> None:
    made, _ = modelopt
    name = "model.layers.0.self_attn.k_proj.weight_scale_2"
    (shared,) = struct.unpack("<f", damage.load(made / "model.safetensors")[name][2])
    damage.tensors(made, damage.fill(name, struct.pack("<f", shared / 2)))
    assert kinds(made) == [("error", "global-scales-unequal")]


def test_scales_of_the_kv_cache_that_some_layers_lack_are_found(modelopt: tuple[Path, Path]) -> None:
    made, _ = modelopt
    for part in ("k", "v"):
        name = f"model.layers.1.self_attn.{part}_proj.{part}_scale"
        damage.tensors(made, lambda found, name=name: found.pop(name))  # type: ignore[misc]
    assert kinds(made) == [("warning", "kv-cache-scale")]


@pytest.mark.parametrize("algorithm", ["W4A8_AWQ", "", "MIXED_PRECISION"])
def test_an_algorithm_that_is_not_looked_into_is_a_note(modelopt: tuple[Path, Path], algorithm: str) -> None:
    made, _ = modelopt
    damage.edit(made / "hf_quant_config.json", lambda found: found["quantization"].update(quant_algo=algorithm))
    assert kinds(made) == [("note", "not-looked-into")]


def _values(folder: Path, ends: str, change: Callable[[bytes], bytes]) -> None:
    def fill(found: damage.Raw) -> None:
        for name, (dtype, shape, raw) in list(found.items()):
            if name.endswith(ends):
                found[name] = (dtype, shape, change(raw))

    damage.tensors(folder, fill)


def test_activations_scales_of_the_other_convention_are_found(modelopt: tuple[Path, Path]) -> None:
    made, _ = modelopt
    _values(made, ".input_scale", lambda raw: struct.pack("<f", 1 / struct.unpack("<f", raw)[0]))
    assert kinds(made) == [("error", "scale-inverted")]


def test_one_huge_scale_of_activations_is_no_fault(modelopt: tuple[Path, Path]) -> None:
    made, _ = modelopt
    _values(made, "0.mlp.down_proj.input_scale", lambda _: struct.pack("<f", 100.0))
    assert kinds(made) == []


def test_a_layer_that_is_the_sources_times_two_is_found(modelopt: tuple[Path, Path]) -> None:
    made, source = modelopt
    scale = "0.mlp.down_proj.weight_scale_2"
    _values(made, scale, lambda raw: struct.pack("<f", 2 * struct.unpack("<f", raw)[0]))
    assert kinds(made) == []
    found = checkup.examine(made, against=source).findings
    assert [(f.code.name, f.where.name) for f in found] == [("weights-multiplied", "model.layers.0.mlp.down_proj")]


def test_a_layer_whose_signs_are_flipped_is_found(modelopt: tuple[Path, Path]) -> None:
    made, source = modelopt
    _values(made, "0.self_attn.o_proj.weight", lambda raw: bytes(byte ^ 0x88 for byte in raw))
    found = checkup.examine(made, against=source).findings
    assert [(f.code.name, f.where.name) for f in found] == [("weights-differ", "model.layers.0.self_attn.o_proj")]


@pytest.mark.parametrize("change", [{"quant_algo": "FP8"}, {"exclude_modules": []}])
def test_two_configs_that_contradict_one_another_are_found(modelopt: tuple[Path, Path], change: dict[str, Any]) -> None:
    made, _ = modelopt
    said = json.loads((made / "hf_quant_config.json").read_text())
    inner = {"quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": said["quantization"]["exclude_modules"]}
    damage.config(made, lambda found: found.update(quantization_config=inner))
    assert kinds(made) == []
    said["quantization"].update(change)
    (made / "hf_quant_config.json").write_text(json.dumps(said))
    assert kinds(made) == [("warning", "configs-differ")]
