"""Engine environments: one for each engine, made from a lock with hashes, clean or not at all.

    HOME/envs/NAME-VARIANT-DIGEST/            a virtual environment that uv made
    HOME/envs/NAME-VARIANT-DIGEST/qpack.json  written last: an environment without it is torn down and made anew

Wheels are installed as they are. What has no wheel (`sdists.txt`) is built by the lock's own, hashed build backends:
nothing that isn't in the lock is fetched or run. `qpack.json` holds the content of what was installed, so that an
environment that was changed afterwards is noticed before anything is computed in it.

vLLM, llm-compressor and lm-eval pin torch, transformers and compressed-tensors against one another, so no two of them
can be installed together, and none beside qpack. A user's own interpreter can stand in for any of them.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from qpack.core.errors import EnvironmentFailed
from qpack.core.problems import FILE_SYSTEM, Code
from qpack.core.records import EnvironmentRecord
from qpack.core.store import locked
from qpack.runtime import fetching, installed, platforms, process
from qpack.runtime.installed import NO_INTERPRETER
from qpack.runtime.specs import Spec as Spec
from qpack.runtime.variables import COMPUTE, HUB, INSTALL, NETWORK, PUBLIC_HUB, Group
from qpack.runtime.worker import tail

ENVIRONMENT_UNAVAILABLE = Code("environment-unavailable", "An environment's packages have no wheels for this machine.")
_ENVIRONMENT_FAILED = Code("environment-failed", "An environment can't be made.")
_ENVIRONMENT_CHANGED = Code("environment-changed", "An environment was changed after it was made, or can't be read.")
_NO_UV = Code("no-uv", "uv, which makes environments, isn't installed.")

PYTHON = platforms.PYTHONS[0]
"""The locks are resolved for this version, and looked up for others (`qpack.runtime.platforms`)."""


def no_python(version: str = PYTHON) -> str:
    """What to do without the Python that an environment needs."""
    return (
        f"This environment needs Python {version}, and uv finds none. Install it (`uv python install {version}`, or"
        f" your system's python{version}), or name interpreters that have the engines:"
        " `environments: {NAME: PYTHON}`."
    )


@dataclass(frozen=True)
class Environment:
    """An environment, made or yet to be made. `digest` identifies what is installed in it.

    `own` is an interpreter of the user's; what it answered is kept in the folder `notes`. `version` is the Python that
    it is made with.
    """

    name: str
    variant: str
    digest: str
    python: Path
    spec: Spec
    own: bool = False
    notes: Path | None = None
    version: str = PYTHON

    @property
    def variables(self) -> Mapping[str, str]:
        """Environment variables for its processes: nothing is fetched behind our back, no usage is reported."""
        quiet = {
            "HF_HUB_OFFLINE": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1",
            "DO_NOT_TRACK": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }
        return {**quiet, **self.spec.variables}

    def online(self, *, token: bool = True) -> Environment:
        """The same environment, allowed to fetch data from the hub: it gets the proxies and, with `token`, the hub's
        token, that of a variable or the one that is stored.
        """
        switches = {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_IMPLICIT_TOKEN": "0" if token else "1"}
        groups = (*self.inherits, NETWORK, HUB if token else PUBLIC_HUB)
        return replace(self, spec=replace(self.spec, variables={**self.spec.variables, **switches}, inherits=groups))

    @property
    def inherits(self) -> tuple[Group, ...]:
        """Which of qpack's own variables its processes get."""
        return (COMPUTE, *self.spec.inherits)

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
            found = installed.survey(self.python, self.notes)
            packages, python = dict(found.packages), found.python
        else:
            packages, python = pinned(self.spec.lock(self.variant)), self.version
        return EnvironmentRecord(
            name=self.name, variant=self.variant, lock_sha256=self.digest, python=python, packages=packages
        )


