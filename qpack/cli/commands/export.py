"""`qpack export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from qpack.cli import options
from qpack.cli.options import AsJson, Port, Profile, TrustRelease
from qpack.cli.places import AnyRef, at_hand, repository_of


def export(
    ref: AnyRef,
    to: Annotated[
        str,
        typer.Option(
            "--to",
            metavar="FORMAT",
            help="vllm, docker, compose, kubernetes, kserve, ray, systemd, prometheus or grafana.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FOLDER", help="Output folder.", show_default=False),
    ] = None,
    profile: Profile = None,
    port: Port = 8000,
    repository: Annotated[
        str | None,
        typer.Option("--repository", help="OCI repository of the release (kubernetes).", show_default=False),
    ] = None,
    model: Annotated[
        str, typer.Option("--model", metavar="PATH", help="Model folder on the server (vllm, ray).")
    ] = "model",
    mount: Annotated[
        Literal["pull", "image"],
        typer.Option("--mount", help="How pods get the model: pull or image."),
    ] = "pull",
    trust_release: TrustRelease = False,
    as_json: AsJson = False,
) -> None:
    """Write serving files for another platform.

    Without --output a single file goes to stdout.
    """
    from qpack.cli.render import export as present
    from qpack.serve import served_release as serve

    release = serve.find(options.registry_folder(), at_hand(ref), profile)
    serve.check_trust(release, trust_release)
    wanted = serve.Wanted(to, port=port, repository=repository or repository_of(ref), model=model, mount=mount)
    present.exported(release, serve.export(release, wanted), output, as_json=as_json)
