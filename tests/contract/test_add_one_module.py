"""A stage, an exporter, a gate: each is added in its module and its one dict or tuple, with nothing else touched."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.unit import recipes

ROOT = Path(__file__).parents[2]

STAGE = '''"""How many files the source has, for a test."""

from qpack.core.records import Window
from qpack.pipeline import stage_keys
from qpack.pipeline.slots import Slot
from qpack.pipeline.stage import Stage
from qpack.pipeline.stages.fetch import FETCHED

NAME = "count_files"
COUNTED = Slot(NAME)
CODE = {NAME: (f"{__name__}:make",)}


def steps(known, before):
    yield stage_keys.step(NAME, before, (FETCHED.stage,), known.code.closure(CODE[NAME]), {"ask": 1})


def title(plan):
    return f"the files of {plan.recipe.name}"


def run(build):
    return build.having(COUNTED, build.once(NAME, Window, lambda out: make(build, out)))


def stored(build):
    return build.having(COUNTED, build.stored(NAME, Window))


def summary(build):
    return f"{build.require(COUNTED).result.tokens} files"


def make(build, out):
    files = build.require(FETCHED).result.files
    (out / "names").write_text("".join(file.path for file in files))
    return Window(nll=1.0, tokens=len(files))


STAGE = Stage(NAME, title, run, summary, steps, stored, CODE)
'''
BUILD = """
import json, sys
from pathlib import Path
from qpack.core.console import Plain
from qpack.core.store import Store
from qpack.pipeline import estimate, plan, why
from qpack.pipeline.context import Context
from qpack.pipeline.run import from_store, run
from qpack.pipeline.stages import count_files, fetch
from qpack.pipeline.stages.catalog import STAGES, until
from qpack.pipeline.state import Build
from qpack.recipe import recipe_file
store = Store(Path("home").absolute())
made = plan.make(recipe_file.load(Path("tiny.yaml")), store, thorough=True)
begun = Build(made, Context(store, Path("registry"), Plain(sys.stderr, groups=False, verbose=False)))
first, second = (run(begun, until(count_files.STAGE)) for _ in range(2))
print(json.dumps({
    "order": [stage.name for stage in STAGES][:2],
    "planned": [one.stage for one in estimate.steps(made, store) if one.done],
    "why": [one.state for one in why.why(made, store, "count_files")],
    "reused": [build.steps["count_files"].reused for build in (first, second)],
    "stored": from_store(begun).require(count_files.COUNTED).result.tokens,
}))
"""

EXPORTER = '''"""Every flag on a line, for a test."""

FILES = "`flags.txt`"
MODEL = ""
NEEDS_REPOSITORY = False
IMAGES = ()


def files(export):
    return {"flags.txt": export.digest}


def commands(export):
    return ()
'''
FORMATS = """
import json
from registry.serving.exporters.formats import FORMATS
print(json.dumps({"formats": list(FORMATS)[:2], "files": FORMATS["flags"].FILES}))
"""

GATE = """
import json
from pathlib import Path
from evals.gates.gates import GATES, Gates
from qpack.recipe import recipe_file
loaded = recipe_file.load(Path("tiny.yaml"), ["gates.parameters=5"])
print(json.dumps({
    "bounds": loaded.recipe.gates.bounds(),
    "in the schema": "Parameters of the artifact" in json.dumps(recipe_file.schema()),
}))
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the packages, with a recipe beside it."""
    for package in ("qpack", "quantize", "evals", "registry"):
        shutil.copytree(ROOT / package, tmp_path / "tree" / package, ignore=shutil.ignore_patterns("__pycache__"))
    recipes.workspace(tmp_path / "work")
    return tmp_path / "tree"


def add(path: Path, changes: Mapping[str, str]) -> None:
    """Lines before those that are there already."""
    text = path.read_text()
    for line, new in changes.items():
        assert text.count(line) == 1, line
        text = text.replace(line, f"{new}{line}")
    path.write_text(text)


def answer(tree: Path, program: str) -> Any:
    """What a program prints that imports the copy."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", program],
        cwd=tree.parent / "work",
        env={**os.environ, "PYTHONPATH": str(tree)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_stage_is_added_by_a_module_and_one_line(tree: Path) -> None:
    stages = tree / "qpack" / "pipeline" / "stages"
    (stages / "count_files.py").write_text(STAGE)
    imported = "from qpack.pipeline.stages import count_files\n"
    add(
        stages / "catalog.py",
        {"from qpack.pipeline.stages import (": imported, "    hold_out.STAGE,\n": "    count_files.STAGE,\n"},
    )
    found = answer(tree, BUILD)
    assert found["order"] == ["fetch", "count_files"]
    assert found["planned"] == ["fetch", "count_files"], "done, by the same plan that the build ran"
    assert found["why"] == ["done"]
    assert found["reused"] == [False, True]
    assert found["stored"] > 1


def test_an_exporter_is_added_by_a_module_and_one_line(tree: Path) -> None:
    exporters = tree / "registry" / "serving" / "exporters"
    (exporters / "flags.py").write_text(EXPORTER)
    lines = {"    compose,\n": "    flags,\n", '    "vllm": vllm,\n': '    "flags": flags,\n'}
    add(exporters / "formats.py", lines)
    assert answer(tree, FORMATS) == {"formats": ["flags", "vllm"], "files": "`flags.txt`"}


def test_a_gate_is_added_in_its_module_alone(tree: Path) -> None:
    add(
        tree / "evals" / "gates" / "gates.py",
        {
            '    "size_ratio": Gate(\n': '    "parameters": Gate("max", "Parameters of the artifact.", "",'
            ' lambda comparison, _: [("", comparison.size_ratio)]),\n',
            "    size_ratio: Annotated": '    parameters: Annotated[float | None, _field("parameters", gt=0)] = None\n',
        },
    )
    assert answer(tree, GATE) == {"bounds": {"accuracy_drop": 0.1, "parameters": 5.0}, "in the schema": True}
