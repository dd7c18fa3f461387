"""Engine environments: one for each engine, made from a lock with hashes, clean or not at all.

    HOME/envs/NAME-VARIANT-DIGEST/            a virtual environment that uv made
    HOME/envs/NAME-VARIANT-DIGEST/qpack.json  written last: an environment without it is torn down and made anew

vLLM, llm-compressor and lm-eval pin torch, transformers and compressed-tensors against one another, so no two of them
can be installed together, and none beside qpack. A user's own interpreter can stand in for any of them.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from qpack import process
from qpack.errors import EnvironmentFailed
from qpack.results import EnvironmentRecord
from qpack.store import locked
from qpack.worker import tail

PYTHON = "3.11"
"""The locks are resolved for this version."""


@dataclass(frozen=True)
class Spec:
    """An environment that can be made. `folder` holds cpu.txt and cuda.txt; `imports` is what must import in it."""

    name: str
    folder: Path
    imports: tuple[str, ...]
    variables: Mapping[str, str] = field(default_factory=dict)

    def lock(self, variant: str) -> Path:
        """The lock for `cpu` or `cuda`; an engine that needs no accelerator has only the first."""
        path = self.folder / f"{variant}.txt"
        return path if path.exists() else self.folder / "cpu.txt"


@dataclass(frozen=True)
class Environment:
    """An environment, made or yet to be made. `digest` identifies what is installed in it."""

    name: str
    variant: str
    digest: str
    python: Path
    spec: Spec
    own: bool = False

    @property
    def variables(self) -> Mapping[str, str]:
        """Environment variables for its processes: nothing is fetched behind our back, no usage is reported."""
        quiet = {
            "HF_HUB_OFFLINE": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "DO_NOT_TRACK": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }
        return {**quiet, **self.spec.variables}

    def online(self) -> Environment:
        """The same environment, with leave to fetch data from the hub."""
        return replace(self, spec=replace(self.spec, variables={**self.spec.variables, "HF_HUB_OFFLINE": "0"}))

    @property
    def folder(self) -> Path:
        """The virtual environment's folder."""
        return self.python.parent.parent

    @property
    def ready(self) -> bool:
        """Whether it was made to the end."""
        return self.own or ((self.folder / "qpack.json").exists() and self.python.exists())

    def record(self) -> EnvironmentRecord:
        """For the release manifest: the digest of the lock, and the versions that it pins."""
        if self.own:
            packages = _frozen(self.python)
            python = packages.pop("Python")
        else:
            packages, python = pinned(self.spec.lock(self.variant)), PYTHON
        return EnvironmentRecord(
            name=self.name, variant=self.variant, lock_sha256=self.digest, python=python, packages=packages
        )


def resolve(spec: Spec, variant: str, home: Path, own: str | None = None) -> Environment:
    """Which environment `spec` means here. Pure but for reading the lock; nothing is made."""
    own = own or os.environ.get(f"QPACK_ENV_{spec.name.upper().replace('-', '_')}")
    if own:
        python = Path(own).expanduser().absolute()
        if not os.access(python, os.X_OK):
            raise EnvironmentFailed(
                f"{python}: not an interpreter", hint=f"It was named for the environment '{spec.name}'."
            )
        digest = hashlib.sha256(json.dumps(_frozen(python), sort_keys=True).encode()).hexdigest()
        return Environment(spec.name, "own", digest, python, spec, own=True)
    lock = spec.lock(variant)
    digest = hashlib.sha256(lock.read_bytes()).hexdigest()
    folder = home / "envs" / f"{spec.name}-{lock.stem}-{digest[:12]}"
    return Environment(spec.name, lock.stem, digest, folder / "bin" / "python", spec)


def pinned(lock: Path) -> dict[str, str]:
    """Name and version of everything that a lock pins."""
    pins = (
        line.partition(";")[0].split()[0]
        for line in lock.read_text().splitlines()
        if "==" in line and line[0].isalpha()
    )
    return dict(sorted(pin.split("==", 1) for pin in pins))


def ensure(environment: Environment, home: Path, tell: Callable[[str], None]) -> Environment:
    """Make the environment unless it is ready. Raises EnvironmentFailed, and leaves nothing half made."""
    if environment.ready:
        return environment
    log = home / "logs" / f"env-{environment.folder.name}.log"
    waiting = functools.partial(tell, f"another qpack is making the environment {environment.name}; waiting")
    try:
        with locked(home / "envs" / "locks" / environment.folder.name, waiting):
            if not environment.ready:
                tell(
                    f"making the environment {environment.name} ({environment.variant}); its packages are fetched once"
                )
                _make(environment, log)
                tell(f"the environment {environment.name} is ready")
    except OSError as error:
        raise EnvironmentFailed(
            f"{error.filename or home}: {error.strerror}",
            hint="Free some space, or set QPACK_HOME to a folder on a larger disk that can be written.",
        ) from error
    return environment


