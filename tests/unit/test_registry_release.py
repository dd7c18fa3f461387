from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import pytest

import tests.unit.registry_examples as examples
from qpack.core.errors import QuantizeError, RegistryError
from qpack.core.hashing import digest_of, digest_tree
from qpack.core.records import FileRecord, Release
from quantize.checkpoint.sources import served_files
from registry.core.bundle import files_in
from registry.release import eval_results, release_folder
from registry.release.release_folder import lay_out, missing_files, oci_annotations
from registry.serving.serving_manifest import ServingManifest
from tests.codes import coded

CHECKPOINT = {
    "config.json": "{}",
    "generation_config.json": "{}",
    "tokenizer.json": "{}",
    "tokenizer_config.json": "{}",
    "chat_template.jinja": "{{ messages }}",
    "model.safetensors": "weights",
}


def make(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return make(tmp_path / "checkpoint", CHECKPOINT)


def released(checkpoint: Path) -> Release:
    return examples.release(files=digest_tree(checkpoint)[0])


def test_the_digest_is_over_sorted_paths_and_digests(tmp_path: Path) -> None:
    make(tmp_path, {"b/c": "2", "b-a": "1", "a": "1"})
    records, digest = digest_tree(tmp_path)
    one, two = (hashlib.sha256(text).hexdigest() for text in (b"1", b"2"))
    assert [record.path for record in records] == ["a", "b-a", "b/c"]
    assert digest == hashlib.sha256(f"a\0{one}\nb-a\0{one}\nb/c\0{two}\n".encode()).hexdigest()
    assert digest_of(tuple(reversed(records))) == digest


def test_a_folder_moved_elsewhere_has_the_same_digest(tmp_path: Path, checkpoint: Path) -> None:
    before = digest_tree(checkpoint)
    assert digest_tree(checkpoint.rename(tmp_path / "moved")) == before


@pytest.mark.parametrize(
    ("change", "read"),
    [
        ({"interval": {"low": -math.inf, "high": math.inf}}, True),
        ({"interval": {"low": 0.01, "high": math.inf}}, True),
        ({"value": math.nan, "interval": None}, True),
        ({"interval": {"low": math.inf, "high": math.inf}}, False),
        ({"interval": {"low": -math.inf, "high": -math.inf}}, False),
        ({"interval": {"low": math.nan}}, False),
        ({"interval": {"confidence": math.inf}}, False),
        ({"value": math.nan}, False),
        ({"value": math.inf}, False),
        ({"value": math.inf, "interval": None}, False),
        ({"samples": 2**63}, False),
    ],
)
def test_a_figure_is_open_only_where_a_build_leaves_it_open(change: dict[str, Any], read: bool) -> None:
    made = examples.release().model_dump()
    told = made["comparison"]["accuracy_drop"]
    held = change.get("interval", {})
    made["comparison"]["accuracy_drop"] = {**told, **change, "interval": held and {**told["interval"], **held}}
    if held == {}:
        made["comparison"]["accuracy_drop"]["interval"] = told["interval"]
    data = Release.model_validate(made).model_dump_json().encode()
    if read:
        assert str(release_folder.read(data, "it").comparison.accuracy_drop) == str(
            Release.model_validate_json(data).comparison.accuracy_drop
        )
    else:
        with pytest.raises(RegistryError, check=coded("unreadable-manifest")):
            release_folder.read(data, "it")


def test_a_broken_link_is_not_passed_over(checkpoint: Path) -> None:
    (checkpoint / "config.json").unlink()
    (checkpoint / "config.json").symlink_to("nowhere")
    with pytest.raises(QuantizeError, check=coded("not-a-file"), match=r"config\.json"):
        digest_tree(checkpoint)


def test_a_release_has_the_model_the_evidence_and_the_card(tmp_path: Path, checkpoint: Path) -> None:
    folder = tmp_path / "release"
    folder.mkdir()
    release = released(checkpoint)
    records = lay_out(
        folder,
        checkpoint=checkpoint,
        source=checkpoint,
        release=release,
        serving=examples.serving(),
        license_text="The licence.\n",
    )
    assert records == digest_tree(folder)[0]
    assert {record.path for record in records} == {f"model/{name}" for name in CHECKPOINT} | {
        *("release.json", "serving.json", "recipe.yaml", "README.md", "LICENSE", "provenance.json", "bom.cdx.json")
    }
    assert Release.model_validate_json((folder / "release.json").read_text()) == release
    assert ServingManifest.from_json((folder / "serving.json").read_text()) == examples.serving()
    assert (folder / "recipe.yaml").read_text() == examples.RECIPE
    assert "# small-gptq" in (folder / "README.md").read_text()


def test_scores_over_all_of_a_benchmark_are_a_file_of_the_release(tmp_path: Path, checkpoint: Path) -> None:
    folder = tmp_path / "release"
    folder.mkdir()
    release = released(checkpoint)
    accuracy = release.artifact.accuracy
    (task,) = accuracy.tasks
    accuracy = accuracy.model_copy(update={"tasks": (task.model_copy(update={"task": "lm_eval:gsm8k"}),)})
    release = release.model_copy(update={"artifact": release.artifact.model_copy(update={"accuracy": accuracy})})
    lay_out(folder, checkpoint=checkpoint, source=checkpoint, release=release, serving=examples.serving())
    assert (folder / ".eval_results/qpack.yaml").read_text() == eval_results.render(release)
    assert files_in(folder) == tuple(record.path for record in digest_tree(folder)[0])


def test_an_artifact_that_changed_since_it_was_measured_is_refused(tmp_path: Path, checkpoint: Path) -> None:
    release = released(checkpoint)
    (checkpoint / "model.safetensors").write_text("Weights")
    (tmp_path / "out").mkdir()
    with pytest.raises(QuantizeError, check=coded("changed-artifact"), match=r"model\.safetensors"):
        lay_out(tmp_path / "out", checkpoint=checkpoint, source=checkpoint, release=release, serving=examples.serving())


@pytest.mark.parametrize("name", sorted(CHECKPOINT))
def test_a_file_that_a_server_needs_is_named_when_it_is_missing(name: str, tmp_path: Path, checkpoint: Path) -> None:
    source = make(tmp_path / "source", CHECKPOINT)
    (checkpoint / name).unlink()
    with pytest.raises(QuantizeError, check=coded("missing-file"), match=name) as caught:
        lay_out(
            tmp_path / "out",
            checkpoint=checkpoint,
            source=source,
            release=released(checkpoint),
            serving=examples.serving(),
        )
    assert len(caught.value.problems) == 1
    assert not (tmp_path / "out").exists()


def test_what_the_source_never_had_is_not_missed(checkpoint: Path) -> None:
    (checkpoint / "generation_config.json").unlink()
    (checkpoint / "chat_template.jinja").unlink()
    assert missing_files(checkpoint, checkpoint) == ()


def test_a_chat_template_in_the_tokenizer_config_counts(tmp_path: Path, checkpoint: Path) -> None:
    source = make(tmp_path / "source", CHECKPOINT)
    (checkpoint / "chat_template.jinja").unlink()
    (checkpoint / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ messages }}"}))
    assert missing_files(checkpoint, source) == ()


