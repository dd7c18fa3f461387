"""OCI manifests of model releases, after the CNCF ModelPack specification. Pure functions from files to JSON.

https://github.com/modelpack/model-spec (docs/spec.md, docs/config.md, docs/annotations.md) and
https://github.com/opencontainers/image-spec/blob/main/manifest.md. The same files and annotations give the same bytes
and the same digest in every registry.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from pydantic import ValidationError

from qpack.core.errors import RegistryError
from qpack.core.frozen import Frozen
from qpack.core.records import FileRecord
from registry.core import documents
from registry.core.codes import NOT_A_RELEASE
from registry.core.documents import Document, Json
from registry.core.files import confined

MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
ARTIFACT_TYPE = "application/vnd.cncf.model.manifest.v1+json"
CONFIG_TYPE = "application/vnd.cncf.model.config.v1+json"
WEIGHT_TYPE = "application/vnd.cncf.model.weight.v1.raw"
WEIGHT_CONFIG_TYPE = "application/vnd.cncf.model.weight.config.v1.raw"
DOC_TYPE = "application/vnd.cncf.model.doc.v1.raw"
CODE_TYPE = "application/vnd.cncf.model.code.v1.raw"
EMPTY_TYPE = "application/vnd.oci.empty.v1+json"
EMPTY = b"{}"

FILEPATH = "org.cncf.model.filepath"
TITLE = "org.opencontainers.image.title"
CREATED = "org.opencontainers.image.created"
QUANTIZATION = "org.qpack.quantization"
PRECISION = "org.qpack.precision"
VERDICT = "org.qpack.verdict"

_WEIGHT_SUFFIXES = (".safetensors", ".gguf", ".bin", ".pt", ".pth")
_DOC_STEMS = ("readme", "license", "licence", "notice", "use_policy", "copying")
_DOC_SUFFIXES = (".md", ".pdf", ".html")
_DOC_FILES = ("release.json", "recipe.yaml", "provenance.json", "bom.cdx.json")
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


DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
LARGEST_MANIFEST = 4 * 2**20
"""Bytes. The OCI distribution specification lets registries refuse larger ones. Manifests are read into memory."""


def canonical(value: Document) -> bytes:
    """JSON with sorted keys and no whitespace, UTF-8. Raises ValueError for values without a JSON or UTF-8 form."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode()


def digest_of(data: bytes) -> str:
    """The OCI digest, `sha256:...`."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def media_type(path: str) -> str:
    """The ModelPack layer type of a file, by its name."""
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
    descriptor: dict[str, Json] = {
        field: [annotations[key]] if many else annotations[key]
        for key, field, many in _DESCRIPTOR_FIELDS
        if key in annotations
    }
    model: dict[str, Json] = {}
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

    Each layer has its path twice: for ModelPack clients, and as the title, which generic OCI clients use.
    """
    layers: list[Document] = [
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


def referrer(subject: Document, blob: bytes, media_type: str, annotations: Mapping[str, str]) -> bytes:
    """A manifest that attaches `blob` to the manifest that `subject` describes, which stays unchanged."""
    return canonical(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "artifactType": media_type,
            "config": {"mediaType": EMPTY_TYPE, "digest": digest_of(EMPTY), "size": len(EMPTY)},
            "layers": [{"mediaType": media_type, "digest": digest_of(blob), "size": len(blob)}],
            "subject": dict(subject),
            "annotations": dict(annotations),
        }
    )


def attached_to(data: bytes, subject: str) -> tuple[str, ...]:
    """The digests of the blobs that a manifest attaches to `subject`; empty for another subject and for invalid
    manifests.
    """
    try:
        value = documents.parse(data)
        if value["subject"]["digest"] != subject:
            return ()
        return tuple(checked_digest(layer["digest"]) for layer in value["layers"])
    except (ValueError, KeyError, TypeError):
        return ()


class Contents(Frozen):
    """The contents of a manifest: files, digest of the config, annotations."""

    files: tuple[FileRecord, ...]
    config_digest: str
    annotations: dict[str, str]

    def blobs(self) -> frozenset[str]:
        """Every digest that the manifest refers to, as `sha256:...`."""
        return frozenset({self.config_digest, *(f"sha256:{record.sha256}" for record in self.files)})


