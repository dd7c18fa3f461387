"""The REST API of an MLflow tracking server, as far as releases need it.

https://mlflow.org/docs/latest/api_reference/rest-api.html, and `mlflow-artifacts` for files, which the server proxies.
Messages contain no query strings and no headers: both may hold secrets.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import httpx

from qpack.core.errors import RegistryError
from registry.core import documents
from registry.core.codes import NOT_A_REGISTRY, REGISTRY_REFUSED, UNREACHABLE
from registry.core.documents import Document

MOST_BYTES = 16 * 2**20
"""The largest JSON answer that is read."""

TRIES = 4
_TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504})
_MOST_PAGES = 1000

Body = Callable[[], Iterable[bytes]]


class Refused(RegistryError):
    """An answer with MLflow's own error code."""

    def __init__(self, what: str, error_code: str, hint: str = "") -> None:
        super().__init__(REGISTRY_REFUSED, what, hint=hint)
        self.error_code = error_code


@dataclass(frozen=True)
class Client:
    """A connection to the server at `base` (`https://host:port`); `wait` sleeps between tries."""

    base: str
    http: httpx.Client
    wait: Callable[[float], None] = time.sleep

    @classmethod
    def open(cls, base: str) -> Client:
        """Doesn't connect yet. The login is that of MLflow's own clients: MLFLOW_TRACKING_TOKEN, or
        MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD.
        """
        token, user = os.environ.get("MLFLOW_TRACKING_TOKEN"), os.environ.get("MLFLOW_TRACKING_USERNAME")
        auth = (user, os.environ.get("MLFLOW_TRACKING_PASSWORD", "")) if user else None
        headers = {"User-Agent": "qpack", "Accept-Encoding": "identity"}
        if token and not user:
            headers["Authorization"] = f"Bearer {token}"
        # Nothing is sent to another host: redirects aren't followed.
        timeout = httpx.Timeout(120, connect=10)
        return cls(base, httpx.Client(auth=auth, headers=headers, timeout=timeout, follow_redirects=False))

    def get(self, path: str, query: Mapping[str, str | int] | None = None) -> Any:
        """The JSON of `GET api/2.0/mlflow/PATH`. Raises Refused with MLflow's error code."""
        return self._json("GET", path, {key: str(value) for key, value in (query or {}).items()}, None)

    def send(self, method: str, path: str, body: Document) -> Any:
        """The same for a request with a body. Sent again after a lost answer: what it makes may be there already."""
        return self._json(method, path, {}, body)

    def pages(self, path: str, query: Mapping[str, str | int], field: str) -> Iterator[Any]:
        """Every entry of a paged list."""
        token = ""
        for _ in range(_MOST_PAGES):
            answer = self.get(path, {**query, **({"page_token": token} if token else {})})
            entries = answer.get(field, [])
            if not isinstance(entries, list):
                raise self._odd(path)
            yield from entries
            token = str(answer.get("next_page_token") or "")
            if not token:
                return

    def upload_bytes(self, path: str, data: bytes) -> None:
        """`upload` for a small artifact."""
        self.upload(path, lambda: [data], len(data))

    def upload(self, path: str, body: Body, size: int) -> None:
        """Write an artifact; `path` is below the server's artifacts. `body` starts anew for each try."""
        url = f"{self.base}/api/2.0/mlflow-artifacts/artifacts/{quote(path)}"
        headers = {"Content-Length": str(size), "Content-Type": "application/octet-stream"}
        answer = self._tried(lambda: self.http.put(url, content=body(), headers=headers))
        if answer.status_code != 200:
            raise self._refused(answer, f"to take {path.rpartition('/')[2]}")

    @contextlib.contextmanager
    def download(self, path: str, offset: int) -> Iterator[Iterator[bytes]]:
        """An artifact's content from `offset`. The server sends it from the beginning; what is here is skipped."""
        url = f"{self.base}/api/2.0/mlflow-artifacts/artifacts/{quote(path)}"
        try:
            with self.http.stream("GET", url) as answer:
                if answer.status_code != 200:
                    answer.read()
                    raise self._refused(answer, f"to send {path.rpartition('/')[2]}")
                yield _without_first(answer.iter_raw(), offset)
        except httpx.HTTPError as error:
            raise RegistryError(
                UNREACHABLE,
                f"the connection to {self.base} broke during an answer ({type(error).__name__})",
                hint="Run the command again: it resumes the download.",
            ) from None

    def _json(self, method: str, path: str, query: Mapping[str, str], body: Document | None) -> Any:
        url = f"{self.base}/api/2.0/mlflow/{path}"
        answer = self._tried(lambda: self.http.request(method, url, params=dict(query), json=body))
        if answer.status_code != 200:
            raise self._refused(answer, path)
        try:
            found = documents.parse(answer.content[: MOST_BYTES + 1]) if len(answer.content) <= MOST_BYTES else None
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise self._odd(path)
        return found

    def _tried(self, ask: Callable[[], httpx.Response]) -> httpx.Response:
        for attempt in range(1, TRIES + 1):
            try:
                answer = ask()
                if answer.status_code not in _TRANSIENT or attempt == TRIES:
                    return answer
            except httpx.HTTPError as error:
                if attempt == TRIES:
                    raise RegistryError(
                        UNREACHABLE,
                        f"{self.base} can't be reached ({type(error).__name__})",
                        hint="Check that the MLflow server is running, and its address.",
                    ) from None
            self.wait(0.5 * 2**attempt)
        raise AssertionError("unreachable")

    def _refused(self, answer: httpx.Response, what: str) -> Refused:
        code, said = "", ""
        with contextlib.suppress(ValueError, AttributeError):
            told = documents.parse(answer.content[:65536])
            code, said = str(told.get("error_code", "")), str(told.get("message", ""))
        hint = ""
        if answer.status_code in (401, 403):
            hint = "Set MLFLOW_TRACKING_TOKEN, or MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD."
        elif answer.status_code in (301, 302, 307, 308):
            hint = "The address is another one: an MLflow server doesn't redirect."
        shown = "".join(mark for mark in said if mark.isprintable())[:300]
        status = f"{answer.status_code} {code or 'error'}"
        return Refused(f"{self.base} refused ({status}): {what} {shown}".rstrip(), code, hint)

    def _odd(self, path: str) -> RegistryError:
        return RegistryError(
            NOT_A_REGISTRY, f"{self.base} doesn't answer as MLflow does ({path})", hint="Check its address."
        )


def _without_first(pieces: Iterator[bytes], count: int) -> Iterator[bytes]:
    for piece in pieces:
        if count >= len(piece):
            count -= len(piece)
            continue
        yield piece[count:]
        count = 0
