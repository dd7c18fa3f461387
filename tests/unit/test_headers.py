from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantize.checkpoint import gguf, headers, sources
from tests.unit.recipes import checkpoint, safetensors


def test_shapes_come_from_the_header_alone(tmp_path: Path) -> None:
    path = safetensors(tmp_path / "a.safetensors", {"x.weight": (3, 4), "norm.weight": (4,)})
    tensors, problems = headers.read_safetensors(path)
    assert not problems
    assert [(t.name, t.shape, t.is_linear, headers.bytes_of(t)) for t in tensors] == [
        ("x.weight", (3, 4), True, 24),
        ("norm.weight", (4,), False, 8),
    ]


@given(cut=st.integers(min_value=0))
@settings(max_examples=60)
def test_a_file_cut_anywhere_is_found(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    path = safetensors(tmp_path_factory.mktemp("cut") / "a.safetensors", {"x.weight": (3, 4)})
    whole = path.read_bytes()
    path.write_bytes(whole[: cut % len(whole)])
    tensors, problems = headers.read_safetensors(path)
    assert not tensors
    assert str(path) in str(problems[0])


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    folder = tmp_path_factory.mktemp("any")
    for start, read in ((b"", headers.read_safetensors), (b"GGUF", gguf.read_gguf)):
        path = folder / "file"
        path.write_bytes(start + data)
        assert read(path) is not None


def test_a_gguf_header_gives_names_and_shapes(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    pairs = text("general.architecture") + struct.pack("<I", 8) + text("llama")
    pairs += text("tokens") + struct.pack("<IIQ", 9, 8, 2) + text("a") + text("bc")
    tensor = text("blk.0.ffn_up.weight") + struct.pack("<IQQIQ", 2, 64, 128, 1, 0)
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, 2) + pairs + tensor
    path.write_bytes(head + bytes(-len(head) % 32 + 2 * 64 * 128))
    tensors, metadata, problems = gguf.read_gguf(path)
    assert not problems
    assert metadata == {"general.architecture": "llama"}
    assert [(t.name, t.shape) for t in tensors] == [("model.layers.0.mlp.up_proj.weight", (128, 64))]


def test_sizes_in_a_gguf_are_those_of_transformers_config() -> None:
    sizes = {"llama.attention.head_count": 9, "llama.embedding_length": 576, "llama.block_count": True,
             "llama.attention.head_count_kv": "3", "llama.context_length": 0, "qwen2.vocab_size": 8}  # fmt: skip
    found = gguf.config({"general.architecture": "llama", **sizes})
    assert found == {"model_type": "llama", "num_attention_heads": 9, "hidden_size": 576}
    assert gguf.config({}) == {"model_type": None}


def test_a_good_folder_is_accepted(tmp_path: Path) -> None:
    source, problems = sources.find(str(checkpoint(tmp_path / "m")), tmp_path, None)
    assert not problems
    assert source is not None
    assert len(source.linears) == 4


@pytest.mark.parametrize(
    ("damage", "code"),
    [
        (lambda m: (m / "tokenizer.json").unlink(), "missing-file"),
        (lambda m: (m / "config.json").unlink(), "no-config"),
        (lambda m: (m / "config.json").write_text("{"), "not-json"),
        (lambda m: (m / "model.safetensors").rename(m / "pytorch_model.bin"), "no-weights"),
        (lambda m: (m / "model.safetensors").unlink(), "no-weights"),
        (
            lambda m: (m / "model.safetensors").write_bytes((m / "model.safetensors").read_bytes()[:-1]),
            "truncated",
        ),
        (
            lambda m: (m / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-2.safetensors"}}'),
            "missing-shard",
        ),
    ],
)
def test_a_bad_folder_is_refused_with_the_reason(tmp_path: Path, damage: object, code: str) -> None:
    model = checkpoint(tmp_path / "m")
    damage(model)  # type: ignore[operator]
    source, problems = sources.find(str(model), tmp_path, None)
    assert source is None
    assert problems[0].code.name == code


def test_changing_one_byte_changes_the_content_digest(tmp_path: Path) -> None:
    from qpack.core.hashing import sha256

    model = checkpoint(tmp_path / "m")
    before, _ = sources.find(str(model), tmp_path, sha256)
    data = bytearray((model / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (model / "model.safetensors").write_bytes(data)
    after, _ = sources.find(str(model), tmp_path, sha256)
    assert before is not None
    assert after is not None
    assert before.content != after.content
