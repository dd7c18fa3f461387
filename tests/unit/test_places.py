"""What is written after --to, where a release stands on the Hub, and what is read from others."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qpack.core.errors import RegistryError
from registry.core import modelpack
from registry.core.protocol import Ref
from registry.hub.layout import CONFIG, MANIFEST, hub_path
from registry.oci import credentials
from registry.oci.auth import Challenge
from registry.registries import Place

PATHS = st.lists(
    st.sampled_from(
        [
            "model",
            "qpack",
            "files",
            "README.md",
            "LICENSE",
            "manifest.json",
            "config.json",
            ".git",
            ".eval_results",
            "a",
        ]
    ),
    min_size=1,
    max_size=4,
).map("/".join)


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("oci://host/m", Place("oci", "host", Ref("m"))),
        ("oci://host:5000/org/m:1", Place("oci", "host:5000", Ref("org/m", "1"))),
        ("oci://[::1]:5000/m:prod", Place("oci", "[::1]:5000", Ref("m", "prod"))),
        ("hf://Org/My.Model", Place("hf", "", Ref("Org/My.Model"))),
        ("hf://Org/Model@v1", Place("hf", "", Ref("Org/Model", "v1"))),
        ("/some/folder", Place("local", "/some/folder", None)),
        ("./folder", Place("local", "./folder", None)),
    ],
)
def test_a_place_is_read(text: str, place: Place) -> None:
    assert Place.parse(text) == place


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("staging", "hf://org/name"),
        ("oc://host/m", "'oci'"),
        ("oci://host", ""),
        ("oci:///m", ""),
        ("oci://host/M", ""),
        ("hf://model", ""),
        ("hf://a/b/c", ""),
        ("oci://me:PLANTED@host/m", "docker login"),
    ],
)
def test_what_is_no_place_says_what_one_is(text: str, hint: str) -> None:
    with pytest.raises(RegistryError) as caught:
        Place.parse(text)
    assert hint in caught.value.hint
    assert "PLANTED" not in f"{caught.value.what} {caught.value.hint}"


@pytest.mark.parametrize(
    ("tag", "alias", "expected"),
    [
        (None, None, ("7", None)),
        (None, "prod", ("7", "prod")),
        ("1", None, ("1", None)),
        ("v2.0-rc1", "prod", ("v2.0-rc1", "prod")),
        ("prod", None, ("7", "prod")),
        ("prod", "prod", ("7", "prod")),
    ],
)
def test_a_tag_is_a_version_or_an_alias_by_its_form(
    tag: str | None, alias: str | None, expected: tuple[str, str | None]
) -> None:
    assert Place("oci", "host", Ref("m", tag)).version_and_alias("7", alias) == expected


@given(st.sets(PATHS, min_size=2))
def test_no_two_files_of_a_release_get_the_same_place_on_the_hub(paths: set[str]) -> None:
    places = [hub_path(path) for path in paths]
    assert len(set(places)) == len(places)
    assert not {MANIFEST, CONFIG, ".gitattributes"} & set(places)


def test_the_models_files_and_the_scores_are_where_they_are_looked_for() -> None:
    assert hub_path("model/config.json") == "config.json"
    assert hub_path("model/sub/tokenizer.json") == "sub/tokenizer.json"
    assert hub_path("README.md") == "README.md"
    assert hub_path("release.json") == "qpack/release.json"
    assert hub_path("model/README.md") == "qpack/model/README.md"
    assert hub_path(".eval_results/qpack.yaml") == ".eval_results/qpack.yaml"
    assert hub_path("model/.eval_results/other.yaml") == "qpack/model/.eval_results/other.yaml"


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("Basic realm=x", Challenge("basic", {"realm": "x"})),
        (
            'Bearer realm="https://a/token",service="s",scope="repository:m:pull,push"',
            Challenge("bearer", {"realm": "https://a/token", "service": "s", "scope": "repository:m:pull,push"}),
        ),
        (r'Bearer realm="a\"b"', Challenge("bearer", {"realm": 'a"b'})),
        ("", Challenge("", {})),
    ],
)
def test_a_challenge_is_read(header: str, expected: Challenge) -> None:
    assert Challenge.parse(header) == expected


@given(st.text())
def test_any_header_can_be_looked_at(header: str) -> None:
    Challenge.parse(header)


def test_the_login_for_the_longest_name_counts(tmp_path: Path) -> None:
    def entry(text: str) -> dict[str, str]:
        return {"auth": base64.b64encode(f"{text}:pass".encode()).decode()}

    names = {"h": "host", "h/a": "folder", "h/a/m": "repository"}
    path = tmp_path / "auth.json"
    path.write_text(json.dumps({"auths": {key: entry(value) for key, value in names.items()}}))
    variables = {"REGISTRY_AUTH_FILE": str(path)}
    for repository, expected in (("a/m", "repository"), ("a/n", "folder"), ("b", "host")):
        found = credentials.find("h", repository, variables)
        assert found is not None
        assert found.username == expected
    assert credentials.find("other", "a/m", variables) is None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["layers", "config", "digest", "size", "annotations", "artifactType", modelpack.FILEPATH]),
            inner,
            max_size=5,
        )
    ),
    max_leaves=12,
)


@given(JSON)
def test_a_manifest_from_elsewhere_is_read_or_refused(value: object) -> None:
    if isinstance(value, dict):
        value = {**value, "artifactType": modelpack.ARTIFACT_TYPE}
    try:
        contents = modelpack.read_manifest(json.dumps(value).encode(), "it")
    except RegistryError:
        return
    assert all(record.size_bytes >= 0 and len(record.sha256) == 64 for record in contents.files)
