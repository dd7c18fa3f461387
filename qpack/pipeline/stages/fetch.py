"""The source model as a transformers checkpoint: linked from where it lies, or converted from GGUF."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from qpack.core import hashing
from qpack.core.errors import EnvironmentFailed, QuantizeError
from qpack.core.problems import CHANGED_WHILE_READ, Code, Problem
from qpack.core.records import Fetched
from qpack.pipeline.slots import Slot
from qpack.pipeline.stage import Stage
from qpack.pipeline.work import call
from qpack.runtime import worker
from qpack.runtime.worker import MemoryHints
from quantize.checkpoint import hub, sources
from quantize.checkpoint.workers import unpack_job
from quantize.checkpoint.workers.gguf_job import Answer, Job

if TYPE_CHECKING:
    from qpack.core.store import Entry
    from qpack.pipeline.planned import Plan
    from qpack.pipeline.stage_keys import Known, Step
    from qpack.pipeline.state import Build
    from quantize.checkpoint.source import Source

NAME = "fetch"
FETCHED: Slot[Entry[Fetched]] = Slot(NAME)
CODE = {
    NAME: (f"{__name__}:link",),
    "convert": (f"{__name__}:convert",),
    "unpack": (f"{__name__}:unpack",),
    "decode": (f"{__name__}:decode",),
}

UNPACK_WORKER = Path(__file__).parents[3] / "quantize" / "checkpoint" / "workers" / "unpack_worker.py"
GGUF_WORKER = Path(__file__).parents[3] / "quantize" / "checkpoint" / "workers" / "gguf_worker.py"


def steps(known: Known, before: Mapping[str, Step]) -> Iterator[Step]:
    """The checkpoint."""
    from qpack.pipeline import stage_keys

    source = {"source": known.source.resolved, "content": known.source.content}
    if known.source.kind == "gguf":
        inputs = {**source, **stage_keys.worker(known, "transformers")}
        yield stage_keys.step(NAME, before, (), known.code.closure(CODE["convert"]), inputs)
    elif known.source.unpack:
        inputs = {**source, "unpack": known.source.unpack}
        if known.source.unpack_environment:
            inputs |= stage_keys.worker(known, known.source.unpack_environment)
        code = CODE["unpack" if known.source.unpack_environment else "decode"]
        yield stage_keys.step(NAME, before, (), known.code.closure(code), inputs)
    else:
        yield stage_keys.step(NAME, before, (), known.code.closure(CODE[NAME]), source)


def environments_of(source: Source) -> tuple[str, ...]:
    """Environments that only some sources need."""
    return (source.unpack_environment,) if source.unpack_environment else ()


def title(plan: Plan) -> str:
    """The source."""
    return plan.recipe.model.source


def run(build: Build) -> Build:
    """Link or convert. Raises QuantizeError and EnvironmentFailed."""
    source = build.plan.source

    def make(out: Path) -> Fetched:
        if source.kind == "gguf":
            return convert(build, source.license, out, MemoryHints(lambda _: memory_hints(build.plan)))
        if source.unpack:
            return (unpack if source.unpack_environment else decode)(build, source.license, out)
        return link(source, source.license, out)

    return build.having(FETCHED, _licensed(build.plan, build.once(NAME, Fetched, make)))


def stored(build: Build) -> Build:
    """With the stored checkpoint."""
    entry = build.stored(NAME, Fetched)
    return build.having(FETCHED, _licensed(build.plan, entry) if entry else None)


LESS_MEMORY = Code("less-memory", "A stage ran out of memory, and this key decides how much it takes.")
_UNUSABLE_SOURCE = Code("unusable-source", "The source can't be used.")


def memory_hints(plan: Plan) -> tuple[Problem, ...]:
    """What to change in the recipe when the conversion runs out of memory."""
    what, hint = "a GGUF file is converted as a whole, in memory.", "Use a safetensors checkpoint."
    return (plan.loaded.problem(LESS_MEMORY, what, "model", "source", hint=hint, severity="note"),)


def link(source: Source, licence: str | None, out: Path) -> Fetched:
    """Link a checkpoint's files into `out/checkpoint`. Raises QuantizeError, and EnvironmentFailed if the folder was
    changed since the plan was made.
    """
    folder, checkpoint = source.path or hub.download(source.resolved), out / "checkpoint"
    if odd := sources.not_served(folder):
        raise QuantizeError(_UNUSABLE_SOURCE, f"{source.uri} can't be used", problems=tuple(odd))
    checkpoint.mkdir()
    for file in sources.served_files(folder):
        # Links: a 140 GB model isn't copied. The store's seal is on what they point at.
        (checkpoint / file.name).symlink_to(file.resolve())
    made = _record(source, licence, out)
    if source.content is not None and sources.content_of(made.files) != source.content:
        raise EnvironmentFailed(
            CHANGED_WHILE_READ,
            f"{folder} was changed while it was read",
            hint="Run the same command again when nothing writes to it.",
        )
    return made


def unpack(build: Build, licence: str | None, out: Path) -> Fetched:
    """Unpack a quantized checkpoint into `out/checkpoint` by a worker. Raises QuantizeError."""
    source = build.plan.source
    packed = _packed(source, licence, out)
    job = unpack_job.Job(str(packed / "checkpoint"))
    log, environment = build.log(NAME), source.unpack_environment
    answer = worker.run(UNPACK_WORKER, job, unpack_job.Answer, call(build, environment, out, log))
    shutil.rmtree(packed)
    return _record(source, licence, out, (_unpacked(answer.unpacked, source),))


def decode(build: Build, licence: str | None, out: Path) -> Fetched:
    """The same for formats that qpack reads itself. Raises QuantizeError."""
    from quantize.doctor import checkpoint as checkpoints
    from quantize.emulate import dense

    source = build.plan.source
    packed = _packed(source, licence, out)
    found, problems = checkpoints.read(packed / "checkpoint", sample=0)
    try:
        if problems:
            raise QuantizeError(_UNUSABLE_SOURCE, f"{source.uri} can't be unpacked", problems=tuple(problems))
        count = dense.write(found, dense.claims_of(found), out / "checkpoint", lambda *_: None)
    except dense.NotUnpacked as error:
        raise QuantizeError(_UNUSABLE_SOURCE, f"{source.uri} can't be unpacked: {error}") from None
    shutil.rmtree(packed)
    return _record(source, licence, out, (_unpacked(count, source),))


def _packed(source: Source, licence: str | None, out: Path) -> Path:
    """A folder with the linked source."""
    packed = out / "packed"
    packed.mkdir()
    link(source, licence, packed)
    return packed


def _unpacked(count: int, source: Source) -> str:
    return f"unpacked to bfloat16: {count} weights in {source.unpack}"


def convert(build: Build, licence: str | None, out: Path, hints: MemoryHints | None = None) -> Fetched:
    """Write the checkpoint of a GGUF file into `out/checkpoint`. Raises QuantizeError, and EnvironmentFailed if the
    file was changed meanwhile.
    """
    source = build.plan.source
    job = Job(str(source.path), str(source.licence_file) if source.licence_file else None)
    answer = worker.run(GGUF_WORKER, job, Answer, call(build, "transformers", out, build.log(NAME), hints))
    if source.path is not None and source.content not in (None, hashing.sha256_once(source.path)):
        raise EnvironmentFailed(
            CHANGED_WHILE_READ,
            f"{source.path} was changed while it was read",
            hint="Run the same command again when nothing writes to it.",
        )
    return _record(source, licence, out, answer.notes)


def _record(source: Source, licence: str | None, out: Path, notes: tuple[str, ...] = ()) -> Fetched:
    """The record of the checkpoint in `out/checkpoint`. Raises QuantizeError if no model is there."""
    records, digest = hashing.digest_tree(out / "checkpoint")
    looked, problems = sources.find(str(out / "checkpoint"), out, None, linked=True)
    if looked is None:
        raise QuantizeError(_UNUSABLE_SOURCE, "the fetched model can't be used", problems=tuple(problems))
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


def _licensed(plan: Plan, entry: Entry[Fetched]) -> Entry[Fetched]:
    """The fetched model with the recipe's licence and base model, which aren't part of what is stored."""
    model = plan.recipe.model
    given = {"license": model.license, "base_model": model.base_model}
    update = {name: value for name, value in given.items() if value}
    return replace(entry, result=entry.result.model_copy(update=update)) if update else entry


STAGE = Stage(NAME, title, run, steps=steps, stored=stored, code=CODE)
