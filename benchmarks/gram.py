"""gram beside llm-compressor: the same checkpoint, calibration tokens and scheme, one after the other in one run.

    python benchmarks/gram.py CHECKPOINT CALIBRATION HELD_OUT OUT [--runs gram:awq+gptq,llmcompressor:awq]

CHECKPOINT is a transformers folder; CALIBRATION and HELD_OUT are JSON lines of {"input_ids": [...]}, as the stages
`calibrate` and `hold_out` leave them in the store. Prints seconds, peak memory, and on the held-out rows perplexity
and the KL divergence from the source model (plain transformers, every token's whole distribution), with 90 % bootstrap
intervals over rows. An artifact that OUT holds already isn't made again.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from platformdirs import user_cache_path

from qpack import envs, worker
from qpack.errors import QuantizeError
from quantize.engine import Request
from quantize.engines import ENGINES

_EVALUATE = Path(__file__).parent / "gram_quality.py"


def main() -> int:
    """Make what is missing, evaluate all of it, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("checkpoint", "calibration", "held_out", "out"):
        parser.add_argument(name, type=Path)
    parser.add_argument(
        "--runs", default="gram:rtn,gram:gptq,gram:awq,gram:awq+gptq,llmcompressor:gptq,llmcompressor:awq"
    )
    parser.add_argument("--scheme", default="W4A16_ASYM")
    parser.add_argument("--group-size", type=int, default=64)
    parser.add_argument("--windows", type=int, default=24)
    options = parser.parse_args()
    home = Path(os.environ.get("QPACK_HOME") or user_cache_path("qpack"))
    made = {}
    for run in options.runs.split(","):
        out = options.out.absolute() / f"{run.replace(':', '-')}-{options.scheme}-{options.group_size}"
        made[run] = (out, quantized(run, options, out, home))
    found = evaluated([out / "checkpoint" for out, _ in made.values()], options, home)
    print(f"\nsource perplexity {np.exp(np.mean(found['source'])):.3f} on {options.windows} held-out rows\n")
    print(f"| {'run':20} | {'seconds':>7} | {'peak GB':>7} | {'perplexity':>10} | {'KL':>6} | {'90 % interval':>15} |")
    print(f"| {'---':20} | {'---':>7} | {'---':>7} | {'---':>10} | {'---':>6} | {'---':>15} |")
    for (run, (_, answer)), quality in zip(made.items(), found["artifacts"], strict=True):
        kl = np.array(quality["kl"])
        draws = np.random.default_rng(0).choice(kl, (2000, len(kl))).mean(1)
        low, high = np.quantile(draws, [0.05, 0.95])
        print(
            f"| {run:20} | {answer['seconds']:7.1f} | {answer['peak_memory_bytes'] / 1e9:7.2f} |"
            f" {np.exp(np.mean(quality['nll'])):10.3f} | {kl.mean():6.4f} | {low:.4f} to {high:.4f} |"
        )
    return 0


def quantized(run: str, options: argparse.Namespace, out: Path, home: Path) -> dict[str, Any]:
    """What the engine's worker answered: now, or when it made the artifact."""
    kept = out / "answer.json"
    if kept.exists():
        answer: dict[str, Any] = json.loads(kept.read_text())
        return answer
    engine = ENGINES[run.partition(":")[0]]
    request = Request(run.partition(":")[2], options.scheme, options.group_size, ("lm_head",), 0.01, False)
    tokens = None if request.method == "rtn" else options.calibration.absolute()
    job = engine.job(request, options.checkpoint.absolute(), tokens) | {"scratch": str(out / "scratch")}
    environment = envs.ensure(envs.resolve(engine.ENVIRONMENT, "cpu", home), home, print)
    answer = worker.run(
        environment, engine.WORKER, job, out=out, log=out.with_suffix(".log"),
        progress=lambda done, total, what: print(f"\r{run}: {what} {done}/{total} ", end="", file=sys.stderr),
        timeout=7200, error=QuantizeError,
    )  # fmt: skip
    kept.write_text(json.dumps(answer))
    return answer


def evaluated(artifacts: list[Path], options: argparse.Namespace, home: Path) -> dict[str, Any]:
    """Negative log-likelihood and divergence of each held-out row, by gram_quality.py in llm-compressor's environment.

    That environment has compressed-tensors, which lets transformers load the artifacts.
    """
    environment = envs.ensure(envs.resolve(ENGINES["llmcompressor"].ENVIRONMENT, "cpu", home), home, print)
    command = [environment.python, _EVALUATE, options.held_out, str(options.windows), options.checkpoint, *artifacts]
    variables = {**os.environ, **environment.variables}
    done = subprocess.run(list(map(str, command)), stdout=subprocess.PIPE, env=variables, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


if __name__ == "__main__":
    sys.exit(main())