def resolve(spec: Spec, variant: str, home: Path, own: str | None = None) -> Environment:
    """Which environment `spec` means here; nothing is made. The lock identifies what is installed; an interpreter of
    the user's own is asked, and identified by the content of what it has.
    """
    own = own or os.environ.get(f"QPACK_ENV_{spec.name.upper().replace('-', '_')}")
    if own:
        python = Path(own).expanduser().absolute()
        if not os.access(python, os.X_OK):
            raise EnvironmentFailed(
                NO_INTERPRETER, f"{python}: not an interpreter", hint=f"It was named for the environment '{spec.name}'."
            )
        notes = home / "notes"
        return Environment(
            spec.name, "own", installed.survey(python, notes).digest, python, spec, own=True, notes=notes
        )
    lock, version = spec.lock(variant), python_for(spec, variant)
    made_of = [*spec.sdists(), *([] if version == PYTHON else [f"python {version}"])]
    digest = hashlib.sha256(lock.read_bytes() + "".join(f"\n{name}" for name in made_of).encode()).hexdigest()
    folder = home / "envs" / f"{spec.name}-{lock.stem}-{digest[:12]}"
    return Environment(spec.name, lock.stem, digest, folder / "bin" / "python", spec, version=version)


def unavailable(environment: Environment) -> str:
    """Why an environment can't be made on this machine: what the lock has no wheel of. Empty where it can."""
    if environment.ready:
        return ""
    name, where = environment.spec.name, (environment.version, platforms.processor())
    found = platforms.status(name, environment.variant, *where)
    return "" if found.works else f"{found.why} for Python {where[0]} on {where[1]}"


def own_hint(environment: Environment) -> str:
    """How to have another interpreter in the place of an environment."""
    variable = f"QPACK_ENV_{environment.name.upper().replace('-', '_')}"
    return (
        f"An interpreter that has the packages can stand in: `environments: {{{environment.name}: PYTHON}}` in the"
        f" recipe, or {variable}=PYTHON."
    )


def python_for(spec: Spec, variant: str) -> str:
    """The version of Python that an environment is made with: that of the Python that runs qpack where the lock can be
    installed for it, so that none has to be fetched; else the one that the lock was resolved for.
    """
    if (needed := spec.python()) is not None:
        return needed
    here, lock = platforms.running(), spec.lock(variant)
    if here == PYTHON or not platforms.status(spec.name, lock.stem, here, platforms.processor()).works:
        return PYTHON
    tags = _torch_tags(lock)
    return PYTHON if tags and f"cp{here.replace('.', '')}" not in tags else here


@functools.cache
def _torch_tags(lock: Path) -> frozenset[str]:
    """The Pythons (`cp311`) that a folder of wheels has the lock's torch for. Empty without a folder."""
    offered = cpu_torch(lock)
    wheels = Path(offered[1]).glob(f"torch-{pinned(lock)['torch']}-*") if "--find-links" in offered else ()
    return frozenset(wheel.name.split("-")[2] for wheel in wheels)


def pinned(lock: Path) -> dict[str, str]:
    """Name and version of everything that a lock pins."""
    pins = (
        line.partition(";")[0].split()[0]
        for line in lock.read_text().splitlines()
        if "==" in line and line[0].isalpha()
    )
    return dict(sorted(pin.split("==", 1) for pin in pins))


def ensure(environment: Environment, home: Path, report: Callable[[str], None]) -> Environment:
    """Make the environment unless it is ready, and see that it is as it was made.

    Raises EnvironmentFailed, and leaves nothing half made.
    """
    if environment.ready:
        unchanged(environment)
        return environment
    if why := unavailable(environment):
        what = f"the environment '{environment.name}' can't be made here: {why}"
        raise EnvironmentFailed(ENVIRONMENT_UNAVAILABLE, what, hint=own_hint(environment))
    log = home / "logs" / f"env-{environment.folder.name}.log"
    waiting = functools.partial(report, f"another qpack is making the environment {environment.name}; waiting")
    try:
        with locked(home / "envs" / "locks" / environment.folder.name, waiting):
            if not environment.ready:
                report(_about(environment, home))
                _make(environment, log, report)
                report(f"the environment {environment.name} is ready")
    except OSError as error:
        raise EnvironmentFailed(
            FILE_SYSTEM,
            f"{error.filename or home}: {error.strerror}",
            hint="Free some space, or set QPACK_HOME to a folder on a larger disk that can be written.",
        ) from error
    return environment


def interpreter(version: str) -> str:
    """What uv makes an environment with: the Python that runs qpack if it has that version, else one that uv finds."""
    return sys.executable if version == platforms.running() else version


