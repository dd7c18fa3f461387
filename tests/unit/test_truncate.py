"""A checkpoint cut short: fewer layers, the same bytes, and a config that says so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from quantize.checkpoint import truncate
from quantize.checkpoint.headers import read_safetensors
from tests.unit import damage

LAYER = {"self_attn.q_proj.weight": 8, "mlp.up_proj.weight": 16}


def checkpoint(folder: Path, experts_from: int, layers: int, stem: str = "model.layers", **config: Any) -> Path:
    """Every tensor's bytes are its own name's; from `experts_from` on layers have experts."""
    folder.mkdir()
    found: damage.Raw = {}

    def add(name: str, rows: int) -> None:
        found[name] = ("BF16", [rows, 16], (name.encode() * rows * 32)[: rows * 32])

    for name in ("model.embed_tokens.weight", "lm_head.weight", "visual.blocks.0.attn.weight", "mtp.layers.0.w.weight"):
        add(name, 4)
    for number in range(layers + 1):  # the last stands behind the decoder's: for speculative decoding
        for name, rows in LAYER.items():
            add(f"{stem}.{number}.{name}", rows)
        for expert in range(4 if number >= experts_from else 0):
            add(f"{stem}.{number}.mlp.experts.{expert}.up_proj.weight", 8)
    damage.store(folder / "model.safetensors", found)
    (folder / "config.json").write_text(json.dumps({"num_hidden_layers": layers, **config}))
    (folder / "tokenizer.json").write_text("{}")
    return folder


def test_layers_up_to_the_first_of_the_largest_stay_with_their_bytes(tmp_path: Path) -> None:
    """DeepSeek-V3 has three dense layers before its experts."""
    types = ["full_attention"] * 6
    source = checkpoint(tmp_path / "source", experts_from=3, layers=6, layer_types=types, eos_token_id=[1, 2])
    damage.shards(source)
    found = truncate.truncate(source, tmp_path / "short")
    assert (found.layers, found.of_layers, found.largest) == (4, 6, 3)
    assert found.largest_bytes == sum(2 * 16 * rows for rows in (*LAYER.values(), 8, 8, 8, 8))
    tensors = damage.load(tmp_path / "short" / "model.safetensors")
    whole = {name: t for file in source.glob("*.safetensors") for name, t in damage.load(file).items()}
    outside = {"model.embed_tokens.weight", "lm_head.weight", "visual.blocks.0.attn.weight", "mtp.layers.0.w.weight"}
    assert {name for name in tensors if not name.startswith("model.layers.")} == outside
    assert {name.split(".")[2] for name in tensors if name.startswith("model.layers.")} == {"0", "1", "2", "3"}
    assert all(tensors[name] == whole[name] for name in tensors)
    config = json.loads((tmp_path / "short" / "config.json").read_text())
    assert config == {"num_hidden_layers": 4, "layer_types": types[:4], "eos_token_id": [1, 2]}
    assert (tmp_path / "short" / "tokenizer.json").read_text() == "{}"
    assert not (tmp_path / "short" / "model.safetensors.index.json").exists()
    assert read_safetensors(tmp_path / "short" / "model.safetensors")[1] == []


def test_two_layers_of_equal_ones_are_enough(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "source", experts_from=9, layers=5)
    found = truncate.truncate(source, tmp_path / "short")
    assert (found.layers, found.of_layers, found.largest) == (2, 5, 0)


def test_a_model_that_sees_is_cut_in_its_text_model(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "source", experts_from=9, layers=3, stem="model.language_model.layers")
    (source / "config.json").write_text(json.dumps({"model_type": "x", "text_config": {"num_hidden_layers": 3}}))
    found = truncate.truncate(source, tmp_path / "short")
    assert (found.layers, found.of_layers) == (2, 3)
    config = json.loads((tmp_path / "short" / "config.json").read_text())
    assert config == {"model_type": "x", "text_config": {"num_hidden_layers": 2}}


@pytest.mark.parametrize(
    ("config", "said"),
    [({"num_hidden_layers": 9}, "no tensor names match 9 layers"), ({"is_encoder_decoder": True}, "it has an encoder")],
)
def test_a_checkpoint_that_can_not_be_cut_says_why(config: dict[str, Any], said: str, tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "source", experts_from=9, layers=3, **config)
    with pytest.raises(truncate.CannotTruncate, match=said):
        truncate.truncate(source, tmp_path / "short")
    (source / "config.json").write_text("{}")
    with pytest.raises(truncate.CannotTruncate, match="has no number of layers"):
        truncate.truncate(source, tmp_path / "short")


def test_the_longest_rows_are_taken_until_they_are_enough(tmp_path: Path) -> None:
    rows = [{"input_ids": list(range(length))} for length in (3, 9, 5, 7)]
    (tmp_path / "rows").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def lengths() -> list[int]:
        return [len(json.loads(line)["input_ids"]) for line in (tmp_path / "some").read_text().splitlines()]

    assert truncate.longest(tmp_path / "rows", tmp_path / "some", 10) == (2, 9)
    assert lengths() == [9, 7]
    assert truncate.longest(tmp_path / "rows", tmp_path / "some", None) == (4, 9)
    assert truncate.longest(tmp_path / "rows", tmp_path / "some", 1) == (1, 9)
