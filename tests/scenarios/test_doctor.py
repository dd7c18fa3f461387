"""`qpack doctor` on real artifacts of llm-compressor, good and damaged, through the command line.

Each damage is a defect that was reported in the field. Those of AWQ's and GPTQ's own formats are in
tests/unit/test_doctor.py.
"""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from packaging.version import Version

from quantize.doctor import checkup
from tests.scenarios.command import Finished, Qpack
from tests.scenarios.quantized import WAYS
from tests.unit import damage

pytestmark = pytest.mark.engines

Q = "model.layers.0.self_attn.q_proj"
NAN = struct.pack("<H", 0x7FC0)  # bfloat16


@pytest.fixture
def take(artifacts: Path, tmp_path: Path) -> Callable[[str], Path]:
    """A copy of an artifact to damage."""

    def copy(way: str) -> Path:
        return Path(shutil.copytree(artifacts / way / "checkpoint", tmp_path / way))

    return copy


@pytest.fixture
def shared(qpack: Qpack, engine_home: Path) -> Qpack:
    """The command line with the shared environments."""
    qpack.home.mkdir()
    (qpack.home / "envs").symlink_to(engine_home / "envs")
    return qpack


def kinds(folder: Path, against: Path | None = None, vllm: str | None = None) -> list[tuple[str, str]]:
    found = checkup.examine(folder, against=against, vllm=Version(vllm) if vllm else None)
    return [(finding.severity, finding.code.name) for finding in found.findings]


# Good ones


def test_scales_are_in_place_before_gptq_sees_what_they_scale(artifacts: Path) -> None:
    """The tiny model has two layers, and the output layer is a step of its own: two passes over three."""
    told = (artifacts / "told.txt").read_text()
    steps = [json.loads(line[line.index("{") :]) for line in told.splitlines() if '"layers"' in line]
    assert [6, 6] in [[step["done"], step["total"]] for step in steps]


@pytest.mark.parametrize("way", WAYS)
def test_no_good_artifact_is_accused(way: str, artifacts: Path, tiny_model: Path) -> None:
    found = checkup.examine(artifacts / way / "checkpoint", against=tiny_model, whole=True)
    assert found.findings == ()
    assert (found.method, found.quantized, found.linear) == ("compressed-tensors", 14, 15)


def test_the_source_is_not_accused(tiny_model: Path) -> None:
    assert kinds(tiny_model, tiny_model) == []


def test_a_good_artifact_against_its_source_is_exit_0(shared: Qpack, artifacts: Path, tiny_model: Path) -> None:
    done = shared("doctor", artifacts / "w4a16" / "checkpoint", "--against", tiny_model)
    assert done.code == 0, done
    assert "No problem found" in done.out


# Defects: what to do to an artifact, and what the doctor calls it


def _ignore_nothing(folder: Path) -> None:
    damage.quantization(folder, lambda found: found.update(ignore=[]))


def _ignore_a_quantized_layer(folder: Path) -> None:
    damage.quantization(folder, lambda found: found["ignore"].append("re:.*mlp.*"))


def _half_of_a_joined_layer(folder: Path) -> None:
    def plain(found: damage.Raw) -> None:
        for part in ("weight_packed", "weight_scale", "weight_shape", "weight_zero_point"):
            found.pop(f"{Q}.{part}", None)
        found[f"{Q}.weight"] = ("BF16", [64, 64], bytes(8192))

    damage.tensors(folder, plain)
    damage.quantization(folder, lambda found: found["ignore"].append(Q))


def _nan_scales(folder: Path) -> None:
    damage.tensors(folder, damage.fill(f"{Q}.weight_scale", NAN))


def _zero_scales(folder: Path) -> None:
    damage.tensors(folder, damage.fill(f"{Q}.weight_scale", b"\0\0"))


def _zero_input_scale(folder: Path) -> None:
    damage.tensors(folder, damage.fill(f"{Q}.input_scale", b"\0\0"))


def _drop(part: str) -> Callable[[Path], None]:
    return lambda folder: damage.tensors(folder, lambda found: found.pop(f"{Q}.{part}"))


def _other_group_size(folder: Path) -> None:
    damage.quantization(folder, lambda found: _weights(found).update(group_size=64))


def _weights(found: dict[str, Any]) -> dict[str, Any]:
    weights: dict[str, Any] = found["config_groups"]["group_0"]["weights"]
    return weights


def _other_bits(folder: Path) -> None:
    damage.quantization(folder, lambda found: _weights(found).update(num_bits=8))


def _scales_of_a_tensor(folder: Path) -> None:
    damage.quantization(folder, lambda found: _weights(found).update(strategy="tensor"))


def _other_float(folder: Path) -> None:
    def change(found: damage.Raw) -> None:
        _, shape, raw = found[f"{Q}.weight"]
        found[f"{Q}.weight"] = ("F8_E5M2", shape, raw)

    damage.tensors(folder, change)


def _unsigned(folder: Path) -> None:
    def change(found: damage.Raw) -> None:
        _, shape, raw = found[f"{Q}.weight"]
        found[f"{Q}.weight"] = ("U8", shape, raw)

    damage.tensors(folder, change)


