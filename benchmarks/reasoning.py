"""The figures of tasks asked over chat, computed again from the answers alone. Shares no code with qpack.

    python benchmarks/reasoning.py QPACK_HOME [--json OUT]

Takes the newest verdict in the store of QPACK_HOME and both models' `answers.jsonl`. Word problems are solved from
their text and each reply is read again; a loop is a cut answer whose end is one passage repeated (found by shifting the
text against itself, not by compression); recovery gets a bootstrap over items. Prints what was stated beside what was
found.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections import defaultdict
from pathlib import Path
from statistics import fmean
from typing import Any

RESAMPLES = 4000


def solve(prompt: str) -> int:
    """The answer to a word problem, from its sentences."""
    count = 0
    for place, sentence in enumerate(prompt.partition("How many")[0].split(". ")):
        numbers = [int(found) for found in re.findall(r"\d+", sentence)]
        if place == 0:
            count = numbers[0]
        elif "gives" in sentence:
            count -= numbers[0]
        elif "times as large" in sentence:
            count *= numbers[0]
        elif "packs with" in sentence:
            count += numbers[0] * numbers[1]
        elif "keeps half" in sentence:
            count //= 2
        elif "finds" in sentence:
            count += numbers[0]
    return count


def number_of(reply: str) -> float | None:
    """The number after the last `Answer:`, else the last one of the reply."""
    reply = reply.rpartition("</think>")[2] if "</think>" in reply else reply
    pattern = r"-?\d[\d,]*(?:\.\d+)?"
    at = [match.end() for match in re.finditer(r"answer\s*:", reply, re.IGNORECASE)]
    behind = re.findall(pattern, reply[at[-1] :]) if at else []
    every = re.findall(pattern, reply)
    text = behind[0] if behind else every[-1] if every else None
    return float(text.replace(",", "")) if text is not None else None


def repeats_itself(text: str) -> bool:
    """Whether the last 600 characters are, for nine in ten of them, those of one period earlier."""
    tail = text[-1200:]
    if len(tail) < 600:
        return False
    end = tail[-600:]
    for period in range(1, len(tail) - 600 + 1):
        before = tail[len(tail) - 600 - period : len(tail) - period]
        if sum(x == y for x, y in zip(end, before, strict=True)) >= 540:
            return True
    return False


def answers(file: Path) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """{task: {item: its answers}}."""
    found: dict[str, dict[str, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for line in file.read_text(encoding="utf-8").splitlines():
        answer = json.loads(line)
        found[answer["item"].rsplit(":", 2)[0]][answer["item"]].append(answer)
    return found


def figures(items: dict[str, list[dict[str, Any]]], task: str, most: int) -> dict[str, Any]:
    """What one model did on a task, item by item."""
    scores, lengths = {}, {}
    cut = loops = count = 0
    for item, given in items.items():
        if task == "qpack_word_problems":
            right = [float(number_of(a["text"]) == solve(a["prompt"])) for a in given]
        else:
            right = [float(a["score"]) for a in given]
        scores[item], lengths[item] = fmean(right), fmean(a["tokens"] for a in given)
        ended = [a["tokens"] >= most for a in given]
        cut, count = cut + sum(ended), count + len(given)
        loops += sum(end and repeats_itself(a["thought"] + a["text"]) for end, a in zip(ended, given, strict=True))
    return {"scores": scores, "lengths": lengths, "cut": cut / count, "loops": loops / count, "answers": count}


def ratio_interval(before: dict[str, float], after: dict[str, float]) -> tuple[float, float]:
    """A percentile bootstrap of the ratio of means, over items."""
    rng, items, found = random.Random(0), sorted(before), []
    for _ in range(RESAMPLES):
        drawn = [rng.choice(items) for _ in items]
        bottom = sum(before[item] for item in drawn)
        if bottom > 0:
            found.append(sum(after[item] for item in drawn) / bottom)
    found.sort()
    return (found[int(0.05 * len(found))], found[int(0.95 * len(found))]) if found else (float("nan"), float("nan"))


def main() -> None:
    """Print both."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("home", type=Path)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    newest = max((args.home / "store" / "judge").glob("*/result.json"), key=lambda path: path.stat().st_mtime)
    envelope = json.loads(newest.read_text(encoding="utf-8"))
    comparison = envelope["result"]["comparison"]
    sides = {}
    for side in ("baseline", "artifact"):
        folder = args.home / "store" / "accuracy" / envelope["inputs"]["after"][f"{side}.accuracy"]
        result = json.loads((folder / "result.json").read_text(encoding="utf-8"))["result"]
        sides[side] = (answers(folder / "lm-eval" / "answers.jsonl"), {t["task"]: t for t in result["tasks"]})
    rows, limits = [], {"qpack_instructions": 256, "qpack_tool_calls": 128}
    for stated, asked in zip(comparison["generated"], comparison["tasks"], strict=True):
        task = stated["task"]
        settings = sides["artifact"][1][task]["generation"]
        most = settings["max_tokens"] or limits.get(task, 32)
        b, a = (figures(sides[side][0][task], task, most) for side in ("baseline", "artifact"))
        means = [fmean(x["scores"].values()) for x in (b, a)]
        lengths = [fmean(x["lengths"].values()) for x in (b, a)]
        found = {
            "baseline": (asked["baseline"], means[0]),
            "artifact": (asked["artifact"], means[1]),
            "recovery": (asked["recovery"]["value"], means[1] / means[0] if means[0] else float("nan")),
            "truncated, baseline": (stated["truncated_baseline"], b["cut"]),
            "truncated": (stated["truncated"]["value"], a["cut"]),
            "loops, baseline": (stated["loops_baseline"], b["loops"]),
            "loop_rate": (stated["loop_rate"]["value"], a["loops"] - b["loops"]),
            "tokens per answer, baseline": (stated["tokens_baseline"], lengths[0]),
            "length_ratio": (stated["length_ratio"]["value"], lengths[1] / lengths[0]),
            "answers": (stated["answers"], a["answers"]),
        }
        for name, (theirs, ours) in found.items():
            rows.append({"task": task, "figure": name, "stated": theirs, "found": ours})
            print(f"{task:24} {name:30} {theirs:12.6g} {ours:12.6g}")
        low, high = ratio_interval(b["scores"], a["scores"])
        held = asked["recovery"]["interval"] or {"low": float("nan"), "high": float("nan")}
        stated_span, found_span = f"{held['low']:.3f} to {held['high']:.3f}", f"{low:.3f} to {high:.3f}"
        print(f"{task:24} {'recovery, interval':30} {stated_span}; bootstrap {found_span}")
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
