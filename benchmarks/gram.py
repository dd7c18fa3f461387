"""gram beside the other engines: the same checkpoint, calibration tokens, scheme and group size, in one run.

    python benchmarks/gram.py CHECKPOINT CALIBRATION HELD_OUT OUT --seeds 5 --runs gram:awq+gptq,llmcompressor:awq

CHECKPOINT is a transformers folder; CALIBRATION and HELD_OUT are texts, JSON lines with `--field`. For every seed other
calibration rows are drawn, the same for all runs (ENGINE:METHOD); held-out windows are the same throughout and never
among them. Prints, as Markdown:

- seconds, and peak memory as the engine's worker reports it (of the device on a GPU, of the process on a CPU); with
  `--windows 0` and one run at a time also processor seconds, Python's start and imports included,
- perplexity and KL divergence from the source on the held-out windows (plain transformers, the whole distribution),
- the first run less each other: means over windows and seeds, with 90 % intervals from a bootstrap that draws seeds and
  windows (items) independently,
- accuracy on `--tasks` (of evals/tasks; needs an interpreter that has lm-eval beside transformers).

An artifact that OUT holds already isn't made again. On another machine, QPACK_ENV_GRAM and so on name interpreters.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from qpack.core.errors import QuantizeError  # noqa: E402
from qpack.runtime import environments, worker  # noqa: E402
from quantize.checkpoint import config_compat  # noqa: E402
from quantize.checkpoint.reader_environment import TRANSFORMERS  # noqa: E402
from quantize.checkpoint.workers.tokens_job import RowsAnswer, RowsJob, WindowsAnswer, WindowsJob  # noqa: E402
from quantize.engines.catalog import ENGINES  # noqa: E402
from quantize.engines.protocol import Paths, Request  # noqa: E402
from quantize.engines.workers import autoawq_job  # noqa: E402
from quantize.engines.workers.engine_answer import Answer  # noqa: E402

_DRAWS = 4000


@dataclass(frozen=True)
class Run:
    """An engine and a method on the rows of one seed."""

    engine: str
    method: str
    seed: int

    @property
    def name(self) -> str:
        """As it is asked for."""
        return f"{self.engine}:{self.method}"


def main() -> int:
    """Make what is missing, evaluate all of it, print the tables."""
    options = _options()
    options.out.mkdir(parents=True, exist_ok=True)
    held_out: list[str] = []
    if options.windows:
        windows = {"windows": options.windows, "window_tokens": options.window_tokens}
        job = WindowsJob(texts=str(options.held_out), **tokenizing(options), **windows)
        held_out = tokens(options, "held-out", job, WindowsAnswer)["row_digests"]
    for seed in range(options.seeds):
        lengths = {"samples": options.samples, "max_length": options.max_length, "min_length": options.min_length}
        drawn = {"seed": seed, "chat_template": False, "held_out": tuple(held_out)}
        rows = RowsJob(texts=str(options.calibration), **tokenizing(options), **lengths, **drawn)
        tokens(options, f"rows-{seed}", rows, RowsAnswer)
    # By seed first: engines that are compared run one after the other, and not an hour apart.
    runs = [Run(*name.split(":"), seed) for seed in range(options.seeds) for name in options.runs]
    with ThreadPoolExecutor(options.parallel) as pool:
        made = list(pool.map(lambda run: quantized(run, options), runs))
    if not options.windows:
        print(speed(options.runs, runs, made))
        return 0
    kept = [run for run, answer in zip(runs, made, strict=True) if "error" not in answer]
    found = evaluated([folder_of(run, options) / "checkpoint" for run in kept], options)
    results = {"options": {k: str(v) for k, v in vars(options).items()}, "source": found[0],
               "runs": [{"run": run.name, "seed": run.seed, **answer} for run, answer in zip(runs, made, strict=True)],
               "quality": [{"run": run.name, "seed": run.seed, **quality}
                           for run, quality in zip(kept, found[1:], strict=True)]}  # fmt: skip
    (options.out / "gram.json").write_text(json.dumps(results))
    print(tables(results, options.runs))
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("checkpoint", "calibration", "held_out", "out"):
        parser.add_argument(name, type=lambda path: Path(path).absolute())
    parser.add_argument("--field", default="passage")
    parser.add_argument("--runs", type=lambda text: text.split(","), default=["gram:awq+gptq", "llmcompressor:awq"])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--scheme", default="W4A16_ASYM")
    parser.add_argument("--group-size", type=int, default=64)
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--min-length", type=int, default=64)
    parser.add_argument("--windows", type=int, default=48, help="0: nothing is held out, and only speed is shown")
    parser.add_argument("--window-tokens", type=int, default=256)
    parser.add_argument("--tasks", type=lambda text: text.split(","), default=[])
    parser.add_argument("--data-root", default="")
    parser.add_argument("--items", type=int, default=None, help="of each task; all of them if left out")
    parser.add_argument("--variant", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--parallel", type=int, default=1, help="runs at once; times compare only at 1")
    return parser.parse_args()


def work(
    environment: environments.Spec, script: Path, job: object, kind: type[Any], out: Path, variant: str
) -> dict[str, Any]:
    """A worker's answer, a `kind`, as plain data; kept beside its result, and taken from there the next time."""
    kept = out / "answer.json"
    if kept.exists():
        answer: dict[str, Any] = json.loads(kept.read_text())
        return answer
    home = _home()
    made = environments.ensure(environments.resolve(environment, variant, home), home, print)
    before = processor_seconds()
    call = worker.Call(made, out, out.with_suffix(".log"), 7200, QuantizeError)
    found = asdict(worker.run(script, job, kind, call))
    answer = found | {"processor_seconds": processor_seconds() - before}
    kept.write_text(json.dumps(answer))
    return answer


