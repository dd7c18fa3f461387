"""What reaches a terminal or a CI's log: text that does nothing there but be read, and errors when it can't be written.

What qpack shows of a release, a model or an engine's log can be a stranger's. A terminal obeys control characters,
bidirectional ones show text in another order than it has, invisible ones make two names look alike, and GitHub Actions
runs lines that begin with `::`.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from typing import Any, TextIO, cast

# C0 but tab and line feed, DEL and C1; soft hyphen, bidirectional and other invisible formatting characters, fillers,
# tags, lone surrogates (Unicode 16, categories Cc, Cf, Cs, Zl, Zp; UTS 39 on what isn't allowed in identifiers). Zero-
# width joiners stay between letters beyond ASCII, where Persian, Indic scripts and emoji need them (as in RFC 5892).
_OBEYED = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b\u200e\u200f"
    "\u2028-\u202e\u2060-\u206f\u3164\ufeff\uffa0\ufff0-\ufffb\ud800-\udfff\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
    "|(?<![^\x00-\x7f\u200b-\u200f])[\u200c\u200d]|[\u200c\u200d](?![^\x00-\x7f\u200b-\u200f])"
)
_COMMAND = re.compile(r"^([ \t]*):(?=:)", re.MULTILINE)


class Unwritable(BaseException):
    """Standard output or standard error can't be written. No Exception: nothing on the way out may take it for a
    failure of its own work.
    """

    def __init__(self, name: str, error: OSError) -> None:
        super().__init__(f"standard {name} can't be written: {error.strerror}")


class ReaderGone(BaseException):
    """Whoever read standard output or standard error has gone. No Exception, as Unwritable."""


def clean(text: str) -> str:
    """`text` with the character for what can't be shown in place of all that a terminal obeys or hides."""
    return _OBEYED.sub("�", text.replace("\r", ""))


def line(text: str) -> str:
    """`clean`, on one line."""
    return " ".join(clean(text).split())


class Safe:
    """A stream whose text is `clean`, and runs no command on GitHub Actions (`github`). `used`: it was written to.

    Raises Unwritable and ReaderGone.
    """

    def __init__(self, stream: TextIO, name: str, *, github: bool = False) -> None:
        self.unwrapped, self._name, self._github, self._at_start = stream, name, github, True
        self.used = False

    def write(self, text: str) -> int:
        """Write `text`, made safe."""
        self.used = True
        shown = clean(text)
        if self._github:
            # The runner trims a line before it looks for `::`, and finds the older `##[` anywhere in it.
            shown = shown.replace("##[", "## [")
            first, newline, rest = shown.partition("\n")
            first = _COMMAND.sub(r"\1: ", first) if self._at_start else first
            shown = first + newline + _COMMAND.sub(r"\1: ", rest)
            last = shown.rpartition("\n")[2]
            self._at_start = not last.strip() and (self._at_start or "\n" in shown)
        self._try(lambda: self.unwrapped.write(shown))
        return len(text)

    def writelines(self, lines: Any) -> None:
        """Write each, made safe."""
        for text in lines:
            self.write(text)

    def flush(self) -> None:
        """Write what is held back."""
        self._try(self.unwrapped.flush)

    def _try(self, act: Callable[[], object]) -> None:
        try:
            act()
        except BrokenPipeError as error:
            raise ReaderGone from error
        except OSError as error:
            nowhere(self.unwrapped)
            raise Unwritable(self._name, error) from error

    def __getattr__(self, name: str) -> Any:
        return getattr(self.unwrapped, name)


def unwrapped(stream: TextIO) -> TextIO:
    """The stream below a Safe one, for what makes its text safe itself."""
    return stream.unwrapped if isinstance(stream, Safe) else stream


def nowhere(stream: TextIO) -> None:
    """Let a stream that can't be written lead nowhere, so that the exit doesn't fail on the rest of its text."""
    other = os.open(os.devnull, os.O_RDWR)
    os.dup2(other, stream.fileno())
    os.close(other)


def workflow(stream: TextIO, command: str, message: str = "", **properties: str) -> None:
    """Write a GitHub workflow command, with all that would end it or begin another escaped.

    As https://github.com/actions/toolkit/blob/main/packages/core/src/command.ts does it.
    """
    text = clean(message).replace("%", "%25").replace("\n", "%0A")
    about = []
    for name, value in properties.items():
        escaped = clean(value).replace("%", "%25").replace("\n", "%0A").replace(":", "%3A").replace(",", "%2C")
        about.append(f"{name}={escaped}")
    below = unwrapped(stream)
    below.write(f"::{command}{' ' if about else ''}{','.join(about)}::{text}\n")
    below.flush()


def on_github() -> bool:
    """Whether GitHub Actions reads what is printed."""
    return os.environ.get("GITHUB_ACTIONS") == "true"


def protect() -> None:
    """Make the standard streams safe; those that the caller closed lead nowhere, and no file takes their number."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    if cast("TextIO | None", sys.stdin) is None:
        sys.stdin = os.fdopen(0, closefd=False)
    for name, number in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name) or os.fdopen(number, "w", closefd=False)
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # an encoding that lacks a sign is no reason to stop
        setattr(sys, name, Safe(stream, "output" if number == 1 else "error", github=on_github()))
