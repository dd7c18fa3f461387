"""Windows and rows that texts give: counted before a build as the build counts them, and joined from short texts."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import pytest

from tests.scenarios.command import Qpack
from tests.scenarios.conftest import REAL

pytestmark = pytest.mark.engines

CALIBRATION = "calibration:\n  source: rows.txt\n  samples: {samples}\n  min_length: 4\nquantize:\n"


def recipe(windows: int, samples: int) -> str:
    text = REAL.replace("windows: 2\n", f"windows: {windows}\n").replace("method: rtn", "method: gptq")
    return text.replace("quantize:\n", CALIBRATION.format(samples=samples))


@pytest.fixture
def short(real: Qpack) -> Qpack:
    """Held-out texts that are all shorter than a window of 16 tokens, one twice; two of them calibrate too."""
    texts = [f"Passage number {i} has few words." for i in range(12)]
    (real.cwd / "held-out.txt").write_text("".join(f"{text}\n" for text in (*texts[:6], texts[0], *texts[6:])))
    rows = [texts[0], texts[1], *(f"Row {i} is none of them, and is read." for i in range(5))]
    (real.cwd / "rows.txt").write_text("".join(f"{text}\n" for text in rows))
    return real


def test_windows_are_joined_from_texts_that_are_too_short_alone_and_none_is_used_twice(short: Qpack) -> None:
    (short.cwd / "recipe.yaml").write_text(recipe(3, 4))
    done = short("build", "recipe.yaml", "--set", "limits.server_start_minutes=0.001", timeout=600)
    assert done.code == 5, done.err  # the server isn't waited for: every stage before it is done
    (result,) = (short.home / "store" / "hold_out").glob("*/result.json")
    held = json.loads(result.read_text())["result"]
    rows = [json.loads(line)["input_ids"] for line in (result.parent / "tokens.jsonl").read_text().splitlines()]
    assert (held["windows"], [len(row) for row in rows]) == (3, [16, 16, 16])
    digests = held["row_digests"]
    assert len(digests) == len(set(digests)) >= 6
    texts = (short.cwd / "held-out.txt").read_text().splitlines()
    assert digests == [hashlib.sha256(text.encode()).hexdigest() for text in dict.fromkeys(texts)][: len(digests)]
    (result,) = (short.home / "store" / "calibrate").glob("*/result.json")
    assert json.loads(result.read_text())["result"]["dropped_held_out"] == 2


def test_counts_before_a_build_are_those_of_the_build(short: Qpack) -> None:
    (short.cwd / "recipe.yaml").write_text(recipe(3, 4))
    for command in ("check", "plan"):
        counted = json.loads(short(command, "recipe.yaml", "--json").out)
        assert [(one["found"], one["asked"]) for one in counted["texts"]] == [(3, 3), (4, 4)]
    # Twelve texts of 8 or 9 tokens are 5 or 6 windows, and of 7 rows two are held out.
    (short.cwd / "recipe.yaml").write_text(recipe(40, 50))
    done, again = short("check", "recipe.yaml"), short("plan", "recipe.yaml")
    assert done.code == again.code == 2, done.err
    lines = (short.cwd / "recipe.yaml").read_text().splitlines()
    places = [lines.index("    windows: 40") + 1, lines.index("  samples: 50") + 1]
    for place, said in zip(
        places, ("40 windows of held-out text required", "50 calibration rows required"), strict=True
    ):
        assert f"error[too-little-text] recipe.yaml:{place}: " in done.err
        assert said in done.err
        assert said in again.err
    built = short("build", "recipe.yaml")
    assert built.code == 4
    found = re.findall(r"the texts contain (\d+)", done.err)
    assert f"40 windows of 16 tokens asked for, {found[0]} found" in built.err


def test_what_can_not_be_counted_is_said(short: Qpack, tmp_path: Path) -> None:
    (short.home / "envs").unlink()
    done = short("check", "recipe.yaml")
    assert done.code == 0, done.err
    assert "not checked: how many windows and rows the texts contain" in done.out
