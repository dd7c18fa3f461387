"""How a command's answer is written: JSON, or columns of text."""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
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


def number(value: float) -> str:
    """A gate's figure as reports have it, with a hyphen for the minus sign, as in the other columns of a terminal."""
    from evals.gates.gates import figure

    return figure(value).replace("−", "-")


def line(label: str, text: str) -> None:
    """`  label     text`. On a terminal, text that is longer than a line goes on below itself, between words."""
    start = f"  {label:<10} " if label else "  "
    print(folded(start + text, shutil.get_terminal_size().columns, len(start)) if sys.stdout.isatty() else start + text)


def folded(text: str, width: int, indent: int) -> str:
    """`text` in lines of up to `width` columns, each after the first indented. Words aren't broken."""
    lines = textwrap.wrap(
        text,
        max(width, 2 * indent),
        subsequent_indent=" " * indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return "\n".join(lines)


def plain(text: str, width: int = 100, *, last: bool = False) -> str:
    """What a model wrote, safe for a terminal: one line of printable signs, its first (or `last`) `width`."""
    shown = "".join(c if c.isprintable() else " " for c in text)
    shown = " ".join(shown.split())
    return shown[-width:] if last else shown[:width]
