"""The artifact scored by plain transformers beside vLLM, on some windows of the held-out text.

vLLM's perplexity holds both what rounding the weights cost and what its kernels add. Transformers reads the same
weights and uses no such kernel, so a difference between the two is the kernels', and the rest the quantization's.
"""

from __future__ import annotations

import math
from pathlib import Path

from evals.measure.eval_specs import CrossCheckSpec
from evals.measure.perplexity import read_windows
from evals.server.session import ServedSession
from evals.workers.cross_check_job import Answer, Job
from qpack.core.errors import EvaluateError
from qpack.core.findings import CrossChecked
from qpack.core.problems import Code
from qpack.runtime import worker

_NO_LIKELIHOOD = Code("no-likelihood", "transformers gave a likelihood that isn't finite.")

WORKER = Path(__file__).parents[1] / "workers" / "cross_check_worker.py"


def measure(session: ServedSession, spec: CrossCheckSpec) -> CrossChecked:
    """Score `spec.windows` windows, spread evenly over the text. Raises EvaluateError."""
    rows = read_windows(session.texts())
    chosen = spread(len(rows), spec.windows)
    session.workspace.report(f"{len(chosen)} windows by plain transformers, beside vLLM")
    job = Job(str(session.served.checkpoint.resolve()), tuple(tuple(rows[at]) for at in chosen))
    answer = worker.run(WORKER, job, Answer, session.workspace.call("vllm", "cross-check"))
    if len(answer.nll) != len(chosen) or not all(map(math.isfinite, answer.nll)):
        raise EvaluateError(
            _NO_LIKELIHOOD, "transformers gave no finite likelihood of a window", hint="See the log of cross-check."
        )
    return CrossChecked(tool=answer.tool, windows=chosen, nll=answer.nll)


def spread(windows: int, wanted: int) -> tuple[int, ...]:
    """Indices of `wanted` windows, evenly spread; all of them where there are fewer."""
    count = min(windows, wanted)
    return tuple(sorted({at * windows // count for at in range(count)})) if count else ()
