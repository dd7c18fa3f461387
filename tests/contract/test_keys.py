"""The command line of a changed copy of qpack: what it would make anew. Faults that finished builds once hid."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from qpack.pipeline import closure
from qpack.pipeline.stages import catalog
from tests.unit.recipes import workspace


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the packages, and a recipe beside it."""
    root = tmp_path_factory.mktemp("copied")
    for package in closure.PACKAGES:
        shutil.copytree(closure.ROOT / package, root / package, ignore=shutil.ignore_patterns("__pycache__"))
    workspace(root / "ws")
    return root


def ran(root: Path, *arguments: str) -> object:
    """What the copy's own `qpack plan --json` prints. Its working folder has no packages."""
    program = f"import sys; sys.path.insert(0, {str(root)!r}); from qpack.cli.app import main; main()"
    variables = {**os.environ, "QPACK_HOME": str(root / "home"), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-P", "-c", program, "plan", str(root / "ws" / "tiny.yaml"), "--json", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=variables, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def keys(root: Path) -> dict[str, str]:
    told = ran(root)
    assert isinstance(told, dict)
    return {step["stage"]: step["key"] for step in told["steps"]}


def test_a_changed_copy_of_qpack_makes_anew_what_its_code_decides_and_no_more(copied: Path) -> None:
    before = keys(copied)
    assert all(before.values())

    def moved(path: str, change: Callable[[str], str]) -> set[str]:
        file = copied / path
        whole = file.read_text()
        assert change(whole) != whole, path
        file.write_text(change(whole))
        try:
            after = keys(copied)
        finally:
            file.write_text(whole)
        return {stage for stage in before if before[stage] != after[stage]}

    artifact = {stage for stage in before if stage.startswith("artifact")} | {"quantize", "judge"}
    times = moved(
        "quantize/engines/llmcompressor.py", lambda s: s.replace("request.damping,", "request.damping * 100,")
    )
    assert times == artifact
    template = moved(
        "qpack/runtime/workerlib/qpack_worker.py",
        lambda s: s.replace('("config.json", ', '("config.json", "chat_template.jinja", '),
    )
    assert template == set(before) - {"fetch"}
    more = "\n_w = vllm_arguments\n\n\ndef vllm_arguments(*a, **k):\n    return [*_w(*a, **k), '--max-num-seqs=1']\n"
    assert moved("registry/serving/serving_manifest.py", lambda s: s + more) == {
        stage for stage in before if "." in stage
    } | {"judge"}
    assert moved("registry/serving/serving_manifest.py", lambda s: s.replace("GPUs", "devices")) == set(), (
        "of the same command"
    )
    assert moved("qpack/core/console.py", lambda s: s.replace("count:.1f", "count:.2f")) == set()
    assert moved("qpack/cli/render/plan.py", lambda s: s.replace("to do", "not done")) == set()
    assert moved("evals/measure/needle.py", lambda s: s.replace('"""Needle in', '"""A needle in')) == set()


def test_a_build_with_nothing_to_do_loads_neither_scipy_nor_matplotlib() -> None:
    modules = ", ".join(f"qpack.pipeline.stages.{stage.name}" for stage in catalog.STAGES)
    code = (
        f"import sys, evals.report.layer_errors, qpack.pipeline.run, qpack.cli.render.build, {modules}\n"
        "print(sorted({'scipy', 'matplotlib'} & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
