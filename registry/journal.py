"""The history: one JSON object a line, only ever appended to.

The index carries the last event (`Index.event`), because index and history can't change in one step: a line that a
killed process didn't come to write, or wrote half of, is written by the next change, and readers add it until then.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from qpack.errors import RegistryError
from registry.registry import Event


@dataclass(frozen=True)
class Journal:
    """The history in the file `path`."""

    path: Path

    def append(self, event: Event) -> None:
        """Write the event durably, unless it is the last line. The caller owns the index."""
        with self.path.open("a+b") as file:
            file.seek(0)
            data = file.read()
            whole = data.rfind(b"\n") + 1
            if whole < len(data):
                file.truncate(whole)
            if event.id.encode() in data[:whole].rstrip(b"\n").rpartition(b"\n")[2]:
                return
            file.write(event.model_dump_json().encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def read(self, last: Event | None) -> tuple[Event, ...]:
        """Every event, oldest first. `last` is the index's, read before: it may not have a line yet."""
        try:
            lines = self.path.read_bytes().splitlines(keepends=True)
            events = tuple(Event.model_validate_json(line) for line in lines if line.endswith(b"\n"))
        except (FileNotFoundError, NotADirectoryError):
            events = ()
        except ValueError as error:
            raise RegistryError(
                f"{self.path} is damaged ({error})",
                hint="Put a copy of the file back from a backup; the releases don't need it.",
            ) from error
        if last is not None and last.id not in {event.id for event in events}:
            return (*events, last)
        return events
