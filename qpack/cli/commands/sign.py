"""`qpack sign`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qpack.cli.options import AsJson, Ref, Why, local_registry, signatures
from qpack.core.errors import invalid_option


def sign(
    ref: Ref,
    key: Annotated[
        Path | None,
        typer.Option(
            "--key",
            metavar="FILE",
            help="Private key (PEM). QPACK_KEY_PASSWORD decrypts it.",
            show_default=False,
        ),
    ] = None,
    keyless: Annotated[bool, typer.Option("--keyless", help="Sign with the CI's identity through sigstore.")] = False,
    why: Why = "",
    as_json: AsJson = False,
) -> None:
    """Sign a release.

    The signature is stored beside the release, whose digest stays the same.
    """
    from qpack.cli.render import sign as present
    from registry.local.changes import whoami

    if (key is None) != keyless:
        raise invalid_option("--key", "exactly one of --key and --keyless is needed")
    local = local_registry()
    resolved = local.resolve(ref)
    digest = signatures(local).sign(
        f"{resolved.name}:{resolved.version}@{resolved.digest}", key, actor=whoami(), why=why
    )
    present.signed(resolved, digest, as_json=as_json)
