"""`suite:code` through a real build: SmolLM2 writes functions, and another judge finds the same figures."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from evals.tasks import code_items
from tests.scenarios.command import Qpack

pytestmark = [pytest.mark.engines, pytest.mark.slow("SmolLM2 writes functions, which are executed")]

ROOT = Path(__file__).parents[2]
ITEMS = 16
SMALL = (
    *("--set", f"evaluate.tasks=[{{task: suite:code, samples: {ITEMS}}}]", "--set", "evaluate.run_code=true"),
    *("--set", "evaluate.perplexity.windows=6", "--set", "evaluate.perplexity.window_tokens=64"),
    *("--set", "measure.repeats=1", "--set", "measure.max_repeats=1"),
)
# What SmolLM2's functions may use: no file, no import but of these.
JUDGE = """
import builtins, json, sys
code, name, calls = json.load(sys.stdin)
LIBRARIES = {"math", "re", "string", "collections", "itertools", "functools", "typing"}
def import_(name, *rest):
    if name.partition(".")[0] not in LIBRARIES:
        raise ImportError(name)
    return builtins.__import__(name, *rest)
kept = {key: value for key, value in vars(builtins).items()
        if key not in ("open", "eval", "exec", "compile", "input", "breakpoint", "help", "exit", "quit")}
kept["__import__"], kept["print"] = import_, lambda *_, **__: None
found, given = {"__builtins__": kept, "__name__": "reply"}, []
exec(code, found)
for call in calls:
    given.append(found[name](*call))
json.dump(given, sys.stdout)
"""


@pytest.fixture(scope="module")
def built(engine_home: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Qpack, dict[str, Any]]:
    """The benchmark's recipe with this suite; its verdict may be any. The verdict's result."""
    folder = tmp_path_factory.mktemp("code")
    (folder / "home").mkdir()
    (folder / "home" / "envs").symlink_to(engine_home / "envs")
    qpack = Qpack(folder / "home", folder, {})
    done = qpack("build", ROOT / "benchmarks" / "reasoning.yaml", *SMALL, timeout=1200)
    assert done.code in (0, 6, 7), done.err
    (judged,) = (folder / "home" / "store" / "judge").glob("*/result.json")
    return qpack, json.loads(judged.read_text())


def passes(reply: str, check: dict[str, Any]) -> bool:
    """Whether the function in the reply gives the right value at each call of the item."""
    blocks: list[list[str]] = []
    inside = False
    for line in reply.splitlines():
        if line.startswith("```"):
            inside = not inside
            blocks += [[]] if inside else []
        elif inside:
            blocks[-1].append(line)
    texts = ["\n".join(block) for block in blocks] or [reply]
    code = next((text for text in reversed(texts) if "def " in text), texts[-1])
    job = json.dumps([code, check["function"], check["calls"]])
    try:
        ran = subprocess.run(
            [sys.executable, "-I", "-c", JUDGE], input=job, capture_output=True, text=True, timeout=20, check=False
        )
    except subprocess.TimeoutExpired:
        return False
    if ran.returncode:
        return False
    same = (type(a) is type(b) and a == b for a, b in zip(json.loads(ran.stdout), check["right"], strict=True))
    return all(same)


def test_another_judge_finds_the_same_figures(built: tuple[Qpack, dict[str, Any]]) -> None:
    qpack, judged = built
    documents = code_items.functions()
    means, passed = {}, 0
    for side in ("baseline", "artifact"):
        folder = qpack.home / "store" / "accuracy" / judged["inputs"]["after"][f"{side}.accuracy"]
        answers = [json.loads(line) for line in (folder / "lm-eval" / "answers.jsonl").read_text().splitlines()]
        assert len({answer["item"] for answer in answers}) == len(answers) == ITEMS
        scores = []
        for answer in answers:
            document = documents[int(answer["item"].split(":")[1])]
            assert document["prompt"] == answer["prompt"]
            scores.append(float(passes(answer["text"], json.loads(document["check"]))))
            assert scores[-1] == answer["score"], answer
        means[side] = fmean(scores)
        passed += int(sum(scores))
        (task,) = json.loads((folder / "result.json").read_text())["result"]["tasks"]
        assert math.isclose(task["mean"], means[side])
    (stated,) = judged["result"]["comparison"]["tasks"]
    assert (stated["task"], stated["recovery"]["samples"]) == ("qpack_code", ITEMS)
    assert math.isclose(stated["baseline"], means["baseline"])
    assert math.isclose(stated["artifact"], means["artifact"])
    # Else this test compares nothing but zeros: SmolLM2 writes some of these.
    assert passed > 0
    assert math.isclose(stated["recovery"]["value"], means["artifact"] / means["baseline"], abs_tol=1e-12)


def test_the_report_has_the_suite(built: tuple[Qpack, dict[str, Any]]) -> None:
    qpack, _ = built
    done = qpack("report", ROOT / "benchmarks" / "reasoning.yaml", *SMALL, "-o", "report.html")
    assert done.code == 0, done.err
    assert "qpack_code" in (qpack.cwd / "report.html").read_text()