def processor_seconds() -> float:
    """Of all workers that have ended."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return ended.ru_utime + ended.ru_stime


def _home() -> Path:
    if given := os.environ.get("QPACK_HOME"):
        return Path(given).expanduser().absolute()
    from platformdirs import user_cache_path

    return user_cache_path("qpack")


def tokenizing(options: argparse.Namespace) -> dict[str, Any]:
    """What both jobs of the worker that tokenizes have."""
    return {"checkpoint": str(options.checkpoint), "trust_remote_code": False, "field": options.field}


def tokens(options: argparse.Namespace, name: str, job: object, kind: type[Any]) -> dict[str, Any]:
    """Rows of tokens in OUT/NAME/tokens.jsonl, made as a build makes them."""
    script = ROOT / "quantize" / "checkpoint" / "workers" / "tokens_worker.py"
    return work(TRANSFORMERS, script, job, kind, options.out / name, options.variant)


def folder_of(run: Run, options: argparse.Namespace) -> Path:
    """Where a run's artifact lies."""
    folder: Path = options.out / f"{run.engine}-{run.method}-{options.scheme}-{options.group_size}-{run.seed}"
    return folder


def quantized(run: Run, options: argparse.Namespace) -> dict[str, Any]:
    """What the engine's worker answered, or `error`."""
    out = folder_of(run, options)
    engine = ENGINES[run.engine]
    request = Request(run.method, options.scheme, options.group_size, ("lm_head",), 0.01, False)
    rows = None if run.method == "rtn" else options.out / f"rows-{run.seed}" / "tokens.jsonl"
    config, script = json.loads((options.checkpoint / "config.json").read_text()), engine.WORKER
    job: object
    try:
        if run.engine == "autoawq" and config["model_type"] == "gemma3_text":
            # AutoAWQ has no Gemma 3: it is taught it, see there.
            script = Path(__file__).parent / "autoawq_gemma3.py"
            job = gemma3(options.checkpoint, rows, options.group_size, config)
        else:
            job = engine.job(request, Paths(options.checkpoint, rows, out / "scratch"))
        answer = work(engine.ENVIRONMENT, script, job, Answer, out, options.variant)
    except QuantizeError as error:
        answer = {"error": str(error)}
    outcome = answer.get("error") or f"{answer['seconds']:.1f} s"
    print(f"{run.name}, seed {run.seed}: {outcome}", file=sys.stderr)
    return answer


def gemma3(checkpoint: Path, rows: Path | None, group_size: int, config: dict[str, Any]) -> autoawq_job.Job:
    """AutoAWQ's job, with Gemma 3's RoPE in the words of transformers 4."""
    rope = config["rope_parameters"]
    old = {key: value for key, value in config.items() if key not in ("rope_parameters", "dtype", "layer_types")}
    old |= {
        "rope_theta": rope["full_attention"]["rope_theta"],
        "rope_local_base_freq": rope["sliding_attention"]["rope_theta"],
        "sliding_window_pattern": config["layer_types"].index("full_attention") + 1,
        "torch_dtype": config["dtype"],
    }
    tokenizer = json.loads((checkpoint / "tokenizer_config.json").read_text())
    return autoawq_job.Job(
        checkpoint=str(checkpoint),
        tokens=str(rows),
        group_size=group_size,
        ignore=(),
        trust_remote_code=False,
        config=old,
        artifact_config=config,
        tokenizer_config=config_compat.tokenizer_to_4(tokenizer, None),
    )


