"""Allowed texts of a manifest. Releases are untrusted, and their texts reach terminals, shells and configuration files
of other programs: they are checked once, when the manifest is read. Pure.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from pydantic import Field

from qpack.core.problems import KeyPath, dotted

LONGEST = 4096
"""Characters of one text."""

_LARGEST = 2**63

# Names: no leading dash; no space, quote, dollar, brace or percent sign.
ModelName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.:/@+-]*$", max_length=256)]
ProfileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$", max_length=96)]
Digest = Annotated[str, Field(pattern=r"^(sha256:)?[0-9a-f]*$", max_length=135)]
Version = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9.+!_-]*$", max_length=64)]
VersionRange = Annotated[str, Field(pattern=r"^[A-Za-z0-9.,<>=!~*+ _-]*$", max_length=128)]
Image = Annotated[
    str,
    Field(
        # An OCI reference: host and port, path, tag, digest.
        pattern=r"^[A-Za-z0-9][A-Za-z0-9.-]*(:[0-9]+)?(/[A-Za-z0-9][A-Za-z0-9._-]*)*"
        r"(:[A-Za-z0-9_][A-Za-z0-9_.-]*)?(@sha256:[0-9a-f]{64})?$",
        max_length=512,
    ),
]
Word = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$", max_length=32)]
HealthPath = Annotated[str, Field(pattern=r"^/[A-Za-z0-9._~/-]*$", max_length=128)]
MetricName = Annotated[str, Field(pattern=r"^[A-Za-z_:][A-Za-z0-9_:]*$", max_length=128)]
Description = Annotated[str, Field(pattern=r"^[\w .,:;/@()\[\]#&+*=®™-]*$", max_length=256)]
"""A program, machine or load: no quotes, braces, dollars, angle brackets or percent signs."""

_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9_.:/@+-]+")
_NOT_IN_DESCRIPTIONS = re.compile(r"[^\w .,:;/@()\[\]#&+*=®™-]+")


def as_name(text: str) -> str:
    """`text` as a ModelName, for the name of a folder."""
    return (_NOT_IN_NAMES.sub("-", text).lstrip(".:/@+-") or "model")[:256]


def as_description(text: str) -> str:
    """`text` as a Description, for names that machines and programs report."""
    return _NOT_IN_DESCRIPTIONS.sub(" ", text)[:256]


def shown(text: object) -> str:
    """Untrusted text for a message: printable characters only, at most 80."""
    said = repr(text) if isinstance(text, str) else str(text)
    return said if len(said) <= 80 else f"{said[:76]}..."


def key(at: tuple[int | str, ...]) -> KeyPath:
    """A place in a manifest, for a message: a stranger's key is shown as other texts of theirs are."""
    return tuple(
        part if isinstance(part, int) or (part.isprintable() and len(part) <= 80) else shown(part) for part in at
    )


def place(at: tuple[int | str, ...]) -> str:
    """The same as text, such as `arguments.seed`."""
    return dotted(key(at))


def refused(value: Any, at: tuple[int | str, ...] = ()) -> Iterator[str]:
    """Values that no part of a manifest may have, with their location: control characters, characters that reorder or
    hide text, overlong texts, and numbers that aren't finite.
    """
    if isinstance(value, str):
        if not value.isprintable():
            yield f"{place(at)}: {shown(value)} has an invisible character"
        elif len(value) > LONGEST:
            yield f"{place(at)}: {len(value)} characters are too many; the limit is {LONGEST}"
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            if isinstance(key, str):
                yield from refused(key, (*at, "a key"))
            yield from refused(inner, (*at, key))
    elif isinstance(value, list | tuple):
        for number, inner in enumerate(value):
            yield from refused(inner, (*at, number))
    elif isinstance(value, int | float) and not (math.isfinite(value) and abs(value) < _LARGEST):
        yield f"{place(at)}: {shown(value)} is not a finite number of 64 bits"
