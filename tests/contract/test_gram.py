"""gram's laws, each claim of the scripts run once in gram's own environment."""

from __future__ import annotations

import ast
import json
import os
import subprocess
from pathlib import Path

import pytest

from evals.server.eval_environments import VLLM
from qpack.runtime import environments
from quantize.engines import gram, llmcompressor

pytestmark = pytest.mark.engines
HERE = Path(__file__).parent
SCRIPTS = [HERE / f"gram_{name}claims.py" for name in ("", "architecture_", "tuning_", "ranks_", "reads_")]
# What others make of gram is run where they are.
RUNS = [*((script, gram.ENVIRONMENT) for script in SCRIPTS[:-1]), (SCRIPTS[-1], llmcompressor.ENVIRONMENT),
        (SCRIPTS[-1], VLLM)]  # fmt: skip
CLAIMS = [
    node.name
    for script in SCRIPTS
    for node in ast.parse(script.read_text()).body
    if isinstance(node, ast.FunctionDef) and node.name.startswith("claim_")
]


@pytest.fixture(scope="module")
def outcome(engine_home: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for script, spec in RUNS:
        environment = environments.ensure(environments.resolve(spec, "cpu", engine_home), engine_home, print)
        done = subprocess.run(
            [str(environment.python), str(script), str(tmp_path_factory.mktemp("gram"))],
            env={**os.environ, **environment.variables},
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        found |= json.loads(done.stdout.splitlines()[-1])
    return found


def test_the_claims_are_found(outcome: dict[str, str | None]) -> None:
    assert len(CLAIMS) > 12
    assert set(outcome) == set(CLAIMS)


@pytest.mark.parametrize("claim", CLAIMS)
def test_gram(claim: str, outcome: dict[str, str | None]) -> None:
    assert outcome[claim] is None, outcome[claim]
