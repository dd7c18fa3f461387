"""`qpack reproduce`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qpack.cli import options
from qpack.cli.options import AsJson, Ref


def reproduce(
    ref: Ref,
    base: Annotated[
        Path,
        typer.Option(
            "--base",
            metavar="FOLDER",
            help="Base of relative paths (default: current folder).",
            show_default=False,
        ),
    ] = Path(),
    no_evaluate: Annotated[
        bool, typer.Option("--no-evaluate", help="Compare tensors only; skip the evaluation.")
    ] = False,
    accuracy_margin: Annotated[
        float, typer.Option("--accuracy-margin", min=0.0, help="Largest difference in accuracy that counts as equal.")
    ] = 0.02,
    perplexity_margin: Annotated[
        float, typer.Option("--perplexity-margin", min=0.0, help="Largest relative difference in perplexity.")
    ] = 0.02,
    trust_release: options.TrustRelease = False,
    as_json: AsJson = False,
    verbose: options.Verbose = False,
) -> None:
    """Rebuild a release and compare the two."""
    from evals.comparison.equivalence import Margins
    from qpack.cli.render import reproduce as present
    from qpack.pipeline.reproduce import Rebuild
    from qpack.pipeline.reproduce import reproduce as rebuild

    options.existing(base, "--base")
    margins = Margins(accuracy=accuracy_margin, perplexity=perplexity_margin) if not no_evaluate else None
    with options.context(verbose=verbose) as context:
        found = rebuild(Rebuild(ref, base, margins, trust_release), context)
    present.reproduced(found, as_json=as_json)
    if (failed := present.refusal(found)) is not None:
        raise failed
