"""`qpack manifest lint`."""

from __future__ import annotations

from typing import Annotated

import typer

from qpack.cli import options
from qpack.cli.options import AsJson, Profile
from qpack.cli.places import AnyRef, at_hand


def manifest_lint(
    ref: AnyRef,
    profile: Profile = None,
    vllm: Annotated[
        str | None,
        typer.Option("--vllm", metavar="VERSION", help="Require this vLLM version.", show_default=False),
    ] = None,
    memory: Annotated[
        float | None,
        typer.Option(
            "--memory", metavar="GIB", help="Memory of one device (default: this machine's).", show_default=False
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check a serving manifest against vLLM.

    Also against the checkpoint and this machine.
    """
    from qpack.cli.render import manifest_lint as present
    from qpack.serve import served_release as serve

    store, registry = options.store(), options.registry_folder()
    ref = at_hand(ref)
    served = serve.find(registry, ref, profile)
    names = [] if profile else list(served.whole.profiles)
    profiles = [served, *(serve.find(registry, served.resolved, name) for name in names)]
    environment = serve.environment(store, options.report, wanted=vllm)
    size = int(memory * 2**30) if memory is not None else None
    checked = serve.lint(store, registry, profiles, environment, size)
    present.linted(checked, as_json=as_json)
    if any(each.problems for each in checked):
        raise typer.Exit(2)
