"""Chat with a server by its OpenAI API, streamed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import httpx

from evals.server.client import Endpoint, Sampling, authorization, checked, decoded, unreachable
from evals.server.codes import NOT_A_SERVER, SERVER_ANSWER
from qpack.core.errors import EvaluateError

Message = dict[str, str]


def served_model(base_url: str, timeout: float = 30.0) -> str:
    """The first model in /v1/models. Raises EvaluateError when there is none."""
    try:
        response = checked(httpx.get(f"{base_url}/v1/models", headers=authorization(), timeout=timeout))
        return str(decoded(response)["data"][0]["id"])
    except httpx.HTTPError as error:
        raise unreachable(base_url, error, timeout) from error
    except (ValueError, LookupError, TypeError) as error:
        raise EvaluateError(NOT_A_SERVER, f"{base_url} isn't an OpenAI server", hint="Check host and port.") from error


def has_template(base_url: str, model: str, timeout: float = 300.0) -> bool:
    """Whether the server accepts chat requests: vLLM returns 400 for a model without a chat template."""
    body = {"model": model, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1}
    try:
        url = f"{base_url}/v1/chat/completions"
        return httpx.post(url, json=body, headers=authorization(), timeout=timeout).status_code != 400
    except httpx.HTTPError as error:
        raise unreachable(base_url, error, timeout) from error


def answer(
    endpoint: Endpoint, messages: Sequence[Message], sampling: Sampling, *, timeout: float = 600.0
) -> Iterator[str]:
    """Stream the answer to a conversation. Without a chat template the last message is continued.

    Raises EvaluateError when the server returns an error, in the stream too, or the connection breaks.
    """
    base_url, chat = endpoint.base_url, endpoint.chat
    body: dict[str, Any] = {"model": endpoint.model, **asdict(sampling), "stream": True}
    body |= {"messages": list(messages)} if chat else {"prompt": messages[-1]["content"]}
    path = "/v1/chat/completions" if chat else "/v1/completions"
    try:
        with httpx.stream("POST", base_url + path, json=body, headers=authorization(), timeout=timeout) as response:
            if not response.is_success:
                response.read()
            yield from pieces(checked(response).iter_lines(), chat=chat)
    except httpx.HTTPError as error:
        raise unreachable(base_url, error, timeout) from error


def pieces(lines: Iterator[str], *, chat: bool) -> Iterator[str]:
    """The text of a stream of server-sent events. Raises EvaluateError for an error in it, or a missing end."""
    for line in lines:
        if not line.startswith("data:"):
            continue
        data = line.removeprefix("data:").strip()
        if data == "[DONE]":
            return
        yield from filter(None, texts_of(data, chat=chat))
    raise EvaluateError(
        SERVER_ANSWER, "the stream has no end ([DONE])", hint="The server may have crashed: see its log."
    )


def whole(message: Mapping[str, Any]) -> str:
    """What a message or a part of one says, with what the server split off as reasoning before it."""
    thought = message.get("reasoning") or message.get("reasoning_content") or ""
    text: str = thought + (message.get("content") or "")
    return text


def texts_of(data: str, *, chat: bool, thought: bool = False) -> tuple[str, ...]:
    """The text of every choice in one event of a stream, with reasoning if `thought`. Raises EvaluateError for an error
    or an invalid event.
    """
    try:
        event = json.loads(data)
        if "error" in event:
            raise EvaluateError(SERVER_ANSWER, f"the stream has an error: {event['error']}"[:500])
        if chat:
            parts = [choice["delta"] for choice in event["choices"]]
            found = tuple(whole(part) if thought else part.get("content") or "" for part in parts)
        else:
            found = tuple(choice["text"] or "" for choice in event["choices"])
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        found = (None,)
    if not all(isinstance(text, str) for text in found):
        raise EvaluateError(
            SERVER_ANSWER, f"the stream has an invalid event: {data[:200]}", hint="Is this an OpenAI server?"
        )
    return found
