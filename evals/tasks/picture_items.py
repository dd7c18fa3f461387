"""Questions about pictures that code draws: shapes of one colour each on a white ground, as PNG."""

from __future__ import annotations

import base64
import json
import random
import re
import struct
import zlib
from collections.abc import Callable
from typing import Any

ITEMS, SIDE, CELL = 200, 240, 80
COLOURS = {
    "red": (220, 30, 30), "green": (30, 160, 50), "blue": (40, 70, 220), "yellow": (240, 210, 40),
    "black": (20, 20, 20), "purple": (140, 50, 160),
}  # fmt: skip
SHAPES: dict[str, Callable[[int, int], bool]] = {
    "circle": lambda x, y: x * x + y * y <= 30 * 30,
    "square": lambda x, y: abs(x) <= 26 and abs(y) <= 26,
    "triangle": lambda x, y: -26 <= y <= 26 and abs(x) <= (y + 26) * 30 // 52,
}
"""Whether a point is in a shape, from its middle; y grows downwards."""
NUMBERS = ("one", "two", "three", "four", "five", "six")

Placed = tuple[str, str, int, int]
"""Shape, colour, column and row of its cell."""


def pictures() -> list[dict[str, Any]]:
    """`prompt`, `picture` (base64 of a PNG) and `check`: the right word, and those that are wrong."""
    docs: dict[str, dict[str, Any]] = {}
    index = 0
    while len(docs) < ITEMS:
        rng = random.Random(f"picture {index}")
        shapes, asked, right, words = (_colour, _shape, _count, _side)[index % 4](rng)
        picture = base64.b64encode(png(shapes)).decode()
        prompt = f"{asked} Reply with one word."
        check = json.dumps({"right": right, "words": sorted(words)})
        docs.setdefault(prompt + picture, {"prompt": prompt, "picture": picture, "check": check})
        index += 1
    return list(docs.values())


def _cells(rng: random.Random, count: int) -> list[tuple[int, int]]:
    return rng.sample([(x, y) for x in range(3) for y in range(3)], count)


def _colour(rng: random.Random) -> tuple[list[Placed], str, str, set[str]]:
    names, colours = rng.sample(list(SHAPES), 2), rng.sample(list(COLOURS), 2)
    shapes = [(n, c, *cell) for n, c, cell in zip(names, colours, _cells(rng, 2), strict=True)]
    return shapes, f"What colour is the {names[0]} in the picture?", colours[0], set(COLOURS)


def _shape(rng: random.Random) -> tuple[list[Placed], str, str, set[str]]:
    names, colours = rng.sample(list(SHAPES), 2), rng.sample(list(COLOURS), 2)
    shapes = [(n, c, *cell) for n, c, cell in zip(names, colours, _cells(rng, 2), strict=True)]
    asked = f"Is the {colours[0]} shape in the picture a circle, a square or a triangle?"
    return shapes, asked, names[0], set(SHAPES)


def _count(rng: random.Random) -> tuple[list[Placed], str, str, set[str]]:
    name, count = rng.choice(list(SHAPES)), rng.randint(1, 6)
    shapes = [(name, rng.choice(list(COLOURS)), *cell) for cell in _cells(rng, count)]
    return shapes, f"How many {name}s are in the picture?", NUMBERS[count - 1], set(NUMBERS)


def _side(rng: random.Random) -> tuple[list[Placed], str, str, set[str]]:
    first, second = rng.sample(list(COLOURS), 2)
    left, right = rng.sample(range(3), 2)
    shapes = [(rng.choice(list(SHAPES)), c, x, rng.randrange(3)) for c, x in ((first, left), (second, right))]
    asked = (
        f"Is the {first} shape in the left or in the right of the two places, beside the {second} one: left or right?"
    )
    return shapes, asked, "left" if left < right else "right", {"left", "right"}


def png(shapes: list[Placed]) -> bytes:
    """The picture, 240 pixels wide and high, without compression losses."""
    rows = [bytearray(b"\xff" * 3 * SIDE) for _ in range(SIDE)]
    for name, colour, column, line in shapes:
        inside, paint = SHAPES[name], bytes(COLOURS[colour])
        for y in range(CELL):
            for x in range(CELL):
                if inside(x - CELL // 2, y - CELL // 2):
                    at = 3 * (column * CELL + x)
                    rows[line * CELL + y][at : at + 3] = paint
    data = zlib.compress(b"".join(b"\0" + row for row in rows), 9)
    head = struct.pack(">IIBBBBB", SIDE, SIDE, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", head) + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def right(reply: str, check: dict[str, Any]) -> bool:
    """Whether the reply names the right word, and none of the wrong ones; digits count as their words."""
    said = {word.lower() for word in re.findall(r"[A-Za-z]+", reply)}
    said |= {NUMBERS[int(digits) - 1] for digits in re.findall(r"\d+", reply) if 1 <= int(digits[:9]) <= len(NUMBERS)}
    return said & set(check["words"]) == {check["right"]}
