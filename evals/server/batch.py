"""Answer a file of prompts: answers are in the order of the prompts, and a stopped run resumes.

Three kinds of input, one request per line: OpenAI's batch format
(https://platform.openai.com/docs/guides/batch, `custom_id`, `url`, `body`), JSON objects with `prompt` or `messages`,
and plain text. The first line determines the kind of all lines.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
import uuid
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Literal

import httpx

from evals.server.client import Endpoint, Progress, Sampling, authorization, decoded, nothing, server_words, unreachable
from evals.server.codes import NOT_A_SERVER, SERVER_STATUS
from qpack.core.errors import EvaluateError
from qpack.core.problems import UNREADABLE_FILE, Code, Location, Problem

_BAD_REQUEST = Code("bad-request", "A line of a batch is no request that can be sent.")
_DUPLICATE_ID = Code("duplicate-id", "Two requests of a batch have the same custom_id.")
_NO_PROMPTS = Code("no-prompts", "A file of prompts has none.")
_OTHER_REQUESTS = Code("other-requests", "An output file answers other requests.")

Kind = Literal["openai", "json", "text"]
PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings")
_ATTEMPTS = 3
_LATER = (429, 502, 503, 504)
_KEPT = "Answers so far are kept; the same command resumes."


@dataclass(frozen=True)
class Request:
    """One line of the input. `name` identifies its answer: the custom_id, or the request's digest."""

    number: int
    name: str
    path: str
    body: dict[str, Any]

    @property
    def digest(self) -> str:
        """Of everything that is sent: an answer belongs to the prompt with all its settings."""
        return digest_of(self.path, self.body)


