"""Two checkpoints, tensor by tensor."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from qpack.core.errors import QuantizeError
from quantize.checkpoint import tensors
from quantize.checkpoint.tensors import Comparison
from tests.codes import coded


def compared(folder: Path, one: dict[str, np.ndarray], *two: dict[str, np.ndarray]) -> Comparison:  # type: ignore[type-arg]
    save_file(one, folder / "one.safetensors", metadata={"made": "first"})
    for number, part in enumerate(two):
        save_file(part, folder / f"two-{number}.safetensors")
    rebuilt = {path.name: path for path in folder.glob("two-*.safetensors")}
    return tensors.compare({"one": folder / "one.safetensors"}, rebuilt)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tensors")


def test_other_files_with_the_same_tensors_are_the_same(tmp_path: Path) -> None:
    a, b = np.arange(6, dtype=np.float32).reshape(2, 3), np.arange(4, dtype=np.int32)
    found = compared(tmp_path, {"a": a, "b": b}, {"b": b}, {"a": a})
    assert (found.tensors, found.elements, found.differences, found.share) == (2, 10, (), 0.0)


@given(st.integers(0, 99), st.sampled_from([np.float16, np.float32, np.float64, np.int32, np.uint8]))
def test_elements_that_differ_are_counted(scratch: Path, count: int, kind: type) -> None:
    one = np.ones(100, dtype=kind)
    two = one.copy()
    two[:count] = 3
    found = compared(scratch, {"w": one}, {"w": two})
    assert found.share == count / 100
    for difference in found.differences:
        assert (difference.elements, difference.of) == (count, 100)
        if np.issubdtype(kind, np.floating):
            # |3 - 1| in `count` places over |1| in all 100.
            assert difference.relative == pytest.approx(np.sqrt(4 * count / 100))
        else:
            assert difference.relative is None


def test_bfloat16_is_compared_as_numbers(tmp_path: Path) -> None:
    from tests.unit.recipes import safetensors

    paths = [safetensors(tmp_path / f"{n}.safetensors", {"w": (4,)}) for n in (1, 2)]
    for path, value in zip(paths, (2.0, 1.0), strict=True):
        half = np.full(4, value, dtype="<f4").view("<u4") >> 16
        path.write_bytes(path.read_bytes()[:-8] + half.astype("<u2").tobytes())
    (difference,) = tensors.compare({"1": paths[0]}, {"2": paths[1]}).differences
    assert (difference.elements, difference.relative) == (4, pytest.approx(0.5))


def test_tensors_that_are_not_there_or_of_another_kind_are_named(tmp_path: Path) -> None:
    w = np.zeros(4, dtype=np.float32)
    found = compared(tmp_path, {"a": w, "b": w, "c": w}, {"b": w.reshape(2, 2), "c": w.astype(np.float16), "d": w})
    assert {d.name: d.why for d in found.differences} == {
        "a": "the rebuilt one lacks it",
        "b": "F32[4] became F32[2, 2]",
        "c": "F32[4] became F16[4]",
        "d": "only the rebuilt one has it",
    }


def test_what_is_no_safetensors_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"not one")
    with pytest.raises(QuantizeError, check=coded("unreadable-tensors")):
        tensors.compare({"x": tmp_path / "x"}, {})
