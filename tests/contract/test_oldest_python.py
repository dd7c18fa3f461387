"""An engine's interpreter may be as old as Python 3.9: the workers' side of the protocol, and every job, work there."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from qpack.core.errors import QuantizeError
from qpack.runtime import worker
from qpack.runtime.variables import Group
from quantize.engines import source_copy
from quantize.engines.workers.copy_job import Job
from quantize.engines.workers.engine_answer import Answer
from tests.codes import coded

ROOT = Path(__file__).parents[2]
OLDEST = "3.9"

READ = """
import dataclasses, importlib, sys, typing
*folders, workerlib = sys.argv[1:]
sys.path.insert(0, workerlib)
import qpack_protocol, qpack_worker
count = 0
for folder in folders:
    folder, _, names = folder.partition(":")
    sys.path.insert(0, folder)
    for name in names.split(","):
        for kind in list(vars(importlib.import_module(name)).values()):
            if dataclasses.is_dataclass(kind):
                typing.get_type_hints(kind)
                count += 1
print(sys.version_info[:2], count)
"""


@dataclass(frozen=True)
class Old:
    """An interpreter as a worker's environment."""

    python: Path
    name: str = "old"
    variables: dict[str, str] = field(default_factory=dict)
    inherits: tuple[Group, ...] = ()


@pytest.fixture(scope="module")
def old() -> Old:
    pyenv = Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser() / "versions"
    for python in [shutil.which(f"python{OLDEST}"), *sorted(pyenv.glob(f"{OLDEST}.*/bin/python"))]:
        # A shim on the PATH may stand for a version that isn't chosen.
        if python and subprocess.run([python, "-c", ""], capture_output=True, check=False).returncode == 0:
            return Old(Path(python))
    pytest.skip(f"there is no Python {OLDEST} here")


def test_every_job_and_answer_is_read_in_the_oldest_python(old: Old) -> None:
    folders = []
    for folder in sorted({path.parent for path in ROOT.glob("*/**/workers/*_job.py") if ".venv" not in path.parts}):
        folders.append(f"{folder}:{','.join(path.stem for path in sorted(folder.glob('*_job.py')))}")
    assert len(folders) == 4
    command = [str(old.python), "-I", "-c", READ, *folders, str(ROOT / "qpack" / "runtime" / "workerlib")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    version, count = done.stdout.rsplit(maxsplit=1)
    assert version == "(3, 9)"
    assert int(count) > 40


def test_a_worker_runs_in_the_oldest_python(old: Old, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "config.json").write_text("{}")
    seen: list[tuple[int, int, str]] = []
    call = worker.Call(old, tmp_path / "out", tmp_path / "log", 60, QuantizeError, lambda *event: seen.append(event))
    answer = worker.run(source_copy.WORKER, Job(str(source), 7), Answer, call)
    assert (answer.engine_version, answer.quantized_layers, answer.linear_layers) == ("1", 0, 7)
    assert answer.peak_memory_bytes > 2**20
    assert seen == [(0, 1, "config.json")]
    assert (tmp_path / "out" / "checkpoint" / "config.json").read_text() == "{}"
    with pytest.raises(QuantizeError, check=coded("worker-failed"), match="FileExistsError"):
        worker.run(source_copy.WORKER, Job(str(source), 7), Answer, call)
