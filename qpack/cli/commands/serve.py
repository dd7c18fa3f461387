"""`qpack serve`."""

from __future__ import annotations

from typing import Annotated

import typer

from qpack.cli import options
from qpack.cli.options import Port, Profile, TrustRelease, Verbose
from qpack.cli.places import AnyRef, at_hand


def serve(
    ref: AnyRef,
    profile: Profile = None,
    port: Port = 8000,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the command; start nothing.")] = False,
    trust_release: TrustRelease = False,
    verbose: Verbose = False,
) -> None:
    """Serve a release with vLLM.

    Ctrl-C stops the server.
    """
    from evals.server import vllm_server
    from qpack.cli.render import serve as present
    from qpack.core.console import open_console
    from qpack.serve import served_release

    store, registry = options.store(), options.registry_folder()
    served = served_release.find(registry, at_hand(ref), profile)
    served_release.check_trust(served, trust_release)
    if dry_run:
        present.command_of(served, served_release.model_folder(store, served), port)
        return
    served_release.check_hardware(served)
    vllm_server.free_port(port)  # before anything is fetched or made
    model = served_release.pull(store, registry, served)
    vllm = served_release.environment(store, options.report, target=served.manifest.hardware)
    vllm = served_release.reaching(vllm, served.manifest, trust_release)
    with open_console(verbose=verbose) as console:
        console.stage(1, 1, "serve", f"{served.reference}, profile {served.profile}")
        with served_release.running(store, served, model, vllm, port, console) as server:
            console.end(f"ready after {server.start_seconds:.1f} s")
            present.serving(served, server)
            served_release.watch(server)
