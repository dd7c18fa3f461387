"""A command's error as JSON, with `--json`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from qpack.cli.render.text import emit
from qpack.core.problems import Problem


def failed(
    kind: str,
    code: str,
    exit_code: int,
    what: str,
    *,
    hint: str = "",
    log: Path | str | None = None,
    problems: Sequence[Problem] = (),
) -> None:
    """Print what stderr has too, as the one document of a command that got no result."""
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
        }
    )
