"""Claims about the guides: their commands, run in order and as written, in a home that has the releases they name.

Only the addresses of registries are others: servers on this machine take their place.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from qpack.core.store import Store
from qpack.pipeline import plan
from qpack.recipe import recipe_file
from qpack.runtime import hardware
from registry.local.registry import LocalRegistry
from registry.serving import serving_manifest
from tests.contract import hub_server, oci_server
from tests.scenarios.command import ROOT, Qpack
from tests.unit.laid_out import publish
from tests.unit.registry_examples import release

GUIDES = ROOT / "docs" / "guides"
demo_of_the_docs = pytest.mark.skipif(
    hardware.detect().target != "cpu" or not hardware.has_avx512(),
    reason="the docs show the demo of a CPU with AVX-512",
)
RELEASES = ("smollm2-135m-gram", "smollm2-135m-gptq")


@pytest.fixture
def reader(qpack: Qpack, tmp_path: Path) -> Qpack:
    """Somebody who built the demo's releases, and has `qpack` on the PATH."""
    for number, name in enumerate(RELEASES):
        made = release().model_copy(update={"name": name})
        publish(LocalRegistry(qpack.home / "registry"), name, tmp_path / name, number, made)
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin" / "qpack"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m qpack.cli.start "$@"\n')
    command.chmod(0o755)
    return qpack


def blocks(page: str) -> Iterator[str]:
    """The shell blocks of a guide, in order."""
    yield from re.findall(r"^```sh\n(.*?)^```", (GUIDES / page).read_text(), re.MULTILINE | re.DOTALL)


def commands(block: str) -> list[str]:
    """The commands of a block, each on one line."""
    return [line for line in block.replace("\\\n", " ").splitlines() if line.strip()]


def run(reader: Qpack, command: str, *accepted: int, **variables: str) -> str:
    """Run a command of a guide in a shell, and return what it printed."""
    environment = reader.environment(**variables)
    environment["PATH"] = f"{reader.cwd / 'bin'}:{environment['PATH']}"
    done = subprocess.run(
        ["sh", "-c", command], cwd=reader.cwd, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode in (accepted or (0,)), f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.mark.parametrize("page", ["publish.md", "promote.md", "serve.md", "ci.md", "set-gates.md", "read-a-report.md"])
def test_a_guide_has_commands(page: str) -> None:
    assert sum(command.startswith("qpack ") for block in blocks(page) for command in commands(block)) > 0


def test_the_commands_of_publishing_work_as_written(reader: Qpack, tmp_path: Path) -> None:
    """Those of MLflow are run by its own tests, against its server."""
    with hub_server.serving() as hub, oci_server.serving(tmp_path / "oci") as oci:
        variables = {"HF_ENDPOINT": hub.url, "HF_TOKEN": hub_server.TOKEN, "HF_HUB_DISABLE_XET": "1"}
        image, ran = "", 0
        for command in (command for block in blocks("publish.md") for command in commands(block)):
            if "mlflow" in command:
                continue
            here = command.replace("registry.example.com", oci.host).replace("sha256:DIGEST", image)
            said = run(reader, here, **variables)
            if "--as image" in command:
                image = re.findall(r"sha256:[0-9a-f]{64}", said)[-1]
            ran += 1
        assert ran == 10
    assert (reader.cwd / "release" / "model" / "model.safetensors").exists()
    assert f"@{image}" in (reader.cwd / "kubernetes" / "kubernetes.yaml").read_text()


@pytest.mark.parametrize("page", ["ci.md", "set-gates.md"])
def test_a_release_is_judged_by_the_policy_of_the_guide(page: str, reader: Qpack) -> None:
    (policy,) = (text for text in re.findall(r"```yaml\n(.*?)```", (GUIDES / page).read_text(), re.DOTALL)[-1:])
    (reader.cwd / "policy.yaml").write_text(policy)
    ran = [c for block in blocks(page) for c in commands(block) if c.startswith("qpack gate smollm2")]
    assert len(ran) == 1
    assert run(reader, ran[0], 0, 6, 7)


def test_a_report_is_written_as_the_guide_says(reader: Qpack) -> None:
    (command,) = commands(next(blocks("read-a-report.md")))
    run(reader, command)
    assert (reader.cwd / "smollm2-135m-gram-report.html").read_text().startswith("<!doctype html>")


def test_what_serving_writes_without_a_server_is_written_as_the_guide_says(reader: Qpack) -> None:
    starts_nothing = re.compile(r"qpack (pull|export) |qpack serve .* --dry-run$")
    ran = [c for block in blocks("serve.md") for c in commands(block) if starts_nothing.match(c)]
    for command in ran:
        run(reader, command)
    assert len(ran) == 6
    for written in ("release/README.md", "compose/compose.yaml", "kubernetes/kubernetes.yaml", "deploy/vllm.yaml"):
        assert (reader.cwd / written).is_file()


@demo_of_the_docs
def test_the_command_by_hand_is_that_of_the_demos_manifest(tmp_path: Path) -> None:
    planned = plan.make(
        recipe_file.load(ROOT / "recipes" / "smollm2-135m-gram.yaml", []), Store(tmp_path), thorough=False
    )
    manifest = planned.served(quantized=True)
    (shown,) = [block for block in blocks("serve.md") if "--model=model" in block]
    written = shlex.split(shown.replace("\\\n", " ").replace("PYTHON ", "python "))
    expected = shlex.split(
        serving_manifest.command(manifest, "model", host="127.0.0.1", port=8000).replace("\\\n", " ")
    )
    assert sorted(written) == sorted(expected)


@demo_of_the_docs
def test_a_recipe_is_checked_planned_and_judged_as_the_guides_say(reader: Qpack) -> None:
    """Nothing is built here: a recipe without a verdict is exit code 8, with the command that makes one."""
    (reader.cwd / "recipes").symlink_to(ROOT / "recipes")
    check, plan = commands(next(block for block in blocks("quantize-a-new-model.md") if "qpack plan" in block))
    run(reader, check)
    assert "W4A16_ASYM" in run(reader, plan)
    for page in ("ci.md", "troubleshoot.md"):
        (command,) = [c for b in blocks(page) for c in commands(b) if re.match("qpack (gate|report) recipes/", c)]
        (reader.cwd / "policy.yaml").write_text("gates: {accuracy_drop: 0.02}\n")
        run(reader, command, 8)


@pytest.mark.engines
def test_the_commands_of_promoting_work_as_written(reader: Qpack, engine_home: Path, tmp_path: Path) -> None:
    """A second version is promoted before the rollback, as the guide's reader would have."""
    ready = Qpack(reader.home, reader.cwd, {**reader.variables})
    (ready.home / "envs").symlink_to(engine_home / "envs")
    for block in blocks("promote.md"):
        for command in commands(block):
            if command.startswith("qpack rollback"):
                publish(LocalRegistry(ready.home / "registry"), RELEASES[0], tmp_path / "second", 7)
                run(ready, f"qpack promote {RELEASES[0]}:2 production")
            if not command.startswith("model_signing"):
                run(ready, command)
    assert (ready.cwd / "signatures" / "1.json").exists()
