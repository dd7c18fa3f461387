"""Every format of gram, made and served: whether vLLM computes what the weights say, on this machine's GPU or CPU.

    python benchmarks/gram_formats.py OUT [--variant cuda] [--parallel 4]

Very small models of random weights (tests/e2e/gram_models.py, eight times as wide), each way quantized by gram's
worker, its weights unpacked into a checkpoint of 16 bits, and the artifact loaded by vLLM, which scores rows of tokens
and goes on from them greedily. Prints, as Markdown, the kernels that vLLM chose and, against transformers on the
unpacked weights: the mean difference of log-probabilities, the share of positions with the same likeliest token, and
the share of greedy tokens that are transformers' likeliest. Where activations are rounded too, or rows are few, random
weights differ more. On another machine, QPACK_ENV_GRAM and QPACK_ENV_VLLM name interpreters.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from evals.server.eval_environments import VLLM  # noqa: E402
from qpack.cli import options  # noqa: E402
from qpack.runtime import environments  # noqa: E402
from qpack.runtime.workerlib import qpack_protocol  # noqa: E402
from quantize.engines import gram as gram_adapter  # noqa: E402
from quantize.engines.protocol import Paths, Request  # noqa: E402

SCRIPTS = ROOT / "tests" / "e2e"
TIMES = 8
_CHOSEN = re.compile(r"(?:Using|Selected) (?:(\w+?)(?:ScaledMM|Linear)*Kernel\b|'?(\w+)'? .*\bMoE)")
_ERROR = re.compile(r"\b\w+(?:Error|Exception): .*")


@dataclass(frozen=True)
class Way:
    """One row. `budget`: bits a weight of mixed precision."""

    model: str
    method: str
    scheme: str
    group_size: int | None
    form: str = "compressed-tensors"
    budget: float | None = None

    @property
    def name(self) -> str:
        """Its folder."""
        return "-".join(map(str, (self.model, self.method, self.scheme, self.group_size, self.form, self.budget)))

    @property
    def request(self) -> Request:
        """What the engine is asked."""
        return Request(self.method, self.scheme, self.group_size, ("lm_head",), 0.01, False, self.form, self.budget)


WAYS = (
    Way("llama", "awq+gptq", "W4A16", 128),
    Way("llama", "awq+gptq", "W4A16", 128, "gptq"),
    Way("llama", "gptq", "W4A16", None, "gptq"),
    Way("llama", "awq+gptq", "W4A16_ASYM", 128),
    Way("llama", "awq+gptq", "W4A16_ASYM", 64, "awq"),
    Way("llama", "awq+gptq", "W4A16", 128, budget=4.4),
    Way("llama", "awq+gptq", "W8A16", 128),
    Way("llama", "awq+gptq", "W8A16", 128, "gptq"),
    Way("llama", "awq+gptq", "W8A16_ASYM", 128),
    Way("llama", "smoothquant", "W8A8", None),
    Way("llama", "smoothquant", "FP8_DYNAMIC", None),
    Way("gemma3_text", "awq+gptq", "W4A16", 128),
    Way("mixtral", "awq+gptq", "W4A16", 128),
    Way("mixtral", "awq+gptq", "W8A16", 128),
    Way("mixtral", "gptq", "W8A8", None),
    Way("mixtral", "gptq", "FP8_DYNAMIC", None),
    Way("qwen3_moe", "awq+gptq", "W4A16", 128),
    Way("qwen3_moe", "gptq", "FP8_DYNAMIC", None),
)


def main() -> int:
    """Make all, ask all, print the table; 1 where one has no answer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=lambda path: Path(path).absolute())
    parser.add_argument("--variant", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--parallel", type=int, default=1, help="servers at once")
    ask = parser.parse_args()
    if ask.out.exists():
        parser.error(f"{ask.out} is there already: name a folder that isn't")
    home = options.home()
    gram, vllm = (
        environments.ensure(environments.resolve(spec, ask.variant, home), home, print)
        for spec in (gram_adapter.ENVIRONMENT, VLLM)
    )
    ask.out.mkdir(parents=True)
    rows = [{"input_ids": [(37 * i + 11 * j) % 4000 + 10 for j in range(128)]} for i in range(16)]
    (ask.out / "tokens.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run(gram, ask.out / "models.log", SCRIPTS / "gram_models.py", ask.out / "models", TIMES)
    for way in WAYS:
        paths = Paths(ask.out / "models" / way.model, ask.out / "tokens.jsonl", ask.out / f"{way.name}-scratch")
        job = gram_adapter.job(way.request, paths)
        qpack_protocol.write_order(ask.out / f"{way.name}.json", str(ask.out / way.name), job)
    jobs = [ask.out / f"{way.name}.json" for way in WAYS]
    run(gram, ask.out / "made.log", SCRIPTS / "gram_made.py", gram_adapter.WORKER, *jobs)

    def served(way: Way) -> dict[str, Any]:
        log = ask.out / f"{way.name}.log"
        try:
            found: dict[str, Any] = json.loads(run(vllm, log, SCRIPTS / "gram_serves.py", ask.out / way.name))
        except subprocess.CalledProcessError:
            errors = _ERROR.findall(log.read_text(errors="replace"))
            found = {"failed": errors[-1] if errors else f"see {log}"}
        return found | {"kernels": kernels(log)}

    with ThreadPoolExecutor(ask.parallel) as pool:
        answers = list(pool.map(served, WAYS))
    (ask.out / "gram_formats.json").write_text(json.dumps(dict(zip([way.name for way in WAYS], answers, strict=True))))
    print(table(answers))
    return int(any("failed" in answer for answer in answers))


def run(environment: environments.Environment, log: Path, *command: object) -> str:
    """The last line that a script printed; all that it said is in `log`."""
    with log.open("w") as file:
        done = subprocess.run(
            [str(environment.python), *map(str, command)], env={**os.environ, **environment.variables},
            stdout=subprocess.PIPE, stderr=file, text=True, timeout=900, check=False,
        )  # fmt: skip
        file.write(done.stdout)
    if done.returncode:
        print(f"{command[0]} ended with {done.returncode}: see {log}", file=sys.stderr)
    done.check_returncode()
    return done.stdout.strip().splitlines()[-1] if done.stdout.strip() else ""


def kernels(log: Path) -> list[str]:
    """What vLLM says that it multiplies with, of linear layers and of experts."""
    lines = log.read_text(errors="replace").splitlines()
    return list(dict.fromkeys(match[1] or match[2] for line in lines if (match := _CHOSEN.search(line))))


def table(answers: list[dict[str, Any]]) -> str:
    """As Markdown."""
    lines = [
        "| Model | Method | Scheme | Groups | Format | vLLM kernels | Difference | Agree | Greedy |",
        "| --- " * 9 + "|",
    ]
    for way, answer in zip(WAYS, answers, strict=True):
        scheme = f"`{way.scheme}`" + (f", {way.budget:g} bits a weight" if way.budget else "")
        figures = ("difference", "agree", "greedy")
        cells = [answer["failed"], "", ""] if "failed" in answer else [f"{answer[key]:.3f}" for key in figures]
        lines.append(
            f"| {way.model} | {way.method} | {scheme} | {way.group_size or 'channel'} | {way.form} "
            f"| {', '.join(answer['kernels'])} | {' | '.join(cells)} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
