"""Checkpoints in AWQ's and GPTQ's formats with defects that were reported in the field, and good ones.

Those in compressed-tensors, made by the real engine, are in tests/scenarios/test_doctor.py.
"""

from __future__ import annotations

import json
import math
import shutil
import struct
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from packaging.version import Version

from quantize.doctor import checkup, decode, repair
from tests.unit import damage, packed

ROOT = Path(__file__).parents[2]
Q = "model.layers.0.self_attn.q_proj"
INFINITE, ZERO = struct.pack("<e", math.inf), struct.pack("<e", 0.0)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return packed.checkpoint(tmp_path / "source", None)


@pytest.fixture(params=["awq", "gptq"])
def any_good(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return packed.checkpoint(tmp_path / "made", request.param)


@pytest.fixture
def awq(tmp_path: Path) -> Path:
    return packed.checkpoint(tmp_path / "made", "awq")


@pytest.fixture
def gptq(tmp_path: Path) -> Path:
    return packed.checkpoint(tmp_path / "made", "gptq")


def kinds(folder: Path, against: Path | None = None, vllm: str | None = None) -> list[tuple[str, str]]:
    found = checkup.examine(folder, against=against, vllm=Version(vllm) if vllm else None)
    return [(finding.severity, finding.code.name) for finding in found.findings]


# Good ones


def test_no_good_checkpoint_is_accused(any_good: Path, source: Path) -> None:
    found = checkup.examine(any_good, against=source)
    assert found.findings == ()
    assert (found.quantized, found.linear) == (14, 15)


def test_a_model_that_is_not_quantized_is_not_accused(source: Path) -> None:
    found = checkup.examine(source)
    assert (found.findings, found.method, found.quantized) == ((), None, 0)


def test_a_good_checkpoint_in_shards_is_not_accused(any_good: Path, source: Path) -> None:
    damage.shards(any_good)
    assert kinds(any_good, source) == []


def test_another_format_of_the_same_weights_beside_them_is_not_read(any_good: Path, source: Path) -> None:
    """Mistral's repositories have `consolidated.safetensors` with its own names beside the shards."""
    other = {"layers.0.attention.wq.weight": ("F16", [64, 64], bytes(8192))}
    damage.store(any_good / "consolidated.safetensors", other)
    assert kinds(any_good, source) == []
    damage.shards(any_good)
    assert kinds(any_good, source) == []


def test_names_with_another_prefix_are_the_same_layers(tmp_path: Path) -> None:
    """transformers 4.52 moved multimodal models' parts below `model.`; servers map the names."""
    made = packed.checkpoint(tmp_path / "made", "awq")
    source = packed.checkpoint(tmp_path / "source", None)

    def rename(found: damage.Raw) -> None:
        renamed = {f"language_model.{name}": tensor for name, tensor in found.items()}
        found.clear()
        found.update(renamed)

    damage.tensors(source, rename)
    assert kinds(made, source) == []


def test_what_a_newer_release_writes_out_is_no_difference(any_good: Path, source: Path) -> None:
    """Null for the model's own default, RoPE's length moved into its mapping, buffers that are no longer saved."""
    scaling = {"type": "yarn", "factor": 4.0}
    damage.config(source, lambda found: found.update(head_dim=None, sliding_window=4096, rope_scaling=scaling))
    damage.config(source, lambda found: found.update(max_position_embeddings=1024))
    damage.tensors(
        source, lambda found: found.update({"model.layers.0.self_attn.rotary_emb.inv_freq": ("F32", [1], bytes(4))})
    )
    parameters = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 5e5, "original_max_position_embeddings": 1024}

    def newer(found: dict[str, object]) -> None:
        found.update(head_dim=32, sliding_window=None, max_position_embeddings=1024, rope_parameters=parameters)
        del found["rope_theta"], found["rope_scaling"]

    damage.config(any_good, newer)
    assert kinds(any_good, source) == []


