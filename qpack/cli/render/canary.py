"""`qpack canary`."""

from __future__ import annotations

from qpack.cli.render.text import emit, table
from qpack.core.errors import EvaluateError
from qpack.core.problems import Code, Location, Problem
from qpack.core.records import Proof
from qpack.serve.served_release import Reached

_CANARY = Code("canary", "A running server fails a check of the canary.")


def proved(server: Reached, proof: Proof, *, as_json: bool) -> None:
    """What a server keeps of its promises. Raises EvaluateError when a check failed."""
    checks = proof.checks
    if as_json:
        results = [check.model_dump() for check in checks]
        emit({"server": server.base_url, "model": server.model, "clients": proof.clients, "checks": results})
    else:
        table(("check", "outcome", "why"), ((check.name, check.outcome, check.why) for check in checks))
    if missed := [check for check in checks if check.outcome == "fail"]:
        count = "1 check" if len(missed) == 1 else f"{len(missed)} checks"
        raise EvaluateError(
            _CANARY,
            f"{count} failed: {', '.join(check.name for check in missed)}",
            problems=tuple(
                Problem(_CANARY, f"{check.claim} {check.why}", Location(name=check.name)) for check in missed
            ),
        )
