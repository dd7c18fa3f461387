"""`qpack verify`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from qpack.cli.options import AsJson, Ref, existing, local_registry, signatures
from qpack.core.errors import invalid_option


def verify(
    ref: Ref,
    key: Annotated[
        list[Path] | None,
        typer.Option(
            "--key",
            metavar="PUB",
            help="Required signer's public key (PEM). Repeatable.",
            show_default=False,
        ),
    ] = None,
    identity: Annotated[
        str | None,
        typer.Option("--identity", help="Required keyless signer; needs --issuer.", show_default=False),
    ] = None,
    issuer: Annotated[
        str | None,
        typer.Option("--issuer", metavar="URL", help="OpenID Connect issuer of --identity.", show_default=False),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check a release's files, evidence and signature.

    Recomputes figures and the verdict.
    """
    from qpack.cli.render import verify as present
    from qpack.pipeline.rejudge import rejudge
    from registry.lifecycle import verification
    from registry.local.alias_policy import Identity

    if (identity is None) != (issuer is None):
        raise invalid_option("--identity", "--identity and --issuer belong together")
    for each in key or []:
        existing(each, "--key", "Name the public key's PEM file.")
    local = local_registry()
    report = verification.verify(local, ref, rejudge)
    keyless = [Identity(identity=identity, issuer=issuer)] if identity and issuer else []
    signature = signatures(local).checked(f"{report.reference}@{report.digest}", (*(key or []), *keyless))
    report = replace(report, parts=(*report.parts, signature))
    present.verified(report, as_json=as_json)
    verification.check(report)
