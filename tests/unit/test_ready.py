"""What a build refuses before anything is run."""

from __future__ import annotations

from pathlib import Path

import pytest

from qpack import hardware, needs, plan, recipe
from qpack.console import open_console
from qpack.errors import EnvironmentFailed
from qpack.store import Store
from qpack.work import Build
from tests.unit.recipes import RECIPE, workspace

INT8 = RECIPE.replace("W4A16\n  group_size: 32", "W8A8")


def begun(folder: Path, text: str = RECIPE) -> Build:
    store = Store(folder / "home")
    with open_console() as console:
        return Build(plan.make(recipe.load(workspace(folder, text)), store, thorough=True), store, console, folder)


def test_four_bits_on_a_cpu_that_cannot_serve_them_are_refused_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "has_avx512", lambda: False)
    four = begun(tmp_path / "four")
    assert four.missing("artifact")
    with pytest.raises(EnvironmentFailed, match=r"can't be served here: vLLM .* with AVX-512 alone"):
        needs.check_cpu(four.plan)
    (note,) = (advice for advice in four.plan.advice if "AVX-512" in advice.what)
    assert note.where == f"{four.plan.loaded.file.path}:11"
    eight = begun(tmp_path / "eight", INT8)
    needs.check_cpu(eight.plan)
    assert not any("AVX-512" in advice.what for advice in eight.plan.advice)


def test_four_bits_are_built_where_the_cpu_serves_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "has_avx512", lambda: True)
    four = begun(tmp_path)
    needs.check_cpu(four.plan)
    assert not any("AVX-512" in advice.what for advice in four.plan.advice)