def evaluated(artifacts: list[Path], options: argparse.Namespace) -> list[dict[str, Any]]:
    """What gram_quality.py finds, the source first. It runs where llm-compressor does: transformers loads
    compressed-tensors there.
    """
    home = _home()
    environment = environments.resolve(ENGINES["llmcompressor"].ENVIRONMENT, options.variant, home)
    environment = environments.ensure(environment, home, print)
    whole = {
        "rows": str(options.out / "held-out" / "tokens.jsonl"), "source": str(options.checkpoint),
        "tasks": options.tasks, "task_folder": str(ROOT / "evals" / "tasks"), "data_root": options.data_root,
        "items": options.items,
    }  # fmt: skip
    # Shared among processes as the quantizing was; each starts with the source.
    shares = [artifacts[i :: options.parallel] for i in range(min(options.parallel, len(artifacts)))]

    def one(index: int) -> list[dict[str, Any]]:
        job = options.out / f"quality-{index}.json"
        job.write_text(json.dumps({**whole, "artifacts": list(map(str, shares[index]))}))
        command = [environment.python, Path(__file__).parent / "gram_quality.py", job]
        variables = {**os.environ, **environment.variables}
        with job.with_suffix(".log").open("w") as log:
            done = subprocess.run(
                list(map(str, command)), stdout=subprocess.PIPE, stderr=log, env=variables, text=True, check=True
            )
        answer: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
        return answer

    with ThreadPoolExecutor(len(shares)) as pool:
        parts = list(pool.map(one, range(len(shares))))
    by_folder = {}
    for share, part in zip(shares, parts, strict=True):
        by_folder |= dict(zip(share, part[1:], strict=True))
    return [parts[0][0], *(by_folder[path] for path in artifacts)]


def speed(names: list[str], runs: list[Run], made: list[dict[str, Any]]) -> str:
    """Medians of each run's seconds, and how many times the first one's they are."""
    lines = ["| Run | Seconds | Times the first | Processor seconds | Times the first | Peak GB |", "| --- " * 6 + "|"]
    first: dict[str, float] = {}
    keys = ("seconds", "processor_seconds", "peak_memory_bytes")
    for name in names:
        mine = [answer for run, answer in zip(runs, made, strict=True) if run.name == name and "error" not in answer]
        if mine:
            found = {key: float(np.median([answer[key] for answer in mine])) for key in keys}
            first = first or found
            times = [f"{found[key]:.1f} | {found[key] / first[key]:.1f}" for key in keys[:2]]
            lines.append(f"| {name} | {' | '.join(times)} | {found['peak_memory_bytes'] / 1e9:.2f} |")
        else:
            lines.append(f"| {name} | failed |{' |' * 4}")
    return "\n".join(lines)


def tables(results: dict[str, Any], names: list[str]) -> str:
    """The tables, as Markdown."""
    source = results["source"]
    tasks = list(source["right"])
    lines = [
        f"Source: perplexity {np.exp(np.mean(source['nll'])):.3f} on {len(source['nll'])} windows"
        + "".join(f", {task} {np.mean(source['right'][task]):.4f}" for task in tasks),
        "",
        "| Run | Seeds | Seconds (median) | Peak GB | Perplexity | KL | " + "".join(f"{task} | " for task in tasks),
        "| --- " * (6 + len(tasks)) + "|",
    ]
    quality = {}
    for name in names:
        answers = [run for run in results["runs"] if run["run"] == name and "error" not in run]
        mine = [run for run in results["quality"] if run["run"] == name]
        if not mine:
            failed = next(run["error"] for run in results["runs"] if run["run"] == name)
            lines.append(f"| {name} | 0 | {failed} |")
            continue
        arrays = {"nll": np.array([run["nll"] for run in mine]), "kl": np.array([run["kl"] for run in mine])}
        arrays |= {task: np.array([run["right"][task] for run in mine]) for task in tasks}
        quality[name] = arrays
        cells = [
            name,
            str(len(mine)),
            f"{np.median([run['seconds'] for run in answers]):.1f}",
            f"{max(run['peak_memory_bytes'] for run in answers) / 1e9:.2f}",
            f"{np.exp(arrays['nll'].mean()):.3f}",
            f"{arrays['kl'].mean():.4f}",
            *(f"{arrays[task].mean():.4f}" for task in tasks),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    first, *others = [name for name in names if name in quality]
    if others:
        lines += ["", f"| {first} less | ln perplexity | KL | " + "".join(f"{task} | " for task in tasks)]
        lines.append("| --- " * (3 + len(tasks)) + "|")
    for other in others:
        cells = [other]
        for key in ("nll", "kl", *tasks):
            # Both have the same seeds unless one failed.
            count = min(len(quality[first][key]), len(quality[other][key]))
            cells.append(difference(quality[first][key][:count] - quality[other][key][:count]))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def difference(paired: np.ndarray[Any, Any]) -> str:
    """Mean and 90 % interval of differences [seeds, windows]: seeds and windows are drawn independently."""
    rng = np.random.default_rng(0)
    seeds, windows = paired.shape
    draws = [paired[rng.integers(0, seeds, seeds)][:, rng.integers(0, windows, windows)].mean() for _ in range(_DRAWS)]
    low, high = np.quantile(draws, [0.05, 0.95])
    return f"{paired.mean():+.4f} [{low:+.4f}, {high:+.4f}]"


if __name__ == "__main__":
    sys.exit(main())
