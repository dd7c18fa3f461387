"""Needle in a haystack: facts hidden in a text as long as the served context, and asked for.

The haystack is the held-out text, repeated where it is too short. The needle is a sentence with a number that occurs
nowhere else; the reply must contain that number. After G. Kamradt's needle in a haystack (2023), with RULER's numbers
as needles (Hsieh et al., COLM 2024). Every prompt begins with the same haystack, so a prefix cache computes it once.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Callable, Sequence
from itertools import cycle, islice
from typing import Any

import httpx

from evals.measure.eval_specs import NeedleSpec
from evals.measure.perplexity import WINDOW_TOO_SHORT, read_windows
from evals.server.client import authorization, post
from evals.server.session import Session
from qpack.core.errors import EvaluateError
from qpack.core.findings import Needle, NeedleAnswer

_PIECE = 300  # characters per sentence at most: the grid of the needle's position and of the prompt's length
_FIRST = ("Alder", "Birch", "Copper", "Dun", "Elm", "Fern", "Gull", "Hazel", "Iron", "Juniper", "Kestrel", "Linden",
          "Marl", "Nettle", "Otter", "Plover", "Quarry", "Rowan", "Stone", "Thorn")  # fmt: skip
_LAST = ("bank", "bridge", "brook", "cliff", "combe", "dale", "field", "ford", "gate", "haven", "hill", "holm", "lea",
         "mere", "mill", "moor", "port", "ridge", "stead", "well")  # fmt: skip


def measure(session: Session, spec: NeedleSpec) -> Needle:
    """Hide facts in the held-out text and ask for them, one request at a time.

    Prompt and answer together nearly fill the longest request that the server takes. Raises EvaluateError.
    """
    context_tokens, workspace, chat = session.context(), session.workspace, session.endpoint.chat
    workspace.report(f"facts hidden in text of {context_tokens:,} tokens")
    url, model, rows = session.endpoint.base_url.rstrip("/"), session.endpoint.model, read_windows(session.texts())
    budget = context_tokens - spec.answer_tokens
    depths = sorted(spec.depths * spec.prompts)
    places = [(depth, *fact) for depth, fact in zip(depths, facts(spec.seed), strict=False)]
    answers, whole, longest = [], hashlib.sha256(), 0
    with httpx.Client(timeout=workspace.limits.tool, headers=authorization()) as client:

        def ids_of(text: str, **more: Any) -> list[int]:
            asked = {"messages": [{"role": "user", "content": text}], "add_generation_prompt": True}
            body = {"model": model, **(asked if chat and not more else {"prompt": text}), **more}
            return [int(token) for token in post(client, f"{url}/tokenize", body)["tokens"]]

        # A window's start token isn't part of the text.
        front = len(ids_of("a", add_special_tokens=True)) - len(ids_of("a", add_special_tokens=False))
        texts = (post(client, f"{url}/detokenize", {"model": model, "tokens": row[front:]})["prompt"] for row in rows)
        hay = pieces(" ".join(map(str, texts)))

        def text_of(count: int, depth: float, place: str, number: str) -> str:
            return question(list(islice(cycle(hay), count)), depth, place, number, chat=chat)

        most = largest(lambda count: len(ids_of(text_of(count, *places[0]))) <= budget)
        for done, (depth, place, number) in enumerate(places, 1):
            count = most
            while count and len(ids := ids_of(text := text_of(count, depth, place, number))) > budget:
                count -= 1
            if not count:
                raise EvaluateError(WINDOW_TOO_SHORT, f"a context of {context_tokens} tokens is too short for a needle")
            body = {"model": model, "prompt": ids, "max_tokens": spec.answer_tokens, "temperature": 0}
            reply = str(post(client, f"{url}/v1/completions", body)["choices"][0]["text"])
            answers.append(NeedleAnswer(depth=depth, expected=number, reply=reply, found=number in reply))
            # Of the texts, not the ids: some chat templates insert the date.
            whole.update(text.encode() + b"\0")
            longest = max(longest, len(ids))
            workspace.progress(done, len(places), "needles")
    return Needle(
        context_tokens=context_tokens,
        prompt_tokens=longest,
        chat=chat,
        prompts_digest=whole.hexdigest(),
        answers=tuple(answers),
    )


def facts(seed: int) -> list[tuple[str, str]]:
    """400 (place, number) pairs, all distinct. Numbers have six digits."""
    order = random.Random(f"needle {seed}")
    places = [first + last for first in _FIRST for last in _LAST]
    order.shuffle(places)
    return list(zip(places, map(str, order.sample(range(100_000, 1_000_000), len(places))), strict=True))


def pieces(text: str) -> list[str]:
    """A text as sentences and lines of at most `_PIECE` characters."""
    sentences = re.split(r"(?<=[.!?])\s+|\s*\n\s*", text)
    return [s[i : i + _PIECE] for s in sentences if s.strip() for i in range(0, len(s), _PIECE)]


def question(hay: Sequence[str], depth: float, place: str, number: str, *, chat: bool) -> str:
    """The haystack with the fact at `depth`, and the question."""
    at = round(depth * len(hay))
    text = " ".join([*hay[:at], f"The number of the locker in {place} is {number}.", *hay[at:]])
    if chat:
        return f"{text}\n\nWhat is the number of the locker in {place}? Answer with the number alone."
    return f"{text}\n\nWhat is the number of the locker in {place}? The number of the locker in {place} is"


def largest(fits: Callable[[int], bool]) -> int:
    """The largest count that fits, if all smaller ones fit; 0 when not even 1 fits."""
    high = 1
    while fits(high):
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
