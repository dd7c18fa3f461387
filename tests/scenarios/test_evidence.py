"""qpack gate and qpack compare as a CI job meets them: exit codes, files, annotations."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from qpack.core.hashing import digest_tree
from qpack.core.records import Release
from registry.core.protocol import PushRequest
from registry.registries import open_registry
from registry.release import release_folder
from tests.scenarios.command import Qpack
from tests.unit.recipes import checkpoint
from tests.unit.registry_examples import release, serving


def publish(qpack: Qpack, made: Release) -> None:
    artifact = qpack.cwd / "artifact"
    if not artifact.exists():
        checkpoint(artifact)
    records, digest = digest_tree(artifact)
    made = made.model_copy(update={"quantized": made.quantized.model_copy(update={"files": records, "digest": digest})})
    folder = qpack.cwd / f"release-{made.name}"
    folder.mkdir()
    release_folder.lay_out(
        folder, checkpoint=artifact, source=artifact, release=made, serving=serving(), license_text="As you like.\n"
    )
    registry = open_registry("local", str(qpack.home / "registry"))
    note = release_folder.oci_annotations(made)
    registry.push(folder, PushRequest(made.name, None, "latest", actor="test", note="test"), annotations=note)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Qpack:
    """Two releases: `good`, and `slow`, which was measured on another machine. Read by every test here."""
    folder = tmp_path_factory.mktemp("published")
    qpack = Qpack(folder / "home", folder, {})
    good = release().model_copy(update={"name": "good", "recipe": {"name": "good", "gates": {"flip_rate": 0.3}}})
    hardware = good.artifact.hardware.model_copy(update={"name": "Another CPU"})
    slow = good.model_copy(
        update={
            "name": "slow",
            "recipe": {"name": "slow", "gates": {"flip_rate": 0.3}, "quantize": {"group_size": 32}},
            "artifact": good.artifact.model_copy(update={"hardware": hardware}),
            "baseline": good.baseline.model_copy(update={"hardware": hardware}),
        }
    )
    for made in (good, slow):
        publish(qpack, made)
    return qpack


def test_evidence_passes_the_gates_of_its_own_recipe(published: Qpack) -> None:
    done = published("gate", "good")
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("good: pass\n")


def test_evidence_fails_a_policy_and_every_file_is_written_all_the_same(published: Qpack) -> None:
    (published.cwd / "policy.yaml").write_text("gates:\n  flip_rate: 0.2\n  perplexity_ratio: 1.3\n")
    summary = published.cwd / "summary.md"
    summary.write_text("before\n")
    done = published(
        "gate", "good", "--policy", "policy.yaml", "--junit", "gate.xml", "--markdown", "gate.md", "--json",
        GITHUB_ACTIONS="true", GITHUB_STEP_SUMMARY=str(summary),
    )  # fmt: skip
    assert done.code == 6
    assert json.loads(done.out)["verdict"]["outcome"] == "fail"
    assert ET.parse(published.cwd / "gate.xml").getroot().get("failures") == "1"
    page = (published.cwd / "gate.md").read_text()
    assert page.startswith("## good: ❌ fail")
    assert summary.read_text() == "before\n" + page
    assert "error[gate-failed] policy.yaml:2: flip_rate: 0.255" in done.err
    assert "::error file=policy.yaml,line=2::flip_rate: 0.255" in done.err
    assert "qpack: gate failed: " in done.err


def test_a_wrong_policy_is_exit_2_before_anything_is_judged(published: Qpack) -> None:
    (published.cwd / "policy.yaml").write_text("gates:\n  fliprate: 0.2\n")
    done = published("gate", "good", "--policy", "policy.yaml")
    assert (done.code, done.out) == (2, "")
    assert "error[no-such-key] policy.yaml:2: gates.fliprate: " in done.err


def test_releases_are_held_against_one_another_and_speed_of_two_machines_is_not(published: Qpack) -> None:
    done = published("compare", "good", "slow:1")
    assert (done.code, done.err) == (0, "")
    assert "quantize.group_size" in done.out
    assert "speed and memory of good and slow:1: hardware: cpu, Example CPU, 2 cores and" in done.out
    assert "tok/s" not in done.out


def test_releases_whose_tasks_were_asked_otherwise_are_refused_with_the_reason(published: Qpack) -> None:
    other = release()
    task = other.artifact.accuracy.tasks[0].model_copy(update={"few_shot": 5})
    both = {
        who: getattr(other, who).model_copy(
            update={"accuracy": other.artifact.accuracy.model_copy(update={"tasks": (task,)})}
        )
        for who in ("baseline", "artifact")
    }
    publish(published, other.model_copy(update={"name": "shots", **both}))
    done = published("compare", "good", "shots")
    assert (done.code, done.out) == (5, "")
    assert "good and shots: openbookqa: few-shot examples: 0 and 5" in done.err


def test_a_sweep_tells_of_every_combination_that_can_not_be_built_and_goes_on(qpack: Qpack, recipe: Path) -> None:
    done = qpack("sweep", recipe, "--vary", "quantize.group_size=33,48", "--vary", "calibration.samples=0", "--json")
    assert done.code == 2
    found = json.loads(done.out)
    assert [point["settings"] for point in found["not_built"]] == [
        "quantize.group_size=33 calibration.samples=0",
        "quantize.group_size=48 calibration.samples=0",
    ]
    assert "-- 2/2: quantize.group_size=48 calibration.samples=0" in done.err
    assert "2 of 2 combinations could not be built" in done.err
    assert not (qpack.home / "store" / "quantize").exists()


def test_an_option_for_ray_without_ray_is_exit_2(qpack: Qpack, recipe: Path) -> None:
    done = qpack("sweep", recipe, "--vary", "quantize.group_size=32", "--job-cpus", "1")
    assert done.code == 2
    assert "error[invalid-option] --job-cpus" in done.err
