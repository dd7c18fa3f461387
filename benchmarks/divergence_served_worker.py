"""Writes roundings of a model as checkpoints, with their divergence from it; run by divergence_served.py.

    PYTHON divergence_served_worker.py JOB.json

JOB: `source`, `windows` (JSON lines of {"input_ids"}), `device`, `out`, and `artifacts`, names as w4-64-asym: bits,
weights per scale (or `row`), with a zero point or without. Every linear but lm_head is rounded to the nearest, and the
checkpoint has the source's type. OUT/NAME gets `checkpoint`, and `whole.json`: mean KL(source || artifact) in nats over
the whole vocabulary at every position, flips, and the artifact's perplexity, of what the files hold, in float32.
"""

import json
import math
import sys
from pathlib import Path

import torch
from divergence_worker import rounded
from transformers import AutoModelForCausalLM, AutoTokenizer


def load(folder, device):
    """A checkpoint in float32."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).to(device).eval()


def write(source, target, name):
    """Round, in float32, and save in the source's type."""
    bits, group, kind = name.removeprefix("w").split("-")
    model = AutoModelForCausalLM.from_pretrained(source, dtype="auto")
    for each, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and each != "lm_head":
            size = None if group == "row" else int(group)
            new = rounded(module.weight.data.float(), int(bits), size, kind == "sym")
            module.weight.data = new.to(module.weight.dtype)
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(source).save_pretrained(target)


@torch.inference_mode()
def whole(source, artifact, rows, device):
    """The figures over every position."""
    divergence = flips = nll = positions = 0.0
    for row in rows:
        ids = torch.tensor([row], device=device)
        p, q = (torch.log_softmax(model(ids).logits[0, :-1].double(), -1) for model in (source, artifact))
        divergence += float((p.exp() * (p - q)).sum())
        flips += float((p.argmax(-1) != q.argmax(-1)).sum())
        nll -= float(q.gather(1, ids[0, 1:, None]).sum())
        positions += len(row) - 1
    return {"kl": divergence / positions, "flips": flips / positions, "perplexity": math.exp(nll / positions)}


def main(path):
    """Make what isn't made yet."""
    job = json.loads(Path(path).read_text())
    rows = [json.loads(line)["input_ids"] for line in Path(job["windows"]).read_text().splitlines()]
    source = load(job["source"], job["device"])
    for name in job["artifacts"]:
        folder = Path(job["out"]) / name
        folder.mkdir(parents=True, exist_ok=True)
        write(job["source"], folder / "checkpoint", name)
        found = whole(source, load(folder / "checkpoint", job["device"]), rows, job["device"])
        (folder / "whole.json").write_text(json.dumps(found))
        print(f"{name}: {found}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
