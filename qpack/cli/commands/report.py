"""`qpack report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qpack.cli import options
from qpack.cli.options import AsJson, Settings


def report(
    ref: Annotated[
        str,
        typer.Argument(metavar="REF|RECIPE", help="A release, or a recipe with a verdict.", show_default=False),
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Output file (default: NAME-report.html).", show_default=False),
    ] = None,
    settings: Settings = None,
    as_json: AsJson = False,
) -> None:
    """Write an HTML report.

    One file with tables and plots, of a release or of a build that was not published.
    """
    from qpack.cli.render import report as present
    from qpack.pipeline import find

    release = find.find_release(ref, settings, options.store(), options.registry_folder())
    present.reported(release, output, as_json=as_json)
