"""Flags against the parser of the real vLLM: the table of what each takes, and what hostile manifests become."""

from __future__ import annotations

import json
import os
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, Phase, given, settings

import tests.unit.registry_examples as examples
from evals.server import flags
from evals.server.eval_environments import VLLM
from evals.workers.vllm_flags_job import TableAnswer, TableJob
from qpack.core.errors import EvaluateError, RegistryError
from qpack.runtime import environments, worker
from qpack.runtime.environments import Environment
from registry.serving import flag_table, serving_manifest, trust
from registry.serving.serving_manifest import ServingManifest, select, vllm_arguments
from tests.unit.hostile_manifests import documents

Made = TypeVar("Made")
pytestmark = [pytest.mark.engines, pytest.mark.slow("the table of flags against the parser of vLLM itself")]

PARSED = Path(__file__).with_name("parsed_flags.py")
HOSTILE = int(os.environ.get("QPACK_TEST_HOSTILE", "2500"))
"""Hostile manifests that are tried; a second or two of qpack's own, and one start of vLLM's parser."""


@pytest.fixture(scope="module")
def vllm(engine_home: Path) -> Environment:
    return environments.ensure(environments.resolve(VLLM, "cpu", engine_home), engine_home, print)


def test_the_table_of_flags_is_that_of_the_parser(vllm: Environment, tmp_path: Path) -> None:
    call = worker.Call(vllm, tmp_path, tmp_path / "log", 300, EvaluateError)
    table = worker.run(flags.WORKER, TableJob(), TableAnswer, call)
    text = flag_table.written(table.version, table.flags, list(table.variables))
    if os.environ.get("UPDATE_SNAPSHOTS"):
        flag_table.DATA.write_text(text, "utf-8")
    assert flag_table.DATA.read_text("utf-8") == text, "run `make flags`"


def parsed(vllm: Environment, cases: list[dict[str, Any]], folder: Path) -> list[dict[str, Any]]:
    """What vLLM's parser makes of the cases, in one process."""
    (folder / "in").write_text(json.dumps(cases), "utf-8")
    command = [vllm.python, "-P", PARSED, folder / "in", folder / "out"]
    variables = {**os.environ, **vllm.variables, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        list(map(str, command)), env=variables, cwd=folder, capture_output=True, timeout=500, check=False
    )
    assert done.returncode == 0, done.stderr.decode(errors="replace")[-3000:]
    found: list[dict[str, Any]] = json.loads((folder / "out").read_text("utf-8"))
    return found


def attempt(what: Callable[[], Made]) -> tuple[Made | None, RegistryError | None]:
    """What was made, or the registry's own error (exit code 8); any other is one of ours."""
    try:
        return what(), None
    except RegistryError as error:
        return None, error


def case_of(profile: ServingManifest) -> dict[str, Any]:
    wanted = dict(serving_manifest.settings(profile, "org/model", host="127.0.0.1", port=8000))
    return {"words": vllm_arguments(profile, "org/model", host="127.0.0.1", port=8000), "wanted": wanted}


def test_a_hostile_manifest_is_refused_or_the_server_gets_its_flags_and_nothing_else(
    vllm: Environment, tmp_path: Path
) -> None:
    tried: Counter[str] = Counter()
    cases: list[dict[str, Any]] = []
    trusted: list[dict[str, Any]] = []

    @settings(max_examples=HOSTILE, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    @given(documents())
    def collect(document: dict[str, Any]) -> None:
        tried["documents"] += 1
        whole, refused = attempt(lambda: ServingManifest.from_json(json.dumps(document)))
        if whole is None:
            assert refused is not None
            assert "serving.json" in str(refused)
            tried["not read"] += 1
            return
        for name in (None, *whole.profiles):
            profile = select(whole, name)
            asked = trust.beyond_tuning(profile, ())
            assert all(problem.where.file == "serving.json" for problem in asked)
            tried["needs permission" if asked else "taken"] += 1
            case, refused = attempt(lambda profile=profile: case_of(profile))
            if case is not None:
                (trusted if asked else cases).append(case)
            else:
                assert asked, "what tunes can be written"
                assert refused is not None
                assert refused.problems[0].where.key[0] == "arguments"
                tried["never a command line"] += 1

    collect()
    print(dict(tried))
    assert tried["documents"] >= HOSTILE * 0.9
    assert min(tried["not read"], tried["needs permission"], tried["taken"]) > HOSTILE / 20
    answers = parsed(vllm, [*cases, *trusted], tmp_path)
    wrong = [(case, found) for case, found in zip(cases, answers, strict=False) if found["error"] or found["wrong"]]
    # vLLM refuses some settings of structured outputs together; no single value says so.
    kept = [pair for pair in wrong if "structured-outputs-config" not in str(pair[1]["error"])]
    assert kept == []
    assert len(wrong) < len(cases) / 4
    # With permission a flag may be anything that the maker wrote, and still only what was written.
    for case, found in zip(trusted, answers[len(cases) :], strict=True):
        beginnings = tuple(name.replace("-", "_").removeprefix("no_") for name in case["wanted"])
        others = [
            dest for dest in found["wrong"] if not dest.replace("-", "_").removeprefix("no_").startswith(beginnings)
        ]
        assert others == [], (case, found)


def test_a_printed_command_imports_nothing_from_the_current_folder(vllm: Environment, tmp_path: Path) -> None:
    """Neither in the server nor in a process that it starts with `python -m`, as vLLM does to look at a model."""
    (tmp_path / "torch.py").write_text("import pathlib; pathlib.Path(__file__).with_name('ran').touch()\n")
    line = serving_manifest.command(examples.serving(), "model", host="127.0.0.1", port=1).split("\n")[0].rstrip(" \\")
    assert line.endswith(f"python -m {serving_manifest.SERVER_MODULE}")
    inner = "import subprocess, sys; sys.exit(subprocess.run([sys.executable, '-m', 'torch.version']).returncode)"
    variables = {**os.environ, **vllm.variables, "PATH": f"{vllm.python.parent}:/usr/bin:/bin"}
    for command in (f"{line} --help", line.replace(f"-m {serving_manifest.SERVER_MODULE}", f'-c "{inner}"')):
        done = subprocess.run(["sh", "-c", command], cwd=tmp_path, env=variables, capture_output=True, timeout=300)
        assert done.returncode == 0, done.stderr.decode(errors="replace")[-2000:]
        assert not (tmp_path / "ran").exists(), command
    # What it guards against is there: without the variable the file is run.
    bare = line.replace(f"{serving_manifest.SAFE_PATH}=1 ", "").replace(
        f"-m {serving_manifest.SERVER_MODULE}", "-m torch.version"
    )
    subprocess.run(["sh", "-c", bare], cwd=tmp_path, env=variables, capture_output=True, timeout=300, check=False)
    assert (tmp_path / "ran").exists()
