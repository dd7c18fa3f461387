"""A rehearsal: the largest layer and the longest rows through the real engine, to find failures early.

The stages before it are run and kept, as the build needs them too; what the rehearsal makes is thrown away.
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from qpack.core.errors import QuantizeError
from qpack.core.problems import Code
from qpack.pipeline import requirements
from qpack.pipeline.run import run
from qpack.pipeline.stages import calibrate, quantize
from qpack.pipeline.stages.calibrate import CALIBRATED
from qpack.pipeline.stages.catalog import until
from qpack.pipeline.stages.fetch import FETCHED
from qpack.pipeline.state import Build
from qpack.pipeline.work import call
from qpack.runtime import worker
from qpack.runtime.memory_limits import limit
from qpack.runtime.worker import MemoryHints
from quantize.checkpoint import sources, truncate
from quantize.doctor import checkup
from quantize.engines.protocol import Paths
from quantize.engines.workers.engine_answer import Answer

_NOT_REHEARSED = Code("not-rehearsed", "A model can't be cut down for a rehearsal.")

# As many of the longest rows as gram processes together; llm-compressor and GPTQModel take one at a time.
_TOKENS = {"cpu": 4096}
_TOKENS_ON_A_GPU = 16384


@dataclass(frozen=True)
class Rehearsal:
    """What was rehearsed, with its time and memory. `place`: whose memory `peak_bytes` is, host or gpu.

    `expected_bytes` is the whole build's peak, estimated; None where there is no model of it (on a GPU). `have_bytes`
    is what a process may take of the host's memory.
    """

    engine: str
    layers: int
    of_layers: int
    largest_layer: int
    largest_layer_bytes: int
    rows: int
    of_rows: int
    longest_row: int
    seconds: float
    place: str
    peak_bytes: int
    expected_bytes: int | None
    basis: str
    have_bytes: int | None

    @property
    def short(self) -> bool:
        """Whether the whole is expected to take more than there is."""
        return None not in (self.expected_bytes, self.have_bytes) and self.expected_bytes > self.have_bytes  # type: ignore[operator]


def rehearse(build: Build) -> Rehearsal:
    """Run it. Raises QuantizeError with the engine's message, and with keys to change if memory ran out."""
    build = run(build, until(calibrate.STAGE))
    plan, checkpoint = build.plan, build.require(FETCHED).folder / "checkpoint"
    scratch = build.store.home / "store" / "scratch"
    scratch.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="rehearsal-", dir=scratch))
    try:
        return _tried(build, checkpoint, folder)
    except truncate.CannotTruncate as error:
        raise QuantizeError(_NOT_REHEARSED, f"{plan.source.resolved} can't be rehearsed: {error}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _tried(build: Build, checkpoint: Path, folder: Path) -> Rehearsal:
    plan, engine = build.plan, build.plan.engine
    part = truncate.truncate(checkpoint, folder / "excerpt")
    tokens, rows, length, of_rows = None, 0, 0, 0
    if calibrated := build.get(CALIBRATED):
        tokens, of_rows = folder / "tokens.jsonl", calibrated.result.rows
        enough = None if engine.ROWS_TOGETHER else _TOKENS.get(plan.target, _TOKENS_ON_A_GPU)
        rows, length = truncate.longest(calibrated.folder / "tokens.jsonl", tokens, enough)
    job = engine.job(plan.request, Paths(folder / "excerpt", tokens, folder / "scratch"))
    log = build.store.log("rehearse", plan.key(quantize.NAME))
    hints = MemoryHints(lambda place: quantize.memory_hints(plan, place))
    answer = worker.run(engine.WORKER, job, Answer, call(build, engine.ENVIRONMENT.name, folder / "out", log, hints))
    made = checkup.examine(folder / "out" / "checkpoint", against=folder / "excerpt")
    quantize.refuse_damaged(made.findings, None, quantize.alternatives(plan))
    found, _ = sources.find(str(folder / "excerpt"), folder, None, linked=True)
    expected, basis = None, "peak of the GPU's allocator; a whole build keeps more rows"
    if plan.target == "cpu" and found is not None:
        whole = requirements.quantizing(plan, plan.source, of_rows, length)
        tried = requirements.quantizing(plan, found, rows, length)
        more = whole.bytes - tried.bytes
        expected = answer.peak_memory_bytes + more
        basis = (
            f"measured, and {more / 2**20:,.0f} MiB by the estimate for the other {part.of_layers - part.layers} layers"
            f" and {of_rows - rows} rows"
        )
    return Rehearsal(
        engine=engine.NAME,
        layers=part.layers,
        of_layers=part.of_layers,
        largest_layer=part.largest,
        largest_layer_bytes=part.largest_bytes,
        rows=rows,
        of_rows=of_rows,
        longest_row=length,
        seconds=answer.seconds,
        place="host" if plan.target == "cpu" else "gpu",
        peak_bytes=answer.peak_memory_bytes,
        expected_bytes=expected,
        basis=basis,
        have_bytes=limit().bytes if plan.target == "cpu" else None,
    )
