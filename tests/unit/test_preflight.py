from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qpack.core.problems import Location
from qpack.pipeline import cpu_support
from qpack.runtime import hardware
from quantize.checkpoint.headers import Tensor
from quantize.checkpoint.source import Source
from quantize.engines import bit_budget, catalog
from quantize.engines.protocol import Override, Request
from quantize.preflight import preflight
from quantize.schemes.schemes import MIXABLE, SCHEMES, TARGETS


def source(*widths: int) -> Source:
    tensors = tuple(
        Tensor(f"model.layers.{i}.mlp.down_proj.weight", "BF16", (64, width)) for i, width in enumerate(widths)
    )
    return Source("m", "folder", "m", None, None, tensors)


def request(scheme: str = "W4A16", group_size: int | None = 64, ignore: tuple[str, ...] = ("lm_head",)) -> Request:
    return Request("gptq", scheme, group_size, ignore, 0.01, False)


def test_a_group_size_that_does_not_divide_names_the_layer_and_those_that_do() -> None:
    (complaint,) = preflight.check(request(group_size=128), source(576, 1536), "cpu", 1)
    where = Location(key=("quantize", "group_size"), name="model.layers.0.mlp.down_proj")
    assert (complaint.code.name, complaint.where) == ("group-size", where)
    assert complaint.message == "groups of 128 don't divide 576 input channels"
    assert complaint.hint == "Use 96, 64, 48, 32 or 16."


@given(
    size=st.sampled_from([8, 16, 32, 64, 128]), widths=st.lists(st.integers(1, 64).map(lambda n: n * 32), min_size=1)
)
def test_it_complains_exactly_when_a_width_is_not_divided(size: int, widths: list[int]) -> None:
    complaints = preflight.check(request(group_size=size), source(*widths), "cpu", 1)
    assert bool(complaints) == any(width % size for width in widths)


def test_an_ignored_layer_need_not_divide() -> None:
    even = Tensor("model.layers.0.mlp.up_proj.weight", "BF16", (64, 256))
    model = Source("m", "folder", "m", None, None, (*source(576).tensors, even))
    assert not preflight.check(request(group_size=128, ignore=("re:.*down_proj",)), model, "cpu", 1)


def test_groups_that_do_not_fit_into_the_shards_are_named() -> None:
    (complaint,) = preflight.check(request(group_size=128), source(1536), "hopper", 8)
    assert complaint.code.name == "group-split"
    assert "192 input channels" in complaint.message


def test_ignoring_everything_leaves_nothing_to_do() -> None:
    (complaint,) = preflight.check(request(ignore=("re:.*",)), source(576), "cpu", 1)
    assert complaint.code.name == "nothing-to-quantize"


def test_a_scheme_without_a_kernel_says_where_it_has_one() -> None:
    (complaint,) = preflight.check(request("W8A8", None), source(576), "blackwell", 1)
    assert complaint.code.name == "no-kernel"
    assert complaint.hint == "Kernels exist for: cpu, ampere, ada, hopper."


@pytest.mark.parametrize(("scheme", "refused"), [("W4A16", True), ("FP8_BLOCK", True), ("W8A8", False)])
def test_what_vllm_reorders_by_heads_is_quantized_row_by_row_or_left(scheme: str, refused: bool) -> None:
    tensors = tuple(
        Tensor(f"h.0.{name}.weight", "BF16", shape)
        for name, shape in (("self_attention.query_key_value", (384, 128)), ("mlp.dense_h_to_4h", (512, 128)))
    )
    asked = request(scheme, 64 if SCHEMES[scheme].grouped else None)
    for kind, expected in (("bloom", refused), ("falcon", False)):
        model = Source("m", "folder", "m", None, None, tensors, {"model_type": kind})
        found = preflight.check(asked, model, "hopper", 1)
        assert [problem.code.name for problem in found] == ["no-kernel"] * expected
    left = dataclasses.replace(asked, ignore=("re:.*query_key_value",))
    assert preflight.check(left, model, "hopper", 1) == []


def lacking(asked: Request, *, avx512: bool = False) -> tuple[str | int, ...] | None:
    found = preflight.lacking(asked, avx512=avx512)
    assert found is None or found.code.name == "no-kernel"
    return found.where.key if found else None


@pytest.mark.parametrize(("name", "avx512", "served"), [
    ("W4A16", True, True), ("W4A16", False, False), ("W4A16_ASYM", False, False),
    ("W8A8", False, True), ("FP8_DYNAMIC", False, True), ("BF16", False, True), ("of a version to come", False, True),
])  # fmt: skip
def test_four_bits_on_an_x86_need_avx_512(name: str, avx512: bool, served: bool) -> None:
    assert lacking(request(name), avx512=avx512) == (None if served else ("quantize", "scheme"))
    assert lacking(dataclasses.replace(request(name), target="hopper"), avx512=avx512) is None


def test_four_bits_of_some_layers_need_it_too_and_so_does_an_fp8_cache() -> None:
    eight = dataclasses.replace(request("W8A8"), overrides=(Override("a", "FP8_DYNAMIC", None),))
    assert lacking(eight) is None
    mixed = dataclasses.replace(eight, overrides=(*eight.overrides, Override("b", "W4A16", 64)))
    assert lacking(mixed) == ("quantize", "overrides", 1, "scheme")
    cache = dataclasses.replace(eight, kv_cache="fp8")
    assert lacking(cache) == ("quantize", "kv_cache")
    for asked in (mixed, cache):
        assert lacking(asked, avx512=True) is None


