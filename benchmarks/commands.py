"""How quickly the command line answers, as ratios to a bare Python start measured beside it.

    python benchmarks/commands.py RECIPE [--plans]

Each command runs in turn with `python -c pass`, several times; the ratio is taken pair by pair, so that a machine that
is slow for a while is slow for both. A build of RECIPE must be finished, so that building it again has nothing to do.
`check` and `plan` also look at Llama 3 70B and at a mixture of experts of 405 billion parameters, headers alone
(large_models.py). `--plans` leaves the commands out that need a build. Byte code is written by the first round, which
doesn't count.
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import large_models

ROUNDS = 9


LARGE = {"70b": large_models.LLAMA_70B, "moe": large_models.MOE_400B}

RECIPE = """\
name: large
model: {{source: {model}}}
quantize: {{method: rtn, scheme: W4A16, group_size: 128, ignore: [lm_head, "re:.*mlp.gate$"]}}
evaluate:
  tasks: [{{task: qpack_piqa, samples: 4}}]
  perplexity: {{source: {text}, windows: 2, window_tokens: 16}}
gates: {{size_ratio: 1}}
serve: {{target: hopper, tensor_parallel: 4, kv_cache_gib: 10}}
"""


def seconds(command: list[str]) -> tuple[float, float]:
    """Wall time and processor time of a command that has to succeed."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    # Byte code is written, as it is where qpack is installed.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    took, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    return took, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def lay_out(folder: Path) -> dict[str, list[str]]:
    """Recipes of the large models, and the commands that look at them."""
    (folder / "text.txt").write_text("A line to be read.\n")
    commands = {}
    for name, config in LARGE.items():
        model = large_models.write(folder / name, config, parts=80)
        recipe = folder / f"{name}.yaml"
        recipe.write_text(RECIPE.format(model=model, text=folder / "text.txt"))
        commands.update({f"{command}, {name}": [command, str(recipe)] for command in ("check", "plan")})
    return commands


def main(recipe: str, *options: str) -> None:
    """Print one row a command: median seconds, processor seconds, and the medians of their ratios to a bare start."""
    qpack = [sys.executable, "-m", "qpack.cli.app"]
    bare = [sys.executable, "-c", "pass"]
    commands = {"--help": ["--help"], "check": ["check", recipe], "plan": ["plan", recipe]}
    if "--plans" not in options:
        commands |= {"build, nothing to do": ["build", recipe], "list": ["list"]}
    with tempfile.TemporaryDirectory() as folder:
        commands |= lay_out(Path(folder))
        print(f"{'command':24}{'median s':>10}{'x bare Python':>16}{'processor s':>13}{'x bare Python':>16}")
        for name, arguments in commands.items():
            seconds(qpack + arguments)
            pairs = [(seconds(qpack + arguments), seconds(bare)) for _ in range(ROUNDS)]
            wall, work = (statistics.median(took[kind] for took, _ in pairs) for kind in (0, 1))
            ratios = [statistics.median(took[kind] / alone[kind] for took, alone in pairs) for kind in (0, 1)]
            print(f"{name:24}{wall:10.3f}{ratios[0]:16.1f}{work:13.3f}{ratios[1]:16.1f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
