"""Check server arguments with vLLM's own parser, before a server is started."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from evals.workers.vllm_flags_job import CommandsAnswer, CommandsJob, Parsed
from qpack.core.errors import EvaluateError
from qpack.core.problems import Code, Location, Problem
from qpack.runtime import worker

_UNKNOWN_FLAG = Code("unknown-flag", "The server's vLLM has no such flag.")
_REFUSED = Code("refused-arguments", "The server's vLLM rejects the arguments.")

WORKER = Path(__file__).parents[1] / "workers" / "vllm_flags_worker.py"

# Flags of older vLLM that 0.32 doesn't have, and their replacements. A test checks both with the real parser.
REPLACED: dict[str, str] = {
    "guided-decoding-backend": 'structured-outputs-config: {"backend": ...}',
    "guided-decoding-disable-fallback": "structured-outputs-config",
    "guided-decoding-disable-any-whitespace": 'structured-outputs-config: {"disable_any_whitespace": true}',
    "speculative-model": 'speculative-config: {"model": ..., "num_speculative_tokens": ...}',
    "num-speculative-tokens": 'speculative-config: {"num_speculative_tokens": ...}',
    "ngram-prompt-lookup-max": 'speculative-config: {"method": "ngram", "prompt_lookup_max": ...}',
    "ngram-prompt-lookup-min": 'speculative-config: {"method": "ngram", "prompt_lookup_min": ...}',
    "speculative-draft-tensor-parallel-size": 'speculative-config: {"draft_tensor_parallel_size": ...}',
    "disable-log-requests": "enable-log-requests: false",
    "disable-async-output-proc": "async-scheduling: false",
    "max-seq-len-to-capture": "cudagraph-capture-sizes",
    "max-context-len-to-capture": "cudagraph-capture-sizes",
    "cuda-graph-sizes": "cudagraph-capture-sizes",
    "disable-mm-preprocessor-cache": "mm-processor-cache-gb: 0",
    "override-pooler-config": "pooler-config",
    "enable-reasoning": "reasoning-parser",
    "rope-scaling": 'hf-overrides: {"rope_parameters": ...}',
    "rope-theta": 'hf-overrides: {"rope_parameters": ...}',
    "task": "runner, and convert",
}
REMOVED: dict[str, str] = {
    "enable-metrics": "metrics are always at /metrics of the server's port",
    "metrics-port": "metrics are at /metrics of the server's own port",
    "device": "vLLM uses the device that it was built for",
    "num-scheduler-steps": "the scheduler no longer has such steps",
    "use-v2-block-manager": "there is only one block manager",
    "swap-space": "preempted requests are computed again",
    "preemption-mode": "preempted requests are computed again",
    "worker-use-ray": "use distributed-executor-backend: ray",
    "scheduler-delay-factor": "the scheduler no longer has such a delay",
}


@dataclass(frozen=True)
class Answer:
    """The parser's answer: vLLM's version, the problems of each command in order, and the quantization methods that it
    can load.
    """

    version: str
    problems: tuple[tuple[Problem, ...], ...]
    quantization: tuple[str, ...]


def ask(environment: worker.Interpreter, commands: Sequence[Sequence[str]], *, out: Path, log: Path) -> Answer:
    """Parse the arguments of each command with the vLLM of `environment`, in one process.

    Raises EvaluateError when that fails.
    """
    job, call = CommandsJob(tuple(map(tuple, commands))), worker.Call(environment, out, log, 600, EvaluateError)
    answer = worker.run(WORKER, job, CommandsAnswer, call)
    worker.paired(commands, answer.answers, EvaluateError)
    return read(answer)


def read(raw: CommandsAnswer) -> Answer:
    """The worker's answer as problems, each with its fix."""
    version = raw.version
    known = [flag.removeprefix("--") for flag in raw.known if flag.startswith("--")]

    def problems(parsed: Parsed) -> tuple[Problem, ...]:
        found = [unknown(flag.removeprefix("--"), version, known) for flag in parsed.unknown]
        if parsed.error:
            what = f"vLLM {version} rejects the arguments: {parsed.error}"
            found.append(Problem(_REFUSED, what, Location(key=("arguments",))))
        return tuple(found)

    return Answer(version, tuple(map(problems, raw.answers)), raw.quantization)


def unknown(flag: str, version: str, known: Sequence[str]) -> Problem:
    """The problem of a flag that this vLLM doesn't have."""
    positive = flag.removeprefix("no-")
    if positive in REPLACED:
        hint = f"Use {REPLACED[positive]}."
    elif positive in REMOVED:
        hint = f"Remove it: {REMOVED[positive]}."
    else:
        near = difflib.get_close_matches(flag, known, n=1, cutoff=0.6)
        hint = f"Did you mean '{near[0]}'?" if near else "See `vllm serve --help=all`."
    return Problem(_UNKNOWN_FLAG, f"vLLM {version} has no flag --{flag}.", Location(key=("arguments", flag)), hint)
