"""`qpack report`."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated

import typer

from qpack.cli import options
from qpack.cli.options import AsJson, Settings


class Form(enum.StrEnum):
    """What is written: a file, or a folder that another tool reads."""

    HTML = "html"
    MARKDOWN = "markdown"
    JUNIT = "junit"
    HUB = "hub"
    EVERY_EVAL_EVER = "every-eval-ever"
    LM_EVAL = "lm-eval"
    MLFLOW = "mlflow"


def report(
    ref: Annotated[
        str,
        typer.Argument(metavar="REF|RECIPE", help="A release, or a recipe with a verdict.", show_default=False),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="PATH", help="Output file or folder (default: by name).", show_default=False
        ),
    ] = None,
    form: Annotated[
        Form, typer.Option("--format", help="Format of the report, or of another tool.", show_default=True)
    ] = Form.HTML,
    settings: Settings = None,
    as_json: AsJson = False,
) -> None:
    """Write a report, or export the evaluation.

    HTML is one file with tables and plots, of a release or of a build that was not published.
    """
    from qpack.cli.render import report as present
    from qpack.pipeline import find

    release = find.find_release(ref, settings, options.store(), options.registry_folder())
    present.reported(release, form, output, as_json=as_json)
