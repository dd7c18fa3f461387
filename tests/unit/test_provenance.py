"""What a release says about how it was made and what it is made of, and whether it all belongs together."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from hypothesis import given
from hypothesis import strategies as st

import tests.unit.evidence_samples as samples
import tests.unit.registry_examples as examples
from qpack.core.errors import RegistryError
from qpack.core.records import FileRecord, Release
from qpack.pipeline.rejudge import rejudge
from registry.core import modelpack
from registry.core.protocol import PushRequest
from registry.lifecycle.verification import Report, verify
from registry.local.registry import LocalRegistry
from registry.release import bill_of_materials, provenance
from tests.codes import coded
from tests.unit.laid_out import laid_out

FILES = tuple(
    FileRecord(path=path, size_bytes=1, sha256=hashlib.sha256(path.encode()).hexdigest())
    for path in ("README.md", "model/config.json", "model/model.safetensors", "release.json", "serving.json")
)


def walk(value: Any) -> Iterator[dict[str, Any]]:
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from walk(item)
    if isinstance(value, dict):
        yield value


@pytest.fixture(params=["example", "sample", "bare"])
def release(request: pytest.FixtureRequest, tmp_path: Path) -> Release:
    if request.param == "sample":
        return samples.make_release(tmp_path)
    made = examples.release()
    return made if request.param == "example" else examples.release(license_id=None).model_copy(
        update={"calibration": None, "environments": ()}
    )  # fmt: skip


def test_a_bill_of_materials_is_one_by_the_official_schema(release: Release) -> None:
    text = bill_of_materials.render(release, FILES)
    errors = JsonStrictValidator(SchemaVersion.V1_6).validate_str(text, all_errors=True)
    assert [str(error) for error in errors or ()] == []
    references = [part["bom-ref"] for part in walk(json.loads(text)) if "bom-ref" in part]
    assert len(references) == len(set(references))
    known = {*references}
    assert {part["ref"] for part in walk(json.loads(text)) if "ref" in part} <= known


def test_a_bill_of_materials_lists_the_files_the_source_and_every_package(release: Release) -> None:
    value = json.loads(bill_of_materials.render(release, FILES))
    model = value["metadata"]["component"]
    hashes = {part["name"]: part["hashes"][0]["content"] for part in model["components"]}
    assert hashes == {r.path: r.sha256 for r in FILES if r.path.startswith("model/")}
    assert value["components"][0]["name"] == release.source.resolved
    packages = {(p["name"], p["version"]) for formula in value["formulation"] for p in formula["components"]}
    assert packages == {item for made in release.environments for item in made.packages.items()}
    metrics = {m["type"]: m["value"] for m in model["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]}
    assert metrics["perplexity"] == f"{release.comparison.perplexity_artifact:.6g}"


def test_provenance_names_source_recipe_locks_and_calibration_by_digest() -> None:
    made = examples.release()
    value = json.loads(provenance.render(made, FILES))
    assert (value["_type"], value["predicateType"]) == (
        "https://in-toto.io/Statement/v1",
        "https://slsa.dev/provenance/v1",
    )
    assert {s["name"]: s["digest"]["sha256"] for s in value["subject"]} == {
        r.path: r.sha256 for r in FILES if r.path != "README.md"
    }
    definition = value["predicate"]["buildDefinition"]
    assert {"buildType", "externalParameters", "internalParameters", "resolvedDependencies"} == set(definition)
    found = {d["name"]: d for d in definition["resolvedDependencies"]}
    assert found["source"]["uri"] == made.source.resolved
    assert found["source"]["digest"] == {"gitCommit": "c" * 40}
    assert found["recipe.yaml"]["digest"]["sha256"] == hashlib.sha256(made.recipe_text.encode()).hexdigest()
    assert found["environment/llmcompressor-cpu"]["digest"]["sha256"] == "5" * 64
    assert found["calibration/tokens.jsonl"]["digest"]["sha256"] == "2" * 64
    # SLSA: the builder has an id, and every dependency a digest or a place.
    assert value["predicate"]["runDetails"]["builder"]["id"]
    assert all(d.get("digest") or d.get("uri") for d in definition["resolvedDependencies"])


def test_the_same_release_says_the_same_byte_for_byte(release: Release) -> None:
    for render in (provenance.render, bill_of_materials.render):
        assert render(release, FILES) == render(release, tuple(reversed(tuple(reversed(FILES)))))
    assert provenance.problems(provenance.render(release, FILES).encode(), release, FILES) == []


@given(st.binary() | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(json.dumps).map(str.encode))
def test_whatever_is_called_provenance_is_read_or_refused(data: bytes) -> None:
    assert provenance.problems(data, examples.release(), FILES)


# A release as a whole


def lay(local: LocalRegistry, scratch: Path, change: Callable[[Path], None]) -> Report:
    """Publish a release that `change` was done to after it was laid out, and verify it."""
    folder, annotations = laid_out(scratch)
    for path in (folder / "model").iterdir():
        data = path.read_bytes()  # no longer the artifact's own file: it may be linked
        path.unlink()
        path.write_bytes(data)
    change(folder)
    local.push(folder, PushRequest("m", None, "latest", actor="me"), annotations=annotations)
    return verify(local, "m", rejudge)


def edit(name: str, old: str, new: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new, 1))

    return change


def wrong(report: Report) -> dict[str, str]:
    """The codes and texts of what is wrong, by part."""
    return {part.what: " ".join(map(str, part.problems)) for part in report.parts if part.ok is False}


def test_a_release_as_it_was_laid_out_verifies(tmp_path: Path) -> None:
    report = lay(LocalRegistry(tmp_path / "registry"), tmp_path, lambda _: None)
    assert wrong(report) == {}
    assert [part.what for part in report.parts] == [
        *("digests", "files", "weights", "evidence", "figures", "verdict", "recipe", "provenance", "annotations"),
    ]


@pytest.mark.parametrize(
    ("change", "what", "why"),
    [
        (edit("model/config.json", "llama", "lama"), "weights", "weights: model/config.json"),
        (lambda folder: (folder / "model/tokenizer.json").unlink(), "weights", "weights: model/tokenizer.json"),
        (lambda folder: (folder / "model/more.bin").touch(), "files", "error[foreign-file] model/more.bin: "),
        (lambda folder: (folder / "model/more.json").touch(), "files", "error[foreign-file] model/more.json: "),
        (lambda folder: (folder / "torch.py").touch(), "files", "error[foreign-file] torch.py: "),
        (edit("serving.json", '"digest": "', '"digest": "0'), "evidence", "evidence: the serving manifest"),
        (edit("recipe.yaml", "gptq", "awq"), "recipe", "error[other-recipe]"),
        (edit("release.json", '"outcome": "pass"', '"outcome": "fail"'), "verdict", "error[other-verdict]"),
        (edit("release.json", '"model_digest": "1', '"model_digest": "7'), "evidence", "evidence: the baseline's"),
        (edit("release.json", '"lock_sha256": "5', '"lock_sha256": "6'), "provenance", "environment/llmcompressor-cpu"),
        (edit("provenance.json", '"uri": "hf://', '"uri": "hf://else'), "provenance", "its dependency source"),
        (edit("release.json", '"target": "cpu"', '"target": "ada"'), "provenance", "its subject release.json"),
        (edit("release.json", "{", "["), "manifests", "error[unreadable-manifest]"),
    ],
)  # fmt: skip
def test_parts_that_do_not_belong_together_are_found(
    change: Callable[[Path], None], what: str, why: str, tmp_path: Path
) -> None:
    found = wrong(lay(LocalRegistry(tmp_path / "registry"), tmp_path, change))
    assert why in found[what]


def test_a_release_from_before_provenance_is_told_and_can_be_served(tmp_path: Path) -> None:
    report = lay(LocalRegistry(tmp_path / "registry"), tmp_path, lambda folder: (folder / "provenance.json").unlink())
    assert report.ok
    assert [part.what for part in report.parts if part.ok is None] == ["provenance"]
    assert [problem.code.name for problem in report.problems] == ["no-provenance"]


def test_annotations_that_say_something_else_are_found(tmp_path: Path) -> None:
    local = LocalRegistry(tmp_path / "registry")
    lay(local, tmp_path, lambda _: None)
    notes = {**local.resolve("m").annotations, modelpack.VERDICT: "fail"}
    local.push(tmp_path / "release", PushRequest("m", None, "latest", actor="me"), annotations=notes)
    assert wrong(verify(local, "m", rejudge)) == {
        "annotations": "error[other-annotations] annotations: org.qpack.verdict is 'fail', not 'pass'"
    }


def test_every_blob_that_is_damaged_is_found(tmp_path: Path) -> None:
    local = LocalRegistry(tmp_path / "registry")
    lay(local, tmp_path, lambda _: None)
    manifest = local.resolve("m").digest.removeprefix("sha256:")
    for blob in sorted((local.root / "blobs" / "sha256").iterdir()):
        data = bytearray(blob.read_bytes())
        whole = bytes(data)
        data[len(data) // 2] ^= 1
        blob.chmod(0o600)
        blob.write_bytes(data)
        if blob.name == manifest:  # then there is nothing to look at
            with pytest.raises(RegistryError, check=coded("damaged-content")):
                verify(local, "m", rejudge)
        else:
            assert "damaged" in wrong(verify(local, "m", rejudge))["digests"]
        blob.write_bytes(whole)
    assert wrong(verify(local, "m", rejudge)) == {}


def test_provenance_names_the_code_and_the_environments_that_made_each_stage() -> None:
    made = examples.release()
    first, *rest = made.stages
    known = first.model_copy(
        update={"code": "c" * 64, "qpack_version": "0.0.9", "environments": {"vllm": "e" * 64}, "reused": True}
    )
    told = made.model_copy(update={"stages": (known, *rest)})
    definition = json.loads(provenance.render(told, FILES))["predicate"]["buildDefinition"]
    assert definition["internalParameters"]["madeBy"] == {
        first.stage: {"qpack": "0.0.9", "environments": {"vllm": "e" * 64}}
    }, "the qpack that made it, not the one that packaged it; of stages that don't say, nothing"
    code = [d for d in definition["resolvedDependencies"] if d["name"].startswith("code/")]
    assert code == [{"name": f"code/{first.stage}", "digest": {"sha256": "c" * 64}}]
    statement = provenance.render(told, FILES).encode()
    assert provenance.problems(statement, told, FILES) == []
    forged = told.model_copy(update={"stages": (known.model_copy(update={"code": "d" * 64}), *rest)})
    assert provenance.problems(statement, forged, FILES) == [f"its dependency code/{first.stage} is another"]
    assert provenance.problems(provenance.render(made, FILES).encode(), made, FILES) == []
