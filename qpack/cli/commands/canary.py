"""`qpack canary`."""

from __future__ import annotations

from qpack.cli import options
from qpack.cli.options import AsJson, Profile, Target, TrustRelease
from qpack.cli.places import at_hand


def canary(
    target: Target, profile: Profile = None, trust_release: TrustRelease = False, as_json: AsJson = False
) -> None:
    """Test a server against its manifest.

    Asks with the openai SDK for everything the manifest promises.
    """
    from qpack.cli.render import canary as present
    from qpack.core.console import open_console
    from qpack.serve import live, served_release

    store, registry = options.store(), options.registry_folder()
    with served_release.reached(
        store, registry, at_hand(target), profile, options.report, trusted=trust_release
    ) as server:
        with open_console() as console:
            console.stage(1, 1, "canary", f"{server.model} at {server.base_url}")
            proof = live.prove(store, server, console)
            console.end(f"{len(proof.checks)} checks")
    present.proved(server, proof, as_json=as_json)
