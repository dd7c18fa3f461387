"""Small functions to be written, made by code: what is asked, some calls, and what they have to give.

Each kind is a function of the standard library's world, with a reference that this module runs to know the right
values; parameters differ from item to item, so that no solution is known by heart. See sandbox.py for how replies run.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from typing import Any

ITEMS = 120
CALLS = 6
_WORDS = (
    "river",
    "silver",
    "garden",
    "window",
    "music",
    "lantern",
    "level",
    "noon",
    "paper",
    "bridge",
    "Summer",
    "tea",
)

Made = tuple[str, str, Callable[..., Any], list[list[Any]]]
"""Name, what is asked, the reference, the arguments of each call."""


def _numbers(rng: random.Random, most: int = 9) -> list[int]:
    return [rng.randint(-20, 40) for _ in range(rng.randint(1, most))]


def _text(rng: random.Random) -> str:
    return " ".join(rng.choice(_WORDS) for _ in range(rng.randint(1, 5)))


def _divisible(rng: random.Random) -> Made:
    d = rng.randint(2, 7)
    said = f"returns the sum of the numbers in the list `numbers` that are divisible by {d}"
    return (
        f"sum_divisible_by_{d}",
        said,
        lambda x: sum(n for n in x if n % d == 0),
        [[_numbers(rng)] for _ in range(CALLS)],
    )


def _shift(rng: random.Random) -> Made:
    k = rng.randint(1, 20)

    def reference(text: str) -> str:
        return "".join(
            chr((ord(c) - 97 + k) % 26 + 97)
            if "a" <= c <= "z"
            else chr((ord(c) - 65 + k) % 26 + 65)
            if "A" <= c <= "Z"
            else c
            for c in text
        )

    said = (
        f"moves each letter from a to z and from A to Z of the string `text` {k} places on in the alphabet, from its "
        "end back to its beginning, and leaves all other characters"
    )
    return f"shift_by_{k}", said, reference, [[_text(rng)] for _ in range(CALLS)]


def _nth(rng: random.Random) -> Made:
    n = rng.randint(2, 4)
    said = (
        f"returns the number that is in place {n} when the different numbers of the list `numbers` are sorted from the "
        "largest to the smallest, or None where there are fewer"
    )

    def reference(x: list[int]) -> int | None:
        different = sorted(set(x), reverse=True)
        return different[n - 1] if len(different) >= n else None

    return f"largest_{n}", said, reference, [[_numbers(rng)] for _ in range(CALLS)]


def _rotate(rng: random.Random) -> Made:
    k = rng.randint(1, 5)
    said = f"returns the list `items` rotated to the right by {k} places (the last item comes to the front {k} times)"
    return (
        f"rotate_{k}",
        said,
        lambda x: [x[(i - k) % len(x)] for i in range(len(x))],
        [[_numbers(rng)] for _ in range(CALLS)],
    )


def _vowels(rng: random.Random) -> Made:
    letters = "".join(sorted(rng.sample("aeiourst", 3)))
    said = (
        f"counts how many characters of the string `text` are one of the letters {', '.join(letters)}, in either case"
    )
    return (
        f"count_{letters}",
        said,
        lambda x: sum(c.lower() in letters for c in x),
        [[_text(rng)] for _ in range(CALLS)],
    )


def _sequence(rng: random.Random) -> Made:
    a, b = rng.randint(0, 3), rng.randint(1, 4)

    def reference(n: int) -> int:
        x, y = a, b
        for _ in range(n):
            x, y = y, x + y
        return x

    said = (
        f"returns element `n` of the sequence that begins with {a} (n = 0) and {b}, and whose next elements are the "
        "sum of the two before"
    )
    return f"sequence_{a}_{b}", said, reference, [[n] for n in rng.sample(range(15), CALLS)]


def _runs(rng: random.Random) -> Made:
    least = rng.randint(1, 2)
    said = (
        "returns a list of pairs [character, count] for the runs of equal characters of the string `text`, in order"
        + (", leaving out runs of one character" if least == 2 else "")
    )

    def reference(text: str) -> list[list[Any]]:
        return [[m[0][0], len(m[0])] for m in re.finditer(r"(.)\1*", text) if len(m[0]) >= least]

    calls = [["".join(rng.choice("aab") for _ in range(rng.randint(0, 9)))] for _ in range(CALLS)]
    return f"runs_of_{least}", said, reference, calls


def _digits(rng: random.Random) -> Made:
    base = rng.choice((2, 3, 5, 8, 10))

    def reference(n: int) -> int:
        total = 0
        while n:
            total, n = total + n % base, n // base
        return total

    said = f"returns the sum of the digits of the whole number `n`, 0 or more, written in base {base}"
    return f"digit_sum_base_{base}", said, reference, [[rng.randint(0, 5000)] for _ in range(CALLS)]


def _primes(rng: random.Random) -> Made:
    low = rng.randint(2, 30)
    said = f"returns the list of all primes that are at least {low} and at most `n`, in ascending order"

    def reference(n: int) -> list[int]:
        return [p for p in range(low, n + 1) if all(p % d for d in range(2, int(p**0.5) + 1))]

    return f"primes_from_{low}", said, reference, [[rng.randint(0, 90)] for _ in range(CALLS)]


def _words(rng: random.Random) -> Made:
    least = rng.randint(4, 6)
    said = (
        f"reverses each word of {least} or more letters in the string `text`; words are parted by single spaces, and "
        "keep their order"
    )

    def reference(text: str) -> str:
        return " ".join(w[::-1] if len(w) >= least else w for w in text.split(" "))

    return f"reverse_words_{least}", said, reference, [[_text(rng)] for _ in range(CALLS)]


def _chunks(rng: random.Random) -> Made:
    size = rng.randint(2, 4)
    said = f"splits the list `items` into lists of {size} items each, the last of which may be shorter"
    return (
        f"chunks_of_{size}",
        said,
        lambda x: [x[i : i + size] for i in range(0, len(x), size)],
        [[_numbers(rng)] for _ in range(CALLS)],
    )


def _counts(rng: random.Random) -> Made:
    least = rng.randint(2, 3)
    said = f"returns a dict from each character that the string `text` has {least} times or more to how often"

    def reference(text: str) -> dict[str, int]:
        return {c: text.count(c) for c in text if text.count(c) >= least}

    return f"frequent_{least}", said, reference, [[_text(rng)] for _ in range(CALLS)]


KINDS = (
    *(_divisible, _shift, _nth, _rotate, _vowels, _sequence),
    *(_runs, _digits, _primes, _words, _chunks, _counts),
)


def functions() -> list[dict[str, Any]]:
    """`ITEMS` documents with different prompts; `check` has the function, its calls, and the right values."""
    found: dict[str, dict[str, Any]] = {}
    index = 0
    while len(found) < ITEMS:
        rng = random.Random(f"function {index}")
        name, said, reference, calls = KINDS[index % len(KINDS)](rng)
        parameter = (re.search(r"`(\w+)`", said) or [""])[1]
        right = [reference(*call) for call in calls]
        shown = f"{name}({calls[0][0]!r}) gives {right[0]!r}"
        prompt = (
            f"Write a Python function `{name}({parameter})` that {said}. For example, {shown}. Reply with the function "
            "in one code block and nothing else. Use no libraries but Python's own."
        )
        found.setdefault(
            prompt, {"prompt": prompt, "check": json.dumps({"function": name, "calls": calls, "right": right})}
        )
        index += 1
    return list(found.values())


def code_of(reply: str) -> str:
    """The last fenced block of a reply that defines a function, else the last one, else all of it."""
    blocks = re.findall(r"```[^\n`]*\n(.*?)(?:```|\Z)", reply, re.DOTALL)
    with_function = [block for block in blocks if re.search(r"^\s*def ", block, re.MULTILINE)]
    return str((with_function or blocks or [reply])[-1])


def right(answers: list[dict[str, Any]] | None, check: dict[str, Any]) -> bool:
    """Whether every call gave the right value, of the right type (1 isn't 1.0, nor true)."""
    if answers is None:
        return False
    given = [json.dumps(answer.get("value"), sort_keys=True) if "value" in answer else "" for answer in answers]
    return given == [json.dumps(value, sort_keys=True) for value in check["right"]]
