"""`qpack compare`."""

from __future__ import annotations

from typing import Annotated

import typer

from qpack.cli import options
from qpack.cli.options import AsJson


def compare(
    refs: Annotated[
        list[str],
        typer.Argument(
            metavar="REF|RECIPE",
            help="Two or more releases, or recipes with a verdict.",
            show_default=False,
        ),
    ],
    as_json: AsJson = False,
) -> None:
    """Compare releases.

    Figures, the Pareto front, and differences in the inputs.
    """
    from evals.report import release_comparison
    from qpack.cli.render import compare as present
    from qpack.core.errors import invalid_option
    from qpack.pipeline import find

    if len(set(refs)) < 2:
        raise invalid_option("REF|RECIPE", "compare needs two different releases or more")
    store, registry = options.store(), options.registry_folder()
    releases = {ref: find.find_release(ref, None, store, registry) for ref in dict.fromkeys(refs)}
    present.compared(release_comparison.compare(releases), as_json=as_json)
