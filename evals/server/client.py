"""What every client of the server's HTTP API needs."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx

from qpack.core.errors import EvaluateError

Progress = Callable[[int, int, str], None]
"""Called with (done, total, what)."""


@dataclass(frozen=True)
class Endpoint:
    """A model on a server: the server's address, the model's name there, and whether it has a chat template."""

    base_url: str
    model: str
    chat: bool


@dataclass(frozen=True)
class Sampling:
    """How an answer is generated: its longest length in tokens, and the temperature (0 is greedy)."""

    max_tokens: int
    temperature: float = 0.0


def nothing(_done: int, _total: int, _what: str) -> None:
    """Progress that nobody watches."""


def server_words(response: httpx.Response) -> str:
    """The server's own account of an error: OpenAI's `error.message`, else the body's first 500 characters."""
    try:
        body = decoded(response)
    except ValueError:
        if "html" in response.headers.get("Content-Type", ""):
            return "a page of HTML, so it is no OpenAI server, or there is a proxy in between"
        return response.text[:500].strip() or "(an empty body)"
    if isinstance(body, dict):
        error = body.get("error", body)
        message = error.get("message") or error.get("detail") if isinstance(error, dict) else error
        if message:
            return str(message)[:500]
    return response.text[:500].strip()


def decoded(response: httpx.Response) -> Any:
    """The JSON that a server answered, whoever runs it. Raises ValueError for anything else."""
    try:
        return response.json()
    except RecursionError as error:
        raise ValueError("the answer is nested too deeply") from error


def checked(response: httpx.Response) -> httpx.Response:
    """The response, if its status is 2xx. Raises EvaluateError with the server's own words."""
    if response.is_success:
        return response
    asked = f"{response.request.method} {response.request.url.path}"
    raise EvaluateError(
        f"{asked} answered HTTP {response.status_code}: {server_words(response)}",
        hint="The server's log says more.",
    )


def unreachable(url: str, error: httpx.HTTPError, timeout: float) -> EvaluateError:
    """The error for a request that got no answer."""
    if isinstance(error, httpx.TimeoutException):
        return EvaluateError(
            f"the server gave no answer to {url} in {timeout:.0f} s",
            hint="Raise the time limit, or see in its log what it does.",
        )
    if isinstance(error, httpx.ConnectError):
        return EvaluateError(
            f"nothing answers at {url}: {error}", hint="Is the server up, and is this its host and its port?"
        )
    return EvaluateError(
        f"the server at {url} broke off: {type(error).__name__} {error}".rstrip(), hint="It may have died; see its log."
    )


def max_model_len(base_url: str, model: str, timeout: float = 30.0) -> int:
    """Tokens that fit into one request, as the server says in /v1/models. Raises EvaluateError when it doesn't."""
    url = f"{base_url.rstrip('/')}/v1/models"
    try:
        entries = decoded(checked(httpx.get(url, headers=authorization(), timeout=timeout)))["data"]
        lengths = {entry["id"]: entry.get("max_model_len") for entry in entries}
    except httpx.HTTPError as error:
        raise unreachable(url, error, timeout) from error
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise EvaluateError(f"{url} doesn't answer as an OpenAI server does", hint="What is on this port?") from error
    if isinstance(length := lengths.get(model), int):
        return length
    raise EvaluateError(f"{url} names no max_model_len of {model}", hint="Is another server on this port?")


def post(client: httpx.Client, url: str, body: dict[str, Any]) -> Any:
    """The JSON that the server answers. Raises EvaluateError."""
    try:
        return decoded(checked(client.post(url, json=body)))
    except httpx.HTTPError as error:
        raise unreachable(url, error, client.timeout.read or 0.0) from error
    except ValueError as error:
        raise EvaluateError(f"{url} doesn't answer in JSON", hint="What is on this port?") from error


def authorization() -> dict[str, str]:
    """The header with the API key in VLLM_API_KEY, which is the name that the server knows it by; none without it."""
    key = os.environ.get("VLLM_API_KEY")
    return {"Authorization": f"Bearer {key}"} if key else {}