GROUP = {"targets": ["Linear"], "weights": {"num_bits": 4, "type": "int", "group_size": 64, "strategy": "group"}}
PACKED = {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {"group_0": GROUP}}


@pytest.mark.parametrize(
    ("config", "served"),
    [
        (PACKED, False),
        ({"quant_method": "awq", "bits": 4, "group_size": 64}, False),
        ({"quant_method": "gptq", "bits": 4, "group_size": 64}, False),
        ({"quant_method": "fp8"}, True),
        ({"quant_method": "a method to come"}, True),
    ],
)
def test_a_source_that_is_released_in_four_bits_needs_it_too(
    config: dict[str, object], served: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = dataclasses.replace(source(576), config={**source(576).config, "quantization_config": config})
    asked = dataclasses.replace(request("SOURCE", None), method="none")
    monkeypatch.setattr(hardware, "has_avx512", lambda: False)
    assert (cpu_support.lacking(asked, theirs) is None) == served
    monkeypatch.setattr(hardware, "has_avx512", lambda: True)
    assert cpu_support.lacking(asked, theirs) is None


@pytest.mark.parametrize("scheme", MIXABLE)
def test_every_scheme_that_a_budget_may_start_from_needs_it(scheme: str) -> None:
    """On a CPU a budget chooses among 4 bits alone."""
    asked = dataclasses.replace(request(scheme), budget=4.5)
    assert {SCHEMES[option.scheme].weight_bits for option in bit_budget.options(asked)} == {4}
    assert lacking(asked) == ("quantize", "scheme")


def test_every_scheme_says_of_every_target_either_kernel_or_reason() -> None:
    for scheme in SCHEMES.values():
        assert set(scheme.kernels) | set(scheme.missing) == set(TARGETS)
        assert not set(scheme.kernels) & set(scheme.missing)


def test_every_way_to_make_a_scheme_has_an_engine() -> None:
    for scheme in SCHEMES.values():
        for method in scheme.methods:
            assert catalog.choose("auto", method, scheme.name)[0] is not None


def test_a_bad_pattern_is_found_before_it_is_used() -> None:
    (complaint,) = preflight.bad_patterns(request(ignore=("lm_head", "re:([")))
    assert complaint.where.key == ("quantize", "ignore", 1)


def overridden(*overrides: Override, **more: Any) -> Request:
    return Request("gptq", "W4A16", 64, ("lm_head",), 0.01, False, overrides=overrides, **more)


def test_an_override_is_checked_as_its_own_scheme_at_its_own_key() -> None:
    asked = overridden(Override("down_proj", "W8A16", 64))
    (complaint,) = preflight.check(asked, source(576, 1536), "cpu", 1)
    assert complaint.where.key == ("quantize", "overrides", 0, "scheme")
    (complaint,) = preflight.check(overridden(Override("down_proj", "W4A16", 128)), source(576, 1536), "cpu", 1)
    assert complaint.where.key == ("quantize", "overrides", 0, "group_size")
    assert not preflight.check(overridden(Override("0.mlp.down_proj", "W8A8", None)), source(576, 1536), "cpu", 1)


def test_layers_that_servers_join_have_to_get_one_scheme() -> None:
    names = ("q_proj", "k_proj", "v_proj", "o_proj")
    layers = tuple(Tensor(f"model.layers.0.self_attn.{name}.weight", "BF16", (64, 64)) for name in names)
    model = Source("m", "folder", "m", None, None, layers)
    (complaint,) = preflight.check(overridden(Override("q_proj", "W8A8", None)), model, "cpu", 1)
    assert complaint.where.key == ("quantize", "overrides", 0, "layers")
    assert complaint.code.name == "joined-unequal"
    whole = overridden(Override("re:.*[qkv]_proj$", "W8A8", None))
    assert not preflight.check(whole, model, "cpu", 1)
    apart = overridden(*(Override(name, "W8A8", None) for name in names[:3]))
    assert not preflight.check(apart, model, "cpu", 1)


def test_a_layer_that_two_overrides_name_is_an_error() -> None:
    asked = overridden(Override("down_proj", "W8A8", None), Override("re:.*[.]0[.].*", "FP8_DYNAMIC", None))
    (complaint,) = preflight.check(asked, source(64, 64), "cpu", 1)
    assert complaint.where.key == ("quantize", "overrides", 1, "layers")
    assert (complaint.code.name, complaint.where.name) == ("claimed-twice", "model.layers.0.mlp.down_proj")


def test_an_override_that_names_no_layer_is_noted() -> None:
    (note,) = preflight.advise(overridden(Override("up_proj", "W8A8", None)), source(64), "cpu", 1)
    assert note.where.key == ("quantize", "overrides", 0, "layers")


def test_an_fp8_cache_needs_hardware_that_reads_it() -> None:
    (complaint,) = preflight.check(overridden(kv_cache="fp8"), source(64), "ampere", 1)
    assert complaint.where.key == ("quantize", "kv_cache")
    assert not preflight.check(overridden(kv_cache="fp8"), source(64), "hopper", 1)
