"""gram beside llm-compressor on a GPU, from checkpoint to checkpoint: Llama-3-8B's shape, random weights.

    python benchmarks/gram_beside.py TOKENIZER OUT [--runs gram:awq+gptq,llmcompressor:gptq,llmcompressor:awq]

TOKENIZER is a folder with any model's tokenizer files, which llm-compressor wants to see. The checkpoint is made in
OUT/source (16 GB), every engine's worker runs on it in its own process, and its artifact is deleted. Seconds are the
worker's own, with reading and writing, without starting Python. On a machine that has no environments of qpack's,
QPACK_ENV_GRAM and QPACK_ENV_LLMCOMPRESSOR name interpreters. `--shape tiny` tries it all anywhere.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig

sys.path.insert(0, str(Path(__file__).resolve().parent))

from gram import work
from gram_gpu import SHAPES, RandomWeights

from qpack.core.errors import QuantizeError
from quantize.engines.catalog import ENGINES
from quantize.engines.protocol import Paths, Request
from quantize.engines.workers.engine_answer import Answer
from quantize.gram.checkpoint import save


def main() -> None:
    """Make the checkpoint, run the engines one after the other, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("out", type=lambda path: Path(path).absolute())
    parser.add_argument("--runs", default="gram:awq+gptq,llmcompressor:gptq,llmcompressor:awq")
    parser.add_argument("--shape", default="llama3-8b", choices=SHAPES)
    parser.add_argument("--variant", default="cuda", choices=("cpu", "cuda"))
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--group-size", type=int, default=128)
    options = parser.parse_args()
    config = LlamaConfig(**SHAPES[options.shape], tie_word_embeddings=False, dtype="bfloat16")
    config.architectures = ["LlamaForCausalLM"]
    source = checkpoint(config, options.tokenizer, options.out / "source")
    rows = options.out / "tokens.jsonl"
    rng = random.Random(0)
    rows.write_text(
        "".join(
            json.dumps({"input_ids": [rng.randrange(config.vocab_size) for _ in range(options.tokens)]}) + "\n"
            for _ in range(options.samples)
        )
    )
    found: dict[str, Any] = {}
    print("| Run | Seconds | Peak GB | Times the first |\n| --- | --- | --- | --- |", flush=True)
    for name in options.runs.split(","):
        engine, method = ENGINES[name.partition(":")[0]], name.partition(":")[2]
        out = options.out / name.replace(":", "-")
        request = Request(method, "W4A16", options.group_size, ("lm_head",), 0.01, False)
        job = engine.job(request, Paths(source, rows, out / "scratch"))
        try:
            found[name] = work(engine.ENVIRONMENT, engine.WORKER, job, Answer, out, options.variant)
        except QuantizeError as error:
            print(f"| {name} | {error} |", flush=True)
            continue
        shutil.rmtree(out)
        first = next(iter(found.values()))["seconds"]
        seconds, peak = found[name]["seconds"], found[name]["peak_memory_bytes"] / 1e9
        print(f"| {name} | {seconds:.1f} | {peak:.1f} | {seconds / first:.1f} |", flush=True)
    shutil.rmtree(source)
    (options.out / "gram_beside.json").write_text(json.dumps(found, indent=1))


def checkpoint(config: LlamaConfig, tokenizer: Path, folder: Path) -> Path:
    """A transformers checkpoint of random weights, a shard a layer."""
    folder.mkdir(parents=True)
    started = time.monotonic()
    weights = RandomWeights(config)
    shards: dict[str, list[str]] = {}
    for name in weights.names():
        shards.setdefault(name.split(".")[2] if ".layers." in name else "rest", []).append(name)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for key, names in shards.items():
        save(weights.read(names, device), folder / f"model-{key}.safetensors")
    index = {name: f"model-{key}.safetensors" for key, names in shards.items() for name in names}
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    whole = {"metadata": {"total_size": size}, "weight_map": index}
    (folder / "model.safetensors.index.json").write_text(json.dumps(whole))
    config.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        if (tokenizer / name).exists():
            shutil.copyfile(tokenizer / name, folder / name)
    print(f"{size / 1e9:.1f} GB of random weights made in {time.monotonic() - started:.0f} s\n", flush=True)
    return folder


if __name__ == "__main__":
    main()
