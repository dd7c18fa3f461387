"""GuideLLM and inference-perf put the same load on a real vLLM, and their figures are in the evidence of a build."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from evals.measure import load_tools
from qpack.core.errors import EnvironmentFailed
from qpack.runtime import environments
from tests.scenarios.command import Qpack
from tests.scenarios.conftest import MEASURED

pytestmark = [pytest.mark.engines, pytest.mark.slow("two more load generators against a real vLLM")]

RECIPE = f"""\
name: loaded
model:
  source: {{model}}
quantize:
  engine: gram
  method: rtn
  scheme: W8A8
evaluate:
{MEASURED}"""


def tools(home: Path) -> list[str]:
    """The tools whose environments can be made here: inference-perf needs Python 3.12."""
    found = []
    for name, spec in load_tools.SPECS.items():
        made = environments.resolve(spec, "cpu", home)
        try:
            environments.ensure(made, home, print)
        except EnvironmentFailed as failed:
            if spec.python() is None or environments.no_python(made.version) != failed.hint:
                raise
            continue
        found.append(name)
    return found


def checked(loads: list[dict[str, Any]], names: list[str]) -> None:
    """Every level of every tool: all requests answered, times in order, rates that follow from the counts."""
    assert [load["tool"].split()[0] for load in loads] == names
    for load in loads:
        for run in load["runs"]:
            requests, tokens = run["completed"], run["completed"] * load["output_tokens"]
            assert (requests > 0, run["failed"]) == (True, 0)
            for times in (run["ttft_ms"], run["per_token_ms"], run["end_to_end_ms"]):
                assert 0 < times["p50"] <= times["p90"] <= times["p95"] <= times["p99"]
            whole = run["ttft_ms"]["mean"] + (load["output_tokens"] - 1) * run["per_token_ms"]["mean"]
            assert run["end_to_end_ms"]["mean"] == pytest.approx(whole, rel=0.15)
            # Each tool has its own idea of when a run begins.
            assert run["output_tokens_per_second"] * run["seconds"] == pytest.approx(tokens, rel=0.5)


@pytest.fixture
def qpack(engine_home: Path, tmp_path: Path) -> Qpack:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "envs").symlink_to(engine_home / "envs")
    return Qpack(tmp_path / "home", tmp_path, {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "PATH": os.environ["PATH"]})


def test_bench_has_the_figures_of_each_tool_under_its_name(smollm2: Path, qpack: Qpack, engine_home: Path) -> None:
    names = tools(engine_home)
    done = qpack(
        "bench", smollm2, "--concurrency", "1,2", "--rate", "2", "--rate-seconds", "3", "--input-tokens", "32",
        "--output-tokens", "8", "--repeats", "1", "--kv-cache-gib", "0.2", "--flag", "enforce-eager", "--also",
        ",".join(names), "-o", "out.json", timeout=900,
    )  # fmt: skip
    assert done.code == 0, done.err
    (found,) = json.loads((qpack.cwd / "out.json").read_text())
    checked(found["loads"], names)
    for load in found["loads"]:
        assert [(run["concurrency"], run["rate"]) for run in load["runs"]] == [(1, None), (2, None), (None, 2)]
        assert [run["completed"] for run in load["runs"][:2]] == [2, 4]
        assert load["tool"] in done.out


def test_a_release_has_them_in_its_evidence_and_report(tiny_model: Path, qpack: Qpack, engine_home: Path) -> None:
    names = tools(engine_home)
    shutil.copytree(tiny_model, qpack.cwd / "model")
    lines = [f"The {n} boats of harbour {n} sail at {n} and come back before the tide turns.\n" for n in range(40)]
    (qpack.cwd / "held-out.txt").write_text("".join(lines))
    (qpack.cwd / "recipe.yaml").write_text(RECIPE.format(model="model"))
    done = qpack("build", "recipe.yaml", "--set", f"measure.also=[{', '.join(names)}]", "--allow-failed-gates",
                 timeout=900)  # fmt: skip
    assert done.code == 0, done.err
    release = json.loads(qpack("show", "loaded", "--json").out)
    for side in ("baseline", "artifact"):
        checked(evidence(release, side)["loads"], names)
    assert qpack("report", "loaded", "-o", "report.html").code == 0
    report = (qpack.cwd / "report.html").read_text()
    assert all(load["tool"] in report for load in evidence(release, "artifact")["loads"])


def evidence(shown: Any, side: str) -> Any:
    """A side's evidence, wherever `qpack show --json` has it."""
    if isinstance(shown, dict):
        if isinstance(shown.get(side), dict) and "loads" in shown[side]:
            return shown[side]
        shown = list(shown.values())
    for value in shown if isinstance(shown, list) else []:
        if (found := evidence(value, side)) is not None:
            return found
    return None
