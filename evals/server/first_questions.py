"""The first questions to a server: is it the right model, does it answer, and does the stream match.

They come before anything long: a broken artifact fails here in seconds.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from evals.server.client import Endpoint, Progress, checked, decoded, nothing, unreachable
from evals.server.codes import NOT_A_SERVER, OTHER_MODEL, SERVER_ANSWER
from evals.workers import streams
from qpack.core import jsonfile
from qpack.core.errors import EvaluateError
from qpack.core.records import Canary, Reply

if TYPE_CHECKING:
    import httpx

CHAT_PROMPTS = (
    "What is the capital of France?",
    "Write one sentence about the sea.",
    "List three colours, separated by commas.",
)
TEXT_PROMPTS = ("The capital of France is", "The sea is", "Red, green,")
"""For a model without a chat template, which continues a text."""


def has_chat_template(tokenizer: Path) -> bool:
    """Whether the tokenizer's folder has a chat template, in its own file or in tokenizer_config.json."""
    if any((tokenizer / name).is_file() for name in ("chat_template.jinja", "chat_template.json")):
        return True
    try:
        return bool(jsonfile.read_object(tokenizer / "tokenizer_config.json").get("chat_template"))
    except (OSError, jsonfile.NotJson):
        return False


def measure(
    endpoint: Endpoint, *, max_tokens: int = 32, timeout: float = 300.0, progress: Progress = nothing
) -> Canary:
    """Ask the three prompts greedily, whole and streamed.

    Raises EvaluateError when the server has no model of that name, returns an HTTP error, or answers with nothing or
    one repeated character (as a model does whose logits are NaN). A stream that differs is reported in the result
    and isn't an error; see `evals.workers.streams`.
    """
    import httpx

    model, chat, replies = endpoint.model, endpoint.chat, []
    with httpx.Client(base_url=endpoint.base_url.rstrip("/"), timeout=timeout) as client:
        try:
            _check_served(client, model)
            prompts = CHAT_PROMPTS if chat else TEXT_PROMPTS
            for number, prompt in enumerate(prompts, start=1):
                replies.append(_asked(client, prompt, request(model, prompt, chat=chat, max_tokens=max_tokens), chat))
                progress(number, len(prompts), "prompts")
        except httpx.HTTPError as error:
            raise unreachable(endpoint.base_url, error, timeout) from error
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise EvaluateError(
                NOT_A_SERVER,
                f"{endpoint.base_url} isn't an OpenAI server: {type(error).__name__} {error}",
                hint="Check host and port.",
            ) from error
    return Canary(served_model=model, replies=tuple(replies))


def request(model: str, prompt: str, *, chat: bool, max_tokens: int) -> dict[str, Any]:
    """The request's body: greedy, with a fixed seed."""
    body: dict[str, Any] = {"model": model, "max_tokens": max_tokens, "temperature": 0, "seed": 0}
    return body | ({"messages": [{"role": "user", "content": prompt}]} if chat else {"prompt": prompt})


def check_text(prompt: str, text: str) -> None:
    """Raise EvaluateError for an answer that is empty, or one character 16 times or more."""
    characters = set("".join(text.split()))
    if not characters:
        raise EvaluateError(SERVER_ANSWER, f"the server answered {prompt!r} with nothing ({text!r})", hint=_BROKEN)
    if len(characters) == 1 and len(text.strip()) >= 16:
        raise EvaluateError(SERVER_ANSWER, f"the server answered {prompt!r} with {text[:40]!r}", hint=_BROKEN)


_BROKEN = "Weights or data type are broken: try the source model in the same server, and another scheme."


def stream_text(lines: list[str], *, chat: bool) -> str:
    """The text of a stream of server-sent events. Raises EvaluateError for an error in it, or a missing end."""
    from evals.server.chat import texts_of

    pieces: list[str] = []
    for line in lines:
        if not line.startswith("data:"):
            continue
        data = line.removeprefix("data:").strip()
        if data == "[DONE]":
            return "".join(pieces)
        pieces += texts_of(data, chat=chat, thought=True)
    raise EvaluateError(
        SERVER_ANSWER, "the stream has no end ([DONE])", hint="The server may have crashed: see its log."
    )


def _check_served(client: httpx.Client, model: str) -> None:
    served = [entry["id"] for entry in decoded(checked(client.get("/v1/models")))["data"]]
    if model not in served:
        raise EvaluateError(
            OTHER_MODEL, f"the server has {', '.join(map(str, served))} and not {model}", hint="Check host and port."
        )


def _asked(client: httpx.Client, prompt: str, body: dict[str, Any], chat: bool) -> Reply:
    reasons: list[str] = []

    def whole() -> str:
        text, reason = _whole(client, body, chat)
        reasons.append(reason)
        check_text(prompt, text)
        return text

    same, text, _ = streams.agree(whole, lambda: _streamed(client, body, chat))
    return Reply(prompt=prompt, text=text, finish_reason=reasons[0], streamed_the_same=same)


def _path(chat: bool) -> str:
    return "/v1/chat/completions" if chat else "/v1/completions"


def _whole(client: httpx.Client, body: dict[str, Any], chat: bool) -> tuple[str, str]:
    """The text, reasoning and all, and the finish reason of an answer without streaming."""
    from evals.server.chat import whole

    choice = decoded(checked(client.post(_path(chat), json=body)))["choices"][0]
    text = whole(choice["message"]) if chat else choice["text"] or ""
    if not isinstance(text, str):
        raise TypeError("the answer is no text")
    return text, str(choice["finish_reason"])


def _streamed(client: httpx.Client, body: dict[str, Any], chat: bool) -> str:
    with client.stream("POST", _path(chat), json=body | {"stream": True}) as response:
        if not response.is_success:
            response.read()
        checked(response)
        return stream_text(list(response.iter_lines()), chat=chat)
