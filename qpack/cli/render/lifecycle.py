"""`qpack alias`, `history`, `sign`, `verify`, `reproduce`, `gc`, `remove`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from qpack.cli.render.text import emit, table
from qpack.core.records import Estimate
from registry.core.protocol import Collected, Event, Removed, Resolved
from registry.lifecycle.promotion import Moved
from registry.lifecycle.verification import Report

if TYPE_CHECKING:
    from qpack.pipeline.reproduce import Reproduction  # it brings all that a build needs

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


def history(events: Sequence[Event], *, as_json: bool) -> None:
    """The history, oldest first."""
    if as_json:
        emit([event.model_dump() for event in events])
        return
    if not events:
        print("No history yet.")
        return
    table(
        ("when", "who", "what", "release", "alias", "verdict", "why"),
        ((e.when, e.who, e.what, f"{e.name}:{e.version}", _alias(e), e.verdict, e.note) for e in events),
    )


def _alias(event: Event) -> str:
    if event.alias is None:
        return f"{', '.join(event.dropped)} (dropped)" if event.dropped else ""
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


def reproduced(found: Reproduction, *, as_json: bool) -> None:
    """How a rebuild compares to the release."""
    if as_json:
        emit(found.model_dump())
        return
    print(f"{found.reference}: {found.outcome}, rebuilt in {found.seconds:.0f} s")
    table(
        ("input", "then", "now", ""), ((i.what, i.then, i.now, "same" if i.same else "DIFFERS") for i in found.inputs)
    )
    print(f"artifact  {found.artifact_then[:12]}  {found.artifact_now[:12]}")
    for path in found.files:
        print(f"  {path} has other bytes")
    if found.tensors is not None:
        t = found.tensors
        print(f"{len(t.differences)} of {t.tensors} tensors differ, in {t.share:.2g} of all elements (1 is all)")
        for d in sorted(t.differences, key=lambda d: -d.elements)[:8]:
            apart = f", {d.relative:.2e} apart (relative norm)" if d.relative is not None else ""
            print(f"  {d.name}: {d.why}; {d.elements:,} of {d.of:,} elements{apart}")
    if found.equivalence is not None:
        e = found.equivalence
        figures = (
            ("accuracy, then minus now", e.accuracy, f"within {e.margins.accuracy:g}", e.answers["accuracy"]),
            ("perplexity, now over then", e.perplexity, f"within {e.margins.perplexity:.1%}", e.answers["perplexity"]),
        )
        table(
            ("figure", "value", "90 % interval", "margin", ""),
            ((name, f"{x.value:+z.4f}", _interval(x), margin, answer) for name, x, margin, answer in figures),
        )


def _interval(estimate: Estimate) -> str:
    if estimate.interval is None:
        return "none"
    return f"[{estimate.interval.low:+z.4f}, {estimate.interval.high:+z.4f}]"


def collected(found: Collected, root: Path, *, as_json: bool) -> None:
    """What was removed, or would be."""
    if as_json:
        emit(found.model_dump())
        return
    would = "Would free" if found.dry_run else "Freed"
    print(f"{would} {found.bytes_freed / _MIB:,.1f} MiB in {root}")
    for what in (*found.blobs, *found.temporary):
        print(f"  {what}")
    for what in found.unreadable:
        print(f"  {what}", file=sys.stderr)
    if found.unreadable:
        hint = "Publish or pull that release again, or remove it: `qpack remove`."
        print(f"  {len(found.kept)} files that it may need are kept. {hint}", file=sys.stderr)


def removed(found: Removed, *, as_json: bool) -> None:
    """A version that is gone."""
    if as_json:
        emit(found.model_dump())
        return
    aliases = f", and {'its aliases' if len(found.dropped) > 1 else 'its alias'} {', '.join(found.dropped)}"
    print(f"Removed {found.name}:{found.version} ({found.digest[:19]}){aliases if found.dropped else ''}")
