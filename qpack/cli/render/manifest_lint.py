"""`qpack manifest lint`."""

from __future__ import annotations

from collections.abc import Sequence

from qpack.cli.render.text import emit
from qpack.serve.served_release import Linted


def linted(checked: Sequence[Linted], *, as_json: bool) -> None:
    """What is wrong with each profile, and what wasn't judged."""
    if as_json:
        emit(
            [
                {
                    "release": each.served.reference,
                    "profile": each.served.profile,
                    "problems": [problem.as_json() for problem in each.problems],
                    "unchecked": list(each.unchecked),
                }
                for each in checked
            ]
        )
        return
    for each in checked:
        fine = "" if each.problems else "no problem found" if each.unchecked else "fine"
        print(f"{each.served.reference}, profile {each.served.profile}: {fine}".rstrip())
        for problem in each.problems:
            print(f"  {problem}")
        for left in each.unchecked:
            print(f"  not checked: {left}")
