"""Checkpoints as others ship them: DeepSeek's FP8 in blocks with experts and a layer for speculation, Gemma's tied
embeddings. Names and shapes follow deepseek-ai/DeepSeek-V3's index and config, sizes are small.
"""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path

import pytest

from quantize.doctor import checkup
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
