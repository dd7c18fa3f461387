"""An OCI registry in particular: logins, TLS, broken connections, other programs, and answers that mean harm."""

from __future__ import annotations

import base64
import http.server
import json
import re
import subprocess
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import oras.client
import pytest

from qpack.core.errors import RegistryError
from qpack.core.records import FileRecord
from registry.core import modelpack
from registry.core.bundle import pack
from registry.core.protocol import PushRequest
from registry.lifecycle.import_release import import_release
from registry.local.changes import Author
from registry.local.registry import LocalRegistry
from registry.oci import blobs as oci_blobs
from registry.oci import image, image_digests
from registry.oci.blobs import Sessions
from registry.oci.distribution import Repository, fallback_tag
from registry.oci.http import Http, Request
from registry.oci.registry import OciRegistry
from registry.registries import open_oci
from tests.codes import coded
from tests.contract.oci_server import (
    PASSWORD,
    USER,
    Server,
    certificate,
    htpasswd,
    http_server,
    program,
    realm,
    serving,
    token_auth,
    wire,
)
from tests.contract.registries_contract import FILES, Files, check_pulled, contents, pushing, write
from tests.patience import PATIENCE

LOGIN = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
BIG: Files = {"README.md": b"# card\n", "model/model.safetensors": bytes(range(256)) * 40_000}


@contextmanager
def opened(host: str, sessions: Path | None = None, mount_from: tuple[str, ...] = ()) -> Iterator[OciRegistry]:
    """A registry on loopback that doesn't wait between tries."""
    with closing(open_oci(host, sessions=sessions, mount_from=mount_from)) as found:
        way = Http(found.http.host, found.http.plain, found.http.client, found.http.authority, wait=lambda _: None)
        yield OciRegistry(way, "", Sessions(sessions), mount_from)


