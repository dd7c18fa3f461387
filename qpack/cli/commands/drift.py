"""`qpack drift`."""

from __future__ import annotations

from typing import Annotated

import typer

from qpack.cli import options
from qpack.cli.options import AsJson, Profile, TrustRelease
from qpack.cli.places import AnyRef, at_hand


def drift(
    url: Annotated[str, typer.Argument(metavar="URL", help="URL of a running server.", show_default=False)],
    ref: AnyRef,
    profile: Profile = None,
    trust_release: TrustRelease = False,
    as_json: AsJson = False,
) -> None:
    """Compare a running server with its release."""
    from qpack.cli.render import drift as present
    from qpack.serve import live, served_release

    served = served_release.find(options.registry_folder(), at_hand(ref), profile)
    served_release.check_trust(served, trust_release)
    present.drifted(served, url, live.drift(url, served), as_json=as_json)
