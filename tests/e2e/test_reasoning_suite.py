"""Tasks asked over chat with repeats, through a real build; the figures are computed again by a script of its own."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.scenarios.command import Qpack

pytestmark = [
    pytest.mark.engines,
    pytest.mark.slow("SmolLM2 answers word problems, several times each"),
]

ROOT = Path(__file__).parents[2]
TASKS = (
    "evaluate.tasks=[{task: suite:reasoning, samples: 10, generate: {temperature: 0.7, top_p: 0.95, repeats: 3, "
    "max_tokens: 96}}, {task: suite:tools, samples: 6}]"
)
SMALL = (
    *("--set", TASKS, "--set", "evaluate.perplexity.windows=6", "--set", "evaluate.perplexity.window_tokens=64"),
    *("--set", "measure.repeats=1", "--set", "measure.max_repeats=1"),
)


@pytest.fixture(scope="module")
def built(engine_home: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Qpack, dict[str, Any]]:
    """The benchmark's recipe with few items; its verdict may be any."""
    folder = tmp_path_factory.mktemp("reasoning")
    (folder / "home").mkdir()
    (folder / "home" / "envs").symlink_to(engine_home / "envs")
    qpack = Qpack(folder / "home", folder, {})
    done = qpack("build", ROOT / "benchmarks" / "reasoning.yaml", *SMALL, timeout=2400)
    assert done.code in (0, 6, 7), done.err
    (judged,) = (folder / "home" / "store" / "judge").glob("*/result.json")
    return qpack, json.loads(judged.read_text())["result"]


def test_a_script_that_shares_no_code_finds_the_same_figures(
    built: tuple[Qpack, dict[str, Any]], tmp_path: Path
) -> None:
    qpack, _ = built
    file, script = tmp_path / "found.json", ROOT / "benchmarks" / "reasoning.py"
    subprocess.run([sys.executable, script, qpack.home, "--json", file], check=True)
    rows = json.loads(file.read_text())
    assert {row["task"] for row in rows} == {"qpack_word_problems", "qpack_tool_calls"}
    for row in rows:
        same = math.isclose(row["stated"], row["found"], rel_tol=1e-9, abs_tol=1e-12)
        assert same or math.isnan(row["found"]) or row["figure"].startswith("loop"), row


def test_each_item_was_answered_as_often_as_asked_with_other_words(built: tuple[Qpack, dict[str, Any]]) -> None:
    qpack, result = built
    (words, calls) = result["comparison"]["generated"]
    assert (words["answers"], calls["answers"]) == (30, 6)
    for file in (qpack.home / "store" / "accuracy").glob("*/lm-eval/answers.jsonl"):
        answers = [json.loads(line) for line in file.read_text().splitlines()]
        problems = [a for a in answers if a["item"].startswith("qpack_word_problems:")]
        texts = {item: {a["text"] for a in problems if a["item"] == item} for item in {a["item"] for a in problems}}
        assert len(texts) == 10
        # At this temperature three answers of hundreds of tokens are hardly ever the same.
        assert sum(len(some) for some in texts.values()) > 20
        assert all(a["tokens"] == 96 if a["truncated"] else a["tokens"] <= 96 for a in problems)


def test_report_and_show_have_recovery_and_what_became_of_the_answers(built: tuple[Qpack, dict[str, Any]]) -> None:
    qpack, _ = built
    done = qpack("report", ROOT / "benchmarks" / "reasoning.yaml", *SMALL, "-o", "report.html")
    assert done.code == 0, done.err
    text = (qpack.cwd / "report.html").read_text()
    for word in ("Recovery", "qpack_word_problems", "loop", "tokens"):
        assert word in text
