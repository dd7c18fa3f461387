"""How a command's answer is written: JSON, or columns of text."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any


def emit(value: Any) -> None:
    """JSON on stdout."""
    print(json.dumps(value, indent=2, default=str))


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Left-aligned columns without lines: readable, and easy to cut."""
    lines = [list(headings), *(list(row) for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(headings))]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def plain(text: str, width: int = 100, *, last: bool = False) -> str:
    """What a model wrote, safe for a terminal: one line of printable signs, its first (or `last`) `width`."""
    shown = "".join(c if c.isprintable() else " " for c in text)
    shown = " ".join(shown.split())
    return shown[-width:] if last else shown[:width]