def _unpacked_zero_points(folder: Path) -> None:
    def change(found: damage.Raw) -> None:
        found[f"{Q}.weight_zero_point"] = ("I8", [64, 2], bytes(128))

    damage.tensors(folder, change)


def _tied_head(folder: Path) -> None:
    def change(found: damage.Raw) -> None:
        vocabulary = found["lm_head.weight"][1][0]
        del found["lm_head.weight"]
        found["lm_head.weight_packed"] = ("I32", [vocabulary, 8], bytes(vocabulary * 32))
        found["lm_head.weight_scale"] = ("BF16", [vocabulary, 2], b"\x80\x3f" * vocabulary * 2)
        found["lm_head.weight_shape"] = ("I64", [2], struct.pack("<qq", vocabulary, 64))

    damage.tensors(folder, change)
    damage.quantization(folder, lambda found: found.update(ignore=[]))
    damage.config(folder, lambda found: found.update(tie_word_embeddings=True))


def _invert_global_scales(folder: Path) -> None:
    def change(found: damage.Raw) -> None:
        for name, (dtype, shape, raw) in list(found.items()):
            if name.endswith("weight_global_scale"):
                found[name] = (dtype, shape, struct.pack("<f", 1 / struct.unpack("<f", raw)[0]))

    damage.tensors(folder, change)


def _a_global_scale_of_its_own(folder: Path) -> None:
    damage.tensors(folder, damage.fill(f"{Q}.weight_global_scale", struct.pack("<f", 1000.0)))


def _negative_groups(folder: Path) -> None:
    damage.tensors(folder, damage.fill(f"{Q}.weight_scale", b"\xb8"))  # -1 in E4M3


def _no_number(folder: Path) -> None:
    damage.tensors(folder, damage.fill(f"{Q}.weight_scale", b"\xff"))  # NaN in E8M0


def _wide_scales(folder: Path) -> None:
    def change(found: damage.Raw) -> None:
        _, (rows, groups), _ = found[f"{Q}.weight_scale"]
        found[f"{Q}.weight_scale"] = ("F32", [rows, groups], struct.pack("<f", 1) * rows * groups)

    damage.tensors(folder, change)


