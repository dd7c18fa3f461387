"""Releases by strangers: whatever release.json says, it is refused with a place or shown, and nothing else happens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tests.unit.evidence_samples as samples
import tests.unit.registry_examples as examples
from evals.report import html_report
from qpack.core.records import Release
from qpack.pipeline.rejudge import rejudge
from qpack.recipe import gate_policy
from registry.core.protocol import PushRequest
from registry.lifecycle.verification import verify
from registry.local.registry import LocalRegistry
from registry.release import bill_of_materials, card, eval_results, provenance, release_folder
from tests.fuzz.command import qpack
from tests.fuzz.law import counted, few, fuzz, refused_or_read
from tests.fuzz.mutations import documents, neighbours
from tests.unit.laid_out import laid_out


def shortened(value: Any) -> Any:
    """Lists of three at most: a change is then likely to hit something that is used."""
    if isinstance(value, dict):
        return {key: shortened(item) for key, item in value.items()}
    return [shortened(item) for item in value[:3]] if isinstance(value, list) else value


RECIPE = {
    "name": "small-gptq",
    "model": {"source": "hf://example/small@main"},
    "quantize": {"method": "gptq", "scheme": "W4A16", "group_size": 32},
    "gates": {"accuracy_drop": 0.1, "perplexity_ratio": 1.1, "flip_rate": 0.3},
    "serve": {"target": "cpu", "arguments": {"enforce-eager": True}},
}
VALID: dict[str, Any] = {**shortened(examples.release().model_dump(mode="json")), "recipe": RECIPE}


@pytest.fixture(scope="module")
def rich(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A release with every optional part."""
    made: dict[str, Any] = samples.make_release(tmp_path_factory.mktemp("rich")).model_dump(mode="json")
    return {**shortened(made), "recipe": RECIPE}


def shown(data: bytes) -> Release:
    """Read a release manifest, and make of it all that is made of one without the network."""
    release = release_folder.read(data, "small:1")
    serving = examples.serving()
    card.render(release, serving)
    eval_results.render(release)
    release_folder.oci_annotations(release)
    gate_policy.of_release(release)
    provenance.problems(provenance.render(release, ()).encode("utf-8", "replace"), release, ())
    bill_of_materials.render(release, ())
    return release


@fuzz
@given(document=documents(VALID))
def test_a_release_manifest_is_refused_by_name_or_shown(document: bytes) -> None:
    refused_or_read(lambda: shown(document), where="small")


@fuzz
@given(data=st.data())
def test_a_release_manifest_with_every_part_is_refused_by_name_or_shown(data: st.DataObject, rich: Any) -> None:
    refused_or_read(lambda: shown(data.draw(documents(rich))), where="small")


@few
@given(data=st.data())
def test_a_report_is_written_of_any_release_that_was_read(data: st.DataObject, rich: Any, tmp_path: Path) -> None:
    document = json.dumps(data.draw(neighbours(rich))).encode()

    def write() -> None:
        release = release_folder.read(document, "small:1")
        html_report.render(release)

    refused_or_read(write, where="small")


# Each shows a release in another way; none needs an engine.
READERS = (
    ("show", "small:1"),
    ("show", "small:1", "--json"),
    ("verify", "small:1"),
    ("gate", "small:1"),
    ("compare", "small:1", "other:1"),
    ("serve", "small:1", "--dry-run"),
    *(("export", "small:1", "--to", to) for to in ("vllm", "docker", "compose", "kubernetes", "systemd", "prometheus")),
    ("promote", "small:1", "production"),
    ("pull", "small:1", "pulled"),
)


FILES = ("release.json", "serving.json", "provenance.json", "recipe.yaml", "bom.cdx.json")


@few
@given(data=st.data())
def test_every_command_that_reads_a_release_ends_with_a_code_of_ours(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    scratch = tmp_path_factory.mktemp("release")
    folder, annotations = laid_out(scratch / "small")
    name = data.draw(
        st.sampled_from(("release.json", "serving.json", "provenance.json", "recipe.yaml", "bom.cdx.json"))
    )
    file = folder / name
    file.chmod(0o644)
    valid = shortened(json.loads(file.read_bytes())) if name.endswith(".json") else RECIPE
    file.write_bytes(data.draw(documents({**valid, "recipe": RECIPE} if name == "release.json" else valid)))
    local = LocalRegistry(scratch / "home" / "registry")
    local.push(folder, PushRequest("small", None, "latest", actor="me"), annotations=annotations)
    other, annotations = laid_out(scratch / "other", 1)
    local.push(other, PushRequest("other", None, "latest", actor="me"), annotations=annotations)
    counted["read"] += 1
    for command in data.draw(st.lists(st.sampled_from(READERS), min_size=2, max_size=4, unique=True)):
        qpack(command, scratch, scratch / "home")
    assert verify(local, "other:1", rejudge).ok, "a neighbour is as it was"
