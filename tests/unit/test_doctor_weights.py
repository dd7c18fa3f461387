"""Artifacts whose every tensor is sound, and whose weights are no longer the source's: they load, and talk nonsense."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from quantize.doctor import checkpoint, checkup, quantization_config, unpacked, weights
from tests.unit import damage, packed

BLOCK = "model.layers.0"
Q = f"{BLOCK}.self_attn.q_proj"
Weights = dict[str, packed.Array]


def scales(size: int, power: float, seed: int = 0) -> packed.Array:
    """Factors from a tenth to ten, as AWQ's are, to some power."""
    return np.asarray(10 ** (np.random.default_rng(seed).uniform(-1, 1, size) * power)).astype(np.float32)


def given_to(readers: tuple[str, ...], by: packed.Array) -> Callable[[Weights], None]:
    """Input channels of some layers of the first block are multiplied."""

    def change(found: Weights) -> None:
        for reader in readers:
            found[f"{BLOCK}.{reader}"] *= by

    return change


def taken_back(absorber: str, by: packed.Array) -> Callable[[Weights], None]:
    """What comes before them is divided: a norm, or output channels of a layer."""

    def change(found: Weights) -> None:
        weight = found[f"{BLOCK}.{absorber}"]
        weight /= by if weight.ndim == 1 else by[:, None]

    return change


def found_in(folder: Path, source: Path, *, whole: bool = False) -> list[str]:
    return [finding.code.name for finding in checkup.examine(folder, against=source, whole=whole).findings]


SITES = [
    (("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), "input_layernorm", packed.WIDTH),
    (("self_attn.o_proj",), "self_attn.v_proj", packed.WIDTH),
    (("mlp.gate_proj", "mlp.up_proj"), "post_attention_layernorm", packed.WIDTH),
    (("mlp.down_proj",), "mlp.up_proj", packed.INNER),
]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return packed.checkpoint(tmp_path / "source", None)


@pytest.mark.parametrize("method", ["awq", "gptq"])
@pytest.mark.parametrize(("readers", "absorber", "width"), SITES, ids=[site[1] for site in SITES])
def test_scales_that_nothing_takes_back_are_found(
    method: str, readers: tuple[str, ...], absorber: str, width: int, source: Path, tmp_path: Path
) -> None:
    """AutoAWQ 0.2.9 on a CPU: layers were saved times a scale that their norm knew nothing of."""
    given_away = given_to(readers, scales(width, 0.5))
    lost = packed.checkpoint(tmp_path / "lost", method, given_away)
    (finding,) = checkup.examine(lost, against=source).findings
    assert (finding.severity, finding.code.name) == ("error", "scales-not-undone")
    assert finding.where.name.endswith(readers[0])
    assert absorber in finding.message

    def both(found: Weights) -> None:
        given_away(found)
        taken_back(absorber, scales(width, 0.5))(found)

    assert found_in(packed.checkpoint(tmp_path / "kept", method, both), source) == []


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 99),
    power=st.floats(0, 1),
    common=st.floats(0.1, 10),
    moved=st.sets(st.sampled_from(range(len(SITES)))),
    method=st.sampled_from(["awq", "gptq"]),
)
# AWQ with exponent 0.1 on the GPU: nearly one factor for all channels, and no norm changed.
@example(seed=0, power=0.05, common=0.3, moved={3}, method="awq")
@example(seed=0, power=0.0, common=4.0, moved={1}, method="gptq")
def test_whatever_scales_are_moved_nobody_is_accused(
    seed: int, power: float, common: float, moved: set[int], method: str
) -> None:
    def change(found: Weights) -> None:
        for number in moved:
            readers, absorber, width = SITES[number]
            by = scales(width, power, seed + number) * np.float32(common)
            given_to(readers, by)(found)
            taken_back(absorber, by)(found)

    with tempfile.TemporaryDirectory() as folder:
        plain = packed.checkpoint(Path(folder) / "source", None)
        assert found_in(packed.checkpoint(Path(folder) / "made", method, change), plain) == []


@pytest.mark.parametrize("layer", ["mlp.up_proj", "mlp.down_proj", "self_attn.v_proj", "self_attn.o_proj"])
def test_a_factor_that_no_other_layer_undoes_is_found(layer: str, source: Path, tmp_path: Path) -> None:
    def change(found: Weights) -> None:
        found[f"{BLOCK}.{layer}"] *= np.float32(2)

    made = packed.checkpoint(tmp_path / "made", "awq", change)
    found = checkup.examine(made, against=source).findings
    assert [(f.code.name, f.where.name) for f in found] == [("weights-multiplied", f"{BLOCK}.{layer}")]


