"""`qpack gate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qpack.cli import options
from qpack.cli.options import AsJson, Settings


def gate(
    ref: Annotated[
        str,
        typer.Argument(metavar="REF|RECIPE", help="A release, or a recipe with a verdict.", show_default=False),
    ],
    policy: Annotated[
        Path | None,
        typer.Option(
            "--policy", metavar="FILE", help="Gate policy file (default: the recipe's gates).", show_default=False
        ),
    ] = None,
    junit: Annotated[
        Path | None, typer.Option("--junit", metavar="FILE", help="Also write JUnit XML.", show_default=False)
    ] = None,
    markdown: Annotated[
        Path | None,
        typer.Option("--markdown", metavar="FILE", help="Also write Markdown for a pull request.", show_default=False),
    ] = None,
    settings: Settings = None,
    as_json: AsJson = False,
) -> None:
    """Judge stored evidence again.

    Exit code 0 pass, 6 fail, 7 undecided.
    """
    from qpack.recipe import gate_policy

    # Errors in the policy are reported before scipy is loaded.
    bounds = gate_policy.load(policy) if policy else None

    from evals.comparison.verdicts import verdict
    from qpack.cli.render import gate as present
    from qpack.pipeline import find

    release = find.find_release(ref, settings, options.store(), options.registry_folder())
    bounds = bounds or gate_policy.of_release(release)
    found = verdict(release.comparison, release.baseline, release.artifact, bounds.values)
    present.written(release, found, ref, junit=junit, markdown=markdown)
    present.judged(found, ref, as_json=as_json)
    if (refused := present.refusal(found, bounds)) is not None:
        raise refused
