"""`qpack export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from qpack.cli import options
from qpack.cli.options import AsJson, Port, Profile, TrustRelease
from qpack.cli.places import AnyRef, at_hand, hub_of, repository_of

_DIGEST = r"sha256:[0-9a-f]{64}"
_HUB = r"[\w.-]+/[\w.-]+(@[0-9a-f]{40})?"


def export(
    ref: AnyRef,
    to: Annotated[
        str,
        typer.Option(
            "--to",
            metavar="FORMAT",
            help="vllm, docker, dockerfile, compose, kubernetes, leaderworkerset, kserve, llm-d, production-stack, "
            "ray, skypilot, systemd, vllm-recipe, prometheus or grafana.",
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
        typer.Option("--mount", help="How pods get the model (kubernetes)."),
    ] = "pull",
    image: Annotated[
        str | None,
        typer.Option(
            metavar="DIGEST", help="Digest of the release's OCI image (kubernetes, kserve).", show_default=False
        ),
    ] = None,
    hub: Annotated[
        str | None,
        typer.Option(metavar="ORG/NAME", help="Hub repository that holds the model, with @COMMIT.", show_default=False),
    ] = None,
    nodes: Annotated[int, typer.Option(min=1, help="Nodes that share the GPUs (leaderworkerset).")] = 1,
    pin_images: Annotated[bool, typer.Option("--pin-images", help="Name container images by digest.")] = False,
    trust_release: TrustRelease = False,
    as_json: AsJson = False,
) -> None:
    """Write serving files for another platform.

    Without --output a single file goes to stdout.
    """
    from qpack.cli.render import export as present
    from qpack.serve import served_release as serve

    serve.checked_format(to)
    registry = options.registry_folder()
    release = serve.find(registry, at_hand(ref), profile)
    serve.check_trust(release, trust_release)
    wanted = serve.Wanted(
        to,
        port=port,
        repository=repository or repository_of(ref),
        model=model,
        mount=mount,
        image=options.matching(image, _DIGEST, "--image"),
        hub=options.matching(hub, _HUB, "--hub") or hub_of(ref),
        nodes=nodes,
        pin_images=pin_images,
    )
    present.exported(release, serve.export(registry, release, wanted), output, as_json=as_json)
