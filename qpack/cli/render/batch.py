"""`qpack batch`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from qpack.cli.render.text import emit

if TYPE_CHECKING:
    from evals.server.batch import Done


def answered(done: Done, output: Path, *, as_json: bool) -> None:
    """How a batch ended."""
    if as_json:
        emit({**dataclasses.asdict(done), "output": str(output.absolute())})
        return
    print(f"{output}: {done.total} answers, {done.before} reused, {done.failed} refused by the server")
