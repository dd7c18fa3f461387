"""Claims about files that ask for more than they are: memory is bounded by the file, and the answer names it."""

from __future__ import annotations

import json
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from qpack.core import jsonfile, yamlfile
from qpack.core.jsonfile import NotJson
from qpack.core.problems import Location, Problem
from quantize.checkpoint import from_config, gguf, headers, hub, model_config, shards, sources
from quantize.checkpoint.source import Source
from quantize.doctor import checkpoint, quantization_config
from tests.unit import packed, recipes

# What a parser may take of its own, besides a multiple of its input.
OWN = 2**20
TIMES = 40


def peak(call: Callable[[], object]) -> int:
    """Bytes that a call takes at most."""
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def name(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def head(tensors: int, pairs: int) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, pairs)


GGUF = {
    "a tensor of 2^32 dimensions": head(1, 0) + name(b"a") + struct.pack("<I", 2**32 - 1),
    "2^63 tensors and pairs": head(2**63, 2**63) + bytes(64),
    "a text of 2^62 bytes": head(0, 1) + struct.pack("<Q", 2**62),
    "an array of 2^60 texts": head(0, 1) + name(b"k") + struct.pack("<IIQ", 9, 8, 2**60),
    "an array of 2^61 numbers": head(0, 1) + name(b"k") + struct.pack("<IIQ", 9, 12, 2**61),
    "arrays in arrays": head(0, 1) + name(b"k") + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 500,
    "no alignment": head(0, 1) + name(b"general.alignment") + struct.pack("<II", 4, 0),
    "a tensor outside of the file": head(1, 0) + name(b"a") + struct.pack("<IQIQ", 1, 32, 0, 2**62) + bytes(400),
    "a tensor larger than the file": head(1, 0) + name(b"a") + struct.pack("<IQQIQ", 2, 2**62, 2**62, 0, 0),
    "a duplicate tensor": head(2, 0) + (name(b"a") + struct.pack("<IQIQ", 1, 0, 0, 0)) * 2,
    "a key twice": head(0, 2) + (name(b"a") + struct.pack("<IB", 0, 1)) * 2,
}


@pytest.mark.parametrize("what", GGUF)
def test_a_gguf_that_asks_for_more_than_it_is_takes_no_more_than_it_is(what: str, tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(GGUF[what])
    read: list[Problem] = []
    assert peak(lambda: read.extend(gguf.read_gguf(path)[2])) < OWN + TIMES * len(GGUF[what])
    assert [problem.where for problem in read] == [Location(str(path))]


ONE = {"dtype": "F16", "shape": [2, 2], "data_offsets": [0, 8]}
HEADERS: dict[str, tuple[object, int]] = {
    "a list": ([], 0),
    "sizes below zero": ({"a": {**ONE, "shape": [-2, -2]}}, 8),
    "sizes that are no whole numbers": ({"a": {**ONE, "shape": [2.0, True]}}, 8),
    "a type that is no name": ({"a": {**ONE, "dtype": 3}}, 8),
    "a shape that isn't its bytes": ({"a": {**ONE, "shape": [2**31, 2**31]}}, 8),
    "places that overlap": ({"a": ONE, "b": ONE}, 8),
    "bytes of nobody": ({"a": ONE, "b": {**ONE, "data_offsets": [16, 24]}}, 24),
    "an end before its start": ({"a": {**ONE, "data_offsets": [8, 0]}}, 8),
    "three offsets": ({"a": {**ONE, "data_offsets": [0, 8, 8]}}, 8),
    "a hundred dimensions": ({"a": {**ONE, "shape": [1] * 100 + [4]}}, 8),
    "metadata of numbers": ({"__metadata__": {"a": 1}, "a": ONE}, 8),
    "a name of 100,000 characters": ({"a" * 100_000: ONE}, 8),
    "half of a surrogate pair": ({"\ud800": ONE}, 8),
}


@pytest.mark.parametrize("what", HEADERS)
def test_a_safetensors_header_is_held_against_its_file(what: str, tmp_path: Path) -> None:
    header, size = HEADERS[what]
    text = json.dumps(header).encode()
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(size))
    read: list[Problem] = []
    assert peak(lambda: read.extend(headers.read_spans(path)[1])) < OWN + TIMES * len(text)
    assert [problem.where for problem in read] == [Location(str(path))]


