"""The release folder: the artifact with everything a server needs, the evidence, the serving manifest, the card.

model/...        the checkpoint that was measured
release.json     the release manifest (qpack.core.records.Release)
serving.json     the serving manifest
recipe.yaml      the recipe, with overrides marked
provenance.json  provenance: in-toto, SLSA
bom.cdx.json     bill of materials: CycloneDX
README.md        the model card
LICENSE          the licence's text, if known
.eval_results/   scores for the Hub's leaderboards, if any
"""

from __future__ import annotations

import math
from pathlib import Path

from pydantic import ValidationError

from qpack.core import checkpoint_files, jsonfile
from qpack.core.checkpoint_files import MISSING_FILE
from qpack.core.errors import QuantizeError, RegistryError
from qpack.core.figures import Estimate, Interval
from qpack.core.hashing import digest_tree, sha256
from qpack.core.problems import Code, Location, Problem
from qpack.core.records import FileRecord, Release
from registry.core import documents, modelpack
from registry.core.codes import UNREADABLE_MANIFEST
from registry.core.files import confined, link_or_copy
from registry.release import bill_of_materials, card, eval_results, provenance, release_files
from registry.release.release_files import FOREIGN_FILE
from registry.serving.serving_manifest import ServingManifest

_CHANGED_ARTIFACT = Code("changed-artifact", "A file of the artifact isn't the one that was measured.")

# One of these sets makes a tokenizer: the fast tokenizer's file, SentencePiece, or byte-pair encoding in two files.
_TEMPLATES = ("chat_template.jinja", "chat_template.json")
_WEIGHTS, _WEIGHTS_INDEX = "model.safetensors", "model.safetensors.index.json"


def read(data: bytes | str, what: str) -> Release:
    """Parse a release manifest; `what` names the release in messages.

    Raises RegistryError if this version can't read it (no missing field is guessed), and for impossible figures:
    releases are untrusted.
    """
    try:
        found = Release.model_validate_json(data)
        if not _are_figures(found.model_dump()):
            raise RegistryError(
                UNREADABLE_MANIFEST, f"{what}: its release manifest has invalid figures", hint="qpack did not write it."
            )
        return found
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        try:
            version = f"qpack {str(documents.parse(data)['qpack_version'])[:40]}"
        except (ValueError, LookupError, TypeError):
            version = "something else"
        raise RegistryError(
            UNREADABLE_MANIFEST,
            f"{what}: its release manifest was written by {version} and can't be read by this one"
            f" ({place}: {first['msg']}; {error.error_count()} such fields)",
            hint="`qpack pull` can still write its files. Build it again, or use the version of qpack that wrote it.",
        ) from error


def _are_figures(value: object) -> bool:
    """Whether all numbers are finite and fit into 64 bits, except those that `_open` allows."""
    if isinstance(value, dict):
        left_open = _open(value)
        return all(_are_figures(item) for key, item in value.items() if key not in left_open)
    if isinstance(value, list | tuple):
        return all(map(_are_figures, value))
    return not isinstance(value, int | float) or (
        math.isfinite(value) if isinstance(value, float) else abs(value) < 2**63
    )


def _open(value: dict[str, object]) -> set[str]:
    """Fields that a build itself may leave open, as in a forced release: a missing bound of an interval, and an
    estimate of NaN without an interval.
    """
    if value.keys() == Interval.model_fields.keys():
        return {end for end, far in (("low", -math.inf), ("high", math.inf)) if value[end] == far}
    figure = value["value"] if value.keys() == Estimate.model_fields.keys() else None
    none = isinstance(figure, float) and math.isnan(figure) and value["interval"] is None
    return {"value"} if none else set()


