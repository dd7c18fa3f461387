"""The command line in this process: the same entry point, exit codes and streams, without the time of a start."""

from __future__ import annotations

import io
import os
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qpack.cli import app


@dataclass(frozen=True)
class Finished:
    """How a command ended."""

    code: int
    out: str
    err: str


@contextmanager
def _here(cwd: Path, home: Path, scratch: Path) -> Iterator[None]:
    """Variables and the working folder of a command, put back afterwards."""
    before, variables = Path.cwd(), dict(os.environ)
    os.environ.update(
        {
            "QPACK_HOME": str(home),
            "HF_HOME": str(home / "hf"),
            "HF_ENDPOINT": "http://127.0.0.1:9",
            "HF_HUB_OFFLINE": "1",
            "TMPDIR": str(scratch),
        }
    )
    tempfile.tempdir = None
    os.chdir(cwd)
    try:
        yield
    finally:
        os.chdir(before)
        os.environ.clear()
        os.environ.update(variables)
        tempfile.tempdir = None


def qpack(arguments: Sequence[str], cwd: Path, home: Path) -> Finished:
    """Run a command. A bug raises AssertionError with the report that qpack would have asked for.

    Standard output is strict UTF-8, as on a terminal or in a pipe: a character that can't be written counts as a bug.
    """
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors=how) for how in ("strict", "backslashreplace"))
    streams: tuple[Any, ...] = (sys.stdout, sys.stderr, sys.argv, signal.getsignal(2), signal.getsignal(15))
    scratch = home / "tmp"
    scratch.mkdir(parents=True, exist_ok=True)
    code = 0
    with _here(cwd, home, scratch):
        sys.stdout, sys.stderr, sys.argv = out, err, ["qpack", *arguments]
        try:
            app.main()
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else 1 if ended.code else 0
        finally:
            sys.stdout, sys.stderr, sys.argv = streams[:3]
            signal.signal(2, streams[3])
            signal.signal(15, streams[4])
    for stream in (out, err):
        stream.flush()
    texts = [stream.buffer.getvalue().decode("utf-8", "replace") for stream in (out, err)]  # type: ignore[attr-defined]
    reports = list(scratch.glob("qpack-bug-*.log"))
    told = "\n".join(report.read_text("utf-8", "replace") for report in reports)
    for report in reports:
        report.unlink()
    assert code != 70, f"a bug: qpack {list(arguments)}\n{texts[1]}\n{told}"
    assert not reports, told
    return Finished(code, *texts)