def _about(environment: Environment, home: Path) -> str:
    """What making an environment fetches and takes, in one line."""
    line = f"making the environment {environment.name} ({environment.variant}); its packages are fetched once"
    if (size := platforms.size(environment.spec.name, environment.variant)) is None:
        return line
    takes = f", about {fetching.mib(size.installed)} on disk" if size.installed else ""
    free = f" ({fetching.mib(shutil.disk_usage(home).free)} free)"
    return f"{line}: {size.packages} packages, {fetching.mib(size.bytes)} to fetch at most{takes}{free}"


def _make(environment: Environment, log: Path, report: Callable[[str], None]) -> None:
    spec, folder, lock = environment.spec, environment.folder, environment.spec.lock(environment.variant)
    # uv reads the uv.toml or pyproject.toml of the current folder, or of one above it: a stranger's, perhaps.
    uv = [uv_path(), "--project", "/"]
    shutil.rmtree(folder, ignore_errors=True)
    log.unlink(missing_ok=True)
    try:
        _run(
            [*uv, "venv", "--quiet", "--python", interpreter(environment.version), str(folder)],
            log,
            environment,
            INSTALL,
        )
        with tempfile.TemporaryDirectory(prefix="qpack-lock-") as scratch:
            wheels, sources = Path(scratch) / "wheels.txt", Path(scratch) / "sdists.txt"
            for path, text in zip((wheels, sources), split(lock.read_text(), spec.sdists()), strict=True):
                path.write_text(text)
            install = ["--require-hashes", "--python", str(environment.python)]
            offered = cpu_torch(lock)
            command = [*uv, "pip", "sync", *install, *WHEELS_ALONE, *offered, str(wheels)]
            _run(command, log, environment, INSTALL, progress=fetching.Progress(spec.name, log, report))
            for name in spec.sdists():
                # One after the other: a build may import what was built before it.
                sources.write_text(split(lock.read_text(), [name])[1])
                command = [*uv, "pip", "install", *install, *BUILT_HERE, *offered, "--requirements", str(sources)]
                _run(command, log, environment, INSTALL)
        check(environment, log)
        found = installed.inspect(environment.python, full=True)
        if found.changed:
            raise EnvironmentFailed(
                _ENVIRONMENT_FAILED,
                f"the environment '{spec.name}' can't be made: {found.changed[0]} is not what its wheel holds",
                hint="A file in uv's cache was changed. Run `uv cache clean`, and the same command again.",
                log=log,
            )
        made = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        _write_state(environment, {"name": spec.name, "lock_sha256": environment.digest, "made": made}, found.digest)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


WHEELS_ALONE = ("--only-binary", ":all:")
"""Nothing is built: a build fetches and runs what no lock has a hash of."""
BUILT_HERE = ("--no-deps", "--no-build-isolation", "--no-binary", ":all:")
"""Built by what the lock has installed already, so nothing else is fetched."""


def split(lock: str, sdists: Sequence[str]) -> tuple[str, str]:
    """A lock's entries that are wheels, and those of the packages `sdists`, each as requirements with their hashes."""
    entries = re.split(r"\n(?=[A-Za-z0-9])", lock)
    built = [entry for entry in entries if entry.partition("==")[0] in sdists]
    return "\n".join(entry for entry in entries if entry not in built) + "\n", "\n".join(built) + "\n"


def _write_state(environment: Environment, state: Mapping[str, Any], content: str) -> None:
    part = environment.folder / f"qpack.json.{os.getpid()}.part"
    part.write_text(json.dumps({**state, "content": content, "seal": installed.seal(environment.folder)}))
    part.replace(environment.folder / "qpack.json")