def _make(environment: Environment, log: Path) -> None:
    uv = uv_path()
    spec, folder, lock = environment.spec, environment.folder, environment.spec.lock(environment.variant)
    shutil.rmtree(folder, ignore_errors=True)
    log.unlink(missing_ok=True)
    try:
        _run([uv, "venv", "--quiet", "--python", PYTHON, str(folder)], log, environment)
        _run(
            [uv, "pip", "sync", "--require-hashes", "--python", str(environment.python), *_cpu_torch(lock), str(lock)],
            log,
            environment,
        )
        check(environment, log)
        state = {
            "name": spec.name,
            "lock_sha256": environment.digest,
            "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        part = folder / "qpack.json.part"
        part.write_text(json.dumps(state))
        part.replace(folder / "qpack.json")
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def check(environment: Environment, log: Path) -> float:
    """Import what the engine needs, and return how many seconds it took. Raises EnvironmentFailed with the reason."""
    started = time.monotonic()
    lines = "".join(f"import {name}\n" for name in environment.spec.imports)
    _run([str(environment.python), "-c", lines], log, environment)
    return time.monotonic() - started


def _run(command: list[str], log: Path, environment: Environment) -> None:
    with process.start(command, log=log, environment=environment.variables) as running:
        code = running.wait()
    if code == 0:
        return
    lines = tail(log, 40).splitlines()
    errors = [number for number, line in enumerate(lines) if "rror" in line]
    text = "\n".join(lines[errors[0] if errors else -12 :])
    offline = any(
        sign in text
        for sign in ("dns error", "Could not connect", "Failed to fetch", "Connection refused", "tcp connect error")
    )
    full = "No space left on device" in text
    hint = (
        "No package index could be reached. Check the network, or name a mirror in UV_DEFAULT_INDEX or a folder of"
        " wheels in UV_FIND_LINKS."
        if offline
        else "Free some space, or set QPACK_HOME to a larger disk."
        if full
        else f"Mend what the log says, or name an interpreter: `environments: {{{environment.name}: PYTHON}}`."
    )
    raise EnvironmentFailed(f"the environment '{environment.name}' can't be made:\n{text}", hint=hint, log=log)


def uv_path() -> str:
    """The uv that is installed beside qpack, or the one on the PATH."""
    beside = Path(sys.executable).parent / "uv"
    found = str(beside) if beside.exists() else shutil.which("uv")
    if found is None:
        raise EnvironmentFailed(
            "uv is not installed; engine environments are made with it", hint="Run `pip install uv` and try again."
        )
    return found


def _cpu_torch(lock: Path) -> list[str]:
    """Where uv finds the CPU build of torch (`torch==2.13.0+cpu`), which the default index doesn't have.

    A folder of wheels that pip is configured with comes first (uv doesn't read pip's configuration), else PyTorch's own
    index. A lock without that build gets nothing: `+cpu` would count as newer than the CUDA build of the same version.
    """
    torch = pinned(lock).get("torch", "")
    if not torch.endswith("+cpu"):
        return []
    try:
        command = [sys.executable, "-m", "pip", "config", "get", "global.find-links"]
        printed = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False).stdout
    except (OSError, subprocess.SubprocessError):
        printed = ""
    places = f"{printed} {os.environ.get('PIP_FIND_LINKS', '')} {os.environ.get('UV_FIND_LINKS', '')}".replace(",", " ")
    found = [place for place in dict.fromkeys(places.split()) if any(Path(place).glob(f"torch-{torch}-*"))]
    return ["--find-links", found[0]] if found else ["--torch-backend", "cpu"]


def _frozen(python: Path) -> dict[str, str]:
    """What a foreign interpreter has installed, and under `Python` its own version."""
    code = (
        "import importlib.metadata, json, platform;"
        "found = {d.metadata['Name']: d.version for d in importlib.metadata.distributions()};"
        "print(json.dumps({**found, 'Python': platform.python_version()}))"
    )
    try:
        printed = subprocess.run(
            [str(python), "-c", code], capture_output=True, text=True, timeout=60, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise EnvironmentFailed(f"{python}: can't be asked what it has installed: {error}") from error
    packages: dict[str, Any] = json.loads(printed)
    return dict(sorted(packages.items()))


def remove(folder: Path) -> None:
    """Delete an environment; the state file first, so that a half-deleted one is never taken for whole."""
    (folder / "qpack.json").unlink(missing_ok=True)
    shutil.rmtree(folder)
