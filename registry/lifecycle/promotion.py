"""Alias moves: promotion and rollback, both checked against the alias policy. Versions never change."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from qpack.core.errors import GateFailed, GateUndecided, QpackError, RegistryError
from qpack.core.problems import Code, Problem
from qpack.core.records import Release
from registry.core.modelpack import VERDICT
from registry.core.protocol import AliasMove, Event, Resolved, check_alias, check_name
from registry.lifecycle import verification
from registry.lifecycle.verification import Judge
from registry.local.alias_policy import VERDICT as OTHER_VERDICT
from registry.local.alias_policy import Policy, Rule, allowed
from registry.local.registry import LocalRegistry

_NO_EARLIER_VERSION = Code("no-earlier-version", "An alias has no earlier version.")
_NOT_PROMOTED = Code("not-promoted", "A release doesn't meet the policy of an alias.")

SignedBy = Callable[[str, Policy, Rule], bool]
"""(reference, policy, rule) -> whether a signer that the rule names has signed the release."""

Guarded = Literal["promote", "rollback"]
"""The moves that are checked against the policy. A plain move of a guarded alias is refused."""

UNGUARDED = Rule()
"""The rule for promotion to an alias that no policy names: a passed verdict."""


@dataclass(frozen=True)
class Demands:
    """The checks before an alias move: every policy has to allow it. `signed_by` and `judge` answer for signatures and
    figures.
    """

    policies: tuple[Policy, ...]
    signed_by: SignedBy
    judge: Judge

    def missed(self, exact: str, release: Release, alias: str, unguarded: Rule | None) -> tuple[Problem, ...]:
        """Unmet requirements of `alias` for a release (`exact` is its reference with digest). `unguarded` is the rule
        for an alias that no policy names; None allows everything.
        """
        rules = [(policy, policy.aliases[alias]) for policy in self.policies if alias in policy.aliases]
        problems: list[Problem] = []
        for policy, rule in rules:
            signed = rule.wants_signature and self.signed_by(exact, policy, rule)
            problems += allowed(release, rule, signed=signed)
        if not rules and unguarded is not None:
            problems += allowed(release, unguarded, signed=False)
        return tuple(dict.fromkeys(problems))


@dataclass(frozen=True)
class Moved:
    """An alias that now points at `to`. `before` is the version that it pointed at; None when it is new."""

    name: str
    alias: str
    before: str | None
    to: Resolved
    verdict: str


def promote(local: LocalRegistry, ref: str, alias: str, demands: Demands, *, actor: str, why: str) -> Moved:
    """Point `alias` at `ref` if it verifies and every policy allows it.

    Raises GateFailed or GateUndecided if the verdict is among the reasons, RegistryError for other reasons, and if the
    alias was moved meanwhile. Nothing is moved then.
    """
    check_alias(alias)
    to = local.resolve(ref)
    before = points_at(local, to.name, alias)
    release = _let_through(local, to, alias, demands, "promote")
    moved = local.alias(AliasMove(to.name, alias, to.version, before or "", actor=actor, note=why, kind="promote"))
    return Moved(to.name, alias, before, moved, release.verdict.outcome)


def rollback(local: LocalRegistry, name: str, alias: str, demands: Demands, *, actor: str, why: str) -> Moved:
    """Point `alias` at its previous version. Repeated calls go further back.

    That version has to verify, and is checked against the policy as for a promotion, since the policy may be newer. An
    alias that no policy names may return to any previous version. Raises the errors of `promote`, and RegistryError if
    the history has no earlier version.
    """
    check_alias(alias)
    now = local.resolve(f"{check_name(name)}:{alias}")
    version = previous((e for e in local.history(name) if e.alias == alias or e.what == "remove"), now.version)
    if version is None:
        raise RegistryError(
            _NO_EARLIER_VERSION,
            f"{name}:{alias} can't be rolled back: it points at version {now.version}, and has no earlier one",
            hint=f"`qpack history {name}` shows its versions; `qpack promote` points it at any of them.",
        )
    to = local.resolve(f"{name}:{version}")
    release = _let_through(local, to, alias, demands, "rollback")
    moved = local.alias(AliasMove(name, alias, version, now.version, actor=actor, note=why, kind="rollback"))
    return Moved(name, alias, now.version, moved, release.verdict.outcome)


def _let_through(local: LocalRegistry, to: Resolved, alias: str, demands: Demands, what: Guarded) -> Release:
    """The release manifest, if the policy allows the move; raises otherwise."""
    exact = f"{to.name}:{to.version}@{to.digest}"
    release = verification.whole(local, exact, demands.judge)
    if problems := demands.missed(exact, release, alias, UNGUARDED if what == "promote" else None):
        raise _refused(f"{to.name}:{to.version}", alias, release.verdict.outcome, what, problems)
    return release


def previous(events: Iterable[Event], now: str) -> str | None:
    """The version to roll back to from `now`, from one alias's events, oldest first.

    A rollback removes the version that it left from the trail, so the next rollback goes further back. Removed versions
    are skipped. None if there is no earlier version, or the trail doesn't end in `now`.
    """
    trail: list[str] = []
    for event in events:
        if event.what == "remove":
            left = [version for version in trail if version != event.version]
            trail = [version for version, before in zip(left, [None, *left], strict=False) if version != before]
        elif event.what == "rollback" and event.version in trail:
            while trail[-1] != event.version:
                trail.pop()
        elif not trail or trail[-1] != event.version:
            trail.append(event.version)
    return trail[-2] if len(trail) > 1 and trail[-1] == now else None


def points_at(local: LocalRegistry, name: str, alias: str) -> str | None:
    """The version that an alias points at, or None."""
    return local.aliases(name).get(alias)


def move(local: LocalRegistry, ref: str, alias: str, expected: str | None, *, actor: str, why: str) -> Moved:
    """Point an alias that no policy guards at `ref`. With `expected`, only from that version (empty: a new alias)."""
    check_alias(alias)
    found = local.resolve(ref)
    before = points_at(local, found.name, alias)
    to = local.alias(AliasMove(found.name, alias, found.version, expected, actor=actor, note=why))
    verdict = to.annotations.get(VERDICT, "")
    return Moved(found.name, alias, before, to, verdict)


def _refused(reference: str, alias: str, outcome: str, what: Guarded, problems: tuple[Problem, ...]) -> QpackError:
    done = f"{reference} was not promoted to '{alias}'"
    hint = "Fix the problems above, or change the policy."
    if what == "rollback":
        done = f"'{alias}' was not rolled back to {reference}"
        hint = "Promote a version that meets the policy with `qpack promote`, or change the policy."
    what_happened = f"{done}; nothing was moved"
    if any(problem.code == OTHER_VERDICT for problem in problems):
        report = f"`qpack report {reference}` shows which figures missed."
        kind = GateUndecided if outcome == "undecided" else GateFailed
        return kind(_NOT_PROMOTED, what_happened, hint=report, problems=problems)
    return RegistryError(_NOT_PROMOTED, what_happened, hint=hint, problems=problems)
