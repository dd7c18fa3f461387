"""The KL divergence of a verdict against the one over the whole vocabulary at every position, by plain transformers.

    PYTHON benchmarks/whole_divergence.py QPACK_HOME [--json OUT]

PYTHON has torch, transformers and compressed-tensors (qpack's environment `vllm`). For each verdict in the store of
QPACK_HOME: both models are scored here on the same windows, in float32; mean KL divergence and perplexities stand
beside what was stated, with whether the stated interval holds the value found. Shares no code with qpack.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any


def load(checkpoint: Path) -> Any:
    """A checkpoint with its weights unpacked."""
    import transformers

    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    more: dict[str, Any] = {}
    if config.get("quantization_config"):
        more["quantization_config"] = transformers.CompressedTensorsConfig(run_compressed=False)
    model: Any = transformers.AutoModelForCausalLM
    return model.from_pretrained(checkpoint, dtype="float32", **more).eval()


def figures(source: Path, artifact: Path, windows: list[list[int]]) -> dict[str, float]:
    """Mean KL divergence (nats), both perplexities, flips, over every position of the windows."""
    import torch

    models = [load(source), load(artifact)]
    divergence = flips = positions = 0.0
    nll = [0.0, 0.0]
    with torch.inference_mode():
        for window in windows:
            ids = torch.tensor([window])
            p, q = (torch.log_softmax(model(ids).logits[0, :-1].double(), -1) for model in models)
            divergence += float((p.exp() * (p - q)).sum())
            flips += float((p.argmax(-1) != q.argmax(-1)).sum())
            for side, each in enumerate((p, q)):
                nll[side] -= float(each.gather(1, ids[0, 1:, None]).sum())
            positions += len(window) - 1
    return {
        "kl": divergence / positions,
        "flips": flips / positions,
        "perplexity_baseline": math.exp(nll[0] / positions),
        "perplexity_artifact": math.exp(nll[1] / positions),
        "positions": positions,
    }


def main() -> None:
    """Print a row per verdict."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("home", type=Path)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    store, rows = args.home / "store", []
    for file in sorted((store / "judge").glob("*/result.json")):
        envelope = json.loads(file.read_text(encoding="utf-8"))
        after, stated = envelope["inputs"]["after"], envelope["result"]["comparison"]
        of = json.loads((store / "language" / after["artifact.language"] / "result.json").read_text())["inputs"][
            "after"
        ]
        base = json.loads((store / "language" / after["baseline.language"] / "result.json").read_text())["inputs"][
            "after"
        ]
        lines = (store / "hold_out" / after["hold_out"] / "tokens.jsonl").read_text().splitlines()
        windows = [json.loads(line)["input_ids"] for line in lines]
        source, artifact = (store / name / key / "checkpoint" for name, key in
                            (("fetch", base["fetch"]), ("quantize", of["quantize"])))  # fmt: skip
        found = figures(source, artifact, windows)
        kl, held = stated["kl_divergence"], stated["kl_divergence"]["interval"]
        row = {
            "verdict": file.parent.name[:12],
            "stated": kl["value"],
            "low": held and held["low"],
            "high": held and held["high"],
            "holds": bool(held and held["low"] <= found["kl"] <= held["high"]),
            "error": kl["value"] / found["kl"] - 1,
            "stated_perplexities": [stated["perplexity_baseline"], stated["perplexity_artifact"]],
            "stated_flips": stated["flip_rate"]["value"],
            **found,
        }
        rows.append(row)
        print(json.dumps(row))
    if rows:
        print(f"{sum(row['holds'] for row in rows)} of {len(rows)} intervals hold the whole divergence")
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