def lay_out(
    folder: Path,
    *,
    checkpoint: Path,
    source: Path,
    release: Release,
    serving: ServingManifest,
    license_text: str | None = None,
) -> tuple[FileRecord, ...]:
    """Write the release into the empty `folder`, and return its files.

    `checkpoint` is the artifact and `source` the checkpoint that it was made from. The artifact's files are cloned or
    hard-linked if possible: don't change them afterwards. Raises QuantizeError if a file that a server needs is
    missing, or the artifact differs from the measured one (`release.quantized.files`).
    """
    if problems := missing_files(checkpoint, source):
        names = ", ".join(str(problem.where) for problem in problems)
        raise QuantizeError(
            MISSING_FILE,
            f"the artifact can't be served, files are missing: {names}",
            hint="The engine did not write them: use another engine or method, or report a bug.",
            problems=problems,
        )
    model = folder / "model"
    for record in release.quantized.files:
        target = confined(model, record.path)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            link_or_copy(checkpoint / record.path, target)
        except FileNotFoundError as error:
            raise _changed(checkpoint, record.path) from error
    found, _ = digest_tree(model)
    wanted = {record.path: record.sha256 for record in release.quantized.files}
    for record in found:
        if wanted[record.path] != record.sha256:
            raise _changed(checkpoint, record.path)
    if odd := release_files.unexpected(f"{release_files.MODEL}{record.path}" for record in found):
        raise QuantizeError(
            FOREIGN_FILE,
            "the artifact has files that a release may not have",
            hint="If they come from the source model, remove them there and build again.",
            problems=odd,
        )
    texts = {
        "release.json": release.model_dump_json(indent=1) + "\n",
        "serving.json": serving.to_json(),
        "recipe.yaml": release.recipe_text,
        "README.md": card.render(release, serving, license_text=license_text is not None),
    }
    if license_text is not None:
        texts["LICENSE"] = license_text
    if (scores := eval_results.render(release)) is not None:
        texts[eval_results.FILE] = scores
    records = [record.model_copy(update={"path": f"model/{record.path}"}) for record in found]
    records += [_written(folder, name, text) for name, text in texts.items()]
    about = (
        (provenance.FILE, provenance.render(release, records)),
        (bill_of_materials.FILE, bill_of_materials.render(release, records)),
    )
    records += [_written(folder, name, text) for name, text in about]
    return tuple(sorted(records, key=lambda record: record.path))


def _written(folder: Path, name: str, text: str) -> FileRecord:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return FileRecord(path=name, size_bytes=path.stat().st_size, sha256=sha256(path))


def missing_files(checkpoint: Path, source: Path) -> tuple[Problem, ...]:
    """Files that a server needs and `checkpoint` lacks. Optional ones are required if `source` has them."""
    names = {path.name for path in checkpoint.iterdir() if path.is_file()}
    config, tokenizer = Location("config.json"), Location("tokenizer.json")
    problems = checkpoint_files.no_config(names, config)
    problems += checkpoint_files.no_tokenizer(names, tokenizer, tekken=True)
    wanted = [
        ("tokenizer_config.json", "The source has it: it names the tokenizer's class and special tokens."),
        ("generation_config.json", "The source has it: it sets the end-of-sequence tokens and sampling defaults."),
    ]
    lost = [(name, why) for name, why in wanted if name not in names and (source / name).is_file()]
    if has_chat_template(source) and not has_chat_template(checkpoint):
        lost.append(("chat_template.jinja", "The source has one; chat requests fail without it."))
    lost += [(name, "The weights are not complete.") for name in _missing_weights(checkpoint)]
    return (*problems, *(Problem(MISSING_FILE, "is missing", Location(name), why) for name, why in lost))


def has_chat_template(checkpoint: Path) -> bool:
    """Whether a checkpoint has a chat template: as a file, or in tokenizer_config.json as in older checkpoints."""
    if any((checkpoint / name).is_file() for name in _TEMPLATES):
        return True
    try:
        return bool(jsonfile.read_object(checkpoint / "tokenizer_config.json").get("chat_template"))
    except (OSError, jsonfile.NotJson):
        return False


def oci_annotations(release: Release) -> dict[str, str]:
    """The annotations of the release's OCI manifest, so that releases can be listed without reading their files."""
    quantized = release.quantized
    found = {
        modelpack.TITLE: release.name,
        modelpack.CREATED: release.created,
        "org.opencontainers.image.description": f"{release.source.resolved}, {quantized.method} {quantized.scheme}",
        modelpack.QUANTIZATION: quantized.method,
        "org.qpack.scheme": quantized.scheme,
        "org.qpack.source": release.source.resolved,
        "org.qpack.artifact-digest": quantized.digest,
        modelpack.VERDICT: release.verdict.outcome,
        "org.qpack.forced": "true" if release.forced else "false",
        "org.qpack.hardware": release.artifact.hardware.target,
    }
    if release.source.license:
        found["org.opencontainers.image.licenses"] = release.source.license
    return found


def _missing_weights(checkpoint: Path) -> list[str]:
    index = checkpoint / _WEIGHTS_INDEX
    if not index.is_file():
        files = sorted(path.name for path in checkpoint.glob("*.safetensors"))
        if not files:
            return [_WEIGHTS]
        return [_WEIGHTS_INDEX] if len(files) > 1 else []
    try:
        shards = set(jsonfile.read_object(index, jsonfile.MAX_INDEX_BYTES)["weight_map"].values())
        return sorted(shard for shard in shards if Path(shard).name != shard or not (checkpoint / shard).is_file())
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RegistryError):
        return [f"{_WEIGHTS_INDEX} (it can't be read)"]


def _changed(checkpoint: Path, path: str) -> QuantizeError:
    return QuantizeError(
        _CHANGED_ARTIFACT,
        f"{checkpoint / path} is not the file that was measured",
        hint="It was changed or removed since. Remove that result from the store and build again.",
    )
