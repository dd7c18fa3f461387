"""Provenance of a release, `provenance.json`: an in-toto statement with a SLSA provenance predicate.

https://github.com/in-toto/attestation/blob/main/spec/v1/statement.md and https://slsa.dev/spec/v1.0/provenance. It
depends only on the release manifest and the files: the same release gives the same bytes. It is part of the release, so
the release's digest pins it and a signature covers it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

from pydantic import Field, ValidationError

from qpack.core.frozen import Frozen
from qpack.core.records import FileRecord, Release

FILE = "provenance.json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "urn:qpack:build:v1"
BUILDER = "urn:qpack:builder:local"

# Products of the build: the artifact, its evidence, its serving manifest.
_SUBJECTS = ("release.json", "serving.json")
_COMMIT = re.compile(r"hf://[^@]+@(?P<commit>[0-9a-f]{40})")


class Descriptor(Frozen):
    """The used fields of in-toto's ResourceDescriptor: name, URI, digests by algorithm."""

    name: str
    uri: str | None = None
    digest: dict[str, str] = Field(default_factory=dict)


class Statement(Frozen):
    """The parts that are read back: subjects and dependencies."""

    subjects: tuple[Descriptor, ...]
    dependencies: tuple[Descriptor, ...]


def render(release: Release, files: Iterable[FileRecord]) -> str:
    """The content of `provenance.json`. `files` are those of the release folder without this statement."""
    subjects = [record for record in files if record.path.startswith("model/") or record.path in _SUBJECTS]
    statement = {
        "_type": STATEMENT_TYPE,
        "subject": [
            {"name": record.path, "digest": {"sha256": record.sha256}} for record in sorted(subjects, key=_path)
        ],
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {"recipe": "recipe.yaml", "name": release.name, "source": release.source.source},
                "internalParameters": {
                    "engine": release.quantized.engine,
                    "method": release.quantized.method,
                    "scheme": release.quantized.scheme,
                    "stages": {stage.stage: stage.key for stage in release.stages},
                    "madeBy": {
                        stage.stage: {"qpack": stage.qpack_version, "environments": stage.environments}
                        for stage in release.stages
                        if stage.code
                    },
                },
                "resolvedDependencies": [d.model_dump(exclude_defaults=True) for d in dependencies(release)],
            },
            "runDetails": {
                "builder": {"id": BUILDER, "version": {"qpack": release.qpack_version}},
                "metadata": {"finishedOn": release.created},
            },
        },
    }
    return json.dumps(statement, indent=1, ensure_ascii=False) + "\n"


def dependencies(release: Release) -> tuple[Descriptor, ...]:
    """Inputs of the build: recipe, source model with its files, calibration tokens, environments by their locks, and
    the code of each stage.

    Digests are SHA-256 of files, with two exceptions: `gitCommit` for a source on the Hub, and for code the digest of
    the paths and digests of a stage's modules (`qpack.pipeline.closure`).
    """
    source = release.source
    hub = _COMMIT.fullmatch(source.resolved)
    found = [
        Descriptor(name="recipe.yaml", digest={"sha256": hashlib.sha256(release.recipe_text.encode()).hexdigest()}),
        Descriptor(name="source", uri=source.resolved, digest={"gitCommit": hub["commit"]} if hub else {}),
        *(Descriptor(name=f"source/{file.path}", digest={"sha256": file.sha256}) for file in source.files),
    ]
    if release.calibration is not None:
        found.append(Descriptor(name="calibration/tokens.jsonl", digest={"sha256": release.calibration.digest}))
    found += (
        Descriptor(name=f"environment/{made.name}-{made.variant}", digest={"sha256": made.lock_sha256})
        for made in release.environments
    )
    found += (
        Descriptor(name=f"code/{stage.stage}", digest={"sha256": stage.code}) for stage in release.stages if stage.code
    )
    return tuple(found)


def problems(data: bytes, release: Release, files: Iterable[FileRecord]) -> list[str]:
    """Differences between a statement and the release that contains it. `data` is untrusted."""
    try:
        value = json.loads(data)
        types = value["_type"], value["predicateType"], value["predicate"]["buildDefinition"]["buildType"]
        statement = _statement(value)
    except (ValueError, KeyError, TypeError, RecursionError, ValidationError):
        return [f"{FILE} is not an in-toto statement with SLSA provenance"]
    if types != (STATEMENT_TYPE, PREDICATE_TYPE, BUILD_TYPE):
        return [f"{FILE} is a statement of another kind: {', '.join(map(str, types))}"]
    right = json.loads(render(release, files))
    wanted = _statement(right)
    wrong = []
    for what, found, expected in (
        ("subject", statement.subjects, wanted.subjects),
        ("dependency", statement.dependencies, wanted.dependencies),
    ):
        # Counted, because names may be duplicates.
        there, due = (
            Counter((d.name, d.uri, tuple(sorted(d.digest.items()))) for d in side) for side in (found, expected)
        )
        names = {name for name, _, _ in (there - due) + (due - there)}
        wrong += [f"its {what} {name} is another" for name in sorted(names)]
    return wrong + [f"its {name} is another" for name in sorted(_parameters(right)) if _differs(name, value, right)]


def _parameters(statement: Any) -> dict[str, Any]:
    """The parameters of the build in a statement, by name; empty if it has another form."""
    definition = statement["predicate"]["buildDefinition"]
    parts = (definition.get("externalParameters"), definition.get("internalParameters"))
    return {name: value for part in parts if isinstance(part, dict) for name, value in part.items()}


def _differs(name: str, value: Any, right: Any) -> bool:
    """Whether a parameter differs. Statements by other versions may have fewer."""
    found = _parameters(value)
    return name in found and found[name] != _parameters(right)[name]


def _statement(value: Any) -> Statement:
    parts = value["subject"], value["predicate"]["buildDefinition"]["resolvedDependencies"]
    return Statement.model_validate({"subjects": parts[0], "dependencies": parts[1]})


def _path(record: FileRecord) -> str:
    return record.path
