"""The protocol of registries, its records, and the grammar of references.

A reference is `name[:version-or-alias][@sha256:...]`. Names and tags are those of the OCI distribution specification
(https://github.com/opencontainers/distribution-spec/blob/main/spec.md#pulling-manifests), so a release keeps its
name in every registry.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Literal, Protocol

from qpack.core.errors import RegistryError
from qpack.core.frozen import Frozen
from qpack.core.problems import Code
from qpack.core.records import Published
from registry.core.bundle import ReleaseBundle
from registry.core.codes import INVALID_NAME, INVALID_REFERENCE
from registry.core.modelpack import Contents

_ALIAS_MOVED = Code("alias-moved", "An alias doesn't point where it was expected.")

DEFAULT_ALIAS = "latest"

REMOTE_VERSION = re.compile(r"v?[0-9].*")
"""In registries that don't distinguish them, tags of this form are versions and all others aliases."""

_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_NAME = re.compile(rf"{_PART}(?:/{_PART})*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_LONGEST_NAME = 255

_REF_HINT = "Write it as name, name:version, name:alias or name:version@sha256:<64 hex digits>."
_NAME_HINT = "Use lower-case letters and digits, with single '.', '_', '-' or '/' between them."
_TAG_HINT = "Use up to 128 letters, digits, '.', '_' and '-', and start with a letter, a digit or '_'."


@dataclass(frozen=True)
class Ref:
    """A parsed reference. Without `tag` and `digest` it means the alias `latest`."""

    name: str
    tag: str | None = None
    digest: str | None = None

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        digest = f"@{self.digest}" if self.digest else ""
        return f"{self.name}{tag}{digest}"

    @classmethod
    def parse(cls, text: str) -> Ref:
        """Parse a reference: `Ref.parse(str(ref)) == ref`. Raises RegistryError if `text` isn't one."""
        head, at, digest = text.partition("@")
        name, colon, tag = head.partition(":")
        if (at and not _DIGEST.fullmatch(digest)) or (colon and not tag):
            raise RegistryError(INVALID_REFERENCE, f"{text!r} is not a reference", hint=_REF_HINT)
        try:
            return cls(check_name(name), check_tag(tag) if colon else None, digest if at else None)
        except RegistryError as error:
            raise RegistryError(
                INVALID_REFERENCE, f"{text!r} is not a reference: {error.what}", hint=_REF_HINT
            ) from error


def is_name(name: str) -> bool:
    """Whether it is a valid name of an OCI repository."""
    return len(name) <= _LONGEST_NAME and _NAME.fullmatch(name) is not None


def is_tag(tag: str) -> bool:
    """Whether it is a valid OCI tag."""
    return _TAG.fullmatch(tag) is not None


def check_name(name: str) -> str:
    """`name` itself. Raises RegistryError if it isn't a valid name of an OCI repository."""
    if not is_name(name):
        raise RegistryError(INVALID_NAME, f"{name!r} can't be the name of a release", hint=_NAME_HINT)
    return name


def check_tag(tag: str) -> str:
    """`tag` itself. Raises RegistryError if it isn't a valid OCI tag. Versions and aliases are tags."""
    if not is_tag(tag):
        raise RegistryError(INVALID_NAME, f"{tag!r} can't be a version or an alias", hint=_TAG_HINT)
    return tag


def check_alias(alias: str) -> str:
    """`alias` itself. Raises RegistryError for integers, which are versions."""
    if check_tag(alias).isdecimal():
        raise RegistryError(
            INVALID_NAME, f"{alias!r} can't be an alias: integers are versions", hint="Use a word, such as 'prod'."
        )
    return alias


def did_you_mean(wanted: str, known: Iterable[str]) -> str:
    """`Did you mean 'x' or 'y'?`, or an empty string without close matches."""
    close = difflib.get_close_matches(wanted, list(known), n=3, cutoff=0.6)
    return f"Did you mean {' or '.join(repr(word) for word in close)}?" if close else ""


Check = Callable[[Contents], None]

EventKind = Literal["push", "alias", "promote", "rollback", "sign", "remove"]
MoveKind = Literal["alias", "promote", "rollback"]


class Resolved(Frozen):
    """One version: `digest` is the `sha256:...` of its manifest, `created` when it was pushed (ISO 8601, UTC).

    `unreadable` is why its manifest can't be read, empty where it can. Only `list` gives such versions: without
    annotations, and on the Hub without a digest.
    """

    name: str
    version: str
    digest: str
    aliases: tuple[str, ...]
    annotations: dict[str, str]
    created: str
    unreadable: str = ""

    @property
    def exact(self) -> str:
        """`name:version@digest`: refers to this content only."""
        return f"{self.name}:{self.version}@{self.digest}"


Named = str | Resolved
"""A reference as text, looked up on each call, or the result of an earlier lookup.

An alias can move between two reads: to read twice, resolve once and pass the Resolved.
"""


class Event(Frozen):
    """One change: who did what, and when (ISO 8601, UTC).

    `push` published `version`, and pointed `alias` at it when there is one; `alias`, `promote` and `rollback` moved
    `alias` to `version`; `sign` attached a signature to it. `previous` is the version that the alias pointed at
    before, `verdict` what the release's gates said, `note` why it was done. `remove` took `version` away, and `dropped`
    are the aliases that pointed at it.
    """

    id: str
    when: str
    who: str
    what: EventKind
    name: str
    version: str
    digest: str
    alias: str | None = None
    previous: str | None = None
    note: str = ""
    verdict: str = ""
    dropped: tuple[str, ...] = ()

    def line(self) -> str:
        """As JSON, in one line. Without `dropped` where nothing was: a qpack that can't remove reads it too."""
        return self.model_dump_json(exclude=None if self.dropped else {"dropped"})


class Removed(Frozen):
    """A version that was removed. Its number isn't given out again, and only the same content can come back to it."""

    name: str
    version: str
    digest: str
    when: str
    why: str
    dropped: tuple[str, ...] = ()


@dataclass(frozen=True)
class PushRequest:
    """What a push publishes a release as.

    `version` None takes the next integer, or the version that already has this content. `actor` and `note` go into the
    history. With `consume` the registry may take over the source files: they become read-only, and their folder must
    not be changed afterwards.
    """

    name: str
    version: str | None
    alias: str | None
    _: KW_ONLY
    actor: str
    note: str = ""
    consume: bool = False


@dataclass(frozen=True)
class AliasMove:
    """An alias of `name`, and the version that it shall point at.

    `expected` is the version that it has to point at before: None for any, an empty string for an alias that must not
    exist yet. A registry with an alias policy refuses a plain move (`kind` "alias") of an alias that the policy guards.
    """

    name: str
    alias: str
    version: str
    expected: str | None = None
    _: KW_ONLY
    actor: str
    note: str = ""
    kind: MoveKind = "alias"

    def check_expected(self, before: str | None) -> None:
        """Raise RegistryError unless the alias points where it was expected to; `before` None: it doesn't exist."""
        if self.expected is None or (before or "") == self.expected:
            return
        now_at = f"points at version {before}" if before else "doesn't exist"
        hoped = f"to point at version {self.expected}" if self.expected else "not to exist"
        raise RegistryError(
            _ALIAS_MOVED,
            f"the alias {self.name}:{self.alias} was not moved: expected it {hoped}, but it {now_at}",
            hint="It was moved meanwhile. Look where it points and who moved it, then decide again.",
        )


class Collected(Frozen):
    """What `collect` removed or would remove: blobs that no version needs, and remains of killed pushes.

    `unreadable` lists manifests that can't be read, with the reason. They may need any blob, so the blobs in `kept`,
    which nothing else needs, stay.
    """

    blobs: tuple[str, ...]
    temporary: tuple[str, ...]
    bytes_freed: int
    dry_run: bool
    kept: tuple[str, ...] = ()
    unreadable: tuple[str, ...] = ()


class Releases(Protocol):
    """A local or remote registry of releases. Versions never change; aliases move.

    Every method raises RegistryError (exit code 8).
    """

    def push(self, folder: Path, request: PushRequest, *, annotations: Mapping[str, str]) -> Published:
        """Publish the files in `folder` as `request` says, all of them or nothing, and point its alias at the version.

        A version that exists with the same content is kept (`already_there`); one with other content is refused.
        """

    def put(self, bundle: ReleaseBundle, request: PushRequest) -> Published:
        """`push` for a release of another registry. Its manifest is written unchanged, so it keeps its digest."""

    def resolve(self, ref: Named) -> Resolved:
        """The version that `ref` refers to now. A tag and a digest have to agree. A Resolved is returned unchanged."""

    def list(self, name: str | None = None) -> tuple[Resolved, ...]:
        """Every version, of one name or of all, by name, then in the order of publication.

        A version whose manifest can't be read is among them, with the reason in `unreadable`.
        """

    def read(self, ref: Named, path: str) -> bytes:
        """The content of the release's file `path`, checked against its digest."""

    def pull(self, ref: Named, dest: Path) -> Resolved:
        """Write the release's files to `dest`, an absent or empty folder: all of them, verified, or none."""

    def alias(self, move: AliasMove) -> Resolved:
        """Point an alias at a version, if it points where `move.expected` says."""

    def remove(self, ref: Ref, *, drop_aliases: bool, actor: str, note: str) -> Removed:
        """Remove the version that `ref` names by version or digest; an alias is not accepted.

        Raises RegistryError while aliases point at it, unless `drop_aliases` removes them too, and where the registry
        can't remove versions. The next collection frees its blobs.
        """


class Remote(Releases, Protocol):
    """A registry behind a network."""

    def close(self) -> None:
        """Close the connections. Use `contextlib.closing`."""

    def pull(self, ref: Named, dest: Path, check: Check = lambda _: None) -> Resolved:
        """See `Releases.pull`. `check` is called with the contents before any file is downloaded; it raises to refuse
        the release.
        """

    def fetch_bundle(self, ref: Named, folder: Path) -> ReleaseBundle:
        """Download the release into `folder`, verified, to put it into another registry.

        Files that an earlier attempt left in `folder` aren't downloaded again.
        """


class Registry(Releases, Protocol):
    """A registry on this machine, with a history and garbage collection."""

    def open(self, ref: Named, path: str) -> Path:
        """The path of the content of the release's file `path`, after its digest was checked. Read-only."""

    def bundle(self, ref: Named) -> ReleaseBundle:
        """The release as a bundle for another registry."""

    def history(self, name: str | None = None) -> tuple[Event, ...]:
        """All events, oldest first."""

    def collect(self, *, dry_run: bool) -> Collected:
        """Remove blobs that no version needs. Waits for running pushes, and they wait for it."""