def digest_of(path: str, body: dict[str, Any]) -> str:
    """The digest of a request."""
    return hashlib.sha256(f"{path}\0{json.dumps(body, sort_keys=True)}".encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Batch:
    """The requests of a file, all of one kind."""

    kind: Kind
    requests: tuple[Request, ...]


@dataclass(frozen=True)
class Done:
    """The result of a run: answers in the output, how many of them an earlier run wrote, and how many are errors."""

    total: int
    before: int
    failed: int


def read(file: Path, endpoint: Endpoint, sampling: Sampling) -> Batch:
    """Every request of the input. A body without a model gets the endpoint's; `sampling` is for prompts without.

    Raises EvaluateError with every bad line.
    """
    try:
        # Split at line feeds only: JSON and text may contain other characters that Python treats as line ends.
        lines = [(n, line) for n, line in enumerate(file.read_text("utf-8-sig").split("\n"), 1) if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it isn't UTF-8"
        raise EvaluateError(
            UNREADABLE_FILE, f"{file} can't be read: {why}", hint="Use a file of UTF-8 text."
        ) from error
    if not lines:
        raise EvaluateError(_NO_PROMPTS, f"{file} has no prompts", hint="Write one per line: text or JSON.")
    kind = _kind(lines[0][1])
    problems, found = [], []
    for number, line in lines:
        try:
            found.append(_request(number, line, kind, endpoint, sampling))
        except ValueError as error:
            problems.append(Problem(_BAD_REQUEST, str(error), Location(str(file), number)))
    names: dict[str, int] = {}
    problems += [
        Problem(
            _DUPLICATE_ID,
            f"custom_id {request.name!r} is a duplicate of line {names[request.name]}",
            Location(str(file), request.number),
        )
        for request in found
        if kind == "openai" and names.setdefault(request.name, request.number) != request.number
    ]
    if problems:
        count = "1 line" if len(problems) == 1 else f"{len(problems)} lines"
        raise EvaluateError(_BAD_REQUEST, f"{count} can't be used; no request was sent", problems=tuple(problems))
    return Batch(kind, tuple(found))


def _parsed(line: str | bytes) -> Any:
    """The JSON of a line. Raises ValueError."""
    try:
        return json.loads(line)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _sendable(line: str) -> Any:
    """The JSON of a line, without NaN and lone surrogates. Raises ValueError."""
    data = _parsed(line)
    try:
        json.dumps(data, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError:
        raise ValueError("it has a lone surrogate") from None
    return data


def _kind(line: str) -> Kind:
    try:
        data = _parsed(line)
    except ValueError:
        # A line that looks like JSON isn't sent as text; its error is reported with its number.
        return "json" if line.lstrip().startswith("{") else "text"
    if not isinstance(data, dict):
        return "text"
    return "openai" if "custom_id" in data else "json"


def _request(number: int, line: str, kind: Kind, endpoint: Endpoint, sampling: Sampling) -> Request:
    if kind == "text":
        path, body = _prompted({"prompt": line}, endpoint, sampling)
        return Request(number, digest_of(path, body), path, body)
    try:
        data = _sendable(line)
    except ValueError as error:
        raise ValueError(f"is not JSON: {error}") from None
    if not isinstance(data, dict):
        raise ValueError("is not a JSON object")
    if kind == "json":
        path, body = _prompted(data, endpoint, sampling)
        return Request(number, digest_of(path, body), path, body)
    if not isinstance(data.get("custom_id"), str) or not isinstance(data.get("body"), dict):
        raise ValueError("needs a custom_id (text) and a body (an object)")
    if data.get("method", "POST") != "POST" or data.get("url") not in PATHS:
        raise ValueError(f"method must be POST, and url one of {', '.join(PATHS)}")
    return Request(number, data["custom_id"], data["url"], {"model": endpoint.model, **data["body"], "stream": False})


def _prompted(data: dict[str, Any], endpoint: Endpoint, sampling: Sampling) -> tuple[str, dict[str, Any]]:
    messages, prompt = data.get("messages"), data.get("prompt")
    rest = {key: value for key, value in data.items() if key not in ("messages", "prompt")}
    asked = {"model": endpoint.model, **asdict(sampling), **rest, "stream": False}
    if isinstance(messages, list):
        return PATHS[0], {**asked, "messages": messages}
    if not isinstance(prompt, str):
        raise ValueError("needs a prompt (text) or messages (a list)")
    if endpoint.chat:
        return PATHS[0], {**asked, "messages": [{"role": "user", "content": prompt}]}
    return PATHS[1], {**asked, "prompt": prompt}


def finished(output: Path, requests: tuple[Request, ...]) -> int:
    """How many answers an earlier run wrote; a partial last line of a killed run is removed.

    Raises EvaluateError when they don't answer the first of `requests`: the file is then of another run.
    """
    if not output.parent.is_dir() or output.is_dir():
        what = f"{output} can't be written: it is a folder, or its folder doesn't exist"
        raise EvaluateError(UNREADABLE_FILE, what, hint="Choose another --output.")
    if not output.exists():
        return 0
    try:
        data = output.read_bytes()
    except OSError as error:
        raise EvaluateError(
            UNREADABLE_FILE, f"{output} can't be read: {error.strerror}", hint="Choose another --output."
        ) from error
    whole = data[: data.rfind(b"\n") + 1]
    lines = whole.splitlines()
    for line, request in zip(lines, requests, strict=False):
        try:
            answer = _parsed(line)
            same = answer["custom_id"] == request.name and answer.get("id", _id(request)) == _id(request)
        except (ValueError, LookupError, TypeError, AttributeError):
            same = False
        if not same:
            raise _foreign(output, request.number)
    if len(lines) > len(requests):
        raise _foreign(output, len(requests) + 1)
    if len(whole) < len(data):
        with output.open("r+b") as file:
            file.truncate(len(whole))
    return len(lines)


def _foreign(output: Path, number: int) -> EvaluateError:
    return EvaluateError(
        _OTHER_REQUESTS,
        f"{output} has answers to other prompts, or to these with other settings (from line {number} on)",
        hint="Choose another --output, or use the same settings.",
    )


def run(
    base_url: str, batch: Batch, output: Path, *, concurrency: int, timeout: float = 600.0, progress: Progress = nothing
) -> Done:
    """Send the remaining requests, `concurrency` at once, and append answers in the order of the requests.

    A request error (HTTP 4xx) is written as the answer. Raises EvaluateError when the server can't be reached or fails
    three times in a row; answers so far are kept, and the same call resumes.
    """
    requests = batch.requests
    before = finished(output, requests)
    failed = 0
    limits = httpx.Limits(max_connections=concurrency)
    with (
        httpx.Client(base_url=base_url, timeout=timeout, headers=authorization(), limits=limits) as client,
        output.open("ab") as file,
    ):
        for answered, (request, response) in enumerate(_answers(client, requests[before:], concurrency), 1):
            failed += not response.is_success
            # A lone surrogate in a response is escaped: valid JSON.
            line = json.dumps(_line(batch.kind, request, response), ensure_ascii=False)
            file.write(line.encode("utf-8", "backslashreplace") + b"\n")
            file.flush()
            progress(before + answered, len(requests), "answers")
        os.fsync(file.fileno())
    return Done(len(requests), before, failed)


def _answers(
    client: httpx.Client, requests: tuple[Request, ...], concurrency: int
) -> Iterator[tuple[Request, httpx.Response]]:
    """Each request with its response, in order; at most twice `concurrency` are in flight or waiting to be written."""
    todo: SimpleQueue[tuple[Request, Future[httpx.Response]]] = SimpleQueue()
    for _ in range(min(concurrency, len(requests))):
        # No ThreadPoolExecutor: stopping a batch would wait for all requests in flight.
        threading.Thread(target=_work, args=(client, todo), daemon=True).start()
    waiting: deque[tuple[Request, Future[httpx.Response]]] = deque()
    for request in requests:
        waiting.append((request, Future()))
        todo.put(waiting[-1])
        if len(waiting) >= 2 * concurrency:
            first, future = waiting.popleft()
            yield first, future.result()
    while waiting:
        first, future = waiting.popleft()
        yield first, future.result()


def _work(client: httpx.Client, todo: SimpleQueue[tuple[Request, Future[httpx.Response]]]) -> None:
    while True:
        request, future = todo.get()
        try:
            future.set_result(_send(client, request))
        except Exception as error:
            future.set_exception(error)


def _send(client: httpx.Client, request: Request) -> httpx.Response:
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            response = client.post(request.path, json=request.body)
        except httpx.TransportError as error:
            if attempt == _ATTEMPTS:
                failure = unreachable(str(client.base_url), error, float(client.timeout.read or 0))
                raise EvaluateError(failure.code, failure.what, hint=f"{failure.hint} {_KEPT}") from error
        else:
            if response.status_code < 500 and response.status_code not in _LATER:
                return response
            if attempt == _ATTEMPTS:
                raise EvaluateError(
                    SERVER_STATUS,
                    f"line {request.number}: HTTP {response.status_code}: {server_words(response)}",
                    hint=_KEPT,
                )
        time.sleep(2 ** (attempt - 1))
    raise AssertionError("the last attempt returns or raises")


def _id(request: Request) -> str:
    return f"batch_req_{request.digest}"


def _line(kind: Kind, request: Request, response: httpx.Response) -> dict[str, Any]:
    """The output line: OpenAI's batch output, or the text for prompts."""
    try:
        body = decoded(response)
    except ValueError:
        body = {"error": {"message": response.text[:500]}}
    if kind == "openai":
        identifier = body.get("id") if isinstance(body, dict) else None
        answer = {"status_code": response.status_code, "request_id": identifier or uuid.uuid4().hex, "body": body}
        return {"id": _id(request), "custom_id": request.name, "response": answer, "error": None}
    line: dict[str, Any] = {"custom_id": request.name, "line": request.number}
    if not response.is_success:
        return {**line, "text": None, "error": server_words(response)}
    try:
        choice = body["choices"][0]
        text = choice["message"]["content"] if "message" in choice else choice["text"]
        finish_reason, usage = choice["finish_reason"], body.get("usage")
    except (LookupError, TypeError, AttributeError) as error:
        raise EvaluateError(
            NOT_A_SERVER, f"line {request.number}: not an OpenAI server's response: {response.text[:200]}", hint=_KEPT
        ) from error
    return {**line, "text": text, "finish_reason": finish_reason, "usage": usage, "error": None}