def test_packing_in_tests_is_what_it_says() -> None:
    weight = np.random.default_rng(1).normal(size=(64, 128)).astype(np.float32)
    codes, _, zero = packed.quantize(weight, symmetric=False)
    made = packed.awq(weight)
    nibbles = decode.unpack(made["qweight"].astype(np.int64).ravel(), 4).reshape(128, 8, 8)
    assert (codes == nibbles[:, :, np.argsort(packed.AWQ_ORDER)].reshape(128, 64).T).all()
    codes, _, zero = packed.quantize(weight, symmetric=True)
    made = packed.gptq(weight)
    nibbles = decode.unpack(made["qweight"].T.astype(np.int64).ravel(), 4).reshape(64, 128)
    assert (nibbles == codes).all()
    assert (decode.unpack(made["qzeros"].astype(np.int64).ravel(), 4) == zero.ravel()[0] - 1).all()


# Defects of any format


def test_scales_that_are_not_finite(any_good: Path) -> None:
    """compressed-tensors#832: saved scales are NaN or infinite; it loads, and every answer is token 0 ("!!!!")."""
    damage.tensors(any_good, damage.fill(f"{Q}.scales", INFINITE, share=0.1))
    assert kinds(any_good) == [("error", "scale-not-finite")]


def test_scales_that_are_zero(any_good: Path) -> None:
    """lmdeploy#1786, AutoAWQ: scales of zero where calibration went wrong."""
    damage.tensors(any_good, damage.fill(f"{Q}.scales", ZERO))
    assert kinds(any_good) == [("error", "scale-zero")]


def test_a_few_scales_of_zero_are_a_warning_as_pruned_groups_have_them(any_good: Path) -> None:
    def one(found: damage.Raw) -> None:
        dtype, shape, raw = found[f"{Q}.scales"]
        found[f"{Q}.scales"] = (dtype, shape, ZERO + raw[2:])

    damage.tensors(any_good, one)
    assert kinds(any_good) == [("warning", "scale-zero")]


def test_weights_that_were_saved_as_they_were_before(any_good: Path) -> None:
    """llm-compressor#1533: the model saved after quantization isn't quantized, its config says it is."""
    damage.tensors(any_good, lambda found: (found.clear(), found.update(_plain())))
    assert kinds(any_good) == [("error", "not-quantized")]


def _plain() -> damage.Raw:
    return {
        name: ("F16", list(array.shape), array.astype(np.float16).tobytes())
        for name, array in packed.tensors_of(None).items()
    }


def test_a_config_that_lost_its_quantization(any_good: Path) -> None:
    """A config saved again by another tool: vLLM then looks for `weight` and ends with a KeyError."""
    damage.config(any_good, lambda found: found.pop("quantization_config"))
    assert kinds(any_good) == [("error", "no-quantization-config")]


def test_a_quantization_config_in_a_file_of_its_own_is_read(gptq: Path) -> None:
    quantization = json.loads((gptq / "config.json").read_text())["quantization_config"]
    damage.config(gptq, lambda found: found.pop("quantization_config"))
    (gptq / "quantize_config.json").write_text(json.dumps(quantization))
    assert kinds(gptq) == []


def test_one_layer_of_a_joined_three_is_left_as_it_was(any_good: Path) -> None:
    """vllm#11790: KeyError 'qkv_proj.weight' for a partly quantized model: q, k and v are loaded as one layer."""

    def restore(found: damage.Raw) -> None:
        for part in ("qweight", "qzeros", "scales", "g_idx"):
            found.pop(f"{Q}.{part}", None)
        found[f"{Q}.weight"] = _plain()[f"{Q}.weight"]

    damage.tensors(any_good, restore)
    assert ("error", "joined-unequal") in kinds(any_good)


def test_a_layer_without_its_packed_weight(gptq: Path, source: Path) -> None:
    """GPTQModel#3077: a missing qweight loads, and runs with zeros."""
    damage.tensors(gptq, lambda found: found.pop(f"{Q}.qweight"))
    assert ("error", "missing-tensor") in kinds(gptq, source)


