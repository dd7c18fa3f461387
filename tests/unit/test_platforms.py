"""Claims about Pythons and processors: what the locks allow, which Python an environment gets, what uv fetches."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import pytest

from qpack.core.errors import EnvironmentFailed
from qpack.core.store import Store
from qpack.pipeline import plan, requirements
from qpack.pipeline.plan import SPECS
from qpack.recipe import recipe_file
from qpack.runtime import environments, fetching, platforms
from tests.codes import coded
from tests.unit.recipes import RECIPE, workspace

LOCKS = [
    (spec, variant)
    for spec in SPECS.values()
    for variant in ("cpu", "cuda")
    if (spec.folder / f"{variant}.txt").exists()
]


def test_every_lock_was_looked_up_for_every_python_and_processor() -> None:
    found = json.loads(platforms.FILE.read_text())
    locks = {f"{spec.name} {variant}": spec.folder / f"{variant}.txt" for spec, variant in LOCKS}
    changed = {
        name
        for name, lock in locks.items()
        if found.get(name, {}).get("lock") != hashlib.sha256(lock.read_bytes()).hexdigest()
    }
    assert changed == set(), "look them up: `python requirements/platforms.py`, then `make docs`"
    assert set(found) == set(locks)
    wanted = {f"{python} {processor}" for python in platforms.PYTHONS for processor in platforms.PROCESSORS}
    for name, one in found.items():
        assert set(one["platforms"]) == wanted, name
        assert all(each["works"] or each["why"] for each in one["platforms"].values()), name
        resolved_for = SPECS[name.split()[0]].python() or environments.PYTHON
        assert one["platforms"][f"{resolved_for} x86_64"]["works"], "where it was resolved"


@pytest.mark.parametrize(("spec", "variant"), LOCKS, ids=lambda value: getattr(value, "name", value))
def test_the_lock_that_was_looked_up_is_the_one_that_there_is(spec: environments.Spec, variant: str) -> None:
    size = platforms.size(spec.name, variant)
    assert size is not None
    # What is for another Python or system isn't fetched; what stands in the lock twice (a marker each) counts once.
    assert 0 < size.packages <= len(environments.pinned(spec.lock(variant)))
    assert size.bytes > 10_000 * size.packages


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """A machine with another Python or processor, and no folder of wheels."""

    def there(python: str, processor: str = "x86_64", tags: tuple[str, ...] = ()) -> None:
        monkeypatch.setattr(platforms, "running", lambda: python)
        monkeypatch.setattr(platforms, "processor", lambda: processor)
        monkeypatch.setattr(environments, "_torch_tags", lambda _: frozenset(tags))

    return there


def works(name: str, variant: str, python: str, processor: str = "x86_64") -> bool:
    return platforms.status(name, variant, python, processor).works


def test_an_environment_is_made_with_the_running_python_where_its_lock_has_wheels_for_it(on, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    for python in platforms.PYTHONS:
        on(python)
        for spec in SPECS.values():
            made = environments.resolve(spec, "cpu", tmp_path)
            fallback = spec.python() or environments.PYTHON
            assert made.version == (python if works(spec.name, "cpu", python) else fallback)
            assert made.record().python == made.version
    on("3.14")
    assert environments.resolve(SPECS["canary"], "cpu", tmp_path).version == "3.14", "nobody knows better"


def test_an_environment_that_needs_another_python_is_made_with_it_or_says_so(on, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    for python in platforms.PYTHONS:
        on(python)
        made = environments.resolve(SPECS["inference-perf"], "cpu", tmp_path)
        assert (made.version, environments.unavailable(made)) == ("3.12", "")
        assert environments.interpreter(made.version) == (sys.executable if python == "3.12" else "3.12")
    assert "Python 3.12" in environments.no_python(made.version)


def test_another_python_is_another_environment_and_that_of_the_lock_is_as_it_was(on, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    digests = set()
    for python in platforms.PYTHONS:
        on(python)
        digests.add(environments.resolve(SPECS["lm-eval"], "cpu", tmp_path).digest)
    assert len(digests) == 3
    on("3.11")
    lock = SPECS["lm-eval"].lock("cpu").read_bytes()
    sdists = "".join(f"\n{name}" for name in SPECS["lm-eval"].sdists()).encode()
    assert hashlib.sha256(lock + sdists).hexdigest() in digests


def test_a_folder_of_wheels_that_has_torch_for_one_python_decides(on, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    on("3.12", tags=("cp311",))
    assert environments.resolve(SPECS["gram"], "cpu", tmp_path).version == "3.11"
    on("3.12", tags=("cp311", "cp312"))
    assert environments.resolve(SPECS["gram"], "cpu", tmp_path).version == "3.12"


def test_what_has_no_wheels_here_is_refused_before_anything_is_fetched(on, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    on("3.11", "aarch64")
    lacking = [spec for spec, variant in LOCKS if variant == "cpu" and spec.python() is None
               and not works(spec.name, "cpu", "3.11", "aarch64")]  # fmt: skip
    assert lacking, "AutoGPTQ has wheels for x86-64 alone"
    for spec in lacking:
        made = environments.resolve(spec, "cpu", tmp_path)
        why = environments.unavailable(made)
        assert "has no wheel" in why
        with pytest.raises(EnvironmentFailed, check=coded("environment-unavailable"), match="aarch64") as failed:
            environments.ensure(made, tmp_path, print)
        assert f"{spec.name}: PYTHON" in failed.value.hint
    assert not list(tmp_path.iterdir())


def test_a_disk_too_small_for_the_environments_is_found_before_a_build(tmp_path: Path) -> None:
    made = plan.make(recipe_file.load(workspace(tmp_path, RECIPE)), Store(tmp_path / "home"), thorough=False)
    (disk,) = [need for need in requirements.required(made, 3 * 2**30) if need.what == "disk"]
    assert disk.short, "vLLM's environment alone takes more than 3 GiB"
    assert "environments" in disk.basis
    (disk,) = [need for need in requirements.required(made, 30 * 2**30) if need.what == "disk"]
    assert not disk.short


PRINTED = """Using Python 3.12.1 environment at: /somewhere
Resolved 36 packages in 465ms
Downloading pygments (1.2MiB)
Downloading torch (1.5GiB)
 Downloaded pygments
Downloading cryptography (512.0KiB)
 Downloaded cryptography
"""


def test_progress_is_read_from_what_uv_prints(tmp_path: Path) -> None:
    begun, done = fetching.fetched(PRINTED)
    assert begun == {"pygments": round(1.2 * 2**20), "torch": round(1.5 * 2**30), "cryptography": 2**19}
    assert done == ["pygments", "cryptography"]
    told: list[str] = []
    log = tmp_path / "log"
    progress = fetching.Progress("vllm", log, told.append)
    progress()
    log.write_text(PRINTED.partition("Downloading cryptography")[0])
    progress()
    progress()
    log.write_text(PRINTED)
    progress()
    assert [line.partition(" fetched")[0] for line in told] == ["vllm: pygments", "vllm: cryptography"]
    assert "2 MiB of 1.5 GiB" in told[-1]
