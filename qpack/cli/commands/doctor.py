"""`qpack doctor`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from qpack.cli import options
from qpack.cli.options import AsJson, examine_machine
from qpack.core.errors import invalid_option


def doctor(
    checkpoint: Annotated[
        str | None,
        typer.Argument(
            metavar="CHECKPOINT",
            help="A checkpoint folder or a release (default: this machine).",
            show_default=False,
        ),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option("--against", metavar="SOURCE", help="Source model: a folder or a release."),
    ] = None,
    vllm: Annotated[
        str | None, typer.Option("--vllm", metavar="VERSION", help="Check against this release of vLLM.")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option("--dtype", metavar="DTYPE", help="Serving dtype (default: from config).")
    ] = None,
    whole: Annotated[bool, typer.Option("--whole", help="Check every tensor instead of a sample.")] = False,
    load: Annotated[bool, typer.Option("--load", help="Also load it in vLLM and ask a question.")] = False,
    fix: Annotated[bool, typer.Option("--fix", help="Repair what is safe to repair, into --output.")] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FOLDER", help="Folder for the repaired copy.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check this machine or a checkpoint.

    Layers, scales, shapes, config and files, whoever made the checkpoint.
    """
    given = [against, vllm, dtype, whole, load, fix, output]
    if checkpoint is None:
        if any(given):
            raise invalid_option("CHECKPOINT", "these options need a checkpoint", "Name its folder or a release.")
        examine_machine(as_json=as_json)
        return
    if fix != (output is not None):
        raise invalid_option("--fix", "--fix and --output belong together: the original is never changed")
    from qpack.cli.render import doctor as present
    from qpack.doctor.checkpoint import Asked, examine

    found = examine(
        Asked(checkpoint, against, vllm, dtype, whole, load, output),
        options.home(),
        options.registry_folder(),
        lambda message: print(message, file=sys.stderr, flush=True),
    )
    present.examined(found, as_json=as_json)
    if not found.checkup.sound:
        raise typer.Exit(4)
