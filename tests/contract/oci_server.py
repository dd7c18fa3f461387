"""A real OCI registry on loopback: Debian's docker-registry, with TLS, logins and tokens where a test asks for them."""

from __future__ import annotations

import base64
import http.server
import json
import re
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

USER, PASSWORD = "planted", "PLANTED-secret-5b1f"
# `htpasswd -nbB` of the two.
HTPASSWD = "planted:$2y$05$9v1VxyJhrGNe7kD6GT44Lehyo1h9EY1boio5g3N2JDmkWZ1gnqEN2\n"
PACKAGES = Path(__file__).parents[1] / "system-packages.txt"


def program(name: str) -> str:
    """Where a program of tests/system-packages.txt is; the test is skipped where it can't be had."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed: apt-get install {' '.join(PACKAGES.read_text().split())}")
    return found


@dataclass(frozen=True)
class Server:
    """A running registry. `host` is `127.0.0.1:port`."""

    host: str
    log: Path
    data: Path


@contextmanager
def serving(
    folder: Path, *, more: str = "", tls: tuple[Path, Path] | None = None, deletes: bool = False
) -> Iterator[Server]:
    """Run a registry for the block. `more` is YAML at the top level of its configuration."""
    command = program("docker-registry")
    folder.mkdir(parents=True, exist_ok=True)
    certificate = f", tls: {{certificate: {tls[0]}, key: {tls[1]}}}" if tls else ""
    config, log = folder / "config.yml", folder / "registry.log"
    config.write_text(
        "version: 0.1\nlog: {level: info}\n"
        f"storage: {{filesystem: {{rootdirectory: {folder / 'data'}}}, delete: {{enabled: {str(deletes).lower()}}}}}\n"
        f'http: {{addr: "127.0.0.1:0", secret: loopback{certificate}}}\n{more}'
    )
    with log.open("w") as output:
        running = subprocess.Popen([command, "serve", str(config)], stdout=output, stderr=output)
    try:
        while not (found := re.search(r"listening on (127\.0\.0\.1:\d+)", log.read_text())):
            assert running.poll() is None, log.read_text()
            time.sleep(0.01)
        yield Server(found[1], log, folder / "data")
    finally:
        running.terminate()
        running.wait()


def htpasswd(folder: Path) -> str:
    """Configuration: basic authentication for USER and PASSWORD."""
    path = folder / "htpasswd"
    path.write_text(HTPASSWD)
    return f"auth: {{htpasswd: {{realm: test, path: {path}}}}}\n"


def certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that is its own authority, and its key."""
    folder.mkdir(parents=True, exist_ok=True)
    pem, key = folder / "certificate.pem", folder / "key.pem"
    request = [program("openssl"), "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    subject = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    command = [*request, *subject, "-keyout", str(key), "-out", str(pem)]
    subprocess.run(command, check=True, capture_output=True)
    return pem, key


@dataclass
class Realm:
    """A token service: gives tokens that the registry takes to USER and PASSWORD. `asked` is what for."""

    url: str
    asked: list[list[str]]


@contextmanager
def realm(folder: Path) -> Iterator[Realm]:
    """Run a token service for the block (https://distribution.github.io/distribution/spec/auth/token/)."""
    pem, key = certificate(folder)
    der = base64.b64encode(
        subprocess.run(["openssl", "x509", "-in", pem, "-outform", "der"], check=True, capture_output=True).stdout
    ).decode()
    found = Realm("", [])

    def encoded(data: bytes) -> str:
        return base64.urlsafe_b64encode(data).rstrip(b"=").decode()

    def token(scopes: list[str]) -> str:
        access = [
            {"type": kind, "name": name, "actions": actions.split(",")}
            for kind, name, actions in (scope.split(":") for scope in scopes)
        ]
        now = int(time.time())
        times = {"exp": now + 300, "nbf": now - 60, "iat": now}
        claims = {"iss": "test", "sub": USER, "aud": "test", "jti": str(now), "access": access, **times}
        head = json.dumps({"alg": "RS256", "typ": "JWT", "x5c": [der]}).encode()
        text = f"{encoded(head)}.{encoded(json.dumps(claims).encode())}"
        signed = subprocess.run(
            ["openssl", "dgst", "-sha256", "-sign", key], input=text.encode(), check=True, capture_output=True
        ).stdout
        return f"{text}.{encoded(signed)}"

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            login = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
            scopes = [s for value in parse_qs(urlsplit(self.path).query).get("scope", []) for s in value.split()]
            found.asked.append(scopes)
            granted = self.headers.get("authorization") == f"Basic {login}"
            body = json.dumps({"token": token(scopes)} if granted else {"errors": []}).encode()
            self.send_response(200 if granted else 401)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with http_server(Handler) as host:
        found.url = f"http://{host}/token"
        yield found


def token_auth(found: Realm, folder: Path) -> str:
    """Configuration: tokens of that service."""
    return (
        f"auth: {{token: {{realm: '{found.url}', service: test, issuer: test,"
        f" rootcertbundle: {folder / 'certificate.pem'}}}}}\n"
    )


@contextmanager
def http_server(handler: type[http.server.BaseHTTPRequestHandler]) -> Iterator[str]:
    """Run a small HTTP server for the block; yields its host:port."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@dataclass
class Wire:
    """What goes between a client and a server. `cut_up` and `cut_down` break a connection after so many bytes, once."""

    host: str
    cut_up: int | None = None
    cut_down: int | None = None
    up: int = 0
    down: int = 0
    cuts: int = 0


@contextmanager
def wire(target: str) -> Iterator[Wire]:
    """A way to `target` on which connections can be cut."""
    name, _, port = target.rpartition(":")
    listener = socket.create_server(("127.0.0.1", 0))
    found = Wire(f"127.0.0.1:{listener.getsockname()[1]}")
    running: list[threading.Thread] = []

    def forward(source: socket.socket, sink: socket.socket, way: str) -> None:
        passed = 0
        with suppress(OSError):
            while data := source.recv(65536):
                passed += len(data)
                setattr(found, way, getattr(found, way) + len(data))
                limit = getattr(found, f"cut_{way}")
                if limit is not None and passed > limit:
                    setattr(found, f"cut_{way}", None)
                    found.cuts += 1
                    break
                sink.sendall(data)
        for one in (source, sink):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def join(client: socket.socket) -> None:
        with client, socket.create_connection((name, int(port))) as server:
            back = threading.Thread(target=forward, args=(server, client, "down"))
            back.start()
            forward(client, server, "up")
            back.join()

    def accept() -> None:
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                running.append(threading.Thread(target=join, args=(client,)))
                running[-1].start()

    accepting = threading.Thread(target=accept)
    accepting.start()
    try:
        yield found
    finally:
        # Closing alone doesn't wake the thread that accepts.
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        accepting.join()
        for thread in running:
            thread.join()
