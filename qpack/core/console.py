"""What a person sees while a build runs: stages, progress and how long it may take yet.

On a terminal one live line below the finished stages; elsewhere plain lines, and on GitHub Actions a folded group a
stage. Everything goes to stderr, so that stdout is for results.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol, TextIO

from qpack.core import terminal

if TYPE_CHECKING:
    from rich.text import Text

_EVERY = 15.0  # seconds between plain progress lines


class Console(Protocol):
    """What stages talk to."""

    def stage(self, number: int, total: int, name: str, about: str) -> None:
        """A stage begins."""

    def report(self, message: str) -> None:
        """One line about what is being done now."""

    def progress(self, done: int, total: int, what: str) -> None:
        """How far it is; a total of 0 means that nobody knows."""

    def end(self, message: str) -> None:
        """The stage is done."""

    def close(self) -> None:
        """No more output, whatever happened."""


def seconds(count: float) -> str:
    """`8.3 s`, `2 min 05 s`, `3 h 10 min`."""
    if count < 59.95:
        return f"{count:.1f} s"
    minutes, rest = divmod(round(count), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


class _Pace:
    """How long yet, from how long the work took so far."""

    def __init__(self) -> None:
        self.what, self.started, self.first = "", 0.0, 0

    def left(self, done: int, total: int, what: str) -> str:
        now = time.monotonic()
        if what != self.what or done < self.first:
            self.what, self.started, self.first = what, now, done
        steps = done - self.first
        if total <= 0 or steps <= 0 or done >= total:
            return ""
        return f", about {seconds((now - self.started) / steps * (total - done))} left"


class Plain:
    """Lines, for logs and for CI."""

    def __init__(self, stream: TextIO, *, groups: bool, verbose: bool) -> None:
        self.stream, self.groups, self.verbose = stream, groups, verbose
        self.pace, self.said, self.open = _Pace(), 0.0, False

    def _line(self, text: str) -> None:
        print(f"      {terminal.line(text)}", file=self.stream, flush=True)

    def stage(self, number: int, total: int, name: str, about: str) -> None:
        """Open a group, or print a heading."""
        heading = terminal.line(f"[{number}/{total}] {name}: {about}")
        if self.groups:
            terminal.workflow(self.stream, "group", heading)
        else:
            print(heading, file=self.stream, flush=True)
        self.open, self.said = self.groups, time.monotonic()

    def report(self, message: str) -> None:
        """An indented line."""
        self._line(message)

    def progress(self, done: int, total: int, what: str) -> None:
        """A line now and then."""
        left = self.pace.left(done, total, what)
        now = time.monotonic()
        if now - self.said < (1.0 if self.verbose else _EVERY):
            return
        self.said = now
        self._line(f"{done}/{total} {what}{left}" if total else what)

    def end(self, message: str) -> None:
        """Close the group."""
        self._line(message)
        self.close()

    def close(self) -> None:
        """Close a group that a failure left open."""
        if self.open:
            self.open = False
            terminal.workflow(self.stream, "endgroup")


class Live:
    """One line that moves, below the stages that are done."""

    def __init__(self, *, verbose: bool) -> None:
        from rich.console import Console as RichConsole
        from rich.status import Status

        # Rich's own control characters have to get through, so what is a stranger's is made safe in each line.
        self.rich = RichConsole(file=terminal.unwrapped(sys.stderr), highlight=False)
        self.status = Status("", console=self.rich, spinner="dots")
        self.pace, self.heading, self.doing, self.verbose = _Pace(), "", "", verbose
        self.started, self.more, self.open = 0.0, "", False

    def stage(self, number: int, total: int, name: str, about: str) -> None:
        """Start the spinner."""
        self.heading, self.doing = f"[bold]\\[{number}/{total}] {_shown(name)}[/bold]", _shown(about)
        self.started = time.monotonic()
        self._show("")
        self.status.start()
        self.open = True

    def _show(self, more: str) -> None:
        self.more = more
        self.status.update(self)

    def __rich__(self) -> Text:
        """The line as it is now: rich asks for it with every turn of the spinner, so the clock goes on by itself."""
        from rich.text import Text

        passed = seconds(time.monotonic() - self.started)
        return Text.from_markup(f"{self.heading}  {self.doing}{self.more}  [dim]{passed}[/dim]")

    def report(self, message: str) -> None:
        """What is being done now."""
        self.doing = _shown(message)
        if self.verbose or not self.open:  # before the first stage there is no line that moves
            self.rich.print(f"      [dim]{self.doing}[/dim]")
        self._show("")

    def progress(self, done: int, total: int, what: str) -> None:
        """Move the line."""
        left, what = self.pace.left(done, total, what), _shown(what)
        self._show(f" · {done}/{total} {what}[dim]{left}[/dim]" if total else f" · {what}")

    def end(self, message: str) -> None:
        """Leave one line behind."""
        self.status.stop()
        self.open = False
        self.rich.print(f"{self.heading}  {_shown(message)}")

    def close(self) -> None:
        """Take the spinner away."""
        self.status.stop()


def _shown(text: str) -> str:
    """A stranger's text as rich's markup: safe, on one line, and no markup of its own."""
    from rich.markup import escape

    return escape(terminal.line(text))


@contextmanager
def open_console(*, verbose: bool = False) -> Iterator[Console]:
    """The console that fits where stderr goes."""
    on_github = terminal.on_github()
    if sys.stderr.isatty() and not on_github and os.environ.get("TERM") != "dumb":
        console: Console = Live(verbose=verbose)
    else:
        console = Plain(sys.stderr, groups=on_github, verbose=verbose)
    try:
        yield console
    finally:
        console.close()
