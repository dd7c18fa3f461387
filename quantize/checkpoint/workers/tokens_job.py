"""Jobs and answers of the worker that tokenizes; qpack and the worker both import them (see qpack_protocol).

`texts` is a .jsonl or .txt file, `field` the key of a row's text. With `count` too few texts are no failure: the answer
has how many there are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class RowsJob:
    """Calibration rows, cut at `max_length` tokens. `held_out` are digests of texts not to use."""

    checkpoint: str
    trust_remote_code: bool
    texts: str
    field: str
    samples: int
    max_length: int
    min_length: int
    seed: int
    chat_template: bool
    held_out: tuple[str, ...]
    count: bool = False
    kind: Literal["rows"] = "rows"


@dataclass(frozen=True)
class WindowsJob:
    """Held-out text, in windows of exactly `window_tokens`."""

    checkpoint: str
    trust_remote_code: bool
    texts: str
    field: str
    windows: int
    window_tokens: int
    count: bool = False
    kind: Literal["windows"] = "windows"


@dataclass(frozen=True)
class RowsAnswer:
    """What became of every text that was read. `row_digests` are SHA-256 of the texts of the rows, in order, and
    `lengths` the rows' tokens.
    """

    tokens: int
    read: int
    cut: int
    dropped_short: int
    dropped_duplicate: int
    dropped_held_out: int
    double_bos_removed: int
    row_digests: tuple[str, ...]
    lengths: tuple[int, ...]


@dataclass(frozen=True)
class WindowsAnswer:
    """How many windows there are, and the SHA-256 of every text in them, in order."""

    windows: int
    row_digests: tuple[str, ...]
