"""Preflight on models of real sizes: headers alone, in files whose data is a hole in the disk."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qpack.core import model_shapes
from qpack.core.problems import Location, Problem
from quantize.checkpoint import from_config, layer_groups, sources
from quantize.checkpoint.headers import Tensor
from quantize.checkpoint.layer_groups import split
from quantize.checkpoint.source import Source
from quantize.engines.protocol import Request
from quantize.preflight import preflight, targets
from quantize.schemes import kernels
from quantize.schemes.kernels import Shape
from quantize.schemes.schemes import SCHEMES, TARGETS

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from large_models import LLAMA_70B, write

PATTERNS = ["lm_head", "up_proj", "model.layers.1.mlp.up_proj", r"re:.*layers\.1\.", "re:.*[02468]\\.mlp.down_proj$"]


def llama_70b() -> dict[str, tuple[int, int]]:
    """Every linear layer and embedding of Llama 3 70B, [out, in]."""
    shapes = {"model.embed_tokens": (128256, 8192), "lm_head": (128256, 8192)}
    block = {"self_attn.q_proj": (8192, 8192), "self_attn.k_proj": (1024, 8192), "self_attn.v_proj": (1024, 8192),
             "self_attn.o_proj": (8192, 8192), "mlp.gate_proj": (28672, 8192), "mlp.up_proj": (28672, 8192),
             "mlp.down_proj": (8192, 28672)}  # fmt: skip
    for number in range(80):
        shapes.update({f"model.layers.{number}.{name}": shape for name, shape in block.items()})
    return shapes


def request(
    scheme: str = "W4A16", group_size: int | None = 128, ignore: tuple[str, ...] = ("lm_head",), method: str = "gptq"
) -> Request:
    return Request(method, scheme, group_size, ignore, 0.01, False)


def made(shapes: dict[str, tuple[int, int]], **config: object) -> Source:
    tensors = tuple(Tensor(f"{name}.weight", "BF16", shape) for name, shape in shapes.items())
    return Source("m", "folder", "m", None, None, tensors, dict(config))


def codes(problems: list[Problem]) -> list[tuple[str, str]]:
    """The code of each problem and the first layer that it is about."""
    return [(problem.code.name, problem.where.name) for problem in problems]


def test_a_70b_model_is_checked_from_headers_alone(tmp_path: Path) -> None:
    folder = write(tmp_path / "70b", LLAMA_70B)
    assert sum(path.stat().st_size for path in folder.iterdir()) > 140e9
    assert sum(path.stat().st_blocks * 512 for path in folder.iterdir()) < 1e6
    source, problems = sources.find(str(folder), tmp_path, None)
    assert source is not None, problems
    assert len(source.linears) == 7 * 80 + 1
    for gpus in (1, 2, 4, 8):
        assert preflight.check(request(), source, "hopper", gpus) == []
        assert preflight.advise(request(), source, "hopper", gpus) == []


def test_groups_that_sharding_breaks() -> None:
    """Qwen2-72B: 29568 = 231 x 128 input channels of down_proj can't be shared (vllm#5675, #21695)."""
    qwen = made({"model.layers.0.mlp.down_proj": (8192, 29568)}, num_attention_heads=64)
    assert preflight.check(request(), qwen, "hopper", 1) == []
    assert codes(preflight.check(request(), qwen, "hopper", 2)) == [("group-split", "model.layers.0.mlp.down_proj")]


def test_heads_that_gpus_can_not_share() -> None:
    complaints = preflight.check(request(group_size=64), made({"q_proj": (576, 576)}, num_attention_heads=9), "ada", 2)
    assert codes(complaints) == [("tensor-parallel", "")]
    assert complaints[0].hint == "Use 1."


def test_key_and_value_heads_that_gpus_can_not_share() -> None:
    """Fewer of them than GPUs are repeated, which works when they divide the GPUs."""
    block = {"q_proj": (1024, 1024)}
    for pairs, gpus, fits in ((8, 4, True), (2, 4, True), (6, 4, False), (3, 2, False)):
        model = made(block, num_attention_heads=24, num_key_value_heads=pairs)
        assert codes(preflight.check(request(), model, "ada", gpus)) == [("tensor-parallel", "")] * (not fits)


def test_mlp_channels_that_gpus_can_not_share() -> None:
    uneven = made({"model.layers.0.mlp.up_proj": (1026, 1024)}, num_attention_heads=8)
    wanted = ("tensor-parallel", "model.layers.0.mlp.up_proj")
    assert wanted in codes(preflight.check(request(), uneven, "ada", 4))
    assert wanted not in codes(preflight.check(request(), uneven, "ada", 2))


