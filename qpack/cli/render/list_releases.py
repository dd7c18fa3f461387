"""`qpack list`."""

from __future__ import annotations

from collections.abc import Sequence

from qpack.cli.render.text import emit, table
from qpack.core.errors import RegistryError
from qpack.core.problems import Code, Location, Problem
from registry.core.protocol import Resolved

_UNREADABLE = Code("unreadable-release", "A release of a registry can't be read.")


def listed(releases: Sequence[Resolved], *, as_json: bool) -> None:
    """The registry's releases. Raises RegistryError, after printing all of them, if some can't be read."""
    unreadable = [release for release in releases if release.unreadable]
    if as_json:
        emit([release.model_dump() for release in releases])
    elif not releases:
        print("No release yet. `qpack build RECIPE` makes one.")
    else:
        table(
            ("release", "aliases", "created", "digest", *(["state"] if unreadable else [])),
            (
                (
                    *(f"{r.name}:{r.version}", ", ".join(r.aliases), r.created, r.digest[:19]),
                    *(["unreadable" if r.unreadable else ""] if unreadable else []),
                )
                for r in releases
            ),
        )
    if unreadable:
        raise RegistryError(
            _UNREADABLE,
            f"{len(unreadable)} of {len(releases)} releases can't be read",
            hint="Pull or publish the same release again to restore it, or remove it: `qpack remove NAME:VERSION"
            " --why TEXT`.",
            problems=tuple(
                Problem(_UNREADABLE, r.unreadable, Location(name=f"{r.name}:{r.version}")) for r in unreadable
            ),
        )
