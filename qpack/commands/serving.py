"""Commands that run a release, or write down how somebody else runs it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from qpack.commands import options
from qpack.commands.options import AsJson, Ref

Profile = Annotated[
    str | None,
    typer.Option("--profile", help="A profile of the release; the default is the one measured.", show_default=False),
]
Port = Annotated[int, typer.Option("--port", min=1, max=65535, help="The server's port.")]


def export(
    ref: Ref,
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
        typer.Option("--output", "-o", metavar="FOLDER", help="Where to write the files.", show_default=False),
    ] = None,
    profile: Profile = None,
    port: Port = 8000,
    repository: Annotated[
        str | None,
        typer.Option(
            "--repository", help="The OCI repository that holds the release (kubernetes).", show_default=False
        ),
    ] = None,
    model: Annotated[
        str, typer.Option("--model", metavar="PATH", help="The model's folder where it is served (vllm, ray).")
    ] = "model",
    mount: Annotated[
        Literal["pull", "image"],
        typer.Option("--mount", help="How a pod gets the model: an init container, or an image volume."),
    ] = "pull",
    as_json: AsJson = False,
) -> None:
    """Write how a release is served in another program's format; one file goes to stdout without --output."""
    from qpack import serve
    from qpack.present import serving as present

    release = serve.find(options.registry_folder(), ref, profile)
    wanted = serve.Wanted(to, port=port, repository=repository, model=model, mount=mount)
    present.exported(release, serve.export(release, wanted), output, as_json=as_json)


def manifest_lint(
    ref: Ref,
    profile: Profile = None,
    vllm: Annotated[
        str | None,
        typer.Option("--vllm", metavar="VERSION", help="Insist on this version of vLLM.", show_default=False),
    ] = None,
    memory: Annotated[
        float | None,
        typer.Option(
            "--memory", metavar="GIB", help="Memory of one device, if it isn't this one's.", show_default=False
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check how a release is served: against its checkpoint, this machine and a real vLLM's parser."""
    from qpack import serve
    from qpack.present import serving as present

    store, registry = options.store(), options.registry_folder()
    whole = serve.find(registry, ref, profile)
    names = [profile] if profile else [None, *whole.whole.profiles]
    environment = serve.environment(store, options.tell, vllm)
    checked = []
    for name in names:
        served = serve.find(registry, ref, name)
        size = int(memory * 2**30) if memory is not None else None
        checked.append((served, serve.lint(store, registry, served, environment, size)))
    present.linted(checked, as_json=as_json)
    if any(problems for _, problems in checked):
        raise typer.Exit(2)


def manifest_schema() -> None:
    """Print the JSON Schema of serving manifests (`serving.json`)."""
    import json

    from registry.serving_manifest import schema

    print(json.dumps(schema(), indent=2))
