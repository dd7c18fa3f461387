"""`qpack publish`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from qpack.cli.render.text import emit
from qpack.core.records import Published

if TYPE_CHECKING:
    from registry.oci.registry import ImagePublished


def published(found: Published, image: ImagePublished | None, *, as_json: bool) -> None:
    """Where a release went, and its image."""
    if as_json:
        emit(found.model_dump() | ({} if image is None else {"image": asdict(image)}))
        return
    # The folder of another local registry doesn't name the release.
    where = found.location if "://" in found.location else f"{found.reference} in {found.location}"
    print(f"{'Already there' if found.already_there else 'Published'}: {where}")
    print(f"  digest {found.digest}")
    if found.alias:
        print(f"  alias  {found.alias}")
    if image is not None:
        print(f"  image  {image.repository}:{image.tag}@{image.digest}")
        print("         `qpack export --mount image --image DIGEST` mounts it in pods")