def test_a_layer_without_its_scales(any_good: Path) -> None:
    """llm-compressor#959, sglang#3604: KeyError 'weight_scale'."""
    damage.tensors(any_good, lambda found: found.pop(f"{Q}.scales"))
    assert ("error", "missing-part") in kinds(any_good)


def test_a_group_size_that_is_not_the_one_that_it_was_packed_with(any_good: Path) -> None:
    """A config copied from another model: scales don't fit. vLLM ends in a shape mismatch in the midst of loading."""
    damage.quantization(any_good, lambda found: found.update(group_size=64))
    assert ("error", "scale-shape") in kinds(any_good)


def test_a_shard_that_is_missing(any_good: Path) -> None:
    """vllm#34859: a quantized model with a missing shard loads without a word, its weights never filled in."""
    damage.shards(any_good)
    (any_good / "model-00002-of-00002.safetensors").unlink()
    assert ("error", "missing-shard") in kinds(any_good)


def test_an_index_of_other_files(any_good: Path, tmp_path: Path) -> None:
    """vllm#54230, mlx-vlm#1827: an index left from before: tensors lie in other files than it says."""
    damage.shards(any_good)

    def swap(found: dict[str, dict[str, str]]) -> None:
        other = {"1": "2", "2": "1"}
        found["weight_map"] = {
            name: f"model-0000{other[file[10]]}-of-00002.safetensors" for name, file in found["weight_map"].items()
        }

    damage.edit(any_good / "model.safetensors.index.json", swap)
    assert kinds(any_good) == [("error", "stale-index")]
    assert kinds(repaired(any_good, tmp_path)) == []


def test_a_file_that_was_cut_short(any_good: Path) -> None:
    """An interrupted download."""
    path = any_good / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    found = checkup.examine(any_good).findings
    assert [finding.code.name for finding in found] == ["truncated"]
    assert found[0].where.file == "model.safetensors"


def test_a_tensor_of_other_bytes_than_its_shape_says(any_good: Path) -> None:
    def shorten(found: damage.Raw) -> None:
        dtype, shape, raw = found[f"{Q}.scales"]
        found[f"{Q}.scales"] = (dtype, shape, raw[:-3])

    damage.tensors(any_good, shorten)
    assert kinds(any_good)[0] == ("error", "truncated")


def test_a_file_of_no_json_is_named(any_good: Path) -> None:
    (any_good / "config.json").write_text("{")
    found = checkup.examine(any_good).findings
    assert ("not-json", "config.json") in [(finding.code.name, finding.where.file) for finding in found]


def test_an_output_layer_that_is_nowhere(any_good: Path) -> None:
    """Qwen3-VL-Embedding#89: tie_word_embeddings is false, and no file has lm_head."""
    damage.tensors(any_good, lambda found: found.pop("lm_head.weight"))
    assert kinds(any_good) == [("error", "no-head")]


def test_a_quantization_config_that_lacks_what_it_needs(any_good: Path) -> None:
    damage.quantization(any_good, lambda found: found.pop("bits"))
    assert kinds(any_good) == [("error", "quantization-config")]


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats(allow_nan=False) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["type", "targets", "a"]), inner),
    max_leaves=4,
)
PACK: dict[str, object] = {
    "quant_method": "compressed-tensors", "format": "pack-quantized", "ignore": ["lm_head"],
    "config_groups": {"group_0": {"targets": ["Linear"], "input_activations": None, "weights": {
        "num_bits": 4, "type": "int", "strategy": "group", "group_size": 32, "symmetric": True}}},
}  # fmt: skip


