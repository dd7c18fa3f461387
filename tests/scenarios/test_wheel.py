"""The wheel: what an installation gets."""

from __future__ import annotations

import subprocess
import zipfile
from pathlib import Path

import pytest
from uv import find_uv_bin

ROOT = Path(__file__).parents[2]
PACKAGES = ("qpack", "quantize", "evals", "registry")


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The files of the wheel that this tree makes."""
    folder = tmp_path_factory.mktemp("dist")
    command = [find_uv_bin(), "build", "--quiet", "--wheel", "--out-dir", folder, ROOT]
    subprocess.run(command, check=True, timeout=300)
    (wheel,) = folder.glob("*.whl")
    return zipfile.ZipFile(wheel).namelist()


def test_the_wheel_has_the_types_the_locks_and_the_recipes(names: list[str]) -> None:
    assert {f"{package}/py.typed" for package in PACKAGES} <= set(names)
    locks = {path.relative_to(ROOT).as_posix() for p in PACKAGES for path in (ROOT / p).rglob("envs/*/*.txt")}
    assert len(locks) > 10
    assert locks <= set(names)
    assert {f"qpack/recipes/{path.name}" for path in (ROOT / "recipes").glob("*.yaml")} <= set(names)


def test_the_wheel_has_nothing_but_the_packages(names: list[str]) -> None:
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == set(PACKAGES)
