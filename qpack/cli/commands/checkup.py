"""`qpack doctor`: this machine, or a checkpoint."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from qpack.cli import options
from qpack.cli.commands import machine
from qpack.cli.options import AsJson


def doctor(
    checkpoint: Annotated[
        str | None,
        typer.Argument(
            metavar="CHECKPOINT",
            help="A checkpoint's folder, or a release; without it this machine is looked at.",
            show_default=False,
        ),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option("--against", metavar="SOURCE", help="The model that it was made from: a folder or a release."),
    ] = None,
    vllm: Annotated[
        str | None, typer.Option("--vllm", metavar="VERSION", help="Look at it as this release of vLLM would.")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option("--dtype", metavar="DTYPE", help="What it is to be served in; else the config's.")
    ] = None,
    whole: Annotated[bool, typer.Option("--whole", help="Read every scale, compare every layer: no sample.")] = False,
    load: Annotated[bool, typer.Option("--load", help="Also load it in a real vLLM, and ask it something.")] = False,
    fix: Annotated[bool, typer.Option("--fix", help="Mend what can be mended safely, into a copy (--output).")] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FOLDER", help="Where the mended copy goes.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Look at this machine, or at a checkpoint, whoever made it: layers, scales, shapes, config, files."""
    given = [against, vllm, dtype, whole, load, fix, output]
    if checkpoint is None:
        if any(given):
            raise typer.BadParameter("these options are about a checkpoint: name its folder or a release")
        machine.examine_machine(as_json=as_json)
        return
    if fix != (output is not None):
        raise typer.BadParameter("--fix and --output go together: the original is never changed")
    from qpack.cli.render import checkup as present
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
