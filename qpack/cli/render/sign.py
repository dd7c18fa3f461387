"""`qpack sign`."""

from __future__ import annotations

from qpack.cli.render.text import emit
from registry.core.protocol import Resolved


def signed(resolved: Resolved, digest: str, *, as_json: bool) -> None:
    """A signature that was attached."""
    if as_json:
        emit({"name": resolved.name, "version": resolved.version, "digest": resolved.digest, "signature": digest})
        return
    print(f"Signed {resolved.name}:{resolved.version} ({resolved.digest[:19]}); the signature is {digest[:19]}")