@pytest.fixture(autouse=True)
def _no_logins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nobody's own logins."""
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    for name in ("REGISTRY_AUTH_FILE", "XDG_RUNTIME_DIR", "QPACK_OCI_HOST", "QPACK_OCI_USERNAME", "QPACK_OCI_PASSWORD"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path / "release", FILES)


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A repository of this test alone."""
    return f"tests/{request.node.name.split('[')[0].replace('_', '-')}"


def push(registry: OciRegistry, folder: Path, name: str, version: str = "1", alias: str | None = None) -> str:
    return registry.push(folder, PushRequest(name, version, alias, actor="me"), annotations={}).digest


# Logins


def login_file(host: str, entry: Mapping[str, str], where: Path) -> None:
    where.parent.mkdir(parents=True, exist_ok=True)
    where.write_text(json.dumps({"auths": {host: entry}}))


def test_a_login_comes_from_the_environment_or_from_the_file_that_docker_and_podman_write(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(tmp_path / "server", more=htpasswd(tmp_path)) as server, opened(server.host) as registry:
        with pytest.raises(RegistryError, check=coded("no-login")) as caught:
            push(registry, folder, "m")
        assert "docker login" in caught.value.hint
        # A login for another host is not sent here.
        for host in ("registry.example", server.host):
            monkeypatch.setenv("QPACK_OCI_HOST", host)
            monkeypatch.setenv("QPACK_OCI_USERNAME", USER)
            monkeypatch.setenv("QPACK_OCI_PASSWORD", PASSWORD)
            if host != server.host:
                with pytest.raises(RegistryError, check=coded("no-login")):
                    push(registry, folder, "m")
        push(registry, folder, "m", "1")
        monkeypatch.delenv("QPACK_OCI_HOST")
        login_file(server.host, {"auth": LOGIN}, tmp_path / "docker" / "config.json")
        with opened(server.host) as other:
            push(other, folder, "m", "2")
        login_file(f"{server.host}/m", {"auth": LOGIN}, tmp_path / "auth.json")
        monkeypatch.setenv("REGISTRY_AUTH_FILE", str(tmp_path / "auth.json"))
        with opened(server.host) as other:
            push(other, folder, "m", "3")


def test_a_wrong_login_is_refused_and_never_shown(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QPACK_OCI_USERNAME", USER)
    monkeypatch.setenv("QPACK_OCI_PASSWORD", "PLANTED-wrong-77ab")
    with serving(tmp_path / "server", more=htpasswd(tmp_path)) as server, opened(server.host) as registry:
        monkeypatch.setenv("QPACK_OCI_HOST", server.host)
        with pytest.raises(RegistryError, check=coded("login-refused")) as caught:
            push(registry, folder, "m")
        assert "PLANTED" not in f"{caught.value.what} {caught.value.hint} {registry!r} {server.log.read_text()}"


def test_tokens_are_fetched_for_what_is_done_and_for_what_is_mounted(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with realm(tmp_path) as tokens, serving(tmp_path / "server", more=token_auth(tokens, tmp_path)) as server:
        with opened(server.host) as registry, pytest.raises(RegistryError, check=coded("no-login")):
            push(registry, folder, "a/m")
        login_file(server.host, {"username": USER, "password": PASSWORD}, tmp_path / "docker" / "config.json")
        with opened(server.host) as registry:
            push(registry, folder, "a/m")
            registry.pull("a/m:1", tmp_path / "pulled")
        with opened(server.host, mount_from=("a/m",)) as registry:
            push(registry, folder, "b/m")
        assert ["repository:a/m:pull,push"] in tokens.asked
        assert ["repository:b/m:pull,push", "repository:a/m:pull"] in tokens.asked
        log = server.log.read_text()
        assert contents(tmp_path / "pulled") == FILES
    uploads = [line for line in log.splitlines() if "PUT /v2/b/m/blobs/uploads" in line and '" 201 ' in line]
    # The files were mounted; not even the config was sent twice as a file.
    assert len(uploads) <= 1
    for where in (log, json.dumps(tokens.asked)):
        assert PASSWORD not in where


def test_a_login_that_only_a_helper_program_knows_is_an_error_that_says_so(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(tmp_path / "server", more=htpasswd(tmp_path)) as server, opened(server.host) as registry:
        path = tmp_path / "docker" / "config.json"
        path.parent.mkdir()
        path.write_text(json.dumps({"credHelpers": {server.host: "pass"}}))
        with pytest.raises(RegistryError, check=coded("credential-helper"), match="pass"):
            push(registry, folder, "m")
        path.write_text("not json PLANTED")
        with pytest.raises(RegistryError, check=coded("unreadable-logins")) as caught:
            push(registry, folder, "m")
        assert "PLANTED" not in caught.value.what


def test_tls_is_checked_and_used_on_loopback_too(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pem, key = certificate(tmp_path / "tls")
    with serving(tmp_path / "server", tls=(pem, key)) as server:
        with (
            opened(server.host) as registry,
            pytest.raises(RegistryError, check=coded("untrusted-certificate")) as caught,
        ):
            push(registry, folder, "m")
        assert "SSL_CERT_FILE" in caught.value.hint
        monkeypatch.setenv("SSL_CERT_FILE", str(pem))
        with opened(server.host) as registry:
            assert not registry.http.plain
            push(registry, folder, "m")
            registry.pull("m:1", tmp_path / "pulled")
    assert contents(tmp_path / "pulled") == FILES


# Broken connections


def test_an_upload_that_breaks_off_goes_on(
    oci_server: Server, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(oci_blobs, "PIECE_BYTES", 1_000_000)
    folder = write(tmp_path / "release", BIG)
    with wire(oci_server.host) as line, opened(line.host, tmp_path / "sessions") as registry:
        line.cut_up = 4_500_000
        digest = push(registry, folder, name)
        assert line.cuts == 1
        assert registry.resolve(f"{name}:1").digest == digest
        registry.pull(f"{name}:1", tmp_path / "pulled")
    assert contents(tmp_path / "pulled") == BIG
    assert list((tmp_path / "sessions").iterdir()) == []


def test_the_next_process_goes_on_where_an_upload_ended(
    oci_server: Server, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write(tmp_path / "release", BIG)
    weights = folder / "model/model.safetensors"

    class Gone(BaseException):
        pass

    def stop(done: int, _total: int, _what: str) -> None:
        if done > 6_000_000:
            raise Gone

    monkeypatch.setattr(oci_blobs, "PIECE_BYTES", 1_000_000)
    with wire(oci_server.host) as line:
        with opened(line.host, tmp_path / "sessions") as registry, pytest.raises(Gone):
            push(OciRegistry(registry.http, "", registry.sessions, (), stop), folder, name)
        sent = line.up
        assert sent > 6_000_000
        with opened(line.host, tmp_path / "sessions") as registry:
            push(registry, folder, name)
        # Not from the start: the two tries together sent each byte once, and the headers.
        assert line.up < weights.stat().st_size + 300_000
        with opened(line.host) as registry:
            registry.pull(f"{name}:1", tmp_path / "pulled")
    assert contents(tmp_path / "pulled") == BIG


def test_a_damaged_upload_of_an_earlier_process_is_begun_anew(oci_server: Server, tmp_path: Path, name: str) -> None:
    folder = write(tmp_path / "release", BIG)
    with opened(oci_server.host, tmp_path / "sessions") as registry:
        repository = Repository(registry.http, name)
        begun = repository.ask("POST", "blobs/uploads/", push=True)
        location = begun.headers["location"]
        sent = registry.http.ask(Request("PATCH", location, name, push=True, body=b"other bytes" * 1000))
        digest = modelpack.digest_of(BIG["model/model.safetensors"])
        registry.sessions.put(repository, digest, sent.headers["location"])
        push(registry, folder, name)
        registry.pull(f"{name}:1", tmp_path / "pulled")
    assert contents(tmp_path / "pulled") == BIG


def test_a_pull_that_breaks_off_leaves_nothing_in_place_and_the_next_goes_on(
    oci_server: Server, tmp_path: Path, name: str
) -> None:
    folder = write(tmp_path / "release", BIG)
    with wire(oci_server.host) as line, opened(line.host) as registry:
        push(registry, folder, name)
        line.down, line.cut_down = 0, 7_000_000
        with pytest.raises(RegistryError, check=coded("registry-unreachable")) as caught:
            registry.pull(f"{name}:1", tmp_path / "pulled")
        assert "again" in caught.value.hint
        assert not (tmp_path / "pulled").exists()
        before = line.down
        registry.pull(f"{name}:1", tmp_path / "pulled")
        assert line.down - before < 10_240_000 - 6_000_000
    assert contents(tmp_path / "pulled") == BIG
    assert [path.name for path in tmp_path.iterdir() if path.name.endswith(".part")] == []


def test_what_an_earlier_pull_left_is_checked(oci_server: Server, tmp_path: Path, name: str) -> None:
    folder = write(tmp_path / "release", BIG)
    with opened(oci_server.host) as registry:
        digest = push(registry, folder, name)
        draft = tmp_path / f".pulled.{digest[7:19]}.part"
        write(draft, {"model/model.safetensors": b"damaged" * 1000, "README.md": b"# crad\n"})
        registry.pull(f"{name}:1", tmp_path / "pulled")
    assert contents(tmp_path / "pulled") == BIG


def test_a_killed_push_leaves_no_version_or_a_whole_one(oci_server: Server, tmp_path: Path, name: str) -> None:
    location = f"{oci_server.host}/{name}"
    files = {**FILES, "model/big.safetensors": b"2" * 300_000}
    folder = write(tmp_path / "next", files)
    with closing(open_oci(oci_server.host, prefix=name)) as registry:
        for kill_at in (40, 100):
            with pushing("oci", location, folder, "m", kill_at=kill_at) as process:
                _, err = process.communicate(timeout=PATIENCE)
            assert process.returncode in (0, -9), err
            check_pulled(registry, tmp_path / f"scratch-{kill_at}", {"1": files})
        push(registry, folder, "m")
        assert [found.version for found in check_pulled(registry, tmp_path / "end", {"1": files})] == ["1"]


# Other programs


def test_skopeo_and_oras_pull_what_qpack_pushed(
    oci_server: Server, folder: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(oci_server.host) as registry:
        digest = push(registry, folder, name)
    copy = tmp_path / "copy"
    source = f"docker://{oci_server.host}/{name}:1"
    command = [program("skopeo"), "copy", "--insecure-policy", "--src-tls-verify=false", source, f"dir:{copy}"]
    subprocess.run(command, check=True, capture_output=True, text=True)
    assert modelpack.digest_of((copy / "manifest.json").read_bytes()) == digest
    for data in FILES.values():
        assert (copy / modelpack.digest_of(data).removeprefix("sha256:")).read_bytes() == data
    client = oras.client.OrasClient(insecure=True, hostname=oci_server.host)
    client.pull(target=f"{oci_server.host}/{name}:1", outdir=str(tmp_path / "oras"))
    client.session.close()
    assert contents(tmp_path / "oras") == FILES


LARGE = 20 * 2**20
MODEL = {
    **FILES,
    "model/config.json": b"{}",
    "model/sub/more.json": b"[1]",
    "model/model-1.safetensors": bytes(range(256)) * (LARGE // 256),
    "model/model-2.safetensors": b"\1" * LARGE,
}


def copied(host: str, name: str, arch: str, copy: Path) -> dict[str, Any]:
    """The image of one platform, fetched by skopeo into a folder; its config."""
    source = f"docker://{host}/{name}:image-1"
    command = [program("skopeo"), "copy", "--insecure-policy", "--src-tls-verify=false", f"--override-arch={arch}"]
    subprocess.run([*command, source, f"dir:{copy}"], check=True, capture_output=True, text=True)
    inspect = [program("skopeo"), "inspect", "--config", "--tls-verify=false", f"--override-arch={arch}", source]
    return dict(json.loads(subprocess.run(inspect, check=True, capture_output=True, text=True).stdout))


@pytest.mark.parametrize("arch", ["amd64", "arm64"])
def test_a_release_s_image_has_its_model_below_models_for_every_platform(
    oci_server: Server, tmp_path: Path, name: str, arch: str
) -> None:
    bundle = pack(write(tmp_path / "release", MODEL), {})
    with opened(oci_server.host, tmp_path / "sessions") as registry:
        registry.put(bundle, PushRequest(name, "1", None, actor="me"))
        made = registry.put_image(bundle, name, "1")
        assert registry.put_image(bundle, name, "1") == made, "the same model gives the same image"
        assert [found.version for found in registry.list(name)] == ["1"], "an image is no version"
        assert registry.pull(f"{name}:1", tmp_path / "pulled").digest == bundle.digest
        assert image_digests.pin([f"{oci_server.host}/{name}:image-1"], lambda _: registry.http) == {
            f"{oci_server.host}/{name}:image-1": f"{oci_server.host}/{name}:image-1@{made.digest}"
        }
    assert list((tmp_path / "sessions").iterdir()) == [], "no layer is left on the disk"
    copy = tmp_path / "copy"
    config = copied(oci_server.host, name, arch, copy)
    assert (config["architecture"], config["os"]) == (arch, "linux")
    manifest_ = json.loads((copy / "manifest.json").read_bytes())
    digests = [layer["digest"] for layer in manifest_["layers"]]
    assert config["rootfs"]["diff_ids"] == digests, "layers aren't compressed"
    assert len(digests) == 3, "small files together, each large one alone"
    out = tmp_path / "mounted"
    for digest in digests:
        with tarfile.open(copy / digest.removeprefix("sha256:")) as tar:
            assert {entry.mode for entry in tar if entry.isfile()} == {0o644}
            assert {(entry.uid, entry.mtime) for entry in tar} == {(0, 0)}
            tar.extractall(out, filter="data")
    wanted = {path.replace("model/", "models/", 1): data for path, data in MODEL.items() if path.startswith("model/")}
    assert contents(out) == wanted


def test_a_model_of_many_files_stays_below_the_layers_that_a_runtime_stacks() -> None:
    files = tuple(FileRecord(path=f"model/{i}.safetensors", size_bytes=2**30, sha256=f"{i:064}") for i in range(500))
    groups = image.layers(files)
    assert len(groups) <= 96
    assert [record for group in groups for record in group] == list(files)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("vllm/vllm-openai:v0.32.0", ("registry-1.docker.io", "vllm/vllm-openai", "v0.32.0")),
        ("busybox", ("registry-1.docker.io", "library/busybox", "latest")),
        ("public.ecr.aws/q9t5s3a7/vllm:v1", ("public.ecr.aws", "q9t5s3a7/vllm", "v1")),
        ("localhost:5000/a/b:c", ("localhost:5000", "a/b", "c")),
    ],
)
def test_a_name_of_an_image_is_taken_apart_as_docker_does(text: str, found: tuple[str, str, str]) -> None:
    parsed = image_digests.Image.parse(text)
    assert (parsed.host, parsed.repository, parsed.tag) == found


@pytest.mark.parametrize("text", ["", "a:", "a/b:c@sha256:123", "host.example/:x"])
def test_what_is_no_name_of_an_image_is_an_error(text: str) -> None:
    with pytest.raises(RegistryError):
        image_digests.Image.parse(text)


def test_an_image_that_its_registry_does_not_have_is_an_error(oci_server: Server, name: str) -> None:
    with opened(oci_server.host) as registry, pytest.raises(RegistryError):
        image_digests.pin([f"{oci_server.host}/{name}:none"], lambda _: registry.http)


def test_qpack_pulls_what_skopeo_pushed_from_a_local_registry(
    oci_server: Server, folder: Path, tmp_path: Path, name: str
) -> None:
    local = LocalRegistry(tmp_path / "local")
    digest = local.push(folder, PushRequest("m", None, None, actor="me"), annotations={}).digest
    target = f"docker://{oci_server.host}/{name}:1"
    command = [program("skopeo"), "copy", "--insecure-policy", "--dest-tls-verify=false", f"oci:{local.root}:m:1"]
    subprocess.run([*command, target], check=True, capture_output=True, text=True)
    with opened(oci_server.host) as registry:
        assert registry.pull(f"{name}:1", tmp_path / "pulled").digest == digest
    assert contents(tmp_path / "pulled") == FILES


def test_what_is_attached_travels_with_the_release(oci_server: Server, folder: Path, tmp_path: Path, name: str) -> None:
    kind = "application/vnd.example.signature"
    local, other = LocalRegistry(tmp_path / "local"), LocalRegistry(tmp_path / "other")
    digest = local.push(folder, PushRequest("m", None, None, actor="me"), annotations={}).digest
    for text in (b"first", b"second"):
        local.attach("m:1", text, media_type=kind, annotations={}, by=Author("me"))
    with opened(oci_server.host) as registry:
        for _ in range(2):
            registry.put(local.bundle("m:1"), PushRequest(name, "1", None, actor="me"))
        repository = Repository(registry.http, name)
        # This registry has no referrers API: the list is under the fallback tag, and no version is called so.
        assert fallback_tag(digest) in repository.tags()
        attachments = [json.loads(repository.manifest(one) or b"{}") for one in repository.referrers(digest)]
        assert [item["artifactType"] for item in attachments] == [kind, kind]
        assert [found.version for found in registry.list(name)] == ["1"]
        other.put(registry.fetch_bundle(f"{name}:1", tmp_path / "fetched"), PushRequest("m", "1", None, actor="me"))
    assert other.attached("m:1", kind) == (b"first", b"second")


def test_an_alias_can_be_published_and_moved(oci_server: Server, folder: Path, name: str) -> None:
    with opened(oci_server.host) as registry:
        push(registry, folder, name, "1", "staging")
        write(folder, {"README.md": b"# other\n"})
        push(registry, folder, name, "v2.0", "staging")
        assert registry.resolve(f"{name}:staging").version == "v2.0"
        for version, alias in (("staging", None), ("3", "v3-candidate")):
            with pytest.raises(RegistryError, check=coded("invalid-name")):
                push(registry, folder, name, version, alias)


# Answers that mean harm


class Evil(http.server.BaseHTTPRequestHandler):
    """Answers every GET with what the test set, and counts the bytes that it gave away."""

    manifest = b""
    blob: tuple[int, Mapping[str, str], bytes] = (200, {}, b"")
    headers_seen: tuple[dict[str, str], ...] = ()

    def do_GET(self) -> None:
        kind = type(self)
        kind.headers_seen = (*kind.headers_seen, dict(self.headers.items()))
        status, headers, body = (200, {}, kind.manifest) if "/manifests/" in self.path else kind.blob
        if "/tags/" in self.path:
            status, headers, body = 200, {}, b'{"tags": []}'
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def evil() -> Iterator[tuple[str, type[Evil]]]:
    kind = type("OneEvil", (Evil,), {})
    with http_server(kind) as host:
        yield host, kind


def manifest(path: str = "README.md", data: bytes = b"card", size: int | None = None, digest: str = "") -> bytes:
    layer = {
        "mediaType": modelpack.DOC_TYPE,
        "digest": digest or modelpack.digest_of(data),
        "size": len(data) if size is None else size,
        "annotations": {modelpack.FILEPATH: path},
    }
    config = {"mediaType": modelpack.CONFIG_TYPE, "digest": modelpack.digest_of(b"{}"), "size": 2}
    return modelpack.canonical({"artifactType": modelpack.ARTIFACT_TYPE, "config": config, "layers": [layer]})


@pytest.mark.parametrize(
    ("sent", "blob", "code"),
    [
        (manifest("../escaped"), b"card", "not-a-release"),
        (manifest("/escaped"), b"card", "not-a-release"),
        (manifest(digest="sha256:../../escaped"), b"card", "not-a-release"),
        (manifest(size=-1), b"card", "not-a-release"),
        (manifest(size=2**60), b"card", "disk-full"),
        (manifest(), b"carD", "damaged-content"),
        (manifest(), b"card and more", "damaged-content"),
        (manifest(), b"ca", "damaged-content"),
        (b"[" * 100_000, b"", "not-a-release"),
        (b"x" * 5_000_000, b"", "too-large"),
    ],
)
def test_nothing_of_a_release_that_means_harm_is_pulled(
    evil: tuple[str, type[Evil]], tmp_path: Path, sent: bytes, blob: bytes, code: str
) -> None:
    host, kind = evil
    kind.manifest, kind.blob = sent, (200, {}, blob)
    with opened(host) as registry, pytest.raises(RegistryError, check=coded(code)):
        registry.pull("m:1", tmp_path / "here" / "pulled")
    assert not (tmp_path / "here" / "pulled").exists()
    assert not (tmp_path / "escaped").exists()
    assert not (tmp_path / "here" / "escaped").exists()


def test_a_login_does_not_follow_a_redirect_to_another_host(
    evil: tuple[str, type[Evil]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host, kind = evil
    kind.manifest = manifest()
    elsewhere = type("Elsewhere", (Evil,), {"blob": (200, {}, b"card")})
    with http_server(elsewhere) as other, opened(host) as registry:
        kind.blob = (307, {"location": f"http://{other}/storage"}, b"")
        registry.http.authority._known["m", False] = f"Basic {LOGIN}"
        registry.pull("m:1", tmp_path / "pulled")
    assert contents(tmp_path / "pulled") == {"README.md": b"card"}
    assert all("Authorization" in seen for seen in kind.headers_seen)
    assert elsewhere.headers_seen
    assert not any("Authorization" in seen for seen in elsewhere.headers_seen)


def test_a_secret_that_a_registry_sends_back_is_not_shown(
    evil: tuple[str, type[Evil]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host, kind = evil
    monkeypatch.setenv("QPACK_OCI_HOST", host)
    monkeypatch.setenv("QPACK_OCI_USERNAME", USER)
    monkeypatch.setenv("QPACK_OCI_PASSWORD", PASSWORD)
    kind.manifest = manifest()
    echo = json.dumps({"errors": [{"code": "DENIED", "message": f"not with Basic {LOGIN} or {PASSWORD}\n\x1b[31m"}]})
    kind.blob = (401, {"www-authenticate": "Basic realm=x"}, echo.encode())
    with (
        opened(host) as registry,
        pytest.raises(RegistryError, check=coded("login-refused"), match="DENIED") as caught,
    ):
        registry.pull("m:1", tmp_path / "pulled")
    said = f"{caught.value.what} {caught.value.hint}"
    assert "***" in said
    assert PASSWORD not in said
    assert LOGIN not in said
    assert "\x1b" not in said


def test_a_registry_that_is_busy_is_asked_again_and_one_that_stays_so_is_an_error(
    evil: tuple[str, type[Evil]], tmp_path: Path
) -> None:
    host, kind = evil
    waits: list[float] = []
    kind.manifest, kind.blob = manifest(), (429, {"retry-after": "7"}, b"")
    with opened(host) as registry:
        patient = OciRegistry(Http(host, True, registry.http.client, registry.http.authority, waits.append))
        with pytest.raises(RegistryError, check=coded("registry-unreachable"), match="429"):
            patient.pull("m:1", tmp_path / "pulled")
    assert waits == [7.0] * 4


@pytest.mark.parametrize("path", ["../../climbed", "/tmp/climbed", "a/../../climbed"])
def test_a_release_that_is_taken_into_the_local_registry_writes_nothing_outside(
    oci_server: Server, folder: Path, tmp_path: Path, name: str, path: str
) -> None:
    """`qpack pull oci://...` without a folder."""
    packed = pack(folder, {})
    manifest = json.loads(packed.manifest)
    manifest["layers"][0]["annotations"][modelpack.FILEPATH] = path
    evil = replace(packed, manifest=modelpack.canonical(manifest))
    local = LocalRegistry(tmp_path / "registry")
    with opened(oci_server.host) as registry:
        registry.put(evil, PushRequest(name, f"1.{len(path)}", None, actor="somebody"))
        with pytest.raises(RegistryError, check=coded("not-a-release"), match=re.escape(path)):
            import_release(registry, f"{name}:1.{len(path)}", local, tmp_path / "home" / "pulls", actor="me", note="")
    assert list(tmp_path.rglob("climbed")) == []
    assert not Path("/tmp/climbed").exists()
    assert local.list() == ()
