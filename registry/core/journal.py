"""The history: one JSON object per line, append-only.

Index and history can't change in one step, so the index holds the last event (`Index.event`). If a process is killed
before it has written the line, the next change writes it, and readers add it until then.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from qpack.core.errors import RegistryError
from qpack.core.hashing import open_regular
from registry.core.codes import DAMAGED_RECORD
from registry.core.protocol import Event

LONGEST_LINE = 2**20
"""Bytes. Reasons and names are bounded."""
MOST_EVENTS = 1_000_000
_BLOCK = 64 * 1024


@dataclass(frozen=True)
class Journal:
    """The history in the file `path`."""

    path: Path

    def append(self, event: Event) -> None:
        """Write the event durably unless it is the last line. The caller owns the index. Reads only the end of the
        file.
        """
        with self.path.open("a+b") as file:
            found = _end(file)
            if found is None:
                raise RegistryError(
                    DAMAGED_RECORD,
                    f"{self.path} is damaged (its last line is longer than any that qpack writes)",
                    hint="Restore the file from a backup; releases don't depend on it.",
                )
            last, whole = found
            file.truncate(whole)
            if event.id.encode() in last:
                return
            file.write(event.line().encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def read(self, last: Event | None) -> tuple[Event, ...]:
        """Every event, oldest first. `last` is the event of the index, read before the history; its line may be
        missing.
        """
        events = []
        try:
            with open_regular(self.path) as file:
                for number in range(1, MOST_EVENTS + 2):
                    line = file.readline(LONGEST_LINE + 1)
                    if not line.endswith(b"\n") and len(line) <= LONGEST_LINE:
                        break
                    if len(line) > LONGEST_LINE or number > MOST_EVENTS:
                        raise self._damaged(number, "longer than any line that qpack writes")
                    try:
                        events.append(Event.model_validate_json(line))
                    except ValueError as error:
                        raise self._damaged(number, str(error)[:300]) from error
        except (FileNotFoundError, NotADirectoryError):
            events = []
        if last is not None and last.id not in {event.id for event in events}:
            return (*events, last)
        return tuple(events)

    def _damaged(self, line: int, why: str) -> RegistryError:
        return RegistryError(
            DAMAGED_RECORD,
            f"{self.path}:{line} is damaged ({why})",
            hint="Restore the file from a backup; releases don't depend on it.",
        )


def _end(file: BinaryIO) -> tuple[bytes, int] | None:
    """The last complete line of a file, and its end; anything after it was left by a killed writer. None if the last
    line is longer than the limit.
    """
    size = file.seek(0, os.SEEK_END)
    data, start = b"", size
    while start > 0 and data.count(b"\n") < 2 and len(data) <= 2 * LONGEST_LINE:
        start = max(0, start - _BLOCK)
        file.seek(start)
        data = file.read(size - start)
    whole = data.rfind(b"\n") + 1
    if start > 0 and data.count(b"\n") < 2:
        return None
    return data[:whole].rstrip(b"\n").rpartition(b"\n")[2], start + whole if whole else 0
