"""`qpack publish`."""

from __future__ import annotations

from qpack.cli.render.text import emit
from qpack.core.records import Published


def published(found: Published, *, as_json: bool) -> None:
    """Where a release went."""
    if as_json:
        emit(found.model_dump())
        return
    # The folder of another local registry doesn't name the release.
    where = found.location if "://" in found.location else f"{found.reference} in {found.location}"
    print(f"{'Already there' if found.already_there else 'Published'}: {where}")
    print(f"  digest {found.digest}")
    if found.alias:
        print(f"  alias  {found.alias}")
