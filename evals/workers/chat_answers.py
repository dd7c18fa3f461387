"""Answers over /v1/chat/completions: asked several at a time, and what is kept of each. Standard library alone."""

from __future__ import annotations

import hashlib
import json
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any

TAIL = 3000
"""Characters at the end of an answer that are searched for a loop."""
LOOP = 0.15
"""Compressed size of a tail that repeats itself, over its size. Measured on tails of that length: passages of BoolQ at
least 0.41, word problems of ASDiv 0.25, qpack's Python 0.23; a counter that runs on 0.14, a repeated passage of 600
random characters 0.12, of 256 characters of text 0.07.
"""
LATE_TAILS, LATE_LOOP = (600, 1000, 1500), 0.12
"""Shorter tails, for a loop that begins late in a long answer, and their share. Of 3,103 cuts in numpy's code, where
tests hold arrays, one is below it (42 are below LOOP); of 11,000 in other code, Markdown, JSON and tables none.
"""
REPEATS = ((3, 600), (5, 300))
"""A tail that is the same text over and over, exactly: at least so many times, over so many characters. None of those
cuts is.
"""
_ATTEMPTS = 3
SHORTEST = 600
"""A shorter text doesn't compress enough to be judged by it."""


@dataclass(frozen=True)
class ChatAnswer:
    """The `answer` that is scored, the whole `text` and what was `thought` apart from it, generated `tokens` of both,
    whether it was `truncated` at the limit of tokens, and whether it then ended in a loop.
    """

    answer: str
    text: str
    thought: str
    tokens: int
    truncated: bool
    looped: bool


@dataclass(frozen=True)
class Asking:
    """Where requests go, how many at a time, and what tells them apart from those of another run (`seed`)."""

    base_url: str
    concurrency: int
    timeout_seconds: float
    seed: int
    think_end: str


def ask(
    how: Asking,
    bodies: Mapping[Hashable, Mapping[str, Any]],
    stops: Mapping[Hashable, Sequence[str]],
    repeats: int,
    progress: Callable[[int, int], None],
) -> dict[Hashable, list[ChatAnswer]]:
    """`repeats` answers to each request body. Raises ValueError with the server's words.

    Each request has a seed of its own, the same for every model. `stops` end an answer, not the thinking before it, so
    they aren't sent.
    """
    found: dict[Hashable, dict[int, ChatAnswer]] = {key: {} for key in bodies}
    with ThreadPoolExecutor(how.concurrency) as pool:
        todo = {
            pool.submit(_one, how, {**body, "seed": seed_of(how.seed, key, repeat)}): (key, repeat)
            for repeat in range(repeats)
            for key, body in bodies.items()
        }
        try:
            for done, future in enumerate(as_completed(todo), 1):
                key, repeat = todo[future]
                found[key][repeat] = answer_of(future.result(), how.think_end, stops[key])
                progress(done, len(todo))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return {key: [answers[n] for n in sorted(answers)] for key, answers in found.items()}


def seed_of(seed: int, key: Hashable, repeat: int) -> int:
    """A seed that follows from the run's, the item and the repeat."""
    digest = hashlib.sha256(f"{seed}:{key}:{repeat}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def _one(how: Asking, body: Mapping[str, Any]) -> Any:
    url = how.base_url.rstrip("/") + "/v1/chat/completions"
    data = json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            with urllib.request.urlopen(request, timeout=how.timeout_seconds) as response:
                return json.load(response)
        except urllib.error.HTTPError as error:
            raise ValueError(f"the server answered {error.code}: {error.read(500).decode(errors='replace')}") from error
        # A connection that breaks while many are opened; the seed makes the answer the same.
        except OSError as error:
            if attempt == _ATTEMPTS or isinstance(error, TimeoutError):
                raise ValueError(f"no answer from {url}: {error}") from error
            time.sleep(attempt)
    return None


def answer_of(reply: Any, think_end: str, stops: Sequence[str]) -> ChatAnswer:
    """What is kept of one reply. Raises ValueError for one without a choice or without usage."""
    try:
        choice = reply["choices"][0]
        message, finish = choice["message"], choice["finish_reason"]
        tokens = int(reply["usage"]["completion_tokens"])
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise ValueError(f"the server's answer has no choice, or no usage: {str(reply)[:300]}") from error
    text = message.get("content") or ""
    # vLLM called it reasoning_content until 0.11.
    thought = message.get("reasoning") or message.get("reasoning_content") or ""
    given = without_thinking(text, think_end)
    answer = cut(given, stops)
    # An answer that one of the task's stops ended was complete there; what followed was only not prevented.
    truncated = finish == "length" and answer == given
    return ChatAnswer(answer, text, thought, tokens, truncated, truncated and loops(thought + text))


def without_thinking(text: str, think_end: str) -> str:
    """The answer alone: what stands behind the last end of thinking; nothing where thinking was cut."""
    if think_end and think_end in text:
        return text.rpartition(think_end)[2].strip()
    begin = think_end.replace("/", "", 1)
    if think_end and begin != think_end and text.lstrip().startswith(begin):
        return ""
    return text


def cut(text: str, stops: Sequence[str]) -> str:
    """The text up to the first of the task's own stops."""
    for stop in stops:
        if stop and not text.startswith(stop):
            text = text.partition(stop)[0]
    return text


def loops(text: str) -> bool:
    """Whether the end of a text repeats itself: it is one text over and over, or it compresses far better than any text
    that goes on.
    """
    tail = text[-TAIL:]
    if any(_repeats(tail, times, least) for times, least in REPEATS):
        return True
    if len(tail.encode()) < SHORTEST:
        return False
    return _compressed(tail) < LOOP or any(
        _compressed(tail[-length:]) < LATE_LOOP for length in LATE_TAILS if length < len(tail)
    )


def _compressed(text: str) -> float:
    data = text.encode()
    return len(zlib.compress(data, 9)) / len(data)


def _repeats(text: str, times: int, least: int) -> bool:
    """Whether a text ends in the same characters, `times` or more in a row, over `least` characters."""
    for period in range(1, len(text) // times + 1):
        length = max(least, times * period)
        if length > len(text):
            return False
        end = text[-length:]
        if end[period:] == end[:-period]:
            return True
    return False
