"""An engine is a module of its own and one line in the dict: shown by adding one, with nothing else touched."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.patience import PATIENCE
from tests.unit import recipes

ROOT = Path(__file__).parents[2]

ADAPTER = '''"""Rounds to nearest, for a test."""

from pathlib import Path

from qpack.runtime.environments import Spec
from quantize.engines import adapters
from quantize.engines.protocol import MemoryProfile
from quantize.engines.workers.nearest_job import Job

NAME = "nearest"
ENVIRONMENT = Spec("nearest", Path(__file__).parent / "envs" / "nearest", ("torch",))
WORKER = Path(__file__).parent / "workers" / "nearest_worker.py"
FORMATS = ("compressed-tensors",)
MIXED_PRECISION = TUNES = RESUMABLE = ROWS_TOGETHER = LAYERWISE = KEEPS_UNLOADED = False
MEMORY = MemoryProfile()
SUPPORTED = frozenset({("rtn", "W4A16")})


def check(request, source):
    return adapters.own_code(request, source)


def job(request, paths):
    return Job(str(paths.checkpoint))


def read(request, out, answer):
    return adapters.record(NAME, request, out, answer)
'''

JOB = '''"""The job of a test's worker."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Job:
    checkpoint: str
'''

ASK = """
import json
from pathlib import Path
from qpack.pipeline import plan
from qpack.core.store import Store
from qpack.recipe import recipe_file
made = plan.make(recipe_file.load(Path("tiny.yaml")), Store(Path("home")), thorough=False)
print(json.dumps({
    "engine": made.engine.NAME,
    "environment": "nearest" in made.environments,
    "key": made.steps["quantize"].key is not None,
    "in the schema": "nearest" in json.dumps(recipe_file.schema()),
}))
"""


def test_an_engine_is_added_by_a_module_and_one_line(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    for package in ("qpack", "quantize", "evals", "registry"):
        shutil.copytree(ROOT / package, tree / package, ignore=shutil.ignore_patterns("__pycache__"))
    engines = tree / "quantize" / "engines"
    (engines / "nearest.py").write_text(ADAPTER)
    (engines / "workers" / "nearest_worker.py").write_text("import nearest_job\nimport qpack_worker\n")
    (engines / "workers" / "nearest_job.py").write_text(JOB)
    (engines / "envs" / "nearest").mkdir()
    (engines / "envs" / "nearest" / "cpu.txt").write_text("")
    catalog = (engines / "catalog.py").read_text()
    line = "ENGINES: dict[str, Engine] = {"
    assert line in catalog
    imported = "from quantize.engines import nearest\n"
    (engines / "catalog.py").write_text(
        catalog.replace("from quantize.engines import", f"{imported}from quantize.engines import", 1).replace(
            line, f'{line}\n    "nearest": nearest,'
        )
    )

    text = recipes.RECIPE.replace("  method: gptq", "  engine: nearest\n  method: rtn")
    recipes.workspace(tmp_path / "work", text)
    done = subprocess.run(
        [sys.executable, "-P", "-c", ASK],
        cwd=tmp_path / "work",
        env={**os.environ, "PYTHONPATH": str(tree)},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found == {"engine": "nearest", "environment": True, "key": True, "in the schema": True}
