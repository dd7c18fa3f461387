"""Requests to an OCI registry: logins, retries, redirects, bounded answers, errors with hints.

Messages contain no query strings and no headers: both may hold secrets.
"""

from __future__ import annotations

import contextlib
import os
import ssl
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import KW_ONLY, dataclass, field
from urllib.parse import urljoin, urlsplit

import httpx

from qpack.core.errors import RegistryError
from registry.core.codes import NOT_HTTPS, REGISTRY_REFUSED, TOO_LARGE, UNREACHABLE, UNTRUSTED_CERTIFICATE
from registry.oci import credentials
from registry.oci.auth import LOOPBACK, Authority

MOST_BYTES = 4 * 1024 * 1024
"""The largest manifest, list or error that is read: the specification asks registries to accept as much."""

TRIES = 5
TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504})
_LONGEST_WAIT = 60.0
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_MOST_REDIRECTS = 5

Body = bytes | Callable[[], Iterable[bytes]]


class Unreachable(RegistryError):
    """No usable answer after several tries."""


@dataclass(frozen=True)
class Request:
    """`path` is below the registry's base, or a whole URL that the registry gave.

    `repository` and `push` decide which login is used; `mounts` are repositories that a token has to cover too. A body
    that is sent several times is a function.
    """

    method: str
    path: str
    repository: str
    _: KW_ONLY
    push: bool = False
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Body | None = None
    mounts: tuple[str, ...] = ()
    tries: int = TRIES


@dataclass(frozen=True)
class Answer:
    """A small answer, read completely. `url` is the requested one."""

    status: int
    headers: httpx.Headers
    body: bytes
    url: str


