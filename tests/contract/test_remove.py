"""Versions that are removed: what goes with them, what stays, and what never comes back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from qpack.core.errors import RegistryError
from qpack.pipeline.rejudge import rejudge
from registry.core.bundle import Attachment
from registry.core.protocol import AliasMove, PushRequest, Ref, Releases, Removed, Resolved
from registry.hub.registry import HubRegistry
from registry.lifecycle import promotion
from registry.local.changes import Author
from registry.local.registry import LocalRegistry
from registry.oci.registry import OciRegistry
from registry.registries import open_oci
from tests.codes import coded
from tests.contract.oci_server import serving
from tests.contract.registries_contract import FILES, contents, write
from tests.unit.laid_out import publish

NOTHING = promotion.Demands((), lambda *_: False, rejudge)


@pytest.fixture
def registry(tmp_path: Path) -> LocalRegistry:
    return LocalRegistry(tmp_path / "registry")


@pytest.fixture
def oci(tmp_path: Path) -> Iterator[OciRegistry]:
    """A real registry as it comes: it deletes nothing."""
    with serving(tmp_path / "server") as server, closing(open_oci(server.host, plain_http=True)) as found:
        yield found


def push(registry: Releases, tmp_path: Path, number: int, alias: str | None = None) -> str:
    folder = write(tmp_path / f"release-{number}", {**FILES, "model/config.json": b"%d" % number})
    return registry.push(folder, PushRequest("m", str(number), alias, actor="me"), annotations={}).digest


def remove(registry: Releases, ref: str, *, drop_aliases: bool = False) -> Removed:
    return registry.remove(Ref.parse(ref), drop_aliases=drop_aliases, actor="me", note="it answers nonsense")


def versions(registry: Releases) -> list[str]:
    return [found.version for found in registry.list()]


def test_a_removed_version_is_gone_and_its_blobs_go_at_the_next_collection(
    registry: LocalRegistry, tmp_path: Path
) -> None:
    digests = [push(registry, tmp_path, number) for number in (1, 2)]
    gone = remove(registry, "m:1")
    assert (gone.name, gone.version, gone.digest, gone.why) == ("m", "1", digests[0], "it answers nonsense")
    assert versions(registry) == ["2"]
    with pytest.raises(RegistryError) as caught:
        registry.resolve("m:1")
    assert "it answers nonsense" in caught.value.hint
    assert len(registry.collect(dry_run=False).blobs) == 3, "a file, a config and a manifest are its own"
    registry.pull("m:2", tmp_path / "pulled")
    assert contents(tmp_path / "pulled") == {**FILES, "model/config.json": b"2"}
    last = registry.history()[-1]
    assert (last.what, last.version, last.note, last.who) == ("remove", "1", "it answers nonsense", "me")


@pytest.mark.parametrize("ref", ["m:1", "m@{}"])
def test_a_version_is_named_by_its_number_or_its_digest(registry: LocalRegistry, tmp_path: Path, ref: str) -> None:
    digest = push(registry, tmp_path, 1)
    assert remove(registry, ref.format(digest)).digest == digest


@pytest.mark.parametrize("ref", ["m", "m:production", "m:2", "n:1", "m@sha256:" + "0" * 64])
def test_what_is_no_version_is_refused(registry: LocalRegistry, tmp_path: Path, ref: str) -> None:
    push(registry, tmp_path, 1, "production")
    before = registry.history()
    with pytest.raises(RegistryError):
        remove(registry, ref, drop_aliases=True)
    assert (versions(registry), registry.history()) == (["1"], before)


def test_a_digest_of_two_versions_is_refused_and_either_leaves_the_other(
    registry: LocalRegistry, tmp_path: Path
) -> None:
    digest = push(registry, tmp_path, 1)
    folder = tmp_path / "release-1"
    registry.push(folder, PushRequest("m", "again", None, actor="me"), annotations={})
    registry.attach("m:1", b"a signature", media_type="x/sig", annotations={}, by=Author("me"))
    with pytest.raises(RegistryError, check=coded("shared-versions"), match="1 and again"):
        remove(registry, f"m@{digest}")
    remove(registry, "m:1")
    assert registry.collect(dry_run=False).blobs == ()
    assert registry.attached("m:again", "x/sig") == (b"a signature",)


def test_a_version_that_an_alias_points_at_goes_only_with_the_alias(registry: LocalRegistry, tmp_path: Path) -> None:
    push(registry, tmp_path, 1, "canary")
    registry.alias(AliasMove("m", "prod", "1", actor="me"))
    with pytest.raises(RegistryError, check=coded("aliased-version"), match="'canary' and 'prod'"):
        remove(registry, "m:1")
    assert remove(registry, "m:1", drop_aliases=True).dropped == ("canary", "prod")
    assert registry.aliases("m") == {}
    assert registry.history()[-1].dropped == ("canary", "prod")


def test_an_alias_that_a_policy_guards_keeps_its_version(registry: LocalRegistry, tmp_path: Path) -> None:
    push(registry, tmp_path, 1)
    registry.alias(AliasMove("m", "prod", "1", actor="me"))
    (registry.root / "policy.yaml").write_text("aliases:\n  prod:\n    verdict: pass\n")
    with pytest.raises(RegistryError, check=coded("guarded-alias")):
        remove(registry, "m:1", drop_aliases=True)
    assert registry.aliases("m") == {"prod": "1"}


def test_a_reason_is_needed_and_bounded(registry: LocalRegistry, tmp_path: Path) -> None:
    push(registry, tmp_path, 1)
    for why in ("", " \n", "x" * 10_001):
        with pytest.raises(RegistryError, check=coded("bad-reason")):
            registry.remove(Ref("m", "1"), drop_aliases=False, actor="me", note=why)
    assert versions(registry) == ["1"]


def test_the_number_of_a_removed_version_is_not_given_out_again(registry: LocalRegistry, tmp_path: Path) -> None:
    first = push(registry, tmp_path, 1)
    push(registry, tmp_path, 2)
    remove(registry, "m:1")
    remove(registry, "m:2")
    other = write(tmp_path / "other", {"a": b"other"})
    with pytest.raises(RegistryError, check=coded("version-removed")):
        registry.push(other, PushRequest("m", "1", None, actor="me"), annotations={})
    assert registry.push(other, PushRequest("m", None, None, actor="me"), annotations={}).version == "3"
    assert push(registry, tmp_path, 1) == first, "the same content may come back"
    assert sorted(versions(registry)) == ["1", "3"]
    assert registry.resolve("m:1").digest == first


def test_what_was_resolved_before_is_read_as_it_was_until_it_is_collected(
    registry: LocalRegistry, tmp_path: Path
) -> None:
    push(registry, tmp_path, 1, "production")
    found = registry.resolve("m:production")
    push(registry, tmp_path, 2, "production")
    remove(registry, "m:1")
    assert registry.read(found, "model/config.json") == b"1"
    assert registry.contents(found).files
    assert registry.pull(found, tmp_path / "pulled") == found
    registry.collect(dry_run=False)
    with pytest.raises(RegistryError, check=coded("missing-content")):
        registry.read(found, "model/config.json")


def test_a_signature_goes_with_its_version_and_none_is_attached_afterwards(
    registry: LocalRegistry, tmp_path: Path
) -> None:
    push(registry, tmp_path, 1)
    push(registry, tmp_path, 2)
    registry.attach("m:1", b"a signature", media_type="x/sig", annotations={}, by=Author("me"))
    entry = registry._index().find(Ref("m", "1"))
    remove(registry, "m:1")
    collected = registry.collect(dry_run=False)
    assert collected.unreadable == ()
    assert len(collected.blobs) == 6, "and the signature, its manifest and its config"
    with pytest.raises(RegistryError, check=coded("no-such-version")):
        registry._attach(entry, Attachment(b"{}", {}), "x/sig", Author("me", "too late"))


def test_a_rollback_never_leads_to_what_was_removed(registry: LocalRegistry, tmp_path: Path) -> None:
    for number in (1, 2, 3):
        (tmp_path / f"s{number}").mkdir()
        publish(registry, "m", tmp_path / f"s{number}", number)
        promotion.promote(registry, f"m:{number}", "production", NOTHING, actor="me", why="")
    remove(registry, "m:2")
    assert promotion.rollback(registry, "m", "production", NOTHING, actor="me", why="").to.version == "1"


def test_an_oci_registry_that_deletes_nothing_says_so(oci: OciRegistry, tmp_path: Path) -> None:
    push(oci, tmp_path, 1)
    with pytest.raises(RegistryError, check=coded("registry-refused")) as caught:
        remove(oci, "m:1")
    assert "operator" in caught.value.hint
    assert versions(oci) == ["1"]


def test_an_oci_registry_that_deletes_loses_the_version_and_its_aliases_together(tmp_path: Path) -> None:
    with serving(tmp_path / "server", deletes=True) as server:
        with closing(open_oci(server.host, plain_http=True)) as oci:
            digest = push(oci, tmp_path, 1, "production")
            push(oci, tmp_path, 2)
            for ref in ("m", "m:production", "m:3", "m:1@sha256:" + "0" * 64):
                with pytest.raises(RegistryError):
                    remove(oci, ref, drop_aliases=True)
            with pytest.raises(RegistryError, check=coded("aliased-version"), match="'production'"):
                remove(oci, "m:1")
            found: Resolved = oci.resolve("m:1")
            gone = remove(oci, "m:1", drop_aliases=True)
            assert (gone.digest, gone.dropped) == (digest, ("production",))
            assert versions(oci) == ["2"]
            with pytest.raises(RegistryError):
                oci.pull(found, tmp_path / "pulled")
            oci.push(tmp_path / "release-2", PushRequest("m", "4", None, actor="me"), annotations={})
            with pytest.raises(RegistryError, check=coded("shared-versions"), match="2 and 4"):
                remove(oci, "m:2")
            remove(oci, f"m@{oci.resolve('m:2').digest}")
            with pytest.raises(RegistryError):
                oci.list("m")


def test_the_hub_says_that_it_removes_nothing() -> None:
    with pytest.raises(RegistryError, check=coded("not-removable")):
        HubRegistry().remove(Ref("org/m", "1"), drop_aliases=False, actor="me", note="why")
