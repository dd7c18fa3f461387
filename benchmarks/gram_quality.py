"""Held-out rows through a source model and artifacts of it.

    python gram_quality.py JOB

Run by gram.py in an environment with torch, transformers and compressed-tensors (and lm-eval, if there are tasks).
JOB is a file of JSON: rows (JSON lines of {"input_ids": [...]}), source, artifacts (folders), tasks, task_folder,
data_root, items. Prints one line of JSON: for the source and each artifact `nll`, the mean negative log-likelihood of
each row's tokens, `kl`, each row's mean KL divergence from the source in nats a token, and `right`, by task whether the
answer to each item was the right one.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# AutoAWQ's order of eight columns in a word (awq/utils/packing_utils.py).
_AWQ_ORDER = [0, 4, 1, 5, 2, 6, 3, 7]


def load(folder):
    """The model with plain weights, whatever format it is in."""
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    said = getattr(config, "quantization_config", None) or {}
    if said.get("quant_method") not in ("awq", "gptq"):
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, local_files_only=True)
        return model.to(DEVICE).eval()
    # transformers needs the engine that wrote them to load these two; what they mean is a few lines.
    del config.quantization_config
    config.dtype = torch.bfloat16
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    tensors = {}
    for file in sorted(Path(folder).glob("*.safetensors")):
        tensors |= load_file(file)
    decode = _awq if said["quant_method"] == "awq" else _gptq
    for name in [name.removesuffix(".qweight") for name in tensors if name.endswith(".qweight")]:
        parts = {key: tensors.pop(f"{name}.{key}", None) for key in ("qweight", "qzeros", "scales", "g_idx")}
        tensors[f"{name}.weight"] = decode(parts, said["bits"]).T
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    if unexpected or set(missing) - {"lm_head.weight"}:
        raise ValueError(f"{folder}: lacks {missing}, and has {unexpected}")
    model.tie_weights()
    return model.to(DEVICE).eval()


def _columns(packed, bits):
    shifts = torch.arange(0, 32, bits)
    return (packed.unsqueeze(-1) >> shifts) & (2**bits - 1)


def _awq(parts, bits):
    weights, zeros = (_columns(parts[key], bits)[..., _AWQ_ORDER].flatten(1).float() for key in ("qweight", "qzeros"))
    size = weights.shape[0] // zeros.shape[0]
    return (weights - zeros.repeat_interleave(size, 0)) * parts["scales"].float().repeat_interleave(size, 0)


def _gptq(parts, bits):
    # The first version of the format stores zero points less one.
    zeros = (_columns(parts["qzeros"], bits).flatten(1).float() + 1) % 2**bits
    weights = _columns(parts["qweight"].T.contiguous(), bits).flatten(1).T.float()
    group = parts["g_idx"].long()
    return (weights - zeros[group]) * parts["scales"].float()[group]


@torch.no_grad()
def log_probabilities(model, rows):
    """Each row's next-token distributions [tokens - 1, vocabulary], one row at a time."""
    for row in rows:
        yield torch.log_softmax(model(row[None]).logits[0, :-1].float(), -1)


def likelihood(scores, row):
    """Mean negative log-likelihood of a row's tokens after the first."""
    return -scores.gather(-1, row[1:, None]).mean().item()


def answers(model, job):
    """By task, for each item whether the right answer was the likeliest (by length where the task says acc_norm)."""
    if not job["tasks"]:
        return {}
    # Only here: it isn't in every environment that can do the rest.
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    tokenizer = AutoTokenizer.from_pretrained(job["source"], local_files_only=True)
    manager = TaskManager(
        include_path=job["task_folder"], include_defaults=False, metadata={"data_root": job["data_root"]}
    )
    found = lm_eval.simple_evaluate(
        HFLM(pretrained=model, tokenizer=tokenizer, batch_size=64), tasks=job["tasks"], limit=job["items"],
        task_manager=manager, log_samples=True, bootstrap_iters=0,
    )  # fmt: skip
    return {
        task: [sample.get("acc_norm", sample["acc"]) for sample in sorted(samples, key=lambda s: s["doc_id"])]
        for task, samples in found["samples"].items()
    }


def main(path):
    """Compare, and print."""
    with open(path, encoding="utf-8") as file:
        job = json.load(file)
    with open(job["rows"], encoding="utf-8") as file:
        rows = [torch.tensor(json.loads(line)["input_ids"], device=DEVICE) for line in file]
    source = load(job["source"])
    found = [
        {
            "nll": [likelihood(scores, row) for row, scores in zip(rows, log_probabilities(source, rows), strict=True)],
            "kl": [0.0] * len(rows),
            "right": answers(source, job),
        }
    ]
    for artifact in job["artifacts"]:
        print(artifact, file=sys.stderr)
        model = load(artifact)
        quality = {"nll": [], "kl": []}
        # The source again each time: what it says of 100 rows of a large vocabulary fills 13 GB.
        both = zip(rows, log_probabilities(source, rows), log_probabilities(model, rows), strict=True)
        for row, expected, scores in both:
            quality["nll"].append(likelihood(scores, row))
            quality["kl"].append((expected.exp() * (expected - scores)).sum(-1).mean().item())
        found.append({**quality, "right": answers(model, job)})
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
