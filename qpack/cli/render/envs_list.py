"""`qpack envs list`."""

from __future__ import annotations

from qpack.cli.render.text import emit, table
from qpack.runtime.environments import Environment, own_hint, unavailable


def environments(found: list[Environment], *, as_json: bool) -> None:
    """The engine environments."""
    if as_json:
        emit(
            [
                {
                    "name": e.name,
                    "variant": e.variant,
                    "lock": e.digest,
                    "python": e.version,
                    "made": e.ready,
                    "unavailable": unavailable(e) or None,
                    "folder": str(e.folder),
                }
                for e in found
            ]
        )
        return
    table(
        ("environment", "variant", "state", "lock", "folder"),
        ((e.name, e.variant, _state(e), e.digest[:12], str(e.folder)) for e in found),
    )
    for environment in found:
        if why := unavailable(environment):
            print(f"\n{environment.name} can't be made here: {why}. {own_hint(environment)}")


def _state(environment: Environment) -> str:
    return "made" if environment.ready else "unavailable" if unavailable(environment) else "not made"