def test_a_vocabulary_is_shared_in_multiples_of_64() -> None:
    """vLLM pads 49,153 words to 49,216 = 769 x 64, which 3 GPUs can't share."""
    for words, gpus, fits in ((49152, 3, True), (49153, 3, False), (49153, 2, True)):
        model = made({"q_proj": (1152, 1152)}, num_attention_heads=12, vocab_size=words)
        assert codes(preflight.check(request(), model, "ada", gpus)) == [("tensor-parallel", "")] * (not fits)


def test_layers_behind_the_last_one_are_for_speculative_decoding() -> None:
    """DeepSeek-V3: model.layers.61 of 61 layers, and `num_nextn_predict_layers: 1`."""
    names = {f"model.layers.{number}.mlp.up_proj": (128, 128) for number in range(3)}
    model = made(names, num_hidden_layers=2, num_nextn_predict_layers=1)
    assert codes(preflight.left_behind(model)) == [("left-behind", "model.layers.2.mlp.up_proj")]
    assert preflight.left_behind(made(names, num_hidden_layers=3)) == []


@given(numbers=st.sets(st.integers(0, 12)), patterns=st.lists(st.sampled_from(PATTERNS), max_size=3))
def test_kinds_divide_layers_as_one_by_one(numbers: set[int], patterns: list[str]) -> None:
    """A pattern may name a number: what is decided by kind is what is decided for each name alone."""
    names = [f"model.layers.{number}.mlp.{part}" for number in sorted(numbers) for part in ("up_proj", "down_proj")]
    taken, left = split(layer_groups.kinds(Tensor(f"{name}.weight", "BF16", (8, 8)) for name in names), patterns)

    def alone(name: str) -> bool:
        return any(
            re.match(pattern[3:], name) is not None
            if pattern.startswith("re:")
            else name == pattern or name.endswith("." + pattern)
            for pattern in patterns
        )

    assert sorted(name for kind in left for name in kind.names) == sorted(filter(alone, names))
    assert sorted(name for kind in (*taken, *left) for name in kind.names) == sorted(names)


def test_layers_from_a_config_are_those_of_the_files() -> None:
    assert from_config.shapes(LLAMA_70B) == llama_70b()
    unknown = replace(made({}), config={"model_type": "rwkv"})
    assert "unknown for models of type 'rwkv'" in from_config.filled(unknown).unchecked[0]


def test_a_given_config_is_checked_where_no_file_can_be_looked_at() -> None:
    """And a source whose files were read keeps what they say."""
    nothing = made({})
    filled = from_config.filled(nothing, LLAMA_70B)
    assert filled.unchecked == ("layers: taken from the config, no file was read",)
    (complaint,) = preflight.check(request(group_size=96), filled, "ada", 1)
    assert complaint.code.name == "group-size"
    assert "8192 input channels" in complaint.message
    read = made({"model.layers.0.mlp.up_proj": (128, 128)})
    assert from_config.filled(read, LLAMA_70B) is read


def test_a_joined_layer_that_is_half_ignored() -> None:
    """vllm#11790: q quantized, k and v not: servers load them as one."""
    block = {f"model.layers.0.self_attn.{name}": (128, 128) for name in ("q_proj", "k_proj", "v_proj", "o_proj")}
    (complaint,) = preflight.check(request(ignore=("re:.*k_proj",)), made(block), "ampere", 1)
    where = Location(key=("quantize", "ignore"), name="model.layers.0.self_attn.k_proj")
    assert (complaint.code.name, complaint.where) == ("joined-unequal", where)
    assert preflight.check(request(ignore=("re:.*[qkv]_proj",)), made(block), "ampere", 1) == []


def test_a_head_that_is_the_embedding_can_not_be_quantized() -> None:
    tied = made({"lm_head": (128, 128), "model.layers.0.mlp.up_proj": (128, 128)}, tie_word_embeddings=True)
    assert codes(preflight.check(request(ignore=()), tied, "ada", 1)) == [("tied-head", "")]
    assert preflight.check(request(), tied, "ada", 1) == []


def test_a_pattern_without_effect_is_told_and_lm_head_is_excused() -> None:
    block = made({"model.layers.0.mlp.up_proj": (128, 128)})
    (advice,) = preflight.advise(request(ignore=("lm_head", "re:.*vision.*")), block, "ada", 1)
    assert (advice.code.name, advice.where.key) == ("unmatched-pattern", ("quantize", "ignore", 1))


