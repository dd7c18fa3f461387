"""What is said of aliases, histories, signatures and checks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from qpack.present.text import emit, table
from registry.lifecycle import Moved
from registry.registry import Collected, Event, Resolved
from registry.verification import Report

_MIB = 2**20


def moved(move: Moved, *, as_json: bool) -> None:
    """Where an alias points now, and where it did."""
    if as_json:
        emit({"alias": move.alias, "before": move.before, "verdict": move.verdict, **move.to.model_dump()})
        return
    here = f"{move.name}:{move.alias}"
    if move.before == move.to.version:
        print(f"{here} points at version {move.to.version} already")
        return
    before = f"was version {move.before}" if move.before else "new"
    print(f"{here} points at version {move.to.version} ({move.to.digest[:19]}), {before}")


def told(events: Sequence[Event], *, as_json: bool) -> None:
    """The history, oldest first."""
    if as_json:
        emit([event.model_dump() for event in events])
        return
    if not events:
        print("Nothing has happened here yet.")
        return
    table(
        ("when", "who", "what", "release", "alias", "verdict", "why"),
        ((e.when, e.who, e.what, f"{e.name}:{e.version}", _alias(e), e.verdict, e.note) for e in events),
    )


def _alias(event: Event) -> str:
    if event.alias is None:
        return ""
    return f"{event.alias} (was {event.previous})" if event.previous else event.alias


def verified(report: Report, *, as_json: bool) -> None:
    """Every finding; those that are wrong are an error afterwards."""
    if as_json:
        emit({**report.model_dump(), "ok": report.ok})
        return
    print(f"{report.reference}  {report.digest}")
    words = {True: "ok", False: "WRONG", None: "open"}
    table(("", "", ""), ((f"  {words[f.ok]}", f.what, f.why) for f in report.findings))


def signed(resolved: Resolved, digest: str, *, as_json: bool) -> None:
    """A signature that was attached."""
    if as_json:
        emit({"name": resolved.name, "version": resolved.version, "digest": resolved.digest, "signature": digest})
        return
    print(f"Signed {resolved.name}:{resolved.version} ({resolved.digest[:19]}); the signature is {digest[:19]}")


def collected(found: Collected, root: Path, *, as_json: bool) -> None:
    """What was removed, or would be."""
    if as_json:
        emit(found.model_dump())
        return
    would = "Would free" if found.dry_run else "Freed"
    print(f"{would} {found.bytes_freed / _MIB:,.1f} MiB in {root}")
    for what in (*found.blobs, *found.temporary):
        print(f"  {what}")