def unchanged(environment: Environment, *, full: bool = False) -> None:
    """See that a made environment is as it was made: by the sizes and times of its files, and by all that is in them
    where those differ, or with `full`. The user's own interpreter may change: its key changes with it.

    Raises EnvironmentFailed, naming a file that isn't what was installed.
    """
    if environment.own:
        return
    try:
        state = dict(json.loads((environment.folder / "qpack.json").read_text()))
    except (OSError, ValueError, TypeError):
        state = {}
    try:
        now = installed.seal(environment.folder)
    except OSError as error:
        raise EnvironmentFailed(
            _ENVIRONMENT_CHANGED, f"the environment '{environment.name}' can't be read: {error}"
        ) from error
    if not full and state.get("seal") == now:
        return
    found = installed.inspect(environment.python, full=True)
    # Environments that an older qpack made have no `content`: theirs is what their wheels' RECORDs say.
    if found.changed or (found.extra if "content" not in state else found.digest != state["content"]):
        first = next(iter((*found.changed, *found.extra)), str(environment.folder))
        raise EnvironmentFailed(
            _ENVIRONMENT_CHANGED,
            f"the environment '{environment.name}' was changed after it was made: {first}",
            hint=f"Run `qpack envs remove {environment.name}`; a build makes it again. To compute with packages of your"
            f" own, name their interpreter: `environments: {{{environment.name}: PYTHON}}`.",
        )
    if state.get("seal") != now and state:
        with contextlib.suppress(OSError):
            _write_state(environment, state, found.digest)


def check(environment: Environment, log: Path) -> float:
    """Import what the engine needs, and return how many seconds it took. Raises EnvironmentFailed with the reason."""
    started = time.monotonic()
    lines = "".join(f"import {name}\n" for name in environment.spec.imports)
    _run([*process.isolated(environment.python), "-c", lines], log, environment, *environment.inherits)
    return time.monotonic() - started


def _run(
    command: list[str],
    log: Path,
    environment: Environment,
    *inherit: Group,
    progress: Callable[[], None] = lambda: None,
) -> None:
    # Not in the current folder: what libraries look for where they are started is a stranger's there.
    log.parent.mkdir(parents=True, exist_ok=True)
    with process.start(command, log=log, environment=environment.variables, inherit=inherit, cwd=log.parent) as running:
        while (code := running.poll()) is None:
            time.sleep(0.2)
            progress()
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
    without = any(sign in text for sign in ("No interpreter found", "python-build-standalone"))
    hint = (
        no_python(environment.version)
        if without
        else "No package index could be reached. Check the network, or name a mirror in UV_DEFAULT_INDEX or a folder of"
        " wheels in UV_FIND_LINKS."
        if offline
        else "Free some space, or set QPACK_HOME to a larger disk."
        if full
        else f"Fix what the log says. {own_hint(environment)}"
    )
    raise EnvironmentFailed(
        _ENVIRONMENT_FAILED, f"the environment '{environment.name}' can't be made:\n{text}", hint=hint, log=log
    )


def uv_path() -> str:
    """The uv that is installed beside qpack, or the one on the PATH.

    Raises:
        EnvironmentFailed: there is neither.
    """
    try:
        # Not at the top: whoever names interpreters of their own needs no uv.
        from uv import find_uv_bin

        return find_uv_bin()
    except (ImportError, FileNotFoundError):
        found = shutil.which("uv")
    if found is None:
        raise EnvironmentFailed(
            _NO_UV,
            "uv is not installed; engine environments are made with it",
            hint="Run `pip install uv` and try again.",
        )
    return found


def cpu_torch(lock: Path) -> list[str]:
    """Where uv finds the CPU build of torch (`torch==2.13.0+cpu`), which the default index doesn't have.

    A folder of wheels that pip is configured with comes first (uv doesn't read pip's configuration), else PyTorch's own
    index. A lock without that build gets nothing: `+cpu` would count as newer than the CUDA build of the same version.
    """
    torch = pinned(lock).get("torch", "")
    if not torch.endswith("+cpu"):
        return []
    places = [_find_links_of_pip(), *(os.environ.get(name, "") for name in ("PIP_FIND_LINKS", "UV_FIND_LINKS"))]
    each = dict.fromkeys(" ".join(places).replace(",", " ").split())
    found = [place for place in each if any(Path(place).glob(f"torch-{torch}-*"))]
    return ["--find-links", found[0]] if found else ["--torch-backend", "cpu"]


@functools.cache
def _find_links_of_pip() -> str:
    try:
        asked = [*process.isolated(sys.executable), "-m", "pip", "config", "get", "global.find-links"]
        return process.ask(asked, timeout=60, inherit=[INSTALL])
    except (OSError, subprocess.SubprocessError):
        return ""


def remove(folder: Path) -> None:
    """Delete an environment; the state file first, so that a half-deleted one is never taken for whole."""
    (folder / "qpack.json").unlink(missing_ok=True)
    shutil.rmtree(folder)