@pytest.mark.parametrize("scheme", ["W4A16", "W8A8", "FP8_DYNAMIC"])
def test_experts_have_no_server_on_a_cpu(scheme: str) -> None:
    """vLLM 0.32 on x86 without AMX has no backend for experts in 4 bits, INT8 or FP8 with scales by channel."""
    model = made({"model.layers.0.mlp.up_proj": (128, 128), "model.layers.0.mlp.experts.0.up_proj": (128, 128)})
    asked = replace(request(), scheme=scheme, group_size=32 if scheme == "W4A16" else None)
    assert preflight.check(asked, model, "ada", 1) == []
    (complaint,) = preflight.check(asked, model, "cpu", 1)
    assert codes([complaint]) == [("no-kernel", "model.layers.0.mlp.experts.0.up_proj")]
    assert complaint.where.key == ("quantize", "scheme")
    assert preflight.check(replace(asked, ignore=("re:.*experts.*",)), model, "cpu", 1) == []


def test_a_cache_that_is_too_small_for_one_request_is_told_before_vllm_does() -> None:
    """46,592 tokens for 1 GiB is what vLLM 0.32 said of SmolLM2-135M; it takes whole blocks of 128."""
    smol = made({"x": (1, 1)}, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3, hidden_size=576)
    token = model_shapes.cache_bytes_per_token(smol.config, 1)
    assert token is not None
    assert 2**30 // token // 128 * 128 == 46592
    assert preflight.cache(smol, 46592, 2**30, 1) == []
    (complaint,) = preflight.cache(smol, 50000, 2**30, 1)
    assert (complaint.code.name, complaint.where.key) == ("kv-cache-size", ("serve", "kv_cache_gib"))
    assert "holds 46,603" in complaint.message
    assert preflight.cache(made({"x": (1, 1)}, kv_lora_rank=512), 50000, 1, 1) == []


def test_whatever_the_table_of_schemes_promises_has_a_kernel_for_llamas_shapes() -> None:
    shapes = [Shape(rows, columns, columns) for rows, columns in llama_70b().values()]
    for scheme in SCHEMES.values():
        for target in TARGETS:
            group = 128 if scheme.grouped else None
            found = {kernels.fit(scheme.name, group, shape, target).kernel for shape in shapes}
            if target in scheme.kernels and not (scheme.name == "W8A16" and target == "cpu"):
                assert found == {scheme.kernels[target]}, (scheme.name, target)


@pytest.mark.parametrize(("scheme", "block"), [("NVFP4", 16), ("NVFP4A16", 16), ("MXFP4", 32), ("MXFP8", 32)])
def test_blocks_that_gpus_cut_are_an_error_of_the_scheme(scheme: str, block: int) -> None:
    """1,856 input channels are 232 on each of 8 GPUs, and 464 on each of 4."""
    layer = made({"model.layers.0.mlp.down_proj": (2688, 1856)})
    (complaint,) = preflight.check(request(scheme, None, (), "rtn"), layer, "hopper", 8)
    assert (complaint.code.name, complaint.where.key) == ("group-split", ("quantize", "scheme"))
    assert bool(preflight.check(request(scheme, None, (), "rtn"), layer, "hopper", 4)) == bool(464 % block)
    assert preflight.check(request(scheme, None, (), "rtn"), layer, "hopper", 1) == []
    odd = made({"model.layers.0.mlp.down_proj": (64, 1000)})
    (complaint,) = preflight.check(request(scheme, None, (), "rtn"), odd, "hopper", 1)
    assert (complaint.code.name, complaint.where.key) == ("group-size", ("quantize", "scheme"))


def test_fp4_is_weight_only_below_blackwell_and_nothing_on_a_cpu() -> None:
    layer = Shape(4096, 4096, 4096)
    for name in ("NVFP4", "MXFP4", "MXFP8"):
        assert {kernels.fit(name, None, layer, t).kernel for t in ("ampere", "ada", "hopper")} == {
            "Marlin (weight only)"
        }
        assert "FlashInfer" in (kernels.fit(name, None, layer, "blackwell").kernel or "")
        assert "cpu" not in SCHEMES[name].kernels
    assert kernels.fit("MXFP8", None, Shape(64, 4096, 4096), "blackwell").kernel == "Marlin (weight only)"


