"""OCI manifests of model releases, after the CNCF ModelPack specification: pure functions from files to JSON.

https://github.com/modelpack/model-spec (docs/spec.md, docs/config.md, docs/annotations.md) and
https://github.com/opencontainers/image-spec/blob/main/manifest.md. The same files and annotations give the same bytes,
hence the same digest, in every registry.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from pydantic import ValidationError

from qpack.errors import RegistryError
from qpack.frozen import Frozen
from qpack.results import FileRecord

MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
ARTIFACT_TYPE = "application/vnd.cncf.model.manifest.v1+json"
CONFIG_TYPE = "application/vnd.cncf.model.config.v1+json"
WEIGHT_TYPE = "application/vnd.cncf.model.weight.v1.raw"
WEIGHT_CONFIG_TYPE = "application/vnd.cncf.model.weight.config.v1.raw"
DOC_TYPE = "application/vnd.cncf.model.doc.v1.raw"
CODE_TYPE = "application/vnd.cncf.model.code.v1.raw"

FILEPATH = "org.cncf.model.filepath"
TITLE = "org.opencontainers.image.title"
CREATED = "org.opencontainers.image.created"
QUANTIZATION = "org.qpack.quantization"
PRECISION = "org.qpack.precision"

_WEIGHT_SUFFIXES = (".safetensors", ".gguf", ".bin", ".pt", ".pth")
_DOC_STEMS = ("readme", "license", "licence", "notice", "use_policy", "copying")
_DOC_SUFFIXES = (".md", ".pdf", ".html")
_DOC_FILES = ("release.json", "recipe.yaml")
# OCI annotation -> ModelPack descriptor field, and whether the field is a list.
_DESCRIPTOR_FIELDS = (
    ("org.opencontainers.image.created", "createdAt", False),
    ("org.opencontainers.image.authors", "authors", True),
    ("org.opencontainers.image.documentation", "docURL", False),
    ("org.opencontainers.image.source", "sourceURL", False),
    ("org.opencontainers.image.revision", "revision", False),
    ("org.opencontainers.image.vendor", "vendor", False),
    ("org.opencontainers.image.licenses", "licenses", True),
    ("org.opencontainers.image.title", "title", False),
    ("org.opencontainers.image.description", "description", False),
)


def canonical(value: Mapping[str, Any]) -> bytes:
    """JSON with sorted keys and no blanks, UTF-8."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def digest_of(data: bytes) -> str:
    """The OCI digest, `sha256:...`."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def media_type(path: str) -> str:
    """Which kind of ModelPack layer a file is, by its name."""
    name = PurePosixPath(path).name.lower()
    if name.endswith(_WEIGHT_SUFFIXES):
        return WEIGHT_TYPE
    if name.endswith(".py"):
        return CODE_TYPE
    if name.split(".")[0] in _DOC_STEMS or name.endswith(_DOC_SUFFIXES) or path in _DOC_FILES:
        return DOC_TYPE
    return WEIGHT_CONFIG_TYPE


def config(files: tuple[FileRecord, ...], annotations: Mapping[str, str]) -> bytes:
    """The ModelPack config object (schema/config-schema.json). Layers are raw: their diff IDs are their digests."""
    descriptor: dict[str, object] = {
        field: [annotations[key]] if many else annotations[key]
        for key, field, many in _DESCRIPTOR_FIELDS
        if key in annotations
    }
    model: dict[str, object] = {}
    if any(record.path.endswith(".safetensors") for record in files):
        model["format"] = "safetensors"
    if QUANTIZATION in annotations:
        model["quantization"] = annotations[QUANTIZATION]
    if PRECISION in annotations:
        model["precision"] = annotations[PRECISION]
    layers = {"type": "layers", "diffIds": [f"sha256:{record.sha256}" for record in files]}
    return canonical({"descriptor": descriptor, "config": model, "modelfs": layers})


def manifest(files: tuple[FileRecord, ...], config_bytes: bytes, annotations: Mapping[str, str]) -> bytes:
    """The OCI image manifest. `files` are sorted by path.

    Every layer carries its path twice: for ModelPack clients, and as the title that generic OCI clients write files to.
    """
    layers = [
        {
            "mediaType": media_type(record.path),
            "digest": f"sha256:{record.sha256}",
            "size": record.size_bytes,
            "annotations": {FILEPATH: record.path, TITLE: record.path},
        }
        for record in files
    ]
    return canonical(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "artifactType": ARTIFACT_TYPE,
            "config": {"mediaType": CONFIG_TYPE, "digest": digest_of(config_bytes), "size": len(config_bytes)},
            "layers": layers,
            "annotations": dict(annotations),
        }
    )


class Contents(Frozen):
    """What a manifest says: its files, its config's digest, and its annotations."""

    files: tuple[FileRecord, ...]
    config_digest: str
    annotations: dict[str, str]

    def blobs(self) -> frozenset[str]:
        """Every digest that the manifest needs, as `sha256:...`."""
        return frozenset({self.config_digest, *(f"sha256:{record.sha256}" for record in self.files)})


def read_manifest(data: bytes, where: str) -> Contents:
    """The inverse of `manifest`. Raises RegistryError when `data` isn't such a manifest; `where` names it."""
    try:
        value = json.loads(data)
        if value.get("artifactType") != ARTIFACT_TYPE:
            raise RegistryError(
                f"{where} is not a model release (its artifactType is {value.get('artifactType')!r})",
                hint="Name a release that qpack published.",
            )
        return Contents(
            files=tuple(
                FileRecord(
                    path=layer["annotations"][FILEPATH],
                    size_bytes=layer["size"],
                    sha256=layer["digest"].removeprefix("sha256:"),
                )
                for layer in value["layers"]
            ),
            config_digest=value["config"]["digest"],
            annotations=value.get("annotations", {}),
        )
    except (ValueError, KeyError, TypeError, AttributeError, ValidationError) as error:
        raise RegistryError(
            f"{where} is not a manifest that qpack can read ({type(error).__name__}: {error})",
            hint="Pull it with the program that wrote it, or publish the release again.",
        ) from error


def needs(data: bytes) -> tuple[tuple[str, bool], ...]:
    """Every digest that any OCI manifest or index refers to, and whether that is a manifest or an index in turn.

    Also reads what other programs wrote; what isn't JSON refers to nothing.
    """
    try:
        value = json.loads(data)
    except ValueError:
        return ()
    found = []
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict):
            if isinstance(item.get("digest"), str):
                found.append((item["digest"], item.get("mediaType") in (MANIFEST_TYPE, INDEX_TYPE)))
            waiting.extend(item.values())
        elif isinstance(item, list):
            waiting.extend(item)
    return tuple(found)
