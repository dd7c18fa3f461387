"""The right values of each function that is asked for, computed again from its words, by code of its own."""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter, deque
from collections.abc import Callable
from typing import Any

from evals.tasks import code_items


def shifted(letter: str, places: int) -> str:
    for alphabet in ("abcdefghijklmnopqrstuvwxyz", "ABCDEFGHIJKLMNOPQRSTUVWXYZ"):
        if letter in alphabet:
            return (alphabet + alphabet)[alphabet.index(letter) + places]
    return letter


def rotated(items: list[int], places: int) -> list[int]:
    turned = deque(items)
    for _ in range(places):
        turned.appendleft(turned.pop())
    return list(turned)


def element(n: int, first: int, second: int) -> int:
    return first if n == 0 else second if n == 1 else element(n - 1, first, second) + element(n - 2, first, second)


def digits(n: int, base: int) -> int:
    return n % base + digits(n // base, base) if n else 0


def composite(n: int) -> bool:
    return any(a * b == n for a in range(2, n) for b in range(2, n // a + 1))


def chunked(items: list[int], size: int) -> list[list[int]]:
    return [items[:size], *chunked(items[size:], size)] if items else []


def runs(text: str, least: int) -> list[list[Any]]:
    found = [[letter, len(list(group))] for letter, group in itertools.groupby(text)]
    return [run for run in found if run[1] >= least]


def placed(numbers: list[int], place: int) -> int | None:
    return dict(enumerate(sorted(set(numbers), reverse=True), 1)).get(place)


# By the words of what is asked; the numbers are those in the function's name.
WORDS: dict[str, Callable[..., Any]] = {
    "divisible": lambda x, d: sum(filter(lambda n: not n % d, x)),
    "places on in the alphabet": lambda text, k: "".join(shifted(letter, k) for letter in text),
    "sorted from the largest": placed,
    "rotated to the right": rotated,
    "are the sum of the two before": element,
    "runs of equal characters": runs,
    "sum of the digits": digits,
    "all primes": lambda n, least: [p for p in range(max(2, least), n + 1) if not composite(p)],
    "reverses each word": lambda text, k: re.sub(rf"\S{{{k},}}", lambda word: word[0][::-1], text),
    "lists of": chunked,
    "a dict from each character": lambda text, k: {c: n for c, n in Counter(text).items() if n >= k},
}


def again(prompt: str, name: str) -> Callable[..., Any]:
    if letters := re.search(r"one of the letters ([a-z, ]+), in either case", prompt):
        return lambda text: sum(text.lower().count(letter) for letter in letters[1].split(", "))
    (function,) = [function for words, function in WORDS.items() if words in prompt]
    numbers = [int(number) for number in re.findall(r"\d+", name)]
    return lambda value: function(value, *numbers)


def test_every_right_value_is_what_the_words_ask_for() -> None:
    documents = code_items.functions()
    assert len(documents) == 120
    for document in documents:
        check = json.loads(document["check"])
        function = again(document["prompt"].split("For example")[0], check["function"])
        # As JSON, as the values of replies are compared.
        values = [json.loads(json.dumps(function(*call))) for call in check["calls"]]
        assert values == check["right"], document["prompt"]
        shown = re.search(r" gives (.+)\. Reply", document["prompt"])
        assert shown is not None
        assert shown[1] == repr(values[0]) or sorted(shown[1]) == sorted(repr(values[0]))
