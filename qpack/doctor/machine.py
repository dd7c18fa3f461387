"""What this machine has: for `qpack doctor` and `qpack envs`."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from qpack.core.errors import EnvironmentFailed, QpackError
from qpack.core.problems import Code, Location, Problem, Severity
from qpack.pipeline.plan import SPECS
from qpack.runtime import environments as envs
from qpack.runtime import hardware, memory_limits, platforms, process
from qpack.runtime.environments import Environment
from qpack.runtime.variables import INSTALL

_GIB = 2**30
# Measured: CPU environments, uv's cache and the demo's store take 5 GB where uv can link, 11 GB where it can't.
_ROOM = 10 * _GIB
# Below this not even a small model's checkpoint fits.
_LEAST = _GIB // 4


_SYSTEM = Code("system", "This system isn't Linux.")
_PYTHON = Code("python", "uv finds no Python for engine environments, and has to fetch one.")
_UV = Code("uv", "uv can't be found or run.")
_COMPILER = Code("compiler", "There is no C or C++ compiler, which a server needs that isn't eager.")
_ACCELERATOR = Code(
    "accelerator", "There is no accelerator that vLLM uses, or the CPU lacks instructions for its kernels."
)
_MEMORY = Code("memory", "This machine has little memory.")
_DISK = Code("disk", "A disk is full, or can't be written.")
_UNKNOWN_ENVIRONMENT = Code("unknown-environment", "There is no environment or variant of that name.")
_ENVIRONMENT_NOT_MADE = Code("environment-not-made", "An environment isn't made yet.")


@dataclass(frozen=True)
class Checked:
    """One thing that was looked at, what was found, and what is wrong with it."""

    what: str
    value: str
    problem: Problem | None = None


def _wrong(code: Code, what: str, value: str, hint: str, severity: Severity = "error") -> Checked:
    return Checked(what, value, Problem(code, value, Location(name=what), hint, severity))


def examine(home: Path, registry: Path) -> list[Checked]:
    """Look at everything that a build needs of the machine."""
    return [
        _system(),
        _python(),
        _uv(),
        _python_of_environments(home),
        _compilers(),
        _accelerator(),
        _memory(),
        _disk("work store", home),
        _disk("registry", registry),
        *_environments(home),
    ]


def _system() -> Checked:
    where = f"{platform.system()} {platform.release()} {platform.machine()}"
    if platform.system() != "Linux":
        return _wrong(_SYSTEM, "system", where, "qpack runs on Linux: vLLM and the supervisor need it.")
    return Checked("system", where)


def _python() -> Checked:
    return Checked("Python", f"{platform.python_version()} ({sys.executable})")


def _uv() -> Checked:
    try:
        path = envs.uv_path()
        printed = process.ask([path, "--version"], timeout=20)
    except QpackError as error:
        return _wrong(_UV, "uv", error.what, error.hint)
    except (OSError, subprocess.SubprocessError) as error:
        return _wrong(_UV, "uv", str(error), "Reinstall it: `pip install --force-reinstall uv`.")
    return Checked("uv", f"{printed.split()[1]} ({path})")


def _python_of_environments(home: Path) -> Checked:
    """The Python that engine environments are made with: the one that runs qpack where their locks allow it. A tool
    that needs a Python of its own is named, and isn't wrong: nothing else needs it.
    """
    what, here = "Python of environments", platforms.running()
    others: dict[str, list[str]] = {}
    for one in environments(home):
        if one.version != here and not one.ready:
            others.setdefault(one.version, []).append(one.name)
    usual = others.pop(envs.PYTHON, [])
    own = "".join(
        f"; {', '.join(names)} would need {version}, which uv doesn't find"
        for version, names in others.items()
        if _interpreter(version) is None
    )
    if not usual:
        return Checked(what, f"{here}, the one that runs qpack{own}")
    if (found := _interpreter(envs.PYTHON)) is None:
        value = f"{', '.join(usual)} need {envs.PYTHON}; uv finds none, and has to fetch one{own}"
        return _wrong(_PYTHON, what, value, envs.no_python(), "warning")
    return Checked(what, f"{found} for {', '.join(usual)}{own}")


def _interpreter(version: str) -> str | None:
    """The interpreter of a version of Python that uv finds here."""
    try:
        asked = [envs.uv_path(), "python", "find", "--no-project", version]
        return process.ask(asked, timeout=60, inherit=[INSTALL]).strip()
    except (OSError, subprocess.SubprocessError, QpackError):
        return None


def _compilers() -> Checked:
    """For a server that compiles kernels. An eager one on a CPU comes up without them."""
    wanted = {"C": os.environ.get("CC", "gcc"), "C++": os.environ.get("CXX", "g++")}
    missing = [f"{name} ({language})" for language, name in wanted.items() if shutil.which(name) is None]
    if missing:
        hint = "A server needs them unless the recipe says `enforce-eager`. Install gcc and g++, or set CC and CXX."
        return _wrong(_COMPILER, "compilers", f"no {', no '.join(missing)}", hint, "warning")
    return Checked("compilers", ", ".join(wanted.values()))


def _accelerator() -> Checked:
    found = hardware.detect()
    if found.accelerators:
        return Checked(
            "accelerator",
            f"{found.accelerators} x {found.name} ({found.target}), {found.accelerator_memory_bytes >> 30} GiB each",
        )
    if shutil.which("nvidia-smi"):
        return _wrong(
            _ACCELERATOR,
            "accelerator",
            "nvidia-smi lists none that is Ampere or newer",
            "vLLM will run on the CPU.",
            "warning",
        )
    value = f"none: vLLM runs on the CPU, {found.cores} cores, {found.name}"
    if not hardware.has_avx512():
        return _wrong(
            _ACCELERATOR, "accelerator", f"{value}, without AVX-512", "vLLM can't serve 4-bit weights here.", "warning"
        )
    return Checked("accelerator", value)


def _memory() -> Checked:
    have = min(hardware.detect().memory_bytes, memory_limits.limit().bytes)
    total = have / _GIB
    if total < 6:
        return _wrong(
            _MEMORY,
            "memory",
            f"{total:.1f} GiB",
            "A vLLM server on a CPU takes 4 GiB and more, even for a small model.",
            "warning",
        )
    return Checked("memory", f"{total:.0f} GiB")


def _disk(what: str, folder: Path) -> Checked:
    there = folder
    while not there.exists():
        there = there.parent
    free = shutil.disk_usage(there).free
    value = f"{folder}, {free / _GIB:.0f} GiB free"
    if not there.is_dir() or not os.access(there, os.W_OK):
        return _wrong(
            _DISK, what, f"{folder} can't be written", "Set QPACK_HOME or QPACK_REGISTRY to a folder that can."
        )
    if free < _LEAST:
        return _wrong(_DISK, what, value, "Free some space, or set QPACK_HOME to a larger disk.")
    if free < _ROOM:
        return _wrong(
            _DISK, what, value, "Environments and checkpoints may not fit; set QPACK_HOME to a larger disk.", "warning"
        )
    return Checked(what, value)


def _environments(home: Path) -> list[Checked]:
    return [
        Checked(
            f"environment {environment.name}",
            f"{environment.variant}, {'made' if environment.ready else 'not made yet'}",
        )
        for environment in environments(home)
    ]


def environments(home: Path, variant: str | None = None) -> list[Environment]:
    """Every environment, for this machine or for a named variant."""
    chosen = variant or ("cpu" if hardware.detect().target == "cpu" else "cuda")
    if chosen not in ("cpu", "cuda"):
        raise EnvironmentFailed(_UNKNOWN_ENVIRONMENT, f"there is no variant '{chosen}'", hint="It is cpu or cuda.")
    return [envs.resolve(spec, chosen, home) for spec in SPECS.values()]


def selected(home: Path, names: list[str] | None, variant: str | None, *, made: bool = False) -> list[Environment]:
    """The environments with these names, or all. Raises EnvironmentFailed for a name that there isn't."""
    found = environments(home, variant)
    unknown = sorted(set(names or ()) - {environment.name for environment in found})
    if unknown:
        raise EnvironmentFailed(
            _UNKNOWN_ENVIRONMENT, f"there is no environment '{unknown[0]}'", hint=f"Available: {', '.join(SPECS)}."
        )
    chosen = [environment for environment in found if not names or environment.name in names]
    missing = [environment.name for environment in chosen if not environment.ready]
    if made and names and missing:
        raise EnvironmentFailed(
            _ENVIRONMENT_NOT_MADE,
            f"the environment '{missing[0]}' isn't made",
            hint=f"Run `qpack envs build {missing[0]}`.",
        )
    return [environment for environment in chosen if environment.ready or not made]
