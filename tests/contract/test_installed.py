"""An interpreter is known by the content of what it has, and an environment that was changed is noticed."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys
import time
import venv
from pathlib import Path

import pytest

from qpack.core.errors import EnvironmentFailed
from qpack.runtime import environments, installed
from qpack.runtime.environments import Environment
from tests.codes import coded


def distribution(site: Path, name: str, version: str, code: str) -> Path:
    """A package as an installer leaves it, with its RECORD written last; returns the module."""
    site.mkdir(parents=True, exist_ok=True)
    notes = site / f"{name}-{version}.dist-info"
    notes.mkdir()
    module = site / f"{name}.py"
    module.write_text(code)
    (notes / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    lines = []
    for path in (module, notes / "METADATA"):
        digest = base64.urlsafe_b64encode(hashlib.sha256(path.read_bytes()).digest()).decode().rstrip("=")
        lines.append(f"{path.relative_to(site)},sha256={digest},{path.stat().st_size}\n")
        os.utime(path, (time.time() - 60, time.time() - 60))
    (notes / "RECORD").write_text("".join(lines) + f"{notes.name}/RECORD,,\n")
    return module


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """A virtual environment with one package."""
    venv.create(tmp_path / "env", with_pip=False, symlinks=True)
    distribution(site_of(tmp_path / "env"), "engine", "1.0", "VALUE = 1\n")
    return tmp_path / "env" / "bin" / "python"


def site_of(folder: Path) -> Path:
    (site,) = folder.glob("lib/python*/site-packages")
    return site


def engine(python: Path) -> Path:
    return site_of(python.parent.parent) / "engine.py"


def compiled(python: Path) -> None:
    """Leave behind what an import does."""
    subprocess.run([python, "-m", "compileall", "-q", engine(python)], check=True)


def made(python: Path) -> Environment:
    """The environment as qpack leaves it when it made one."""
    environment = Environment("x", "cpu", "", python, environments.Spec("x", python.parent, ("engine",)))
    environments._write_state(environment, {"name": "x"}, installed.inspect(python, full=True).digest)
    return environment


def asked(python: Path) -> installed.Installed:
    """As another process would: from what is kept beside the interpreter, or from itself."""
    installed.forget()
    return installed.survey(python, python.parent.parent / "notes")


def test_an_interpreter_is_asked_once_for_as_long_as_nothing_changes(
    python: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = asked(python)
    monkeypatch.setattr(installed, "inspect", lambda *_: pytest.fail("it was asked again"))
    assert asked(python) == first
    compiled(python)
    assert asked(python) == first, "what an import leaves behind changes nothing"


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"state": 1, "installed": {"python": 3}}', "\x00", "[" * 100_000])
def test_a_damaged_note_is_as_good_as_none(python: Path, text: str) -> None:
    first = asked(python)
    (note,) = (python.parent.parent / "notes").glob("*.json")
    note.write_text(text)
    assert asked(python) == first


def test_a_file_that_was_written_while_the_interpreter_was_asked_leaves_no_note(
    python: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inspect = installed.inspect

    def meanwhile(path: Path) -> installed.Installed:
        found = inspect(path)
        engine(python).write_text("VALUE = 5\n")
        return found

    monkeypatch.setattr(installed, "inspect", meanwhile)
    asked(python)
    assert list((python.parent.parent / "notes").glob("*")) == []


def test_an_interpreter_says_its_version_and_packages(python: Path) -> None:
    found = installed.inspect(python)
    assert found.packages == {"engine": "1.0"}
    assert found.python == ".".join(map(str, sys.version_info[:3]))
    assert (found.changed, found.extra) == ((), ())
    assert installed.inspect(python, full=True) == found, "reading every file finds what RECORD says"


@pytest.mark.parametrize(
    "change",
    [
        lambda site: (site / "engine.py").write_text("VALUE = 2\n"),
        lambda site: (site / "engine.py").write_text("VALUE = 1 \n"),
        lambda site: (site / "engine.py").unlink(),
        lambda site: (site / "sitecustomize.py").write_text("import engine; engine.VALUE = 3\n"),
        lambda site: (site / "a.pth").write_text("import sys\n"),
        lambda site: (site / "engine").mkdir() or (site / "engine" / "__init__.py").write_text("VALUE = 4\n"),
        lambda site: distribution(site, "plugin", "1", ""),
        lambda site: (site / "kernel.so").write_bytes(b"\x7fELF"),
        lambda site: (site / "json.pyc").write_bytes(b"compiled"),
    ],
)  # fmt: skip
def test_the_same_names_and_versions_with_other_content_are_another_interpreter(python: Path, change: object) -> None:
    before = asked(python)
    change(engine(python).parent)  # type: ignore[operator]
    after = installed.inspect(python)
    assert after.digest != before.digest
    assert asked(python) == after, "an answer that was kept isn't used any more"
    assert after.packages["engine"] == "1.0"


def test_the_same_content_elsewhere_or_touched_is_the_same_interpreter(python: Path, tmp_path: Path) -> None:
    before = installed.inspect(python).digest
    engine(python).touch()
    assert installed.inspect(python).digest == before
    compiled(python)
    assert list(engine(python).parent.glob("__pycache__/*")), "compiled Python is there, and doesn't count"
    assert installed.inspect(python).digest == before
    venv.create(tmp_path / "other", with_pip=False, symlinks=True)
    distribution(site_of(tmp_path / "other"), "engine", "1.0", "VALUE = 1\n")
    assert installed.inspect(tmp_path / "other" / "bin" / "python").digest == before


def test_the_folder_that_python_looks_into_first_wins(python: Path, tmp_path: Path) -> None:
    later = tmp_path / "later"
    distribution(later, "Engine", "9.9", "VALUE = 9\n")
    before = installed.inspect(python).digest
    (engine(python).parent / "later.pth").write_text(f"{later}\n")
    found = installed.inspect(python)
    shown = subprocess.run(
        [python, "-I", "-c", "import importlib.metadata as m; print(m.version('engine'))"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    assert found.packages == {"engine": shown} == {"engine": "1.0"}
    assert found.digest != before


def test_the_sources_of_an_editable_install_count(python: Path, tmp_path: Path) -> None:
    source = tmp_path / "a source"
    source.mkdir()
    (source / "code.py").write_text("VALUE = 1\n")
    (source / "notes.md").write_text("not read\n")
    notes = distribution(engine(python).parent, "mine", "0.1", "").parent / "mine-0.1.dist-info"
    address = source.as_uri()
    (notes / "direct_url.json").write_text(json.dumps({"url": address, "dir_info": {"editable": True}}))
    before = installed.inspect(python).digest
    (source / "notes.md").write_text("changed\n")
    assert installed.inspect(python).digest == before
    (source / "code.py").write_text("VALUE = 2\n")
    assert installed.inspect(python).digest != before


def test_the_key_of_an_own_interpreter_follows_its_content(python: Path, tmp_path: Path) -> None:
    spec = environments.Spec("x", tmp_path, ("engine",))
    installed.forget()
    before = environments.resolve(spec, "cpu", tmp_path, str(python))
    assert before.record().packages == {"engine": "1.0"}
    engine(python).write_text("VALUE = 2\n")
    assert environments.resolve(spec, "cpu", tmp_path, str(python)).digest == before.digest, "asked once in a process"
    installed.forget()
    assert environments.resolve(spec, "cpu", tmp_path, str(python)).digest != before.digest


@pytest.mark.parametrize(
    "text", ["#!/bin/sh\nexit 3\n", "#!/bin/sh\necho '[]'\n", "#!/bin/sh\necho '{}'\n", "", "\x00"]
)
def test_what_is_no_interpreter_is_an_environment_error(tmp_path: Path, text: str) -> None:
    file = tmp_path / "python"
    file.write_text(text)
    file.chmod(0o755)
    with pytest.raises(EnvironmentFailed):
        installed.inspect(file)


def test_an_environment_that_was_not_changed_is_used(python: Path) -> None:
    environment = made(python)
    environments.unchanged(environment)
    environments.unchanged(environment, full=True)
    compiled(python)
    environments.unchanged(environment)


@pytest.mark.parametrize("full", [False, True])
def test_a_file_that_was_edited_after_the_environment_was_made_is_noticed(python: Path, full: bool) -> None:
    environment = made(python)
    engine(python).write_text("VALUE = 2\n")
    with pytest.raises(EnvironmentFailed, check=coded("environment-changed"), match=r"engine\.py"):
        environments.unchanged(environment, full=full)
    with pytest.raises(EnvironmentFailed):
        environments.ensure(environment, python.parent, print)


def test_a_file_that_was_added_is_noticed(python: Path) -> None:
    environment = made(python)
    (engine(python).parent / "sitecustomize.py").write_text("")
    with pytest.raises(EnvironmentFailed, check=coded("environment-changed"), match="sitecustomize"):
        environments.unchanged(environment)


@pytest.mark.parametrize("full", [False, True])
def test_an_edit_with_its_time_and_size_set_back_is_noticed(python: Path, full: bool) -> None:
    before = installed.inspect(python).digest
    state = engine(python).stat()
    engine(python).write_text("VALUE = 2\n")
    os.utime(engine(python), ns=(state.st_atime_ns, state.st_mtime_ns))
    found = installed.inspect(python, full=full)
    assert found.digest != before
    assert list(map(Path, found.changed)) == [engine(python)]


def test_an_environment_whose_edit_has_its_time_and_size_set_back_is_noticed_by_the_full_check(python: Path) -> None:
    environment = made(python)
    state = engine(python).stat()
    engine(python).write_text("VALUE = 2\n")
    os.utime(engine(python), ns=(state.st_atime_ns, state.st_mtime_ns))
    with pytest.raises(EnvironmentFailed):
        environments.unchanged(environment, full=True)


def test_an_environment_that_was_only_touched_or_moved_is_sealed_again(python: Path) -> None:
    environment = made(python)
    before = json.loads((environment.folder / "qpack.json").read_text())
    engine(python).touch()
    environments.unchanged(environment)
    after = json.loads((environment.folder / "qpack.json").read_text())
    assert after["seal"] != before["seal"]
    assert {**after, "seal": {}} == {**before, "seal": {}}


@pytest.mark.parametrize("damaged", [False, True])
def test_an_environment_of_an_older_qpack_is_read_once_and_sealed(python: Path, damaged: bool) -> None:
    environment = Environment("x", "cpu", "", python, environments.Spec("x", python.parent, ("engine",)))
    (environment.folder / "qpack.json").write_text(json.dumps({"name": "x"}))
    if damaged:
        engine(python).write_text("VALUE = 2\n")
        with pytest.raises(EnvironmentFailed):
            environments.unchanged(environment)
    else:
        environments.unchanged(environment)
        assert set(json.loads((environment.folder / "qpack.json").read_text())) == {"name", "content", "seal"}
