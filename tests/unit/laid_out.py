"""Release folders that verify, laid out as a build does, for what can be done to them in a registry."""

from __future__ import annotations

import json
from pathlib import Path

import tests.unit.registry_examples as examples
from qpack.core.hashing import digest_tree
from qpack.core.records import Release
from registry.core.protocol import PushRequest
from registry.local.registry import LocalRegistry
from registry.release import release_folder
from tests.unit.recipes import checkpoint


def laid_out(
    scratch: Path, number: int = 0, made: Release | None = None, width: int = 64
) -> tuple[Path, dict[str, str]]:
    """A release folder below `scratch` and its annotations. Another `number` is another artifact; wider is larger."""
    artifact = checkpoint(scratch / "artifact", width)
    (artifact / "config.json").write_text(json.dumps({"model_type": "llama", "number": number}))
    weights = artifact / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + number.to_bytes(4, "little"))
    return laid_out_as(scratch, artifact, made or examples.release())


def laid_out_as(scratch: Path, artifact: Path, made: Release) -> tuple[Path, dict[str, str]]:
    """The same with an artifact that is there."""
    records, digest = digest_tree(artifact)
    made = made.model_copy(
        update={
            "quantized": made.quantized.model_copy(update={"files": records, "digest": digest}),
            "artifact": made.artifact.model_copy(update={"model_digest": digest}),
        }
    )
    serving = examples.serving()
    serving = serving.model_copy(update={"model": serving.model.model_copy(update={"digest": digest})})
    folder = scratch / "release"
    folder.mkdir()
    release_folder.lay_out(folder, checkpoint=artifact, source=artifact, release=made, serving=serving)
    return folder, release_folder.oci_annotations(made)


def publish(local: LocalRegistry, name: str, scratch: Path, number: int = 0, made: Release | None = None) -> None:
    """Push such a release, and point `latest` at it."""
    folder, annotations = laid_out(scratch, number, made)
    local.push(folder, PushRequest(name, None, "latest", actor="me"), annotations=annotations)