def test_a_file_that_is_a_folder_or_gone_is_no_weights(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").mkdir()
    (tmp_path / "b.safetensors").symlink_to("nowhere")
    for name_ in ("a.safetensors", "b.safetensors"):
        assert headers.read_spans(tmp_path / name_)[1]


# An alias of aliases of aliases: nine to the power of eight in a line each.
BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{two}: &{two} [{', '.join([f'*{one}'] * 9)}]\n" for one, two in zip("abcdefgh", "bcdefghi", strict=True)
)
YAMLS = {
    "aliases of aliases": (BOMB, 5),
    "an alias inside of itself": ("a: &a [*a]\n", 1),
    "aliases in a key": ("a: &a [x]\n? [*a, *a]\n: b\n", 2),
    "300,000 lists": ("a: [" + "[]," * 300_000 + "]\n", 1),
    "500 levels": ("a: " + "[" * 500 + "]" * 500 + "\n", 1),
    "a number of 5,000 digits": ("a: 1\nb: " + "9" * 5000 + "\n", 2),
    "a number of more than 64 bits": ("a: 1\nb: 9223372036854775808\n", 2),
    "an endless number": ("a: 1\nb: 1e999\n", 2),
    "a tag": ("a: 1\nb: !!python/object/apply:os.system [true]\n", 2),
    "a tag that isn't so": ("a: 1\nb: !!int x\n", 2),
    "a tag of another kind": ("a: 1\nb: !!map x\n", 2),
    "a character beyond Unicode": ('a: 1\nb: "\\UFFFFFFFF"\n', 2),
    "half of a surrogate pair": ('a: 1\nb: "\\ud800"\n', 2),
    "a zero byte": ("a: 1\nb: \0\n", 2),
    "an escaped zero byte": ('a: 1\nb: "\\0"\n', 2),
    "a second document": ("a: 1\n---\nb: 1\n", 2),
    "a key twice": ("a: 1\na: 2\n", 2),
}


@pytest.mark.parametrize("what", YAMLS)
def test_a_yaml_file_has_bounds_and_names_the_line(what: str, tmp_path: Path) -> None:
    text, line = YAMLS[what]
    path = tmp_path / "a.yaml"
    path.write_text(text)
    read: list[Problem] = []
    # A kilobyte for each value, and as many values as are read.
    assert peak(lambda: read.extend(yamlfile.load(path)[1])) < 64 * OWN
    assert [(problem.where.file, problem.where.line) for problem in read] == [(str(path), line)]


def test_an_alias_means_what_it_stands_for_and_a_zero_in_front_is_no_octal(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("a: &a [1, {b: 010}]\nc: *a\n")
    file, problems = yamlfile.load(tmp_path / "a.yaml")
    assert not problems
    assert file is not None
    assert file.data == {"a": [1, {"b": 10}], "c": [1, {"b": 10}]}


@pytest.mark.parametrize(
    "setting",
    ["a=[&x [*x]]", "a.\u00b2=1", "a." + "9" * 5000 + "=1", "b." * 5000 + "c=1", "a=08x: [", "a=" + BOMB, 'a="\\0"'],
)
def test_a_setting_has_the_same_bounds(setting: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("a: [1]\n")
    file, _ = yamlfile.load(tmp_path / "a.yaml")
    assert file is not None
    _, problems = yamlfile.override(file, [setting])
    assert len(problems) == 1
    assert problems[0].code.name in ("invalid-option", "not-plain-data")
    assert problems[0].where.option.startswith("--set ")


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, "[" * 65 + "]" * 65, '{"a": 1, "a": 2}', '["\\ud800"]', "9" * 5000, "\xff", " " * (2**24 + 1)],
)
def test_json_that_others_can_not_read_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(NotJson):
        jsonfile.read(path)


