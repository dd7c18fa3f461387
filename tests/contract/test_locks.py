"""Every lock can be installed from wheels alone, but for what `sdists.txt` names; that is built by the lock's own."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from qpack.pipeline.plan import SPECS
from qpack.runtime import environments

ROOT = Path(__file__).parents[2]
LOCKS = sorted([*ROOT.glob("**/envs/*/cpu.txt"), *ROOT.glob("**/envs/*/cuda.txt"), *ROOT.glob("requirements/*.txt")])
SDISTS = sorted(ROOT.glob("**/envs/*/sdists.txt"))


def sdists(lock: Path) -> tuple[str, ...]:
    return environments.Spec(lock.parent.name, lock.parent, ()).sdists()


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: "/".join(lock.parts[-3:]))
def test_a_lock_is_split_into_wheels_and_what_is_built_and_nothing_is_lost(lock: Path, tmp_path: Path) -> None:
    wheels, built = environments.split(lock.read_text(), sdists(lock))
    parts = []
    for text in (wheels, built):
        path = tmp_path / "part.txt"
        path.write_text(text)
        parts.append(environments.pinned(path))
    assert {**parts[0], **parts[1]} == environments.pinned(lock)
    assert set(parts[1]) == set(sdists(lock))
    assert not set(parts[0]) & set(parts[1])
    assert wheels.count("--hash=") + built.count("--hash=") == lock.read_text().count("--hash=")


@pytest.mark.parametrize("listed", SDISTS, ids=lambda listed: listed.parent.name)
def test_what_is_built_has_one_hash_and_its_build_backend_is_in_the_lock(listed: Path) -> None:
    for lock in (path for path in LOCKS if path.parent == listed.parent):
        wheels, _ = environments.split(lock.read_text(), sdists(lock))
        assert re.search(r"^setuptools==", wheels, re.MULTILINE), lock
        for name in sdists(lock):
            _, built = environments.split(lock.read_text(), [name])
            assert built.count("--hash=sha256:") == 1, f"{name} has a wheel: it need not be built"


def test_the_key_of_an_environment_follows_what_is_built(tmp_path: Path) -> None:
    (tmp_path / "cpu.txt").write_text("one==1 \\\n    --hash=sha256:0\n")
    spec = environments.Spec("x", tmp_path, ())
    before = environments.resolve(spec, "cpu", tmp_path).digest
    (tmp_path / "sdists.txt").write_text("one\n")
    assert environments.resolve(spec, "cpu", tmp_path).digest != before


def test_installing_builds_nothing_that_no_list_names() -> None:
    makefile = (ROOT / "Makefile").read_text()
    installs = [line for line in makefile.splitlines() if "pip install" in line]
    assert len(installs) >= 2
    assert [line for line in installs if "--only-binary :all:" not in line and "--no-build-isolation" not in line] == []
    assert re.search(r"COMPILE := .*--only-binary :all:", makefile)
    assert environments.WHEELS_ALONE == ("--only-binary", ":all:")
    assert "--no-build-isolation" in environments.BUILT_HERE
    pages = [page for page in ROOT.glob("docs/**/*.md") if page.parent.name != "decisions"]
    told = [*pages, ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/**/*.yml")]
    bare = [
        f"{path.name}: {line.strip()}"
        for path in told
        for line in path.read_text().splitlines()
        if "--require-hashes" in line and "--only-binary" not in line
    ]
    assert bare == []


@pytest.mark.engines
@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: "/".join(lock.parts[-3:]))
def test_every_package_of_a_lock_has_a_wheel(lock: Path, tmp_path: Path) -> None:
    """Asked of the package index: uv may not build, and doesn't look at what this machine has installed."""
    wheels, _ = environments.split(lock.read_text(), sdists(lock))
    (tmp_path / "wheels.txt").write_text(wheels)
    environ = dict(os.environ)
    if lock.name != "cpu.txt":
        environ.pop("UV_FIND_LINKS", None)
    # vLLM's own dependencies ask for glibc 2.31, the others for no more than 2.28 (Makefile).
    platform = f"x86_64-manylinux_{'2_31' if lock.parent.name == 'vllm' else '2_28'}"
    done = subprocess.run(
        [environments.uv_path(), "pip", "compile", *environments.cpu_torch(lock), "--quiet", "--no-deps",
         "--python-version", environments.Spec(lock.parent.name, lock.parent, ()).python() or "3.11",
         "--python-platform", platform, *environments.WHEELS_ALONE, str(tmp_path / "wheels.txt")],
        env=environ, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_every_environment_has_its_locks() -> None:
    assert {spec.folder for spec in SPECS.values() if spec.sdists()} <= {listed.parent for listed in SDISTS}
    assert len(LOCKS) >= 18
