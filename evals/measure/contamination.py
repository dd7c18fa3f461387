"""Contamination: calibration texts that are also in the evaluation data.

Two texts overlap when they share a run of `NGRAM` words, as in Brown et al. (GPT-3, NeurIPS 2020, appendix C) and
lm-eval's decontamination; case and punctuation are ignored. A shorter text overlaps when the other one contains all of
it; below `SHORTEST` words it isn't checked.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evals.measure import suite
from qpack.core import jsonfile
from qpack.core.errors import EvaluateError
from qpack.core.findings import Contamination, Overlap, OverlapSet
from qpack.core.hashing import open_regular
from qpack.core.problems import UNREADABLE_FILE
from qpack.core.records import Accuracy

NGRAM = 13
SHORTEST = 8
_WORD = re.compile(r"\w+")


def find(
    rows: Mapping[str, str], sets: Mapping[str, Mapping[str, str]], unchecked: Sequence[str] = ()
) -> Contamination:
    """Which texts of each set overlap with which row. Pure.

    `rows` is {digest: text} of the calibration rows; `sets` {name: {item: text}}; `unchecked` names sets whose texts
    aren't known. An item is listed once, with the row that it shares most with.
    """
    words = {digest: _words(text) for digest, text in rows.items()}
    places: dict[tuple[str, ...], str] = {}
    for digest, row in words.items():
        for gram in _grams(row):
            places.setdefault(gram, digest)
    whole = {digest: f" {' '.join(row)} " for digest, row in words.items()}
    return Contamination(
        ngram=NGRAM,
        rows=len(rows),
        sets=tuple(_one(name, items, places, whole) for name, items in sets.items()),
        unchecked=tuple(unchecked),
    )


def task_texts(accuracy: Accuracy) -> tuple[dict[str, dict[str, str]], list[str]]:
    """({task: {sample id: text}} of qpack's own tasks, names of the other tasks, whose texts only lm-eval has)."""
    from evals.tasks import generated
    from evals.tasks.utils import read_docs

    known, unchecked = {}, []
    for task in accuracy.tasks:
        described = suite.TASKS.get(task.task)
        if described is None:
            unchecked.append(task.task)
            continue
        if described.file:
            docs, _ = read_docs(suite.data_root() / described.file, described.kind)
        else:
            docs = generated.MAKERS[task.task.removeprefix("qpack_")]()
        known[task.task] = {
            sample.id: doc["prompt"] if "prompt" in doc else f"{doc['passage']} {doc['question']}"
            for sample in task.samples
            for doc in (docs[int(sample.id.split(":")[1])],)
        }
    return known, unchecked


def texts_of(path: Path, field: str, digests: Sequence[str]) -> dict[str, str]:
    """{digest: text} of the rows of a .jsonl or .txt file that have one of these digests (`Calibrated.row_digests`).

    Raises EvaluateError, with the line, for a row that isn't a JSON object, isn't UTF-8, or is too large.
    """
    wanted = set(digests)
    found = {}
    rows = path.suffix in (".jsonl", ".json")
    with io.TextIOWrapper(open_regular(path), encoding="utf-8") as file:
        for number in itertools.count(1):
            try:
                if not (line := file.readline(jsonfile.MAX_BYTES + 1)):
                    break
                text = _text(line, field, rows)
            except ValueError as error:
                raise EvaluateError(UNREADABLE_FILE, f"{path}:{number} isn't a row of text: it {error}") from error
            if text is None:
                continue
            plain = text if isinstance(text, str) else json.dumps(text, sort_keys=True)
            digest = hashlib.sha256(plain.encode()).hexdigest()
            if digest in wanted:
                found[digest] = text if isinstance(text, str) else _spoken(text)
    return found


def _text(line: str, field: str, rows: bool) -> Any:
    """The line's `field`, or the line itself; None for an empty one. Raises ValueError."""
    if len(line) > jsonfile.MAX_BYTES:
        raise ValueError(f"has more than {jsonfile.MAX_BYTES:,} characters")
    if not line.strip():
        return None
    if not rows:
        return line.rstrip("\n")
    row = jsonfile.loads(line.encode())
    if not isinstance(row, dict):
        raise ValueError("is not a JSON object")
    return row.get(field)


def _one(
    name: str, items: Mapping[str, str], places: Mapping[tuple[str, ...], str], whole: Mapping[str, str]
) -> OverlapSet:
    overlaps, short = [], 0
    for item, text in items.items():
        words = _words(text)
        if len(words) < SHORTEST:
            short += 1
            continue
        grams = _grams(words)
        if grams:
            shared = [gram for gram in grams if gram in places]
            rows = Counter(places[gram] for gram in shared)
        else:
            shared = [tuple(words)]
            said = f" {' '.join(words)} "
            rows = Counter({digest: 1 for digest, row in whole.items() if said in row})
        if rows:
            row, _ = rows.most_common(1)[0]
            share = len(shared) / len(grams) if grams else 1.0
            overlaps.append(Overlap(item=item, row=row, share=share, words=" ".join(shared[0])))
    return OverlapSet(name=name, items=len(items), too_short=short, overlaps=tuple(overlaps))


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _grams(words: Sequence[str]) -> list[tuple[str, ...]]:
    return [tuple(words[i : i + NGRAM]) for i in range(len(words) - NGRAM + 1)]


def _spoken(messages: Any) -> str:
    """A chat's messages as one text."""
    if not isinstance(messages, list):
        return str(messages)
    return "\n".join(str(m.get("content", "")) if isinstance(m, dict) else str(m) for m in messages)
