"""What a checkup says: one thing that is wrong with a checkpoint, or worth knowing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning", "note"]


@dataclass(frozen=True)
class Finding:
    """`error`: it can't be served, or answers wrongly. `warning`: it may. `note`: worth knowing, nothing is wrong.

    `kind` is a stable name (docs/reference/doctor.md has them all), `where` a layer, a tensor or a file. `mend` says
    that `--fix` can put it right.
    """

    severity: Severity
    kind: str
    what: str
    where: str = ""
    hint: str = ""
    mend: bool = False


def some(names: Sequence[str]) -> str:
    """The first name, and how many more there are."""
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