def test_a_missing_shard_is_named(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").rename(checkpoint / "model-00001-of-00002.safetensors")
    shards = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    assert [p.where.file for p in missing_files(checkpoint, checkpoint)] == ["model-00002-of-00002.safetensors"]


def test_shards_without_an_index_are_not_complete(checkpoint: Path) -> None:
    (checkpoint / "model-00002-of-00002.safetensors").write_text("more")
    assert [p.where.file for p in missing_files(checkpoint, checkpoint)] == ["model.safetensors.index.json"]


def test_a_release_of_another_version_is_no_bug_and_names_who_wrote_it() -> None:
    written = examples.release().model_dump(mode="json") | {"qpack_version": "9.9"}
    del written["comparison"]
    with pytest.raises(
        RegistryError, check=coded("unreadable-manifest"), match=r"demo:1: .*9\.9 .*comparison"
    ) as caught:
        release_folder.read(json.dumps(written), "demo:1")
    assert "qpack pull" in caught.value.hint
    with pytest.raises(RegistryError, check=coded("unreadable-manifest")):
        release_folder.read(b"[]", "demo:1")


def test_the_manifest_says_when_a_release_was_forced() -> None:
    assert oci_annotations(examples.release(failed=True))["org.qpack.forced"] == "true"
    assert oci_annotations(examples.release())["org.qpack.forced"] == "false"


def test_a_path_that_leads_out_of_the_folder_is_refused(tmp_path: Path, checkpoint: Path) -> None:
    from qpack.core.errors import RegistryError

    release = examples.release(files=(FileRecord(path="../../out", size_bytes=1, sha256="0" * 64),))
    with pytest.raises(RegistryError, check=coded("unsafe-path")):
        lay_out(tmp_path / "x", checkpoint=checkpoint, source=checkpoint, release=release, serving=examples.serving())


def test_an_artifact_with_a_file_that_no_release_has_is_not_laid_out(tmp_path: Path, checkpoint: Path) -> None:
    """It would not verify: better told now than by whoever wants to serve it."""
    (checkpoint / "torch.py").write_text("")
    (tmp_path / "out").mkdir()
    with pytest.raises(QuantizeError, check=coded("foreign-file")) as caught:
        lay_out(
            tmp_path / "out",
            checkpoint=checkpoint,
            source=checkpoint,
            release=released(checkpoint),
            serving=examples.serving(),
        )
    assert [(p.code.name, p.where.file) for p in caught.value.problems] == [("foreign-file", "model/torch.py")]
    assert [path.name for path in served_files(checkpoint)] == sorted(CHECKPOINT), "a fetch leaves it out"
