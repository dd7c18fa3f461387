"""What tags of an OCI repository mean: versions and aliases, told apart by their form. Pure.

`digests` maps every tag to its manifest's digest, versions first and in order.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from qpack.core.errors import RegistryError
from registry.core import modelpack
from registry.core.protocol import REMOTE_VERSION, Ref, Resolved, check_alias, check_name, check_tag


def check(name: str, version: str | None, alias: str | None) -> None:
    """Names, and whether a tag says by its form what it is."""
    check_name(name)
    if version is not None and not REMOTE_VERSION.fullmatch(check_tag(version)):
        raise RegistryError(
            f"{version!r} can't be a version in an OCI registry: there, it starts with a digit, or `v` and a digit",
            hint="Name a version behind the target, such as oci://host/name:1.",
        )
    if alias is not None and REMOTE_VERSION.fullmatch(check_alias(alias)):
        raise RegistryError(
            f"{alias!r} can't be an alias in an OCI registry: there, what starts like that is a version",
            hint="Use a word, such as 'production'.",
        )


def digest_to_remove(ref: Ref, digests: Mapping[str, str]) -> tuple[str | None, tuple[str, ...]]:
    """The digest that `ref` names by a version or by itself, None when there is none, and the aliases that point at it.

    Raises RegistryError for an alias, and for a version whose content another one has: a manifest is deleted by its
    digest, and takes all its tags along.
    """
    if ref.tag is None and ref.digest is None:
        raise RegistryError(f"{ref} names no version", hint=f"Name one, such as {ref.name}:1.")
    if ref.tag in digests and not REMOTE_VERSION.fullmatch(ref.tag or ""):
        raise RegistryError(
            f"{ref.tag!r} is an alias", hint=f"Name the version, or the digest: {ref.name}@{digests[ref.tag or '']}."
        )
    digest = ref.digest if ref.tag is None else digests.get(ref.tag)
    if digest not in digests.values() or ref.digest not in (None, digest):
        return None, ()
    tags = [tag for tag, other in digests.items() if other == digest]
    versions = [tag for tag in tags if REMOTE_VERSION.fullmatch(tag)]
    if ref.tag is not None and len(versions) > 1:
        raise RegistryError(
            f"{ref} was not removed: versions {' and '.join(versions)} are one manifest, and would go together",
            hint=f"Remove them all by the digest: {ref.name}@{digest}.",
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
    """What a manifest with that digest is, by its tags. One without a version is named by its alias or its digest."""
    aliases = tuple(sorted(t for t, other in digests.items() if other == digest and not REMOTE_VERSION.fullmatch(t)))
    return Resolved(
        name=name,
        version=version_of(digest, digests) or (aliases[0] if aliases else digest),
        digest=digest,
        aliases=aliases,
        annotations=dict(annotations),
        created=annotations.get(modelpack.CREATED, ""),
    )