def places(found: object, at: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Every key of a nested mapping."""
    if not isinstance(found, dict):
        return []
    return [place for key, inner in found.items() for place in [(*at, key), *places(inner, (*at, key))]]


@settings(max_examples=150)
@given(st.data())
def test_whatever_a_config_says_there_is_an_answer(data: st.DataObject) -> None:
    """Any value at any key, in either format: findings, and never an exception."""
    quantization = data.draw(st.sampled_from([PACK, *packed.QUANTIZATION.values()]))
    config = json.loads(json.dumps(packed.CONFIG | {"quantization_config": quantization, "text_config": None}))
    place = data.draw(st.sampled_from(places(config)))
    inner = config
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = data.draw(ANYTHING)
    with tempfile.TemporaryDirectory() as folder:
        made = packed.checkpoint(Path(folder) / "made", data.draw(st.sampled_from(["awq", "gptq"])))
        (made / "config.json").write_text(json.dumps(config))
        (made / "generation_config.json").write_text(json.dumps({"eos_token_id": data.draw(ANYTHING)}))
        checkup.examine(made, against=made, vllm=Version("0.11"))


# Against the source


@pytest.mark.parametrize(
    ("name", "of"),
    [
        ("generation_config.json", "AutoAWQ#591: answers don't stop, as the end tokens are lost"),
        ("chat_template.jinja", "vllm#39279: 'default chat template is no longer allowed'"),
        ("preprocessor_config.json", "llm-compressor#1305: vLLM finds no preprocessor_config.json"),
        ("tokenizer_config.json", "a checkpoint without its tokenizer's config"),
    ],
)
def test_a_file_that_the_source_has_is_missed_and_put_back(
    name: str, of: str, any_good: Path, source: Path, tmp_path: Path
) -> None:
    (source / name).write_text((source / name).read_text() if (source / name).exists() else "{}")
    (any_good / name).unlink(missing_ok=True)
    assert kinds(any_good, source) == [("error", "missing-file")]
    assert kinds(repaired(any_good, tmp_path, source), source) == []


def test_a_template_in_the_field_counts_as_one_in_a_file(any_good: Path, source: Path) -> None:
    (any_good / "chat_template.jinja").unlink()
    damage.edit(any_good / "tokenizer_config.json", lambda found: found.update(chat_template="{{ messages }}"))
    assert kinds(any_good, source) == []


def test_an_end_token_that_was_lost(any_good: Path, source: Path, tmp_path: Path) -> None:
    """AutoAWQ#373: Llama keeps generating: the quantized model has one end token, its source has two."""
    (any_good / "generation_config.json").write_text(json.dumps({"eos_token_id": 2}))
    assert kinds(any_good, source) == [("error", "end-token")]
    assert kinds(repaired(any_good, tmp_path, source), source) == []


def test_a_rope_base_that_fell_back_to_the_default(any_good: Path, source: Path, tmp_path: Path) -> None:
    """vllm#44158: written by transformers 5, read by 4: the base is 10000 without a word, and answers are wrong."""
    damage.config(any_good, lambda found: found.update(rope_theta=10000.0))
    assert kinds(any_good, source) == [("error", "rope")]
    assert kinds(repaired(any_good, tmp_path, source), source) == []


def test_a_config_that_says_two_things_of_rope(any_good: Path) -> None:
    """transformers 4 keeps rope_parameters, which it doesn't know, and writes its default beside it."""
    damage.config(any_good, lambda found: found.update(rope_parameters={"rope_theta": 1e6, "rope_type": "default"}))
    assert kinds(any_good) == [("error", "rope")]


def test_the_same_rope_in_the_words_of_another_release_is_no_difference(any_good: Path, source: Path) -> None:
    def newer(found: dict[str, object]) -> None:
        found["rope_parameters"] = {"rope_theta": found.pop("rope_theta"), "rope_type": "default"}
        found["dtype"] = found.pop("torch_dtype")
        found.pop("rope_scaling")

    damage.config(any_good, newer)
    assert kinds(any_good, source) == []


def test_a_tensor_that_was_left_behind(any_good: Path, source: Path) -> None:
    """A norm or a bias that an engine didn't save: some servers leave it at what memory holds."""
    damage.tensors(any_good, lambda found: found.pop("model.norm.weight"))
    assert kinds(any_good, source) == [("error", "missing-tensor")]


@pytest.mark.parametrize("name", ["mtp.0.norm.weight", "model.mtp_layers.0.final_layernorm.weight"])
def test_layers_for_speculation_that_were_left_behind_are_a_warning(any_good: Path, source: Path, name: str) -> None:
    """Engines leave `mtp.*` of the source behind: it works, without that speculative decoding."""
    extra = ("F16", [2], bytes(4))
    damage.tensors(source, lambda found: found.update({name: extra}))
    assert kinds(any_good, source) == [("warning", "left-behind")]


def test_a_checkpoint_of_another_model(any_good: Path, source: Path) -> None:
    damage.config(any_good, lambda found: found.update(num_attention_heads=4))
    damage.tensors(source, lambda found: found.update({f"{Q}.weight": ("F16", [64, 32], bytes(4096))}))
    assert kinds(any_good, source) == [("error", "config-differs"), ("error", "shape-differs")]


# Defects of one format


def test_awq_packed_for_another_kernel(awq: Path) -> None:
    """AutoAWQ's GEMV version: vLLM reads GEMM alone, and takes the other for a wrong shape."""
    damage.quantization(awq, lambda found: found.update(version="gemv"))
    assert kinds(awq) == [("error", "awq-version")]


def test_awq_with_words_along_the_other_side(awq: Path) -> None:
    """The same with a config that says GEMM: the shapes give it away."""

    def turn(found: damage.Raw) -> None:
        dtype, shape, raw = found[f"{Q}.qweight"]
        turned = np.frombuffer(raw, np.int32).reshape(shape).T.copy()
        found[f"{Q}.qweight"] = (dtype, [8, 64], turned.tobytes())

    damage.tensors(awq, turn)
    assert ("error", "packed-shape") in kinds(awq) or ("error", "scale-shape") in kinds(awq)


def test_awq_in_bfloat16_for_an_old_server(awq: Path) -> None:
    """vllm#1823: "torch.bfloat16 is not supported for quantization method awq"."""
    damage.config(awq, lambda found: found.update(torch_dtype="bfloat16"))
    assert kinds(awq, vllm="0.4.0") == [("error", "dtype-refused")]
    assert kinds(awq, vllm="0.32.0") == []


def test_a_dtype_that_no_kernel_of_the_method_takes(any_good: Path) -> None:
    found = checkup.examine(any_good, dtype="float32").findings
    assert [finding.code.name for finding in found] == ["dtype-refused"]


def test_a_router_that_the_list_leaves_out_is_not_accused(awq: Path) -> None:
    damage.quantization(awq, lambda found: found.update(modules_to_not_convert=["lm_head"]))
    plain = ("F16", [4, 64], bytes(512))
    damage.tensors(awq, lambda found: found.update({"model.layers.0.mlp.gate.weight": plain}))
    assert kinds(awq) == []


def test_gptq_of_the_second_format_that_does_not_say_so(gptq: Path, tmp_path: Path) -> None:
    """vllm#38966: zero points stored as 8 under checkpoint_format "gptq": off by one, nothing but "!!!"."""
    damage.tensors(gptq, lambda found: [damage.fill(n, b"\x88")(found) for n in found if n.endswith("qzeros")])
    assert kinds(gptq) == [("error", "gptq-format")]
    assert kinds(repaired(gptq, tmp_path)) == []


def test_gptq_zero_points_as_floats(gptq: Path) -> None:
    """vllm#17862: zero points of the scales' shape and type, which the loader can't place."""

    def replace(found: damage.Raw) -> None:
        _, shape, raw = found[f"{Q}.scales"]
        found[f"{Q}.qzeros"] = ("F16", shape, raw)

    damage.tensors(gptq, replace)
    assert ("error", "zero-point-shape") in kinds(gptq)


def test_gptq_asymmetric(gptq: Path) -> None:
    """vLLM's GPTQ has no asymmetric kind: "Unsupported quantization config: bits=4, sym=False"."""
    damage.quantization(gptq, lambda found: found.update(sym=False))
    assert kinds(gptq) == [("error", "gptq-kind")]


def test_gptq_in_activation_order_that_does_not_say_so(gptq: Path, tmp_path: Path) -> None:
    """A permuted g_idx under desc_act: false is left unread: every channel gets another group's scale."""

    def reverse(found: damage.Raw) -> None:
        for name, (dtype, shape, raw) in list(found.items()):
            if name.endswith("g_idx"):
                found[name] = (dtype, shape, np.frombuffer(raw, np.int32)[::-1].tobytes())

    damage.tensors(gptq, reverse)
    assert kinds(gptq) == [("error", "group-index")]
    assert kinds(repaired(gptq, tmp_path)) == []


def test_gptq_group_indices_that_name_no_group(gptq: Path) -> None:
    damage.tensors(gptq, damage.fill(f"{Q}.g_idx", struct.pack("<i", 99)))
    assert kinds(gptq) == [("error", "group-index")]


# Repairing


def repaired(folder: Path, tmp_path: Path, against: Path | None = None, vllm: str | None = None) -> Path:
    """The copy, after repairing; the original is as it was."""
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    release = Version(vllm) if vllm else None
    found = checkup.examine(folder, against=against, vllm=release)
    assert repair.fix(found.checkpoint, found.findings, tmp_path / "repaired", against, release)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    return tmp_path / "repaired"


def test_a_copy_that_can_not_be_finished_leaves_nothing(
    any_good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = checkup.examine(any_good)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(OSError, match="No space"):
        repair.fix(found.checkpoint, found.findings, tmp_path / "repaired", None, None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["made"]


# Decoding


@given(st.binary(min_size=2, max_size=64).filter(lambda raw: len(raw) % 2 == 0))
def test_bfloat16_is_the_upper_half_of_float32(raw: bytes) -> None:
    halves = [raw[i : i + 2] for i in range(0, len(raw), 2)]
    wanted = np.array([struct.unpack("<f", b"\0\0" + half)[0] for half in halves], np.float32)
    assert np.array_equal(decode.floats(raw, "BF16"), wanted, equal_nan=True)


def test_fp8_has_the_values_of_its_paper() -> None:
    """ "FP8 Formats for Deep Learning", table 1: largest and smallest values, and what isn't a number."""
    codes = {0x7E: 448.0, 0x08: 2.0**-6, 0x01: 2.0**-9, 0x38: 1.0, 0xB8: -1.0, 0x00: 0.0}
    assert [float(value) for value in decode.floats(bytes(codes), "F8_E4M3")] == list(codes.values())
    assert np.isnan(decode.floats(b"\x7f\xff", "F8_E4M3")).all()
    codes = {0x7B: 57344.0, 0x04: 2.0**-14, 0x01: 2.0**-16, 0x3C: 1.0}
    assert [float(value) for value in decode.floats(bytes(codes), "F8_E5M2")] == list(codes.values())
    assert np.isinf(decode.floats(b"\x7c", "F8_E5M2")).all()
    assert [float(value) for value in decode.floats(bytes([127, 128, 126]), "F8_E8M0")] == [1.0, 2.0, 0.5]


@given(st.lists(st.integers(0, 15), min_size=8, max_size=8))
def test_what_is_packed_is_unpacked(values: list[int]) -> None:
    word = packed.words(np.array([values])).astype(np.int64).ravel()
    assert decode.unpack(word, 4).ravel().tolist() == values


def test_a_long_tensor_is_sampled_to_its_end(tmp_path: Path) -> None:
    folder = packed.checkpoint(tmp_path / "made", "gptq")
    many = checkup.SAMPLE * 2
    values = np.zeros(many, np.float32)
    values[-1] = np.nan

    def enlarge(found: damage.Raw) -> None:
        found[f"{Q}.weight_scale"] = ("F32", [many], values.tobytes())

    damage.tensors(folder, enlarge)
    found = checkup.examine(folder)
    assert found.sampled
    assert "scale-not-finite" in [finding.code.name for finding in found.findings]
    assert not checkup.examine(folder, whole=True).sampled
