"""Tags of an OCI repository: versions and aliases, distinguished by their form. Pure.

`digests` maps each tag to its manifest's digest, versions first and in order.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from qpack.core.errors import RegistryError
from registry.core import modelpack
from registry.core.codes import INVALID_NAME, SHARED_VERSIONS, VERSION_NEEDED
from registry.core.protocol import REMOTE_VERSION, Ref, Resolved, check_alias, check_name, check_tag


def check(name: str, version: str | None, alias: str | None) -> None:
    """Raise RegistryError for invalid names, and for tags of the wrong form."""
    check_name(name)
    if version is not None and not REMOTE_VERSION.fullmatch(check_tag(version)):
        raise RegistryError(
            INVALID_NAME,
            f"{version!r} can't be a version in an OCI registry: it has to start with a digit, or `v` and a digit",
            hint="Add a version to the target, such as oci://host/name:1.",
        )
    if alias is not None and REMOTE_VERSION.fullmatch(check_alias(alias)):
        raise RegistryError(
            INVALID_NAME,
            f"{alias!r} can't be an alias in an OCI registry: such tags are versions",
            hint="Use a word, such as 'production'.",
        )


def digest_to_remove(ref: Ref, digests: Mapping[str, str]) -> tuple[str | None, tuple[str, ...]]:
    """The digest that `ref` identifies by version or digest (None if there is none), and the aliases at it.

    Raises RegistryError for an alias, and for a version that shares its manifest with another: a manifest is deleted
    by digest, with all its tags.
    """
    if ref.tag is None and ref.digest is None:
        raise RegistryError(VERSION_NEEDED, f"{ref} names no version", hint=f"Name one, such as {ref.name}:1.")
    if ref.tag in digests and not REMOTE_VERSION.fullmatch(ref.tag or ""):
        raise RegistryError(
            VERSION_NEEDED,
            f"{ref.tag!r} is an alias",
            hint=f"Name the version, or the digest: {ref.name}@{digests[ref.tag or '']}.",
        )
    digest = ref.digest if ref.tag is None else digests.get(ref.tag)
    if digest not in digests.values() or ref.digest not in (None, digest):
        return None, ()
    tags = [tag for tag, other in digests.items() if other == digest]
    versions = [tag for tag in tags if REMOTE_VERSION.fullmatch(tag)]
    if ref.tag is not None and len(versions) > 1:
        raise RegistryError(
            SHARED_VERSIONS,
            f"{ref} was not removed: versions {' and '.join(versions)} share one manifest",
            hint=f"Remove all of them by digest: {ref.name}@{digest}.",
        )
    return digest, tuple(sorted(set(tags) - set(versions)))


def order(tag: str) -> tuple[bool, tuple[int, ...], str]:
    """Versions by their numbers, then aliases."""
    return (not REMOTE_VERSION.fullmatch(tag), tuple(int(n[:18]) for n in re.findall(r"\d+", tag)), tag)


def version_of(digest: str | None, digests: Mapping[str, str]) -> str | None:
    """The newest version with this content."""
    found = [tag for tag, other in digests.items() if other == digest and REMOTE_VERSION.fullmatch(tag)]
    return found[-1] if found else None


def resolved(name: str, digest: str, annotations: Mapping[str, str], digests: Mapping[str, str]) -> Resolved:
    """The version with that manifest. Without a version tag it is named by its alias or digest."""
    aliases = tuple(sorted(t for t, other in digests.items() if other == digest and not REMOTE_VERSION.fullmatch(t)))
    return Resolved(
        name=name,
        version=version_of(digest, digests) or (aliases[0] if aliases else digest),
        digest=digest,
        aliases=aliases,
        annotations=dict(annotations),
        created=annotations.get(modelpack.CREATED, ""),
    )