@pytest.mark.parametrize(("taken", "found"), [(True, []), (False, ["weights-multiplied"])])
def test_a_factor_that_a_norm_of_another_name_undoes_is_none(taken: bool, found: list[str], tmp_path: Path) -> None:
    """GPT-J by SmoothQuant: one factor for nearly all channels, in `ln_1`."""
    readers, absorber, width = SITES[0]
    by = np.full(width, 4, np.float32)

    def change(weights: Weights) -> None:
        given_to(readers, by)(weights)
        if taken:
            taken_back(absorber, by)(weights)

    def renamed(tensors: damage.Raw) -> None:
        for name in [name for name in tensors if name.endswith("layernorm.weight")]:
            tensors[name.replace("input_layernorm", "ln_1").replace("post_attention_layernorm", "ln_2")] = tensors.pop(
                name
            )

    source = packed.checkpoint(tmp_path / "source", None)
    made = packed.checkpoint(tmp_path / "made", "awq", change)
    for folder in (source, made):
        damage.tensors(folder, renamed)
    assert sorted(set(found_in(made, source))) == found


def test_channels_in_another_order_than_the_format_packs_them(source: Path, tmp_path: Path) -> None:
    """A converter left eight output channels of a word in their natural order."""
    made = packed.checkpoint(tmp_path / "made", "awq")
    weight = packed.weights()[Q]
    codes, _, _ = packed.quantize(weight, symmetric=False)
    natural = packed.words(codes.T.copy())
    damage.tensors(made, lambda found: found.update({f"{Q}.qweight": ("I32", [64, 8], natural.tobytes())}))
    (finding,) = checkup.examine(made, against=source).findings
    assert (finding.severity, finding.code.name) == ("error", "weights-differ")
    assert finding.where.name == Q


@pytest.mark.parametrize("method", ["awq", "gptq"])
def test_layers_that_changed_places(method: str, source: Path, tmp_path: Path) -> None:
    def change(found: Weights) -> None:
        other = "model.layers.1.self_attn.q_proj"
        found[Q], found[other] = found[other], found[Q]

    made = packed.checkpoint(tmp_path / "made", method, change)
    assert found_in(made, source) == ["weights-differ"]


def test_a_layer_outside_the_sample_is_found_by_looking_at_the_whole(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "_LAYERS", 1)
    last = "model.layers.1.self_attn.q_proj"
    made = packed.checkpoint(tmp_path / "made", "gptq", lambda found: found.update({last: found[last][::-1].copy()}))
    assert found_in(made, source) == []
    assert found_in(made, source, whole=True) == ["weights-differ"]


def test_zero_points_of_the_other_format(source: Path, tmp_path: Path) -> None:
    """The same bytes under a config that says gptq_v2: no zero point is out of range, and each is off by one."""
    made = packed.checkpoint(tmp_path / "made", "gptq")
    damage.quantization(made, lambda found: found.update(checkpoint_format="gptq_v2"))
    assert found_in(made, source) == ["zero-point-shift"]


def test_pruned_rows_and_columns_are_not_accused(tmp_path: Path) -> None:
    """They have no direction and no scale; a layer that changed places is found for all that."""

    def prune(found: Weights) -> None:
        found[Q][::4] = 0
        found[Q][:, 5] = 0

    def swap(found: Weights) -> None:
        prune(found)
        found[Q] = found[Q][::-1].copy()

    plain = packed.checkpoint(tmp_path / "source", None, prune)
    assert found_in(packed.checkpoint(tmp_path / "made", "gptq", prune), plain) == []
    assert found_in(packed.checkpoint(tmp_path / "swapped", "gptq", swap), plain) == ["weights-differ"]


def test_weights_that_were_rotated_on_purpose_are_not_compared(source: Path, tmp_path: Path) -> None:
    """QuIP and SpinQuant say so (`transform_config`), and their weights are nobody's."""

    def turn(found: Weights) -> None:
        found[Q] = found[Q][::-1].copy()

    made = packed.checkpoint(tmp_path / "made", "gptq", turn)
    assert found_in(made, source) == ["weights-differ"]
    damage.quantization(made, lambda found: found.update(transform_config={"config_groups": {"r": {}}}))
    assert found_in(made, source) == []


def test_weights_are_not_compared_where_they_can_not_be_unpacked(source: Path, tmp_path: Path) -> None:
    made = packed.checkpoint(tmp_path / "made", "gptq", lambda found: found.update({Q: found[Q][::-1].copy()}))
    damage.quantization(made, lambda found: found.update(group_size=64))
    assert "weights-differ" not in found_in(made, source)


@pytest.mark.parametrize("method", ["awq", "gptq"])
def test_single_weights_are_unpacked_where_they_lie(method: str, tmp_path: Path) -> None:
    """Any rows and columns, in any order, are those of the whole."""
    made, _ = checkpoint.read(packed.checkpoint(tmp_path / "made", method), 0)
    claimed = quantization_config.read(made)
    assert claimed is not None
    layer = made.layers[Q]
    codes, scale, zero = packed.quantize(packed.weights()[Q], symmetric=method == "gptq")
    steps: Any = codes.astype(int) - np.repeat(zero.astype(int), packed.GROUP, axis=1)
    whole = steps * np.repeat(scale.astype(np.float32), packed.GROUP, axis=1)
    rows, columns = np.array([63, 0, 17]), np.array([5, 40, 63, 1])
    found = unpacked.weights(made, layer, claimed.of(layer), rows, columns)
    assert np.array_equal(found, whole[np.ix_(rows, columns)].astype(np.float32))