@dataclass(frozen=True)
class Http:
    """A connection to one registry. `host` is `name[:port]`; `wait` sleeps between tries."""

    host: str
    plain: bool
    client: httpx.Client
    authority: Authority
    wait: Callable[[float], None] = time.sleep

    @classmethod
    def open(cls, host: str, *, plain: bool, wait: Callable[[float], None] = time.sleep) -> Http:
        """Doesn't connect yet. Uses http only if `plain`; checks certificates (SSL_CERT_FILE adds some)."""
        client = httpx.Client(
            timeout=httpx.Timeout(60, connect=10, read=300),
            limits=httpx.Limits(max_connections=16),
            headers={"User-Agent": "qpack", "Accept-Encoding": "identity"},
        )
        authority = Authority(host, plain, client, lambda name: credentials.find(host, name, os.environ))
        return cls(host, plain, client, authority, wait)

    @property
    def base(self) -> str:
        """The base URL of the registry."""
        return f"{'http' if self.plain else 'https'}://{self.host}"

    def ask(self, request: Request) -> Answer:
        """Send a request whose answer is small, and read the answer.

        Raises Unreachable, or RegistryError for a refused login and an answer that is too large. Judging other statuses
        is left to the caller.
        """
        with self._answered(request) as response:
            data = b"".join(_bounded(response, MOST_BYTES))
            return Answer(response.status_code, response.headers, data, urljoin(self.base, request.path))

    @contextlib.contextmanager
    def stream(self, path: str, repository: str, headers: dict[str, str]) -> Iterator[httpx.Response]:
        """A GET whose answer is streamed. Follows redirects; other hosts get no login."""
        with self._answered(Request("GET", path, repository, headers=headers)) as response:
            try:
                yield response
            except httpx.HTTPError as error:
                raise Unreachable(
                    UNREACHABLE,
                    f"the connection to {self.host} broke during an answer ({type(error).__name__})",
                    hint="Run the command again: it resumes the download.",
                ) from None

    @contextlib.contextmanager
    def _answered(self, request: Request) -> Iterator[httpx.Response]:
        method, url, repository, tries = (
            request.method,
            urljoin(self.base, request.path),
            request.repository,
            request.tries,
        )
        home = urlsplit(self.base)
        tried = challenged = redirected = 0
        while True:
            headers = dict(request.headers)
            there = urlsplit(url)
            if there.scheme != "https" and not self.plain:
                raise RegistryError(
                    NOT_HTTPS,
                    f"{self.host} redirects to {there.scheme}://{there.netloc}, which is not https",
                    hint="Ask the operator to set the registry's external https address (behind a proxy).",
                )
            at_home = (there.scheme, there.netloc) == (home.scheme, home.netloc)
            if at_home and (known := self.authority.header(repository, push=request.push)):
                headers["Authorization"] = known
            content = request.body() if callable(request.body) else request.body
            tried += 1
            try:
                sent = self.client.build_request(method, url, headers=headers, content=content)
                response = self.client.send(sent, stream=True)
            except httpx.HTTPError as error:
                if _is_about_certificates(error):
                    raise RegistryError(
                        UNTRUSTED_CERTIFICATE,
                        f"the certificate of {there.netloc} can't be trusted",
                        hint="For your own certificate authority, set SSL_CERT_FILE to its file.",
                    ) from None
                # A refused connection is usually a wrong name: fail early.
                if tried >= (min(tries, 3) if isinstance(error, httpx.ConnectError) else tries):
                    raise self._unreachable(method, there.path, f"{type(error).__name__}") from None
                self.wait(0.25 * 2**tried)
                continue
            with contextlib.closing(response):
                status = response.status_code
                if status in _REDIRECTS and method in ("GET", "HEAD") and redirected < _MOST_REDIRECTS:
                    redirected += 1
                    url = urljoin(url, response.headers.get("location", ""))
                    continue
                if status == 401 and at_home:
                    if challenged < 2 and self.authority.answer(
                        response, repository, push=request.push, also=request.mounts
                    ):
                        challenged += 1
                        tried -= 1
                        continue
                    raise self.authority.refusal(repository, self.words(response))
                if status in TRANSIENT and tried < tries:
                    self.wait(_pause(response, tried))
                    continue
                if status in TRANSIENT and tries > 1:
                    raise self._unreachable(method, there.path, f"HTTP {status}{self.words(response)}")
                yield response
                return

    def refused(self, answer: Answer, doing: str, hint: str = "") -> RegistryError:
        """The error for an unusable answer, with the registry's message."""
        words = self.authority.redacted(_words(answer.body))
        hints = {
            403: "The login has no permission for this.",
            404: "Check the name. Some registries need the repository to be created before the first push.",
            405: "The registry is read-only, or a cache of another one.",
            413: "A proxy limits the size of requests: raise its limit.",
        }
        return RegistryError(
            REGISTRY_REFUSED,
            f"{self.host} refused {doing} (HTTP {answer.status}{words})",
            hint=hint or hints.get(answer.status, "Check the registry's log."),
        )

    def words(self, response: httpx.Response) -> str:
        """`: message of the registry`, read from an open response."""
        with contextlib.suppress(httpx.HTTPError, RegistryError):
            return self.authority.redacted(_words(b"".join(_bounded(response, MOST_BYTES))))
        return ""

    def _unreachable(self, method: str, path: str, why: str) -> Unreachable:
        hint = "Check the name, the network and the registry, then run the command again."
        if not self.plain and urlsplit(self.base).hostname not in LOOPBACK:
            hint += " It was contacted over https; `--plain-http` uses http."
        return Unreachable(UNREACHABLE, f"{self.host} can't be reached: {method} {path}: {why}", hint=hint)


def _bounded(response: httpx.Response, limit: int) -> Iterator[bytes]:
    count = 0
    for chunk in response.iter_raw():
        count += len(chunk)
        if count > limit:
            raise RegistryError(
                TOO_LARGE,
                f"an answer of {response.url.host} is larger than {limit:,} bytes",
                hint="Check that the address is that of a registry.",
            )
        yield chunk


def _pause(response: httpx.Response, tried: int) -> float:
    """Seconds to wait: `Retry-After` (RFC 9110, in seconds) up to a limit, or exponential backoff."""
    said = response.headers.get("retry-after", "")
    return min(float(said), _LONGEST_WAIT) if said.isdecimal() else 0.5 * 2**tried


def _words(body: bytes) -> str:
    """`: code, message` of the specification's errors, else the first line. At most 300 characters."""
    import json

    try:
        first = json.loads(body)["errors"][0]
        text = ", ".join(str(first[key]) for key in ("code", "message", "detail") if first.get(key))
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        text = body.decode("utf-8", "replace").strip().partition("\n")[0]
    text = "".join(c for c in text if c.isprintable())[:300]
    return f": {text}" if text else ""


def _is_about_certificates(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return True
        error = error.__cause__ or error.__context__
    return False