def _fill_cache(folder: Path) -> None:
    def change(found: damage.Raw) -> None:
        for name, (dtype, shape, raw) in list(found.items()):
            if name.endswith("k_scale"):
                found[name] = (dtype, shape, NAN * (len(raw) // 2) if dtype == "BF16" else struct.pack("<f", 0.0))

    damage.tensors(folder, change)


def _no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


DEFECTS: list[tuple[str, str, Callable[[Path], None], str]] = [
    ("w4a16", "llm-compressor#870: an ignored layer isn't on the list", _ignore_nothing, "stored-plain"),
    ("w4a16", "vllm#16309: KeyError, a quantized layer is on the list", _ignore_a_quantized_layer, "not-claimed"),
    ("w4a16", "vllm#11790: one of q, k, v isn't quantized", _half_of_a_joined_layer, "joined-unequal"),
    ("w4a16", "compressed-tensors#832: scales are NaN, answers are '!!!!'", _nan_scales, "scale-not-finite"),
    ("fp8-dynamic", "the same in FP8", _nan_scales, "scale-not-finite"),
    ("w8a8", "lmdeploy#1786: scales are zero", _zero_scales, "scale-zero"),
    ("fp8", "an activation scale that calibration never wrote", _zero_input_scale, "scale-zero"),
    ("fp8", "vllm#39764: a static scheme without its activation scale", _drop("input_scale"), "missing-part"),
    ("fp8-dynamic", "llm-compressor#959: KeyError 'weight_scale'", _drop("weight_scale"), "missing-part"),
    ("w4a16-asym", "vllm#14211: asymmetric without zero points", _drop("weight_zero_point"), "missing-part"),
    ("w4a16-asym", "vllm#17862: zero points that aren't packed", _unpacked_zero_points, "zero-point-shape"),
    ("w4a16", "a config with another group size", _other_group_size, "scale-shape"),
    ("w4a16", "a config with other bits", _other_bits, "packed-shape"),
    ("fp8-dynamic", "vllm#39764: per-channel scales under a per-tensor config", _scales_of_a_tensor, "scale-shape"),
    ("fp8-block", "E5M2 weights, where kernels read E4M3", _other_float, "stored-type"),
    ("w8a8", "unsigned weights, where kernels read signed ones", _unsigned, "stored-type"),
    ("w4a16", "vllm#45543: a quantized head with tied embeddings", _tied_head, "tied-head"),
    ("w8a16", "a folder without its config", _no_config, "no-config"),
    ("nvfp4", "Model-Optimizer's global scales in compressed-tensors' format", _invert_global_scales, "scale-inverted"),
    ("nvfp4a16", "vLLM warns: parallel layers differ", _a_global_scale_of_its_own, "global-scales-unequal"),
    ("nvfp4a16", "vLLM warns: Marlin assumes scales >= 0", _negative_groups, "scale-negative"),
    ("nvfp4a16", "scales in 32 bits, where kernels read E4M3", _wide_scales, "stored-type"),
    ("nvfp4", "a static global scale that calibration never wrote", _drop("input_global_scale"), "missing-part"),
    ("mxfp4", "exponents that are none", _no_number, "scale-not-finite"),
    ("mxfp8", "scales in 32 bits, where kernels read exponents", _wide_scales, "stored-type"),
    ("fp8-cache", "scales of keys that aren't numbers", _fill_cache, "kv-cache-scale"),
]  # fmt: skip


@pytest.mark.parametrize(("way", "reported", "make", "kind"), DEFECTS, ids=[f"{d[0]}-{d[3]}" for d in DEFECTS])
def test_a_defect_from_the_field_is_found(
    way: str, reported: str, make: Callable[[Path], None], kind: str, take: Callable[[str], Path]
) -> None:
    folder = take(way)
    make(folder)
    assert ("error", kind) in kinds(folder), reported


# Through the command line


def test_keys_that_a_release_does_not_know_are_found_and_taken_out(
    shared: Qpack, take: Callable[[str], Path], tmp_path: Path
) -> None:
    """llm-compressor#2234: vLLM 0.13.0 ends with "scale_dtype Extra inputs are not permitted"."""
    folder = take("w4a16-asym")
    assert shared("doctor", folder).code == 0
    found = _said(shared("doctor", folder, "--vllm", "0.13.0", "--json"), 4)
    assert {finding["code"] for finding in found["findings"]} == {"unknown-key", "tokenizer-class"}
    copy = tmp_path / "copy"
    repaired = _said(shared("doctor", folder, "--vllm", "0.13.0", "--fix", "-o", copy, "--json"), 0)
    assert repaired["findings"] == []
    assert len(repaired["repaired"]) == 2
    assert "scale_dtype" not in (copy / "config.json").read_text()
    assert "scale_dtype" in (folder / "config.json").read_text()
    assert (copy / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


def test_rope_that_an_old_release_would_misread_is_written_in_its_words(
    shared: Qpack, take: Callable[[str], Path], tmp_path: Path
) -> None:
    """vllm#28542: before 0.12 `rope_parameters` isn't read, and the base is 10000."""
    folder = take("w8a8")
    damage.config(folder, lambda found: found["rope_parameters"].update(rope_theta=500000.0))
    done = shared("doctor", folder, "--vllm", "0.11.0", "--fix", "--output", tmp_path / "copy")
    assert done.code == 0, done
    config = json.loads((tmp_path / "copy" / "config.json").read_text())
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 500000.0
    assert config["torch_dtype"] == config["dtype"] == "bfloat16"


def test_prompts_that_come_out_otherwise_are_found(
    shared: Qpack, take: Callable[[str], Path], tiny_model: Path
) -> None:
    """Templates and tokenizers that engines wrote anew: the same conversation is other tokens than the model knows."""
    folder = take("w4a16")
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").write_text(template.replace("<|im_end|>\n", "<|im_end|>"))
    damage.edit(folder / "tokenizer.json", lambda found: found["added_tokens"].pop())
    found = _said(shared("doctor", folder, "--against", tiny_model, "--json"), 4)
    prompts = [finding["what"] for finding in found["findings"] if finding["code"] == "prompt"]
    assert any("is rendered as" in what for what in prompts)


def test_a_copy_is_never_written_over_something(shared: Qpack, take: Callable[[str], Path], tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    done = shared("doctor", take("w4a16"), "--fix", "-o", tmp_path / "there")
    assert done.code == 4
    assert "quantize[already-exists]" in done.err


def test_what_can_not_be_looked_at_says_why(qpack: Qpack, tmp_path: Path) -> None:
    done = qpack("doctor", "./nosuch")
    assert (done.code, done.out) == (4, "")
    assert "quantize[not-a-folder]: ./nosuch" in done.err
    done = qpack("doctor", "nosuch")
    assert (done.code, done.out) == (8, "")
    assert "registry[no-such-release]" in done.err
    (tmp_path / "empty").mkdir()
    done = qpack("doctor", tmp_path / "empty")
    assert done.code == 4
    assert "there is no config.json" in done.out
    done = qpack("doctor", tmp_path / "empty", "--vllm", "new")
    assert done.code == 2
    assert "error[invalid-option] --vllm: 'new'" in done.err


def test_options_about_a_checkpoint_need_one(qpack: Qpack) -> None:
    assert qpack("doctor", "--load").code == 2
    assert qpack("doctor", ".", "--fix").code == 2


def _said(done: Finished, code: int) -> Any:
    assert done.code == code, done
    return json.loads(done.out)


def test_what_vllm_says_of_one_that_it_can_not_load_is_a_finding(shared: Qpack, take: Callable[[str], Path]) -> None:
    folder = take("w4a16")
    damage.quantization(folder, lambda found: _weights(found).update(strategy="by the ton"))
    done = shared("doctor", folder, "--load")
    assert done.code == 4, done
    told = " ".join(done.out.split())
    assert "vLLM can't serve it: vLLM ended with exit code" in told
    assert "validation error" in told
    assert "by the ton" in Path(told.rpartition("The whole log: ")[2]).read_text()
