"""`qpack drift`."""

from __future__ import annotations

import dataclasses
import sys
from typing import TYPE_CHECKING

from qpack.cli.render.text import emit, table
from qpack.core.errors import EvaluateError
from qpack.core.problems import Code
from qpack.serve.served_release import Served

if TYPE_CHECKING:
    from evals.server.drift import Drift

_DRIFT = Code("drift", "A running server differs from its release.")


def drifted(served: Served, url: str, drift: Drift, *, as_json: bool) -> None:
    """How a server differs from its release. Raises EvaluateError when it does."""
    if as_json:
        emit({"release": served.reference, "profile": served.profile, "server": url, **dataclasses.asdict(drift)})
    elif drift.differences:
        table(("what", served.reference, url), ((d.what, d.expected, d.found) for d in drift.differences))
    else:
        print(f"{url} serves {served.reference}, profile {served.profile}: no difference (arguments from "
              f"{drift.arguments_from})")  # fmt: skip
    if drift.unseen and not as_json:
        print(f"not visible, not compared: {', '.join(drift.unseen)} (arguments from {drift.arguments_from})",
              file=sys.stderr)  # fmt: skip
    if drift.differences:
        names = ", ".join(difference.what for difference in drift.differences)
        raise EvaluateError(_DRIFT, f"{url} differs from {served.reference}: {names}")
