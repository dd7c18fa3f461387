"""Whether every lock can be installed, for each Python and each processor: `make lock` and `make lock-check` run it.

    python requirements/platforms.py            look up what has changed, and write qpack/runtime/platforms.json
    python requirements/platforms.py --all      look up every lock again
    python requirements/platforms.py --check    look up every lock; exit with 1 if the file isn't what the index says

uv resolves each lock for the other platform without installing anything (`uv pip install --dry-run --python-version
--python-platform`): each pinned version needs a wheel for that Python and processor, with a hash of the lock, and no
package may ask for one that the lock doesn't have. The CPU build of torch (`torch==...+cpu`) is on PyTorch's own index
or in a folder of wheels. Where neither can be reached, or has it for this platform alone, the rest is looked up.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

from qpack.pipeline.plan import SPECS
from qpack.runtime import environments
from qpack.runtime.platforms import FILE, PROCESSORS, PYTHONS, Status
from qpack.runtime.specs import Spec

_GLIBC = "manylinux_2_31"
"""Of Debian 11 and later; vLLM's wheels need it."""


def status(spec: Spec, lock: Path, python: str, processor: str) -> Status:
    """Whether `lock` installs there."""
    text, _ = environments.split(lock.read_text(), spec.sdists())
    entries = re.split(r"\n(?=[A-Za-z0-9])", text)
    torch = [entry for entry in entries if re.match(r"torch==\S+\+cpu\b", entry)]
    rest = "\n".join(entry for entry in entries if entry not in torch)
    there = (python, processor)
    if (needed := spec.python()) is not None and python != needed:
        return Status(works=False, why=f"needs Python {needed}")
    if missing := _dry_run(rest, *there):
        return Status(works=False, why=missing)
    if torch and _dry_run("\n".join(torch), *there, environments.cpu_torch(lock)):
        return Status(works=True, why="torch's CPU build wasn't looked up")
    # A lock that is whole where it was resolved has to be whole elsewhere. One that leaves out on purpose what its
    # packages ask for (overrides.txt, or --no-deps) isn't whole anywhere.
    if not torch and not _dry_run(rest, spec.python() or PYTHONS[0], PROCESSORS[0], deps=True):
        unlocked = _dry_run(rest, *there, deps=True)
        return Status(works=not unlocked, why=unlocked)
    return Status(works=True)


def _dry_run(text: str, python: str, processor: str, more: Sequence[str] = (), *, deps: bool = False) -> str:
    """Why uv can't install these requirements there; empty when it can. With `deps`, what they ask for counts too."""
    with tempfile.TemporaryDirectory() as scratch:
        lock, target = Path(scratch) / "lock.txt", Path(scratch) / "target"
        lock.write_text(text + "\n")
        command = [environments.uv_path(), "--project", "/", "pip", "install", "--dry-run", "--quiet", *more,
                   *(() if deps else ("--no-deps",)),
                   *("--require-hashes", "--only-binary", ":all:", "--python-version", python),
                   *("--python-platform", f"{processor}-{_GLIBC}", "--target", str(target)),
                   *("--requirements", str(lock))]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    return "" if done.returncode == 0 else _reason(done.stderr)


def _reason(printed: str) -> str:
    """The package that uv names, or its last line."""
    text = " ".join(printed.split())
    if found := re.search(r"Because ([A-Za-z0-9._-]+==[^\s,]+) has no (?:usable )?wheels", text):
        return f"{found[1]} has no wheel"
    if found := re.search(r"no trusted hash was provided for: `([^`]+)`", text):
        return f"{found[1]} isn't in the lock"
    return text[-200:]


def size(lock: Path, python: str) -> tuple[int, int]:
    """(packages, bytes) of the wheels that a lock installs on its own platform."""
    with tempfile.TemporaryDirectory() as scratch:
        output = Path(scratch) / "pylock.toml"
        command = [environments.uv_path(), "--project", "/", "pip", "compile", "--quiet", "--no-deps",
                   *("--format", "pylock.toml", "--python-version", python),
                   *("--python-platform", f"{PROCESSORS[0]}-{_GLIBC}", *environments.cpu_torch(lock)),
                   *(str(lock), "--output-file", str(output))]  # fmt: skip
        subprocess.run(command, check=True, timeout=600)
        found = tomllib.loads(output.read_text())
    total = 0
    for package in found["packages"]:
        files = package.get("wheels") or [package.get("archive") or package.get("sdist")]
        # uv names one wheel of each; a file of this machine has no size there.
        one = files[0]
        total += (
            one["size"] if "size" in one else Path(one.get("path") or unquote(urlsplit(one["url"]).path)).stat().st_size
        )
    return len(found["packages"]), total


def survey(known: Mapping[str, dict[str, object]]) -> dict[str, dict[str, object]]:
    """{"vllm cpu": {"lock", "packages", "bytes", "platforms": {"3.12 aarch64": {"works", "why"}}}} of every lock.

    A lock of `known` that is as it was isn't looked up.
    """
    found: dict[str, dict[str, object]] = {}
    for spec in SPECS.values():
        for variant in ("cpu", "cuda"):
            lock = spec.folder / f"{variant}.txt"
            if not lock.exists():
                continue
            key, digest = f"{spec.name} {variant}", hashlib.sha256(lock.read_bytes()).hexdigest()
            if known.get(key, {}).get("lock") == digest:
                found[key] = known[key]
                continue
            packages, fetched = size(lock, spec.python() or PYTHONS[0])
            there = {}
            for python, processor in itertools.product(PYTHONS, PROCESSORS):
                one = status(spec, lock, python, processor)
                there[f"{python} {processor}"] = {"works": one.works, **({"why": one.why} if one.why else {})}
            found[key] = {"lock": digest, "packages": packages, "bytes": fetched, "platforms": there}
            print(f"{key}: {found[key]}", file=sys.stderr, flush=True)
    return found


def main() -> int:
    """Write or check the file; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--all", action="store_true", help="look up locks that haven't changed, too")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if the file differs")
    arguments = parser.parse_args()
    known = {} if arguments.all or arguments.check else json.loads(FILE.read_text())
    text = json.dumps(survey(known), indent=1) + "\n"
    if arguments.check:
        return int(FILE.read_text() != text)
    FILE.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
