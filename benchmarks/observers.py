"""What llm-compressor's observers and the scales of an FP8 KV cache are worth, on held-out text.

    PYTHON benchmarks/observers.py CHECKPOINT TEXTS WINDOWS OUT [--only NAME,...] [--seeds N] [--minutes N]
    python benchmarks/observers.py --table OUT

PYTHON is of llm-compressor's environment. TEXTS are JSON lines with a `passage`; each seed calibrates with other ones.
WINDOWS are JSON lines of {"input_ids": [...]}, from the stage hold_out. Each way quantizes the model as qpack's worker
does; then the model itself runs with its weights, keys, values and queries rounded and back, and is compared with the
unquantized one over the whole vocabulary. OUT has a JSON line a run, and a run that is there isn't made again.
"""

import argparse
import json
import math
import random
import statistics
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROWS, TOKENS = 24, 256
OBSERVERS = {"range": "memoryless_minmax", "mse": "memoryless_mse", "imatrix": "imatrix_mse"}
CACHES = {"per tensor": "tensor", "per head": "attn_head"}


def ways():
    """(name, what it is): weights by observer, and a KV cache by its scales, queries too or not."""
    for scheme, group in (("W4A16", 64), ("NVFP4A16", None)):
        for method in ("rtn", "gptq"):
            for name in OBSERVERS:
                yield (
                    f"{scheme} {method} {name}",
                    {"scheme": scheme, "group": group, "method": method, "observer": name},
                )
    for name in CACHES:
        yield f"KV cache {name}", {"cache": name, "queries": False}
        yield f"KV cache and queries {name}", {"cache": name, "queries": True}


def quantized(checkpoint, way, rows, tokens):
    """The model, calibrated with the rows, and rounding."""
    import llmcompressor_model
    import llmcompressor_worker
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from llmcompressor_job import Job

    method, scheme = way.get("method", "rtn"), way.get("scheme", "W4A16")
    job = Job(checkpoint, tokens, method, scheme, way.get("group"), (), None, ("lm_head",), 0.01, False, 0, False, ())
    run = llmcompressor_model.Quantizing(job)
    if "cache" in way:
        scales = QuantizationArgs(num_bits=8, type="float", strategy=CACHES[way["cache"]], dynamic=False)
        given = {"kv_cache_scheme": scales}
        if way["queries"]:
            attention = QuantizationScheme(targets=["re:.*self_attn$"], input_activations=scales)
            given = {"config_groups": {"attention": attention}}
        modifiers = [QuantizationModifier(**given)]
    else:
        groups = llmcompressor_worker.groups_of(job)
        for one, _ in groups:
            one.weights.observer = OBSERVERS[way["observer"]]
        groups = llmcompressor_worker.aimed(groups, run.layers, job)
        modifiers = llmcompressor_worker.modifiers_of(job, groups, sorted(run.layers.left), None)
    run.run(modifiers, rows)
    return run.model


def compared(model, source, windows):
    """KL to the source and perplexities, each with its figures by window."""
    import torch

    kl, own, theirs = [], [], []
    with torch.no_grad():
        for window in windows:
            ids = torch.tensor([window])
            ours = torch.log_softmax(model(input_ids=ids).logits[0].float(), -1)
            truth = torch.log_softmax(source(input_ids=ids).logits[0].float(), -1)
            kl.append(float((truth.exp() * (truth - ours)).sum(-1).mean()))
            for found, logs in ((own, ours), (theirs, truth)):
                found.append(float(-logs[:-1].gather(1, ids[0, 1:, None]).mean()))
    return {
        "kl": statistics.mean(kl),
        "kl_windows": kl,
        "perplexity": math.exp(statistics.mean(own)),
        "source_perplexity": math.exp(statistics.mean(theirs)),
        "positions": len(windows) * len(windows[0]),
    }


def passages(file, tokenizer, seed):
    """Rows of tokens, other ones for each seed."""
    with open(file, encoding="utf-8") as lines:
        texts = [json.loads(line)["passage"] for line in lines]
    random.Random(seed).shuffle(texts)
    rows = (tokenizer(text)["input_ids"][:TOKENS] for text in texts)
    return [row for row, _ in zip((row for row in rows if len(row) >= 64), range(ROWS), strict=False)]


def measure(ask):
    """Make the runs that aren't there yet."""
    sys.path[:0] = [
        str(HERE.parent / "quantize" / "engines" / "workers"),
        str(HERE.parent / "qpack" / "runtime" / "workerlib"),
        str(HERE.parent),
    ]
    import qpack_worker
    import torch
    import transformers

    qpack_worker._event = lambda _event: None
    end = time.monotonic() + 60 * ask.minutes
    done = {(one["way"], one["seed"]) for one in results(ask.out)}
    tokenizer = transformers.AutoTokenizer.from_pretrained(ask.checkpoint)
    source = transformers.AutoModelForCausalLM.from_pretrained(ask.checkpoint, dtype="auto").eval()
    windows = [json.loads(line)["input_ids"] for line in Path(ask.windows).read_text().splitlines()]
    for seed in range(ask.seeds):
        rows = passages(ask.texts, tokenizer, seed)
        for name, way in ways():
            # Rounding to nearest by these observers reads no texts.
            same = way.get("method") == "rtn" and way["observer"] != "imatrix"
            if (name, seed) in done or (same and seed) or (ask.only and name not in ask.only.split(",")):
                continue
            if time.monotonic() > end:
                return 1
            torch.manual_seed(seed)
            started = time.monotonic()
            tokens = Path(ask.out).with_suffix(".rows")
            tokens.write_text("".join(json.dumps({"input_ids": row}) + "\n" for row in rows))
            model = quantized(ask.checkpoint, way, rows, str(tokens)).eval()
            found = {"way": name, "seed": seed, "seconds": time.monotonic() - started}
            with open(ask.out, "a", encoding="utf-8") as out:
                out.write(json.dumps(found | compared(model, source, windows)) + "\n")
            print(f"== {name}, seed {seed}", file=sys.stderr, flush=True)
    return 0


def results(file):
    """Every run that is there."""
    path = Path(file)
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def table(found):
    """A row for each way: the mean over seeds, and the least and most."""
    print("| What is rounded | Seeds | KL, nats | Least | Most | Perplexity |\n| --- | --- | --- | --- | --- | --- |")
    for name, _ in ways():
        runs = [one for one in found if one["way"] == name]
        if runs:
            kl = [one["kl"] for one in runs]
            perplexity = statistics.mean(one["perplexity"] for one in runs)
            figures = (f"{x:.4f}" for x in (statistics.mean(kl), min(kl), max(kl)))
            print(f"| {name} | {len(runs)} | {' | '.join(figures)} | {perplexity:.2f} |")


def main():
    """Measure, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", nargs="?")
    parser.add_argument("texts", nargs="?")
    parser.add_argument("windows", nargs="?")
    parser.add_argument("out", nargs="?")
    parser.add_argument("--only", help="names with commas")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=math.inf, help="start nothing later than this")
    parser.add_argument("--table", metavar="OUT", help="print the table of what is there")
    ask = parser.parse_args()
    if ask.table:
        table(results(ask.table))
        return 0
    if ask.out is None:
        parser.error("CHECKPOINT, TEXTS, WINDOWS and OUT are needed")
    return measure(ask)


if __name__ == "__main__":
    raise SystemExit(main())