@pytest.mark.parametrize(
    ("group", "shape", "served"),
    [
        (128, Shape(4096, 4096, 4096), True),
        (64, Shape(4096, 4096, 4096), False),
        (None, Shape(4096, 4096, 4096), False),
        (128, Shape(4160, 4096, 4096), False),
        (128, Shape(4096, 192, 4096), False),
    ],
)
def test_four_bits_with_fp8_activations_take_groups_and_sides_of_128(
    group: int | None, shape: Shape, served: bool
) -> None:
    assert (kernels.fit("W4AFP8", group, shape, "hopper").kernel is not None) == served


@pytest.mark.parametrize(("rows", "served"), [(3352, False), (1160, False), (3360, True), (16, True)])
def test_fp8_with_a_scale_a_channel_needs_multiples_of_16_where_cutlass_computes(rows: int, served: bool) -> None:
    """The `in_proj` of a small Falcon-H1, with 1,160 output channels, was tried on an H200."""
    for target in ("ada", "hopper", "blackwell"):
        found = kernels.fit("FP8_DYNAMIC", None, Shape(rows, 1024, 1024), target)
        assert (found.kernel is not None) == served
        assert kernels.fit("FP8", None, Shape(rows, 1024, 1024), target).kernel is not None
    assert kernels.fit("FP8_DYNAMIC", None, Shape(rows, 1024, 1024), "ampere").kernel is not None


def test_group_sizes_that_kernels_do_not_take() -> None:
    layer = Shape(4096, 4096, 4096)
    assert kernels.fit("W4A16", 128, layer, "hopper").kernel == "Machete"
    assert kernels.fit("W4A16", 32, layer, "hopper").kernel == "Marlin"
    assert kernels.fit("W4A16", 128, Shape(4160, 4096, 4096), "hopper").kernel == "Marlin"
    assert kernels.fit("W4A16", 256, layer, "ampere").kernel == "Triton"
    assert kernels.fit("W4A16", 16, layer, "ampere").kernel is None
    assert kernels.fit("W8A16", 16, layer, "ada").kernel is None
    assert kernels.fit("W4A16", 64, Shape(100, 64, 64), "cpu").kernel is None


def test_blocks_that_a_joined_layer_breaks() -> None:
    """vLLM's validate_fp8_block_shape: every layer but the last of a joined one has whole blocks."""
    block = {"a.q_proj": (192, 128), "a.k_proj": (128, 128), "a.v_proj": (64, 128)}
    complaints = preflight.check(request("FP8_BLOCK", None, (), "rtn"), made(block), "hopper", 1)
    assert codes(complaints) == [("no-kernel", "a.q_proj")]
    assert "192 output channels" in complaints[0].message


def test_every_target_has_its_kernels_or_a_reason() -> None:
    """Layers of Llama 3 70B on 8 GPUs; Machete takes output channels in multiples of 128, a CPU takes whole layers."""
    odd = made({**llama_70b(), "model.layers.0.mlp.odd_proj": (4160, 8192)})
    found = {each.target: each for each in targets.served(request(), odd, 8)}
    assert set(found) == set(TARGETS)
    assert found["hopper"].kernels == ("Machete", "Marlin")
    assert found["cpu"].kernels == ("CPUWNA16",)
    for scheme in SCHEMES.values():
        asked = request(scheme.name, 128 if scheme.grouped else None, method=scheme.methods[0])
        for each in targets.served(asked, made(llama_70b()), 1):
            assert bool(each.kernels) == (each.target in scheme.kernels) != bool(each.why), (scheme.name, each)
    (without, *_) = targets.served(request("W8A16"), made(llama_70b()), 1)
    assert targets.plain((without,)) == [f"none on cpu: {without.why}"]
    sixteen = {each.target: each.why for each in targets.served(request(group_size=16), made(llama_70b()), 1)}
    assert "no kernel takes groups of 16" in sixteen["ampere"]


def test_without_headers_the_schemes_own_kernels_are_told() -> None:
    assert targets.served(request("W8A8", None), made({}), 2)[0].kernels == ("oneDNN",)


def test_another_kernel_than_usual_is_told() -> None:
    source = made({"model.layers.0.mlp.up_proj": (4160, 4096)})
    (advice,) = preflight.advise(request(), source, "hopper", 1)
    assert codes([advice]) == [("other-kernel", "model.layers.0.mlp.up_proj")]
    assert "Marlin" in advice.message