@pytest.mark.parametrize("named", ["../a.safetensors", "/etc/passwd", "a\\b", "..", "", 3, None, ["a"]])
def test_an_index_names_files_beside_it_alone(named: object, tmp_path: Path) -> None:
    (tmp_path / shards.INDEX).write_text(json.dumps({"weight_map": {"a": named}}))
    with pytest.raises(NotJson):
        shards.read(tmp_path / shards.INDEX)


WRONG: list[tuple[str, object]] = [
    ("num_attention_heads", 0), ("num_attention_heads", "8"), ("num_key_value_heads", -1), ("hidden_size", 64.0),
    ("num_hidden_layers", True), ("num_hidden_layers", 10**30), ("head_dim", {}), ("vocab_size", [1, "a"]),
    ("model_type", ["llama"]), ("model_type", {}), ("model_type", "a\u202eb"), ("architectures", "Llama"),
    ("tie_word_embeddings", "no"), ("text_config", []), ("dtype", 3),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value"), WRONG)
def test_a_value_that_nobody_can_compute_with_is_named_by_its_key(key: str, value: object, tmp_path: Path) -> None:
    model = recipes.checkpoint(tmp_path / "m")
    (model / "config.json").write_text(json.dumps({"model_type": "llama"} | {key: value}))
    source, problems = sources.find(str(model), tmp_path, None)
    assert source is None
    wanted = Location(str(model / "config.json"), key=(key,))
    assert [(p.code.name, p.where) for p in problems] == [("config-value", wanted)]
    made, findings = checkpoint.read(model, 0)
    same = [(p.code.name, p.message, p.where.key) for p in problems]
    assert [(p.code.name, p.message, p.where.key) for p in findings] == same, "check and doctor say the same"
    assert key not in made.config


def test_sizes_that_a_model_gives_layer_by_layer_are_no_fault() -> None:
    assert model_config.read({"intermediate_size": [8, 16], "head_dim": None}, "") == ({"head_dim": None}, [])


def test_a_config_that_asks_for_a_billion_layers_gets_none() -> None:
    config = packed.CONFIG | {"model_type": "qwen3_moe", "num_experts": 10**9, "moe_intermediate_size": 8}
    bare = Source(uri="hf://a/b", kind="hub", resolved="hf://a/b", path=None, content=None)
    assert peak(lambda: from_config.filled(bare, config)) < OWN


@pytest.mark.parametrize("ignore", [["re:(("], ["re:((a+)+)\\2$"], [f"re:{i}" for i in range(501)]])
def test_expressions_of_a_strangers_config_have_bounds(ignore: list[str], tmp_path: Path) -> None:
    made = packed.checkpoint(tmp_path / "made", "gptq")
    quantization = {"quant_method": "compressed-tensors", "format": "pack-quantized", "ignore": ignore}
    groups = {"a": {"targets": ["Linear"], "weights": {"num_bits": 4}}}
    (made / "config.json").write_text(json.dumps({"quantization_config": quantization | {"config_groups": groups}}))
    found = quantization_config.read(checkpoint.read(made, 0)[0])
    assert found is not None
    assert found.broken


@pytest.mark.parametrize("uri", ["hf://../..", "hf://a/..", "hf:///b", "hf://a/b@../../c", "hf://a/b\n@c"])
def test_a_name_on_the_hub_leads_nowhere_else(uri: str) -> None:
    source, problems = hub.find(uri)
    assert source is None
    assert problems[0].code.name == "hub-model"
    assert uri in problems[0].message


@pytest.mark.parametrize("uri", ["a" * 5000, "~nosuchuser/model", "a\0b", "/dev/null"])
def test_a_path_that_can_not_be_looked_at_is_a_problem(uri: str, tmp_path: Path) -> None:
    source, problems = sources.find(uri, tmp_path, None)
    assert source is None
    assert problems
