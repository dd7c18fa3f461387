"""A command's error as JSON, with `--json`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qpack.cli.render.text import emit
from qpack.core.errors import QpackError
from qpack.core.problems import Problem


def refused(error: QpackError, **result: Any) -> None:
    """Print an error of ours as JSON, with what the command found anyway."""
    more = {"hint": error.hint, "log": error.log, "problems": error.problems, **result}
    failed(error.title, error.code.name, error.exit_code, error.what, **more)


def failed(
    kind: str,
    code: str,
    exit_code: int,
    what: str,
    *,
    hint: str = "",
    log: Path | str | None = None,
    problems: Sequence[Problem] = (),
    **result: Any,
) -> None:
    """Print what stderr has too, as the one document of a command that failed; `result` is what it found anyway."""
    emit(
        {
            "ok": False,
            "error": {
                "kind": kind,
                "code": code,
                "exit_code": exit_code,
                "what": what,
                "hint": hint,
                "log": str(log) if log else None,
            },
            "problems": [problem.as_json() for problem in problems],
            **result,
        }
    )
