"""How well a ratio of speed is known: two servers loaded in turn, against the same two one after the other.

    python benchmarks/noise.py --trials 4 --out noise.json

The subject is SmolLM2-135M's shape with 4-bit weights, the reference the same in bf16, both with random weights, which
speed doesn't depend on. In each trial one is loaded and then the other (apart, with Welch's interval), and then both in
turn (paired by round). Both servers are up all the time, so apart is better off here than in a build, where minutes and
a server's start lie between. What the machine does besides is up to whoever runs this: a ratio that is known repeats.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from llama_shapes import SHAPE, make  # noqa: E402

from evals import environments, interleave, latency, serving  # noqa: E402
from evals.compare import apart, in_turn  # noqa: E402
from evals.interleave import Target  # noqa: E402
from evals.latency import Load  # noqa: E402
from qpack import envs  # noqa: E402
from qpack.commands import options  # noqa: E402
from qpack.results import SpeedRatio  # noqa: E402

SMOLLM2 = {
    **SHAPE, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
    "num_key_value_heads": 3, "vocab_size": 49152, "max_position_embeddings": 2048, "tie_word_embeddings": True,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
W4 = {
    "quant_method": "compressed-tensors", "format": "pack-quantized", "quantization_status": "compressed",
    "ignore": ["lm_head"],
    "config_groups": {"group_0": {"targets": ["Linear"], "input_activations": None, "weights": {
        "num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 64, "dynamic": False,
    }}},
}  # fmt: skip


def row(trial: int, how: str, ratios: list[SpeedRatio], seconds: float) -> dict[str, object]:
    found = {
        str(ratio.concurrency): [ratio.throughput.value, interval.low, interval.high]
        for ratio in ratios
        if (interval := ratio.throughput.interval)
    }
    told = "  ".join(f"{level}: {value:.3f} [{low:.3f}, {high:.3f}]" for level, (value, low, high) in found.items())
    print(f"trial {trial} {how:8s} {seconds:4.0f} s  {told}", flush=True)
    return {"trial": trial, "how": how, "seconds": seconds, "ratios": found}


def main() -> None:
    """Start both, and alternate between the two ways of measuring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--concurrency", default="1,4,8")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    store = options.store()
    vllm = envs.ensure(envs.resolve(environments.VLLM, "cpu", store.home), store.home, print)
    levels = tuple(map(int, arguments.concurrency.split(",")))
    load = Load(concurrency=levels, input_tokens=64, output_tokens=32, repeats=3)
    variables = {**vllm.variables, "VLLM_CPU_NUM_OF_RESERVED_CPU": "0"}
    quiet = lambda *_: None  # noqa: E731
    rows = []
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        scratch, targets = Path(folder), []
        for name, quantization in (("reference", None), ("subject", W4)):
            make(scratch / name, quantization, shape=SMOLLM2, tokenizer=None)

            def command(host: str, port: int, name: str = name) -> list[str]:
                words = f"--load-format dummy --enforce-eager --max-model-len 2048 --host {host} --port {port}"
                cache = ["--kv-cache-memory-bytes", str(2**29), "--served-model-name", name]
                return ["--model", str(scratch / name), *words.split(), *cache]

            print(f"starting {name}", flush=True)
            started = serving.Command(vllm.python, command, variables)
            log = scratch / f"{name}.log"
            server = stack.enter_context(serving.running(started, model=name, log=log, timeout=900, progress=quiet))
            targets.append(Target(server.base_url, name, scratch / name))
        for trial in range(1, arguments.trials + 1):
            begun = time.monotonic()
            alone = [
                latency.measure(
                    vllm, load, base_url=target.base_url, model=target.model, tokenizer=target.tokenizer,
                    seed=10_000 * trial, out=scratch / "load", log=scratch / "load.log",
                ).levels
                for target in targets
            ]  # fmt: skip
            ratios = [apart(b, a) for b, a in zip(*alone, strict=True)]
            rows.append(row(trial, "apart", ratios, time.monotonic() - begun))
            begun = time.monotonic()
            found = interleave.measure(
                vllm, load, arguments.rounds, reference=targets[0], subject=targets[1], seed=10_000 * trial,
                out=scratch / "load", log=scratch / "load.log",
            )  # fmt: skip
            ratios = [in_turn(turns) for turns in found.levels]
            rows.append(row(trial, "in turn", ratios, time.monotonic() - begun))
            if arguments.out:
                arguments.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
