"""What every client of the server's HTTP API needs."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from evals.server.codes import NO_RESPONSE, NOT_A_SERVER, SERVER_STATUS
from qpack.core.errors import EvaluateError

if TYPE_CHECKING:
    # Not at run time: a plan takes names from here, and asks nobody anything.
    import httpx

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
    """Show no progress."""


def server_words(response: httpx.Response) -> str:
    """The server's own error message: OpenAI's `error.message`, else the body's first 500 characters."""
    try:
        body = decoded(response)
    except ValueError:
        if "html" in response.headers.get("Content-Type", ""):
            return "a page of HTML: not an OpenAI server, or a proxy in between"
        return response.text[:500].strip() or "(an empty body)"
    if isinstance(body, dict):
        error = body.get("error", body)
        message = error.get("message") or error.get("detail") if isinstance(error, dict) else error
        if message:
            return str(message)[:500]
    return response.text[:500].strip()


def decoded(response: httpx.Response) -> Any:
    """The JSON body of a response. Raises ValueError for anything else."""
    try:
        return response.json()
    except RecursionError as error:
        raise ValueError("the response is nested too deeply") from error


def checked(response: httpx.Response) -> httpx.Response:
    """The response, if its status is 2xx. Raises EvaluateError with the server's own message."""
    if response.is_success:
        return response
    asked = f"{response.request.method} {response.request.url.path}"
    raise EvaluateError(
        SERVER_STATUS,
        f"{asked} returned HTTP {response.status_code}: {server_words(response)}",
        hint="See the server's log.",
    )


def unreachable(url: str, error: httpx.HTTPError, timeout: float) -> EvaluateError:
    """The error for a request without a response."""
    import httpx

    if isinstance(error, httpx.TimeoutException):
        return EvaluateError(
            NO_RESPONSE,
            f"no response from {url} in {timeout:.0f} s",
            hint="Raise the time limit, or see the server's log.",
        )
    if isinstance(error, httpx.ConnectError):
        return EvaluateError(
            NO_RESPONSE, f"can't connect to {url}: {error}", hint="Is the server running, and are host and port right?"
        )
    return EvaluateError(
        NO_RESPONSE,
        f"the connection to {url} broke: {type(error).__name__} {error}".rstrip(),
        hint="The server may have crashed: see its log.",
    )


def max_model_len(base_url: str, model: str, timeout: float = 30.0) -> int:
    """Tokens that fit into one request, from /v1/models. Raises EvaluateError."""
    import httpx

    url = f"{base_url.rstrip('/')}/v1/models"
    try:
        entries = decoded(checked(httpx.get(url, headers=authorization(), timeout=timeout)))["data"]
        lengths = {entry["id"]: entry.get("max_model_len") for entry in entries}
    except httpx.HTTPError as error:
        raise unreachable(url, error, timeout) from error
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise EvaluateError(NOT_A_SERVER, f"{url} isn't an OpenAI server", hint="Check host and port.") from error
    if isinstance(length := lengths.get(model), int):
        return length
    raise EvaluateError(NOT_A_SERVER, f"{url} has no max_model_len of {model}", hint="Check host and port.")


def post(client: httpx.Client, url: str, body: dict[str, Any]) -> Any:
    """The JSON of the response. Raises EvaluateError."""
    import httpx

    try:
        return decoded(checked(client.post(url, json=body)))
    except httpx.HTTPError as error:
        raise unreachable(url, error, client.timeout.read or 0.0) from error
    except ValueError as error:
        raise EvaluateError(NOT_A_SERVER, f"the response of {url} isn't JSON", hint="Check host and port.") from error


def authorization() -> dict[str, str]:
    """The header with the API key in VLLM_API_KEY; empty without it."""
    key = os.environ.get("VLLM_API_KEY")
    return {"Authorization": f"Bearer {key}"} if key else {}
