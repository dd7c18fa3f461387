"""The right answer about each picture, read again from its pixels. Shares no code with what draws them."""

from __future__ import annotations

import base64
import io
import json
from collections import Counter
from typing import Any

from PIL import Image

from evals.tasks import picture_items

COLOURS = {
    (220, 30, 30): "red",
    (30, 160, 50): "green",
    (40, 70, 220): "blue",
    (240, 210, 40): "yellow",
    (20, 20, 20): "black",
    (140, 50, 160): "purple",
}
NUMBERS = ("one", "two", "three", "four", "five", "six")
WHITE = (255, 255, 255)


def shapes(picture: str) -> list[dict[str, Any]]:
    """Shape, colour, column and row of each cell that isn't white."""
    with Image.open(io.BytesIO(base64.b64decode(picture))) as opened:
        image = opened.convert("RGB")
    assert image.size == (240, 240)
    found = []
    for column in range(3):
        for row in range(3):
            cell = image.crop((80 * column, 80 * row, 80 * column + 80, 80 * row + 80))
            paint = Counter(cell.get_flattened_data())
            del paint[WHITE]
            if not paint:
                continue
            ((colour, _),) = paint.items()
            # How many pixels of the shape's first and middle line are painted: few and some, all alike, few and most.
            lines = [sum(cell.getpixel((x, y)) == colour for x in range(80)) for y in range(80)]
            high = [count for count in lines if count]
            if len(set(high)) == 1:
                shape = "square"
            elif abs(high[0] - high[-1]) <= 2:
                shape = "circle"
            else:
                shape = "triangle"
            found.append({"shape": shape, "colour": COLOURS[colour], "column": column, "row": row})
    return found


def seen(picture: str, prompt: str) -> str:
    """The right word."""
    there = shapes(picture)
    words = prompt.replace("?", " ").replace(":", " ").split()
    if prompt.startswith("What colour"):
        (one,) = [each for each in there if each["shape"] in words]
        return str(one["colour"])
    if prompt.startswith("How many"):
        return NUMBERS[sum(f"{each['shape']}s" in words for each in there) - 1]
    colour = words[2]
    (one,) = [each for each in there if each["colour"] == colour]
    if "circle," in words:
        return str(one["shape"])
    (other,) = [each for each in there if each["colour"] != colour]
    return "left" if one["column"] < other["column"] else "right"


def test_every_right_answer_is_in_its_picture() -> None:
    documents = picture_items.pictures()
    assert len(documents) == 200
    answers = Counter()
    for document in documents:
        right = seen(document["picture"], document["prompt"])
        assert json.loads(document["check"])["right"] == right, document["prompt"]
        answers[right] += 1
    # No word alone is right often.
    assert max(answers.values()) <= 0.2 * len(documents)
