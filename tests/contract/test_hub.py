"""The unmodified huggingface_hub client against a conformance server: the client's contract, not the Hub itself."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants
from huggingface_hub.utils import _http, close_session

from qpack.core.errors import RegistryError
from registry.core.bundle import ReleaseBundle, pack
from registry.core.protocol import PushRequest
from registry.hub.reader import HubReader
from registry.hub.registry import HubRegistry, HubSettings
from registry.local.changes import Author
from registry.local.registry import LocalRegistry
from tests.codes import coded
from tests.contract.hub_server import ORG, READ_TOKEN, TOKEN, Fault, Hub, serving
from tests.contract.registries_contract import FILES, Files, contents, write

# Of the client's own code.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

NAME = f"{ORG}/m"
# Some too large for git, some not, one empty; and names that are in the way of others at the top.
RELEASE: Files = {
    **FILES,
    "LICENSE": b"do what you want\n",
    "release.json": b'{"x": 1}',
    "manifest.json": b"a file of the release",
    "model/README.md": b"# another card\n",
    "model/qpack/inside.txt": b"inside",
    ".eval_results/qpack.yaml": b"[]",
}


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Nobody's own token, no cache, no Xet (the server has none), and no waiting between the client's tries."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setattr(_http.time, "sleep", lambda _: None)
    yield
    close_session()


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serving() as found:
        yield found


@pytest.fixture
def packed(tmp_path: Path) -> ReleaseBundle:
    return pack(write(tmp_path / "release", RELEASE), {"org.example": "yes"})


def registry(hub: Hub) -> HubRegistry:
    return HubRegistry(endpoint=hub.url, wait=lambda _: None)


def put(hub: Hub, packed: ReleaseBundle, version: str = "1") -> str:
    return registry(hub).put(packed, PushRequest(NAME, version, None, actor="me")).digest


def test_a_release_is_one_commit_and_one_tag_and_comes_back(hub: Hub, packed: ReleaseBundle, tmp_path: Path) -> None:
    published = registry(hub).put(packed, PushRequest(NAME, "1", None, actor="me"))
    assert (published.digest, published.already_there) == (packed.digest, False)
    repository = hub.repositories[NAME]
    assert repository.private
    assert repository.trail() == ["qpack: version 1", "initial commit"]
    assert repository.tags == {"1": repository.branches["main"]}
    there = hub.files(NAME)
    assert there["README.md"] == RELEASE["README.md"]
    assert there["model.safetensors"] == RELEASE["model/model.safetensors"]
    assert there["qpack/manifest.json"] == packed.manifest
    assert there[".eval_results/qpack.yaml"] == RELEASE[".eval_results/qpack.yaml"]
    for ref in (NAME, f"{NAME}:1"):
        resolved = registry(hub).pull(ref, tmp_path / ref.replace("/", "-"))
        assert (resolved.version, resolved.digest) == ("1", packed.digest)
        assert contents(tmp_path / ref.replace("/", "-")) == RELEASE
    assert registry(hub).read(NAME, "release.json") == RELEASE["release.json"]
    assert [found.version for found in registry(hub).list(NAME)] == ["1"]


def test_a_pull_request_changes_nothing_until_it_is_merged_and_then_gets_its_tag(
    hub: Hub, packed: ReleaseBundle
) -> None:
    asking = HubRegistry(HubSettings(as_pr=True), endpoint=hub.url, wait=lambda _: None)
    opened = asking.put(packed, PushRequest(NAME, "1", None, actor="me"))
    repository = hub.repositories[NAME]
    assert opened.location.endswith("/discussions/1")
    assert (repository.trail(), repository.tags) == (["initial commit"], {})
    (proposed,) = repository.proposals
    assert proposed.message == "qpack: version 1"
    repository.add(proposed)
    done = asking.put(packed, PushRequest(NAME, "1", None, actor="me"))
    assert done.location.endswith(f"{NAME}/tree/1")
    assert (len(repository.proposals), repository.tags) == (1, {"1": repository.branches["main"]})
    assert registry(hub).resolve(f"{NAME}:1").digest == packed.digest


def test_a_new_repository_is_gated_and_put_into_a_collection(hub: Hub, packed: ReleaseBundle) -> None:
    settings = HubSettings(gated="manual", collection=f"{ORG}/quantized-123")
    HubRegistry(settings, endpoint=hub.url, wait=lambda _: None).put(packed, PushRequest(NAME, "1", None, actor="me"))
    assert hub.repositories[NAME].settings == {"gated": "manual"}
    assert hub.collections == {f"{ORG}/quantized-123": [NAME]}


def test_a_release_from_the_hub_has_the_same_digest_in_the_local_registry(
    hub: Hub, packed: ReleaseBundle, tmp_path: Path
) -> None:
    put(hub, packed)
    local = LocalRegistry(tmp_path / "registry")
    local.put(
        registry(hub).fetch_bundle(NAME, tmp_path / "fetched"), PushRequest("m", "1", None, actor="me", consume=True)
    )
    assert local.resolve("m:1").digest == packed.digest
    local.pull("m:1", tmp_path / "pulled")
    assert contents(tmp_path / "pulled") == RELEASE


def test_the_same_release_again_changes_nothing(hub: Hub, packed: ReleaseBundle) -> None:
    put(hub, packed)
    before = hub.repositories[NAME].trail(), dict(hub.repositories[NAME].tags)
    assert registry(hub).put(packed, PushRequest(NAME, "1", None, actor="me")).already_there
    # As another version it is another tag at the same commit.
    put(hub, packed, "2")
    repository = hub.repositories[NAME]
    assert repository.trail() == before[0]
    assert repository.tags == {"1": repository.branches["main"], "2": repository.branches["main"]}


def test_the_next_version_replaces_the_files_and_a_version_is_never_moved(
    hub: Hub, packed: ReleaseBundle, tmp_path: Path
) -> None:
    put(hub, packed)
    other = pack(write(tmp_path / "other", {"README.md": b"# two\n", "model/model.safetensors": b"2" * 999}), {})
    with pytest.raises(RegistryError, check=coded("version-exists")):
        put(hub, other, "1")
    assert hub.files(NAME)["README.md"] == RELEASE["README.md"]
    put(hub, other, "2")
    beside = {".gitattributes", "qpack/manifest.json", "qpack/config.json"}
    assert set(hub.files(NAME)) == {"README.md", "model.safetensors", *beside}
    registry(hub).pull(f"{NAME}:1", tmp_path / "pulled")
    assert contents(tmp_path / "pulled") == RELEASE


def test_a_repository_with_something_else_is_left_alone(hub: Hub, packed: ReleaseBundle) -> None:
    put(hub, packed)
    repository = hub.repositories[NAME]
    head = repository.branches["main"]
    mine = [(path, at) for path, at in repository.commits[head].files if path != "qpack/manifest.json"]
    repository.add(type(repository.commits[head])(head, "by hand", tuple(mine)))
    with pytest.raises(RegistryError, check=coded("foreign-content"), match="LICENSE"):
        put(hub, packed, "2")
    assert repository.trail()[0] == "by hand"


@pytest.mark.parametrize(
    ("token", "name", "code", "words"),
    [
        ("", NAME, "no-login", "token"),
        ("hf_PLANTEDwrong", NAME, "registry-refused", "401|Invalid"),
        (READ_TOKEN, NAME, "login-refused", "'org'"),
        (TOKEN, "others/m", "login-refused", "'others'"),
        (TOKEN, "strangers/m", "login-refused", "'strangers'"),
        (TOKEN, "org/bad--name", "invalid-name", "org/bad--name"),
    ],
)
def test_the_name_the_token_and_its_rights_are_looked_at_before_anything_is_sent(
    hub: Hub, packed: ReleaseBundle, monkeypatch: pytest.MonkeyPatch, token: str, name: str, code: str, words: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", "nowhere")
    monkeypatch.setattr(constants, "HF_STORED_TOKENS_PATH", "nowhere")
    with pytest.raises(RegistryError, check=coded(code), match=words) as caught:
        registry(hub).put(packed, PushRequest(name, "1", None, actor="me"))
    assert "PLANTED" not in f"{caught.value.what} {caught.value.hint}"
    assert hub.repositories == {}


COMMIT, TAG = f"/api/models/{NAME}/commit/main", f"/api/models/{NAME}/tag/*"
EVERY_REQUEST = [
    ("GET", "/api/whoami-v2"),
    ("GET", f"/api/models/{NAME}*"),
    ("POST", "/api/repos/create"),
    ("GET", f"/api/models/{NAME}/refs"),
    ("GET", f"/api/models/{NAME}/tree/*"),
    ("POST", "/api/validate-yaml"),
    ("POST", f"/api/models/{NAME}/preupload/main"),
    ("POST", f"/{NAME}.git/info/lfs/objects/batch"),
    ("PUT", "/lfs/*"),
    ("POST", COMMIT),
    ("POST", TAG),
]


@pytest.mark.parametrize(
    ("method", "path", "how"),
    [
        *((method, path, how) for method, path in EVERY_REQUEST for how in ("drop-before", "drop-after", 500)),
        # Those that change something have more ways to go wrong.
        *(("POST", path, how) for path in (COMMIT, TAG, "/api/repos/create") for how in ("truncate", 409, 412, 429)),
    ],
)
def test_a_fault_at_any_request_leaves_all_or_nothing_and_the_next_try_ends_it(
    hub: Hub, packed: ReleaseBundle, caplog: pytest.LogCaptureFixture, method: str, path: str, how: int | str
) -> None:
    caplog.set_level(logging.DEBUG)
    hub.faults.append(Fault(method, path, how))
    said = "no error; next time"
    try:
        put(hub, packed)
    except RegistryError as error:
        said = f"{error.what}; {error.hint}"
    assert len(said.partition("; ")[2]) > 5, "an error says what to do"
    if NAME in hub.repositories:
        assert hub.repositories[NAME].trail()[:-1] in ([], ["qpack: version 1"])
    put(hub, packed)
    assert hub.faults == []
    repository = hub.repositories[NAME]
    # One commit, whatever was lost.
    assert repository.trail() == ["qpack: version 1", "initial commit"]
    assert repository.tags == {"1": repository.branches["main"]}
    assert "PLANTED" not in said
    # Not even where the client's HTTP library logs its requests.
    assert TOKEN not in caplog.text


def test_what_was_uploaded_before_a_failure_is_not_uploaded_again(hub: Hub, packed: ReleaseBundle) -> None:
    hub.faults.append(Fault("POST", COMMIT, 403))
    with pytest.raises(RegistryError, check=coded("registry-refused"), match="403"):
        put(hub, packed)
    sent = [request for request in hub.requests if request.startswith("PUT /lfs/")]
    assert sent
    put(hub, packed)
    assert [request for request in hub.requests if request.startswith("PUT /lfs/")] == sent


def test_a_commit_of_somebody_else_in_between_is_not_overwritten(
    hub: Hub, packed: ReleaseBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(hub, packed)
    repository = hub.repositories[NAME]

    class Racing(HubReader):
        def head(self, api: object, name: str) -> str:
            head = super().head(api, name)  # type: ignore[arg-type]
            if repository.trail()[0] != "theirs":
                repository.add(type(repository.commits[head])(head, "theirs", repository.commits[head].files[:-1]))
            return head

    monkeypatch.setattr("registry.hub.registry.HubReader", Racing)
    other = pack(write(Path(packed.source(packed.contents.files[0])).parent / "other", {"README.md": b"2"}), {})
    with pytest.raises(RegistryError, check=coded("changed-meanwhile")):
        put(hub, other, "2")
    assert repository.trail()[0] == "theirs"
    assert "2" not in repository.tags


def test_a_tag_of_somebody_else_is_not_moved(hub: Hub, packed: ReleaseBundle) -> None:
    hub.faults.append(Fault("POST", TAG, 500, times=4))
    with pytest.raises(RegistryError, check=coded("registry-refused"), match="500"):
        put(hub, packed)
    repository = hub.repositories[NAME]
    assert repository.tags == {}
    first = repository.commits[repository.branches["main"]].parent
    assert first is not None
    repository.tags["1"] = first
    with pytest.raises(RegistryError, check=coded("version-exists")):
        put(hub, packed)
    assert repository.tags == {"1": first}


@pytest.mark.parametrize("how", ["drop-before", "truncate", 500])
def test_a_pull_that_breaks_off_leaves_nothing_in_place_and_the_next_goes_on(
    hub: Hub, packed: ReleaseBundle, tmp_path: Path, how: int | str
) -> None:
    put(hub, packed)
    hub.faults.append(Fault("GET", f"/{NAME}/resolve/*/model.safetensors", how, times=20))
    with pytest.raises(RegistryError):
        registry(hub).pull(NAME, tmp_path / "pulled")
    assert not (tmp_path / "pulled").exists()
    hub.faults.clear()
    registry(hub).pull(NAME, tmp_path / "pulled")
    assert contents(tmp_path / "pulled") == RELEASE


def test_content_that_is_not_what_the_manifest_says_is_not_pulled(
    hub: Hub, packed: ReleaseBundle, tmp_path: Path
) -> None:
    put(hub, packed)
    repository = hub.repositories[NAME]
    key, large = dict(repository.commits[repository.branches["main"]].files)["model.safetensors"]
    assert large
    hub.large[key] = hub.large[key][:-1] + b"!"
    with pytest.raises(RegistryError, check=coded("damaged-content")):
        registry(hub).pull(NAME, tmp_path / "pulled")
    assert not (tmp_path / "pulled").exists()


@pytest.fixture
def signed(packed: ReleaseBundle, tmp_path: Path) -> LocalRegistry:
    """A local registry with the release and something attached to it."""
    local = LocalRegistry(tmp_path / "local")
    local.put(packed, PushRequest("m", "1", None, actor="me"))
    local.attach("m:1", b"a signature", media_type="x/sig", annotations={}, by=Author("me"))
    return local


def brought(hub: Hub, scratch: Path, version: str = "1") -> LocalRegistry:
    """An empty local registry after a pull into it."""
    local = LocalRegistry(scratch / "other")
    fetched = registry(hub).fetch_bundle(f"{NAME}:{version}", scratch / "fetched")
    local.put(fetched, PushRequest("m", version, None, actor="me"))
    return local


def test_what_is_attached_goes_in_the_same_commit_and_comes_back(
    hub: Hub, signed: LocalRegistry, tmp_path: Path
) -> None:
    assert put(hub, signed.bundle("m:1")) == signed.resolve("m:1").digest
    assert hub.repositories[NAME].trail() == ["qpack: version 1", "initial commit"]
    other = brought(hub, tmp_path)
    assert other.attached("m:1", "x/sig") == (b"a signature",)
    assert other.resolve("m:1").digest == signed.resolve("m:1").digest


def test_what_is_attached_later_is_added_on_main_and_outlives_the_next_version(
    hub: Hub, signed: LocalRegistry, tmp_path: Path
) -> None:
    put(hub, signed.bundle("m:1"))
    tag = dict(hub.repositories[NAME].tags)
    signed.attach("m:1", b"a second one", media_type="x/sig", annotations={}, by=Author("you"))
    hub.faults.append(Fault("POST", "*/commit/*", "drop-after"))
    for _ in "12":
        put(hub, signed.bundle("m:1"))
    assert hub.repositories[NAME].trail()[:2] == ["qpack: attached to version 1", "qpack: version 1"]
    assert hub.repositories[NAME].tags == tag, "a tag never moves"
    put(hub, pack(write(tmp_path / "next", {**RELEASE, "README.md": b"next\n"}), {}), "2")
    assert set(brought(hub, tmp_path / "first").attached("m:1", "x/sig")) == {b"a signature", b"a second one"}
    assert brought(hub, tmp_path / "second", "2").attached("m:2", "x/sig") == ()


def test_a_branch_has_its_own_release_and_its_own_signatures(hub: Hub, signed: LocalRegistry, tmp_path: Path) -> None:
    put(hub, pack(write(tmp_path / "first", {**RELEASE, "README.md": b"first\n"}), {}))
    before = hub.files(NAME)
    there = HubRegistry(HubSettings(branch="w4"), endpoint=hub.url, wait=lambda _: None)
    asked = PushRequest(NAME, "w4-1", None, actor="me")
    assert there.put(signed.bundle("m:1"), asked).location.endswith(f"{NAME}/tree/w4-1")
    repository = hub.repositories[NAME]
    assert repository.trail("w4") == ["qpack: version w4-1", "qpack: version 1", "initial commit"]
    assert hub.files(NAME) == before
    assert repository.tags == {"1": repository.branches["main"], "w4-1": repository.branches["w4"]}
    # Signed once more: the branch moves on, and both names still give the release with all signatures.
    signed.attach("m:1", b"a second one", media_type="x/sig", annotations={}, by=Author("you"))
    for _ in "12":
        there.put(signed.bundle("m:1"), asked)
    assert repository.trail("w4")[0] == "qpack: attached to version w4-1"
    assert repository.trail("w4")[1] == "qpack: version w4-1"
    for number, tag in enumerate(("w4", "w4-1")):
        resolved = registry(hub).resolve(f"{NAME}:{tag}")
        assert (resolved.version, resolved.digest) == (tag, signed.resolve("m:1").digest)
        assert registry(hub).pull(resolved, tmp_path / tag).digest == resolved.digest
        back = brought(hub, tmp_path / f"back-{number}", tag)
        assert set(back.attached(f"m:{tag}", "x/sig")) == {b"a signature", b"a second one"}
    assert registry(hub).resolve(NAME).version == "1"


def test_a_pull_request_against_a_branch_is_merged_into_it(hub: Hub, packed: ReleaseBundle) -> None:
    asking = HubRegistry(HubSettings(as_pr=True, branch="w4"), endpoint=hub.url, wait=lambda _: None)
    request = PushRequest(NAME, "w4-1", None, actor="me")
    asking.put(packed, request)
    repository = hub.repositories[NAME]
    assert f"POST /api/models/{NAME}/commit/w4" in hub.requests
    assert (repository.trail("w4"), repository.tags) == (["initial commit"], {})
    repository.add(repository.proposals[0], "w4")
    asking.put(packed, request)
    assert repository.tags == {"w4-1": repository.branches["w4"]}
    assert repository.trail() == ["initial commit"]


def test_a_branch_is_not_named_as_a_version(hub: Hub, packed: ReleaseBundle) -> None:
    put(hub, packed)
    for branch, version in (("1", "2"), ("2", "2"), ("a/b", "2"), ("", "2")):
        there = HubRegistry(HubSettings(branch=branch), endpoint=hub.url, wait=lambda _: None)
        with pytest.raises(RegistryError, check=coded("invalid-name")):
            there.put(packed, PushRequest(NAME, version, None, actor="me"))
    assert list(hub.repositories[NAME].branches) == ["main"]


def test_a_bad_branch_leaves_no_repository(hub: Hub, packed: ReleaseBundle) -> None:
    there = HubRegistry(HubSettings(branch="a/b"), endpoint=hub.url, wait=lambda _: None)
    with pytest.raises(RegistryError, check=coded("invalid-name")):
        there.put(packed, PushRequest(NAME, "2", None, actor="me"))
    assert hub.requests == []


def test_a_fault_while_a_branch_is_made_is_mended_by_the_next_try(hub: Hub, packed: ReleaseBundle) -> None:
    there = HubRegistry(HubSettings(branch="w4"), endpoint=hub.url, wait=lambda _: None)
    for how in ("drop-before", "drop-after", 500, 403, 409):
        hub.repositories.clear()
        hub.faults.append(Fault("POST", f"/api/models/{NAME}/branch/w4", how))
        with contextlib.suppress(RegistryError):
            there.put(packed, PushRequest(NAME, "1", None, actor="me"))
        there.put(packed, PushRequest(NAME, "1", None, actor="me"))
        assert hub.repositories[NAME].trail("w4") == ["qpack: version 1", "initial commit"]
        assert hub.repositories[NAME].trail() == ["initial commit"]


def test_a_damaged_attachment_is_left_out_and_the_release_still_comes(
    hub: Hub, signed: LocalRegistry, tmp_path: Path
) -> None:
    put(hub, signed.bundle("m:1"))
    for path, at in dict(hub.repositories[NAME].commits[hub.repositories[NAME].branches["main"]].files).items():
        if path.startswith("qpack/attached/") and hub.small[at[0]] != b"{}":  # that one is the model's config, too
            hub.small[at[0]] = hub.small[at[0]][:-1] + b"?"
    assert brought(hub, tmp_path).attached("m:1", "x/sig") == ()