def read_manifest(data: bytes, where: str) -> Contents:
    """The inverse of `manifest`. Paths stay inside the folder, sizes are valid, digests are SHA-256.

    Raises RegistryError if `data` isn't such a manifest; `where` names it in the message.
    """
    try:
        value = documents.parse(data)
        if value.get("artifactType") != ARTIFACT_TYPE:
            raise RegistryError(
                NOT_A_RELEASE,
                f"{where} is not a model release (its artifactType is {str(value.get('artifactType'))[:80]!r})",
                hint="Use the reference of a release that qpack published.",
            )
        files = tuple(_record(layer) for layer in value["layers"])
        _check(files)
        return Contents(
            files=files,
            config_digest=checked_digest(value["config"]["digest"]),
            annotations=value.get("annotations", {}),
        )
    except (ValueError, KeyError, TypeError, AttributeError, ValidationError) as error:
        raise RegistryError(
            NOT_A_RELEASE,
            f"{where} can't be read by qpack ({type(error).__name__}: {str(error)[:300]})",
            hint="Pull it with the program that wrote it, or publish the release again.",
        ) from error


def _check(files: tuple[FileRecord, ...]) -> None:
    """Raise ValueError for files that can't be written together. Manifests are untrusted."""
    paths = {record.path for record in files}
    if len(paths) < len(files):
        raise ValueError("a path is a duplicate")
    if any(str(parent) in paths for path in paths for parent in PurePosixPath(path).parents):
        raise ValueError("a file is also the folder of another file")
    sizes: dict[str, int] = {}
    if any(sizes.setdefault(record.sha256, record.size_bytes) != record.size_bytes for record in files):
        raise ValueError("two sizes for the same digest")


def _record(layer: Any) -> FileRecord:
    if type(layer["size"]) is not int or layer["size"] < 0:
        raise ValueError("a size is not a number of bytes")
    digest = checked_digest(layer["digest"]).removeprefix("sha256:")
    path = layer["annotations"][FILEPATH]
    if not isinstance(path, str):
        raise TypeError("a path is not a string")
    # Checked here and not where files are written, so that no manifest with such a path is ever returned.
    try:
        confined(Path(), path)
    except RegistryError as error:
        raise ValueError(error.what) from error
    return FileRecord(path=path, size_bytes=layer["size"], sha256=digest)


def checked_digest(digest: object) -> str:
    """`digest` itself. Raises ValueError if it isn't `sha256:` and 64 hex digits."""
    if not isinstance(digest, str) or not DIGEST.fullmatch(digest):
        raise ValueError(f"{digest!r} is not a digest")
    return digest


class Need(NamedTuple):
    """A digest that a manifest refers to. `manifest`: it is itself a manifest or an index. `weak`: it is the manifest's
    `subject`, which may be absent by the specification.
    """

    digest: str
    manifest: bool
    weak: bool


def needs(data: bytes) -> tuple[Need, ...]:
    """Every digest that an OCI manifest or index refers to, at any depth; also those of other programs.

    Anything but JSON refers to nothing. Raises ValueError for JSON with too many values or too deep nesting.
    """
    try:
        value = documents.pairs(data)
    except (json.JSONDecodeError, UnicodeDecodeError):
        return ()
    found: list[Need] = []
    waiting: list[tuple[Any, bool]] = [(value, False)]
    while waiting:
        item, weak = waiting.pop()
        if not isinstance(item, list):
            continue
        object_ = [pair for pair in item if isinstance(pair, tuple)]
        kinds = {kind for key, kind in object_ if key == "mediaType" and isinstance(kind, str)}
        for key, part in object_:
            if key == "digest" and isinstance(part, str):
                found.append(Need(part, bool(kinds & {MANIFEST_TYPE, INDEX_TYPE}), weak))
            waiting.append((part, weak or key == "subject"))
        waiting += [(part, weak) for part in item if not isinstance(part, tuple)]
    return tuple(found)
