"""The source model as a transformers checkpoint: linked from where it lies."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from qpack.core import hashing
from qpack.core.errors import EnvironmentFailed, QuantizeError
from qpack.core.records import Fetched
from quantize.checkpoint import hub, sources

if TYPE_CHECKING:
    from quantize.checkpoint.source import Source


def make(source: Source, licence: str | None, out: Path) -> Fetched:
    """Link a checkpoint's files into `out/checkpoint`. Raises QuantizeError, and EnvironmentFailed when the folder was
    changed since the plan was made.
    """
    folder, checkpoint = source.path or hub.download(source.resolved), out / "checkpoint"
    if odd := sources.not_served(folder):
        raise QuantizeError(f"{source.uri} can't be used", problems=tuple(odd))
    checkpoint.mkdir()
    for file in sources.served_files(folder):
        # Links: a 140 GB model isn't copied. The store's seal is on what they point at.
        (checkpoint / file.name).symlink_to(file.resolve())
    made = fetched(source, licence, out)
    if source.content is not None and sources.content_of(made.files) != source.content:
        raise EnvironmentFailed(
            f"{folder} was changed while it was read", hint="Run the same command again when nothing writes to it."
        )
    return made


def fetched(source: Source, licence: str | None, out: Path, notes: tuple[str, ...] = ()) -> Fetched:
    """The record of the checkpoint in `out/checkpoint`. Raises QuantizeError when no model is there."""
    records, digest = hashing.digest_tree(out / "checkpoint")
    looked, problems = sources.find(str(out / "checkpoint"), out, None, linked=True)
    if looked is None:
        raise QuantizeError("the fetched model can't be used", problems=tuple(problems))
    architectures = looked.config.get("architectures") or [looked.config.get("model_type", "unknown")]
    return Fetched(
        source=source.uri,
        resolved=source.resolved,
        digest=digest,
        files=records,
        architecture=architectures[0],
        parameters=looked.parameters,
        weights_bytes=sources.weights_bytes(looked.tensors),
        license=licence,
        notes=notes,
    )
