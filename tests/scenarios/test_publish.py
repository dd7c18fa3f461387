"""A release goes out and comes back, as the command line says it; and what a planted secret is not found in."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import psutil
import pytest

from qpack.core.hashing import digest_tree
from registry.core.protocol import PushRequest
from registry.registries import open_oci, open_registry
from registry.release import release_folder
from tests.contract import hub_server, oci_server
from tests.contract.registries_contract import contents
from tests.scenarios.command import Finished, Qpack
from tests.unit.registry_examples import release, serving

NAME = "small-gptq"


@pytest.fixture
def published(qpack: Qpack) -> Qpack:
    """A home whose registry has one release of a few small files."""
    folder = qpack.cwd / "release"
    folder.mkdir()
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# card\n")
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text("{}")
    (folder / "model" / "model.safetensors").write_bytes(bytes(range(256)) * 8192)
    (folder / "release.json").write_text(release(files=digest_tree(folder / "model")[0]).model_dump_json())
    (folder / "serving.json").write_text(serving().to_json())
    notes = {**release_folder.oci_annotations(release()), "org.opencontainers.image.title": NAME}
    registry = open_registry("local", str(qpack.home / "registry"))
    registry.push(folder, PushRequest(NAME, None, "latest", actor="test"), annotations=notes)
    return qpack


@pytest.fixture(scope="module")
def registry_with_a_login(tmp_path_factory: pytest.TempPathFactory) -> Iterator[oci_server.Server]:
    folder = tmp_path_factory.mktemp("registry")
    with oci_server.serving(folder / "server", more=oci_server.htpasswd(folder)) as server:
        yield server


def login(host: str) -> dict[str, str]:
    return {"QPACK_OCI_HOST": host, "QPACK_OCI_USERNAME": oci_server.USER, "QPACK_OCI_PASSWORD": oci_server.PASSWORD}


def everything(folder: Path, *done: Finished) -> bytes:
    """All that was printed, and all that was left on the disk."""
    said = "".join(one.out + one.err for one in done).encode()
    return said + b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


def test_a_release_goes_to_an_oci_registry_and_comes_back_into_an_empty_home(
    published: Qpack, registry_with_a_login: oci_server.Server, tmp_path: Path
) -> None:
    host = registry_with_a_login.host
    sent = published(
        "publish", NAME, "--to", f"oci://{host}/org/{NAME}:1", "--alias", "staging", "--json", **login(host)
    )
    assert sent.code == 0, sent
    told = json.loads(sent.out)
    assert (told["reference"], told["alias"], told["already_there"]) == (f"org/{NAME}:1", "staging", False)
    assert "publish" in sent.err
    with_image = published(
        "publish", NAME, "--to", f"oci://{host}/org/{NAME}:1", "--as", "image", "--json", **login(host)
    )
    image = json.loads(with_image.out)["image"]
    assert (image["repository"], image["tag"]) == (f"{host}/org/{NAME}", "image-1")
    assert (
        f"{host}/org/{NAME}@{image['digest']}"
        in published(
            *("export", NAME, "--to", "kserve", "--repository", image["repository"], "--image", image["digest"])
        ).out
    )
    folder = published("publish", NAME, "--to", str(tmp_path / "other"), "--as", "image")
    assert (folder.code, (tmp_path / "other").exists()) == (2, False)
    again = published("publish", NAME, "--to", f"oci://{host}/org/{NAME}:1", **login(host))
    assert again.out.startswith("Already there: oci://")
    place = f"oci://{host}/org/{NAME}:staging"
    pulled = published("pull", place, "pulled", "--json", **login(host))
    assert json.loads(pulled.out)["digest"] == told["digest"]
    assert contents(published.cwd / "pulled") == contents(published.cwd / "release")
    clean = Qpack(tmp_path / "clean", tmp_path, {})
    taken = clean("pull", place, **login(host))
    assert taken.out.startswith(f"Pulled: {NAME}:1 ({told['digest'][:19]})")
    assert "is named" not in taken.err
    shown = json.loads(clean("list", "--json").out)
    assert [(one["name"], one["version"], one["digest"]) for one in shown] == [(NAME, "1", told["digest"])]
    assert list((tmp_path / "clean" / "pulls").iterdir()) == []
    # What a release is used for takes it from there too: pulled by the first command, found by the next.
    other = Qpack(tmp_path / "other", tmp_path, {})
    first = other("export", place, "--to", "ray", **login(host))
    assert first.out == published("export", NAME, "--to", "ray").out
    second = other("export", place, "--to", "kubernetes", "-o", "kubernetes", **login(host))
    assert (first.code, second.code) == (0, 0), first.err + second.err
    assert f"{host}/org/{NAME}@{told['digest']}" in (tmp_path / "kubernetes" / "kubernetes.yaml").read_text()
    assert [(one["name"], one["version"]) for one in json.loads(other("list", "--json").out)] == [(NAME, "1")]
    left = everything(tmp_path, sent, again, pulled, taken, first, second) + registry_with_a_login.log.read_bytes()
    assert oci_server.PASSWORD.encode() not in left


def test_a_release_doesnt_choose_what_it_is_called_here(
    published: Qpack, registry_with_a_login: oci_server.Server, tmp_path: Path
) -> None:
    """A stranger's, titled as one of the user's own, whose next version it would be."""
    host = registry_with_a_login.host
    assert published("publish", NAME, "--to", f"oci://{host}/evil/innocent:4", **login(host)).code == 0
    mine = Qpack(tmp_path / "mine", tmp_path, {})
    own = open_registry("local", str(mine.home / "registry"))
    (published.cwd / "release" / "README.md").write_text("mine")
    own.push(published.cwd / "release", PushRequest(NAME, "3", "latest", actor="test"), annotations={})
    taken = mine("pull", f"oci://{host}/evil/innocent:4", **login(host))
    assert taken.code == 0, taken
    assert sum("is named" in line and NAME in line for line in taken.err.splitlines()) == 1
    assert {(one.name, one.version) for one in own.list()} == {(NAME, "3"), ("innocent", "4")}
    assert own.aliases("innocent") == {}
    assert own.resolve(NAME).version == "3"


def test_a_version_that_is_here_with_other_content_is_not_overwritten_by_a_pull(
    published: Qpack, registry_with_a_login: oci_server.Server
) -> None:
    host = registry_with_a_login.host
    assert published("publish", NAME, "--to", f"oci://{host}/other/{NAME}", **login(host)).code == 0
    other = open_registry("local", str(published.home / "elsewhere"))
    (published.cwd / "release" / "README.md").write_text("another")
    other.push(published.cwd / "release", PushRequest(NAME, "1", None, actor="test"), annotations={})
    before = other.resolve(f"{NAME}:1")
    refused = published(
        "pull", f"oci://{host}/other/{NAME}:1", QPACK_REGISTRY=str(published.home / "elsewhere"), **login(host)
    )
    assert refused.code == 8
    assert "registry[version-exists]" in refused.err
    assert other.resolve(f"{NAME}:1") == before
    assert not (published.home / "pulls").exists()


def test_without_a_login_the_error_says_how_to_get_one(
    published: Qpack, registry_with_a_login: oci_server.Server
) -> None:
    done = published("publish", NAME, "--to", f"oci://{registry_with_a_login.host}/m:1")
    assert (done.code, done.out) == (8, "")
    assert "registry[no-login]" in done.err
    assert "docker login" in done.err


def test_a_registry_that_is_not_there_is_exit_8(published: Qpack) -> None:
    with closing(open_oci("127.0.0.1:9", plain_http=True)) as nobody:
        host = nobody.http.host
    done = published("pull", f"oci://{host}/m:1", "pulled", "--plain-http")
    assert done.code == 8
    assert "registry[registry-unreachable]" in done.err
    assert not (published.cwd / "pulled").exists()


def test_a_release_goes_to_another_local_registry(published: Qpack) -> None:
    done = published("publish", f"{NAME}:1", "--to", "./other", "--alias", "prod")
    assert done.code == 0, done
    other = open_registry("local", str(published.cwd / "other"))
    here = open_registry("local", str(published.home / "registry"))
    assert other.resolve(f"{NAME}:prod").digest == here.resolve(NAME).digest
    assert published("publish", NAME, "--to", "other-one").code == 8


def test_a_release_goes_to_the_hub_and_comes_back(published: Qpack, tmp_path: Path) -> None:
    with hub_server.serving() as hub:
        variables = {"HF_ENDPOINT": hub.url, "HF_TOKEN": hub_server.TOKEN, "HF_HUB_DISABLE_XET": "1"}
        sent = published("publish", NAME, "--to", "hf://org/Small-GPTQ", "--json", **variables)
        assert sent.code == 0, sent
        assert json.loads(sent.out)["location"] == f"{hub.url}/org/Small-GPTQ/tree/1"
        assert hub.repositories["org/Small-GPTQ"].private
        pulled = published("pull", "hf://org/Small-GPTQ@1", "pulled", **variables)
        assert contents(published.cwd / "pulled") == contents(published.cwd / "release")
        clean = Qpack(tmp_path / "clean", tmp_path, {})
        taken = clean("pull", "hf://org/Small-GPTQ", **variables)
        assert taken.code == 0, taken
        # Refused by the server, with the token in its answer, and too late to be retried.
        hub.faults.append(hub_server.Fault("GET", "/api/whoami-v2", 403))
        refused = published("publish", NAME, "--to", "hf://org/Small-GPTQ@2", **variables)
        assert (refused.code, refused.out) == (8, "")
        assert "HTTP 403" in refused.err
    assert digest_tree(published.cwd / "pulled")[1] == digest_tree(published.cwd / "release")[1]
    left = everything(tmp_path, sent, pulled, taken, refused)
    there = repr(hub.repositories).encode() + b"".join([*hub.small.values(), *hub.large.values()])
    assert hub_server.TOKEN.encode() not in left + there


def test_a_release_goes_to_a_branch_by_a_pull_request_and_comes_back(published: Qpack) -> None:
    with hub_server.serving() as hub:
        variables = {"HF_ENDPOINT": hub.url, "HF_TOKEN": hub_server.TOKEN, "HF_HUB_DISABLE_XET": "1"}
        to_branch = ("publish", NAME, "--to", "hf://org/m@w4-1", "--branch", "w4")
        asked = published(*to_branch, "--as-pr", "--json", **variables)
        assert json.loads(asked.out)["location"].endswith("/discussions/1"), asked
        repository = hub.repositories["org/m"]
        repository.add(repository.proposals[0], "w4")
        done = published(*to_branch, "--json", **variables)
        assert json.loads(done.out)["location"] == f"{hub.url}/org/m/tree/w4-1", done
        assert repository.trail() == ["initial commit"]
        assert published("pull", "hf://org/m@w4", "pulled", **variables).code == 0
        assert contents(published.cwd / "pulled") == contents(published.cwd / "release")
        for branch, code in (("w4-1", 8), ("", 8), ("refs/pr/1", 8)):
            refused = published("publish", NAME, "--to", "hf://org/m@2", "--branch", branch, **variables)
            assert refused.code == code, refused
    assert set(repository.branches) == {"main", "w4"}
    assert published("publish", NAME, "--to", "oci://127.0.0.1:9/m", "--branch", "w4").code == 2


def test_a_token_is_not_taken_from_an_address(published: Qpack) -> None:
    done = published("publish", NAME, "--to", "oci://me:PLANTED@127.0.0.1/m:1")
    assert done.code == 8
    assert "PLANTED" not in done.err


def test_no_process_that_publishes_or_pulls_has_a_login_on_its_command_line(
    published: Qpack, registry_with_a_login: oci_server.Server
) -> None:
    place = f"oci://{registry_with_a_login.host}/seen"
    with hub_server.serving() as hub:
        variables = {"HF_ENDPOINT": hub.url, "HF_TOKEN": hub_server.TOKEN, "HF_HUB_DISABLE_XET": "1"}
        for command in (
            ("publish", NAME, "--to", place),
            ("publish", NAME, "--to", "hf://org/seen"),
            ("pull", f"{place}:1"),
        ):
            lines: set[str] = set()
            with published.started(*command, **variables, **login(registry_with_a_login.host)) as running:
                while running.poll() is None:
                    for process in published.processes():
                        with suppress(psutil.Error):
                            lines.add(" ".join(process.cmdline()))
                assert running.returncode == 0, running.communicate()
            assert any(command[0] in line for line in lines), "somebody was seen"
            assert not any(secret in line for line in lines for secret in (hub_server.TOKEN, oci_server.PASSWORD))


def test_a_strangers_release_can_be_looked_at_whatever_its_records_say(published: Qpack) -> None:
    """Nested without end, not text, figures that are none; and what a terminal would obey is shown, not sent to it."""
    registry = open_registry("local", str(published.home / "registry"))
    good = {name: (published.cwd / "release" / name).read_bytes() for name in ("release.json", "serving.json")}
    hostile = {
        "deep": {"release.json": b"[" * 100_000},
        "deep-serving": {"serving.json": b"[" * 100_000},
        "bytes": {"serving.json": b"\xff\xfe"},
        "large": {"release.json": good["release.json"].replace(b"134515008", b"9" * 4000)},
        "endless": {"release.json": good["release.json"].replace(b"0.2754", b"1e999")},
    }
    for name, files in hostile.items():
        for path, data in (good | files).items():
            (published.cwd / "release" / path).unlink()
            (published.cwd / "release" / path).write_bytes(data)
        registry.push(published.cwd / "release", PushRequest(name, "1", None, actor="test"), annotations={})
        for command in ("show", "verify"):
            done = published(command, f"{name}:1")
            assert done.code == 8, done
    esc = good["release.json"].replace(b"Example CPU", b"\\u001b[2J\\u009b")
    (published.cwd / "release" / "release.json").write_bytes(esc)
    (published.cwd / "release" / "serving.json").write_bytes(good["serving.json"])
    registry.push(published.cwd / "release", PushRequest("esc", "1", None, actor="test"), annotations={})
    shown = published("show", "esc:1")
    assert shown.code == 0, shown
    assert "\ufffd[2J\ufffd" in shown.out
    assert not any(sign in shown.out + published("verify", "esc:1").err for sign in "\x1b\x9b")
