"""The parts of a registry that decide: references, the index, changes, manifests, confined paths."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qpack.core.errors import RegistryError
from qpack.core.records import FileRecord
from registry.core import modelpack
from registry.core.files import confined
from registry.core.protocol import AliasMove, Event, PushRequest, Ref, check_name, check_tag
from registry.local import changes
from registry.local.index import Entry, Index
from registry.registries import open_registry
from tests.codes import coded

PARTS = st.from_regex(r"[a-z0-9]{1,5}((\.|_|__|-{1,3})[a-z0-9]{1,5}){0,2}", fullmatch=True)
NAMES = st.lists(PARTS, min_size=1, max_size=3).map("/".join)
TAGS = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,20}", fullmatch=True)
ALIASES = TAGS.filter(lambda tag: not tag.isdecimal())
DIGESTS = st.from_regex(r"sha256:[0-9a-f]{64}", fullmatch=True)
REFS = st.builds(Ref, NAMES, st.none() | TAGS, st.none() | DIGESTS)


def publish(index: Index, version: str | None, alias: str | None, digest: str) -> changes.Change:
    return changes.publish(index, PushRequest("m", version, alias, actor="someone", note="why"), digest, 1)


def move(index: Index, alias: str, version: str, expected: str | None) -> changes.Change:
    return changes.move(index, AliasMove("m", alias, version, expected, actor="someone", note="why"))


def entries(name: str, *versions: str) -> tuple[Entry, ...]:
    return tuple(Entry(name, version, f"sha256:{number:064x}", 7, "t") for number, version in enumerate(versions))


@given(REFS)
def test_a_reference_is_the_same_after_it_was_written_and_read(ref: Ref) -> None:
    assert Ref.parse(str(ref)) == ref


@given(st.text(max_size=40))
def test_what_is_read_as_a_reference_is_written_the_same(text: str) -> None:
    try:
        ref = Ref.parse(text)
    except RegistryError:
        return
    assert str(ref) == text


@pytest.mark.parametrize(
    "text",
    [
        *("", ":", "a:", "A", "a b", "a//b", "/a", "a/", "a:b:c", "a@", "a@sha256:12", "a@md5:0", "a:.x", "a..b", "-a"),
        *("a\n", "a:1\n", "../a", "a/../b", "a" * 256, "a:" + "b" * 129, "a@sha256:" + "G" * 64, "é"),
    ],
)
def test_what_is_not_a_reference_is_refused_with_the_grammar(text: str) -> None:
    with pytest.raises(RegistryError) as caught:
        Ref.parse(text)
    assert "name:version" in caught.value.hint
    assert caught.value.exit_code == 8


@given(NAMES, st.lists(TAGS, unique=True, min_size=1, max_size=5), st.data())
def test_an_index_is_the_same_after_a_trip_through_json(name: str, versions: list[str], data: st.DataObject) -> None:
    pointing = data.draw(st.dictionaries(ALIASES.filter(lambda a: a not in versions), st.sampled_from(versions)))
    foreign = {"mediaType": "application/x", "digest": "sha256:00", "size": 0}
    index = Index(entries=entries(name, *versions), others=(foreign,))
    for alias, version in pointing.items():
        index = index.with_alias(name, alias, version)
    assert Index.from_json(index.to_json(), "index.json") == index


@given(
    st.binary()
    | st.sampled_from([b"{}", b"[]", b"null", b'{"manifests": [3]}', b'{"manifests": [{"annotations": 1}]}'])
)
def test_a_damaged_index_is_an_error_and_not_an_empty_registry(data: bytes) -> None:
    with pytest.raises(RegistryError, check=coded("damaged-record"), match=r"index\.json"):
        Index.from_json(data, "index.json")


def test_versions_count_up_and_skip_what_is_no_number() -> None:
    assert Index().next_version("m") == "1"
    assert Index(entries("m", "1", "9", "10", "rc-99")).next_version("m") == "11"
    assert Index(entries("other", "5")).next_version("m") == "1"


@given(st.lists(st.sampled_from(["sha256:a", "sha256:b", "sha256:c"]), min_size=1, max_size=8))
def test_publishing_the_same_content_again_adds_nothing(digests: list[str]) -> None:
    index = Index()
    for digest in digests:
        index = publish(index, None, "latest", digest).index
    assert len(index.entries) == len(set(digests))
    assert [entry.version for entry in index.entries] == [str(n + 1) for n in range(len(index.entries))]
    assert index.find(Ref("m")).digest == digests[-1]


def test_a_version_never_gets_other_content() -> None:
    index = publish(Index(), "1.0", None, "sha256:a").index
    with pytest.raises(RegistryError, check=coded("version-exists")) as caught:
        publish(index, "1.0", None, "sha256:b")
    assert "leave the version out" in caught.value.hint


def test_a_version_asked_for_by_name_is_made_even_when_the_content_is_known() -> None:
    index = publish(Index(), None, None, "sha256:a").index
    change = publish(index, "1.0", None, "sha256:a")
    assert (change.entry.version, change.there) == ("1.0", False)


def test_a_version_and_an_alias_never_share_a_name() -> None:
    index = publish(Index(), "1.0", "stable", "sha256:a").index
    with pytest.raises(RegistryError, check=coded("name-taken")):
        publish(index, "stable", None, "sha256:b")
    with pytest.raises(RegistryError, check=coded("name-taken")):
        move(index, "1.0", "1.0", None)
    with pytest.raises(RegistryError, check=coded("invalid-name")):
        changes.check_version("latest")


def test_moving_an_alias_to_where_it_is_changes_nothing() -> None:
    index = publish(Index(), None, "prod", "sha256:a").index
    assert move(index, "prod", "1", "1").event is None


def test_an_alias_moves_only_from_where_it_is_expected() -> None:
    index = Index(entries("m", "1", "2", "3")).with_alias("m", "prod", "1")
    assert move(index, "prod", "2", "1").index.alias("m", "prod") == "2"
    assert move(index, "new", "2", "").index.alias("m", "new") == "2"
    with pytest.raises(RegistryError, check=coded("alias-moved"), match="1"):
        move(index, "prod", "3", "2")
    with pytest.raises(RegistryError, check=coded("alias-moved"), match="1"):
        move(index, "prod", "3", "")
    with pytest.raises(RegistryError, check=coded("alias-moved")):
        move(index, "new", "3", "1")


def test_an_unknown_reference_names_what_is_close() -> None:
    index = Index(entries("llama3-8b-awq", "1", "2")).with_alias("llama3-8b-awq", "production", "2")
    for text, close in (
        ("llama-8b-awq", "'llama3-8b-awq'"),
        ("llama3-8b-awq:prodution", "'production'"),
        ("zzz", "llama3-8b-awq"),
        ("llama3-8b-awq:77", "production"),
        ("llama3-8b-awq@sha256:" + "9" * 64, "sha256:000000"),
    ):
        with pytest.raises(RegistryError) as caught:
            index.find(Ref.parse(text))
        assert close in caught.value.hint


def test_a_tag_and_a_digest_must_agree() -> None:
    index = Index(entries("m", "1", "2"))
    assert index.find(Ref("m", "1", f"sha256:{0:064x}")).version == "1"
    assert index.find(Ref("m", None, f"sha256:{1:064x}")).version == "2"
    with pytest.raises(RegistryError, check=coded("digest-differs")):
        index.find(Ref("m", "1", f"sha256:{1:064x}"))


def test_an_event_is_the_same_after_a_trip_through_json() -> None:
    event = publish(Index(), None, "prod", "sha256:a").event
    assert event is not None
    assert Event.model_validate_json(event.model_dump_json()) == event
    assert (event.who, event.note, event.what, event.alias, event.previous) == ("someone", "why", "push", "prod", None)


@given(
    st.dictionaries(PARTS, st.tuples(st.integers(0, 10), st.from_regex(r"[0-9a-f]{64}", fullmatch=True)), min_size=1),
    st.dictionaries(st.text(), st.text(), max_size=3),
)
def test_a_manifest_says_what_it_was_made_from(files: dict[str, tuple[int, str]], notes: dict[str, str]) -> None:
    records = tuple(FileRecord(path=p, size_bytes=n, sha256=d) for p, (n, d) in sorted(files.items()))
    config = modelpack.config(records, notes)
    data = modelpack.manifest(records, config, notes)
    contents = modelpack.read_manifest(data, "it")
    assert contents.files == records
    assert contents.annotations == notes
    assert contents.blobs() == {need.digest for need in modelpack.needs(data)}


def test_a_manifest_follows_the_model_specification() -> None:
    records = tuple(
        FileRecord(path=path, size_bytes=1, sha256=f"{number:064x}")
        for number, path in enumerate(("LICENSE", "README.md", "model/config.json", "model/model.safetensors"))
    )
    notes = {"org.opencontainers.image.licenses": "MIT", modelpack.QUANTIZATION: "gptq"}
    config = modelpack.config(records, notes)
    manifest = json.loads(modelpack.manifest(records, config, notes))
    assert manifest["mediaType"] == "application/vnd.oci.image.manifest.v1+json"
    assert manifest["artifactType"] == "application/vnd.cncf.model.manifest.v1+json"
    assert manifest["config"]["mediaType"] == "application/vnd.cncf.model.config.v1+json"
    assert [layer["mediaType"].removeprefix("application/vnd.cncf.model.") for layer in manifest["layers"]] == [
        *("doc.v1.raw", "doc.v1.raw", "weight.config.v1.raw", "weight.v1.raw"),
    ]
    assert [layer["annotations"]["org.cncf.model.filepath"] for layer in manifest["layers"]] == [
        r.path for r in records
    ]
    assert json.loads(config) == {
        "config": {"format": "safetensors", "quantization": "gptq"},
        "descriptor": {"licenses": ["MIT"]},
        "modelfs": {"type": "layers", "diffIds": [layer["digest"] for layer in manifest["layers"]]},
    }


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b'{"artifactType": "x"}', b"\xff"])
def test_a_manifest_of_something_else_is_refused(data: bytes) -> None:
    with pytest.raises(RegistryError, check=coded("not-a-release")):
        modelpack.read_manifest(data, "it")


@pytest.mark.parametrize("path", ["", ".", "..", "../a", "a/../b", "/a", "a//b", "./a", "a\\b", "a\nb", "a/", "a\0b"])
def test_a_path_that_leads_out_of_a_release_is_refused(path: str, tmp_path: Path) -> None:
    with pytest.raises(RegistryError, check=coded("unsafe-path")):
        confined(tmp_path, path)


@given(st.text())
def test_a_confined_path_stays_inside(path: str) -> None:
    folder = Path("/registry/release")
    try:
        target = confined(folder, path)
    except RegistryError:
        return
    assert folder in target.parents
    assert ".." not in target.parts


def test_names_and_tags_of_oci_are_accepted() -> None:
    assert check_name("org/llama-3.1__8b--awq") == "org/llama-3.1__8b--awq"
    assert check_tag("_v1.0-RC.1") == "_v1.0-RC.1"


def test_an_unknown_kind_of_registry_names_what_is_close() -> None:
    with pytest.raises(RegistryError) as caught:
        open_registry("locl", "x")
    assert "'local'" in caught.value.hint
