"""The release's bill of materials, `bom.cdx.json`: a CycloneDX 1.6 ML-BOM (https://cyclonedx.org/docs/1.6/json/).

It lists the model with its card (architecture, data sets, figures), its files by hash, the source model, and the
packages that made and measured it. It depends only on the release manifest and the files: the same release gives the
same bytes. CycloneDX's Python library doesn't support model cards, so the document is built here; tests validate it
against the official schema.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Iterator
from urllib.parse import quote

from qpack.core.records import EnvironmentRecord, Estimate, FileRecord, Quantized, Release
from registry.core.documents import Document, Json

FILE = "bom.cdx.json"
SPEC_VERSION = "1.6"
_MODEL, _SOURCE = "model", "source-model"


def render(release: Release, files: Iterable[FileRecord]) -> str:
    """The content of `bom.cdx.json`. `files` are those of the release folder without this document."""
    model = [record for record in files if record.path.startswith("model/")]
    document = {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": SPEC_VERSION,
        # From the content, so that it is reproducible.
        "serialNumber": uuid.uuid5(uuid.NAMESPACE_URL, f"{release.quantized.digest} {release.created}").urn,
        "version": 1,
        "metadata": {
            "timestamp": release.created,
            "tools": {"components": [{"type": "application", "name": "qpack", "version": release.qpack_version}]},
            "component": _model(release, model),
        },
        "components": [_source(release), *_data(release)],
        "dependencies": [{"ref": _MODEL, "dependsOn": [_SOURCE]}],
        "formulation": [_formula(made) for made in release.environments],
    }
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def _model(release: Release, files: list[FileRecord]) -> Document:
    quantized = release.quantized
    return {
        "type": "machine-learning-model",
        "bom-ref": _MODEL,
        "name": release.name,
        "description": f"{release.source.resolved}, {_how(quantized)}",
        **_licence(release.source.license),
        "modelCard": {
            "modelParameters": {
                "task": "text-generation",
                "architectureFamily": "transformer",
                "modelArchitecture": release.source.architecture,
                "datasets": [{"ref": item["bom-ref"]} for item in _data(release)],
                "inputs": [{"format": "text"}],
                "outputs": [{"format": "text"}],
            },
            "quantitativeAnalysis": {"performanceMetrics": list(_figures(release))},
        },
        "pedigree": {
            "ancestors": [
                {"type": "machine-learning-model", "name": name}
                for name in (release.source.resolved, release.source.base_model and f"hf://{release.source.base_model}")
                if name
            ]
        },
        "components": [
            {"type": "file", "bom-ref": f"file:{record.path}", "name": record.path, "hashes": _hash(record.sha256)}
            for record in files
        ],
        "properties": [
            {"name": f"qpack:{name}", "value": str(value)}
            for name, value in (
                ("artifact-digest", quantized.digest),
                ("engine", f"{quantized.engine} {quantized.engine_version}"),
                ("group-size", quantized.group_size if quantized.group_size is not None else "none"),
                ("verdict", release.verdict.outcome),
                ("hardware", release.artifact.hardware.target),
                ("server", release.artifact.server),
            )
        ],
    }


def _figures(release: Release) -> Iterator[Document]:
    c = release.comparison
    for task in c.tasks:
        yield {"type": f"{task.metric} of {task.task}", "value": f"{task.artifact:.6g}", "slice": task.task}
        yield _figure(f"drop of {task.metric} of {task.task}", task.drop)
    yield {"type": "perplexity", "value": f"{c.perplexity_artifact:.6g}", "slice": "held-out text"}
    yield _figure("perplexity ratio to the source", c.perplexity_ratio)
    yield _figure(f"{c.kl_label}, from the source", c.kl_divergence)
    yield _figure("top-1 flip rate", c.flip_rate)


def _figure(name: str, estimate: Estimate) -> Document:
    found: dict[str, Json] = {"type": name, "value": f"{estimate.value:.6g}"}
    if estimate.interval is not None:
        low, high = estimate.interval.low, estimate.interval.high
        found["confidenceInterval"] = {"lowerBound": f"{low:.6g}", "upperBound": f"{high:.6g}"}
    return found


def _source(release: Release) -> Document:
    source = release.source
    return {
        "type": "machine-learning-model",
        "bom-ref": _SOURCE,
        "name": source.resolved,
        **_licence(source.license),
        "components": [
            {"type": "file", "bom-ref": f"source-file:{f.path}", "name": f.path, "hashes": _hash(f.sha256)}
            for f in source.files
        ],
        "properties": [{"name": "qpack:source-digest", "value": source.digest}],
    }


def _data(release: Release) -> list[Document]:
    found = []
    if release.calibration is not None:
        rows = f"{release.calibration.rows} rows, {release.calibration.tokens} tokens"
        found.append(("calibration", f"calibration tokens: {rows}", release.calibration.digest))
    held_out = release.artifact.language
    found.append(("held-out", f"held-out windows for perplexity: {len(held_out.windows)}", held_out.text_digest))
    return [
        {
            "type": "data",
            "bom-ref": f"data:{name}",
            "name": name,
            "description": text,
            "hashes": _hash(digest),
            "data": [{"type": "dataset", "name": name}],
        }
        for name, text, digest in found
    ]


def _formula(made: EnvironmentRecord) -> Document:
    """An environment as a formula: its packages, and the digest of its lock."""
    place = f"{made.name}-{made.variant}"
    return {
        "bom-ref": f"environment:{place}",
        "components": [
            {
                "type": "library",
                "bom-ref": f"package:{place}:{name}",
                "name": name,
                "version": version,
                "purl": f"pkg:pypi/{quote(name.lower().replace('_', '-'))}@{quote(version)}",
            }
            for name, version in sorted(made.packages.items())
        ],
        "properties": [
            {"name": "qpack:lock-sha256", "value": made.lock_sha256},
            {"name": "qpack:python", "value": made.python},
        ],
    }


def _how(quantized: Quantized) -> str:
    if quantized.method == "none":
        as_stored = quantized.scheme == "SOURCE"
        return "unchanged: the source's own precision" if as_stored else f"not quantized: {quantized.scheme}"
    if quantized.method == "online":
        return f"not quantized: vLLM quantizes it to {quantized.scheme} as it loads"
    return f"quantized: {quantized.method} {quantized.scheme}"


def _licence(identifier: str | None) -> Document:
    # As a name: it may not be an SPDX identifier.
    return {"licenses": [{"license": {"name": identifier}}]} if identifier else {}


def _hash(sha256: str) -> list[dict[str, str]]:
    return [{"alg": "SHA-256", "content": sha256}]
