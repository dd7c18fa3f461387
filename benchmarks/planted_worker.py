"""Scores many checkpoints of one model in one process, in plain transformers; run by planted_gates.py.

    PYTHON planted_worker.py JOB.json

JOB: `source` (a checkpoint in 16 or 32 bits), `windows` (JSON lines of {"input_ids"}), `top_k`, `whole_at`, `items` (a
list of {"task", "prompt", "choices", "gold"}), `device`, and `subjects`, a list of [checkpoint, file]; checkpoints are
dense, or packed in 4 bits (compressed-tensors). All is computed in float32 from the unpacked weights.

Each file gets what a server of the checkpoint answers: `ids`, `logprobs` [positions, top_k], `actual`, `nll` and
`window` [positions], `whole_at`, `whole` [sampled, vocabulary], and `scores` [items, choices, 2] (log-likelihood of a
choice, its characters). A file that is there is passed over.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

BATCH, SEQUENCES = 8, 64


def nibbles(packed, dim):
    """The eight 4-bit values of each int32 along `dim`, the lowest bits first, as 0 to 15."""
    shifts = torch.arange(0, 32, 4, dtype=torch.int32, device=packed.device)
    values = (packed.unsqueeze(-1) >> shifts) & 15
    return values.flatten(-2) if dim == 1 else values.transpose(1, 2).flatten(0, 1)


def unpacked(folder, device):
    """{name: weight in float32} of a checkpoint."""
    held = {}
    for file in sorted(Path(folder).glob("*.safetensors")):
        held |= load_file(file, device=str(device))
    found = {}
    for name, tensor in held.items():
        stem, _, kind = name.rpartition(".weight_")
        if kind == "packed":
            scale, zero = held[f"{stem}.weight_scale"].float(), held.get(f"{stem}.weight_zero_point")
            values = nibbles(tensor, 1).float()
            width = values.shape[1] // scale.shape[1]
            offset = nibbles(zero, 0).float().repeat_interleave(width, 1) if zero is not None else 8.0
            found[f"{stem}.weight"] = (values - offset) * scale.repeat_interleave(width, 1)
        elif kind not in ("scale", "zero_point", "shape"):
            found[name] = tensor.float()
    return found


def load(folder, device):
    """A checkpoint as a model in float32. A weight that its tensors don't give is an error, the tied head apart."""
    config = AutoConfig.from_pretrained(folder)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    missing, unexpected = model.load_state_dict(unpacked(folder, device), strict=False)
    if unexpected or set(missing) - {"lm_head.weight"}:
        raise SystemExit(f"{folder}: missing {missing[:3]}, unexpected {unexpected[:3]}")
    model.tie_weights()
    return model.eval()


@torch.inference_mode()
def text(model, rows, job):
    """What a server gives of the held-out text."""
    found, device, start = {"ids": [], "logprobs": [], "nll": [], "whole": []}, job["device"], 0
    for begin in range(0, len(rows), BATCH):
        tokens = torch.tensor(rows[begin : begin + BATCH], device=device)
        logprobs = model(tokens).logits[:, :-1].float().log_softmax(-1).flatten(0, 1)
        top = logprobs.topk(job["top_k"])
        found["ids"].append(top.indices.int().cpu().numpy())
        found["logprobs"].append(top.values.cpu().numpy())
        found["nll"].append(-logprobs.gather(1, tokens[:, 1:].flatten()[:, None])[:, 0].cpu().numpy())
        own = [at - start for at in job["whole_at"] if start <= at < start + len(logprobs)]
        found["whole"].append(logprobs[own].cpu().numpy())
        start += len(logprobs)
    arrays = {name: np.concatenate(parts) for name, parts in found.items()}
    lengths = [len(row) - 1 for row in rows]
    arrays["whole_at"] = np.array(job["whole_at"], dtype=np.int32)
    arrays["actual"] = np.concatenate([np.array(row[1:], dtype=np.int32) for row in rows])
    return {**arrays, "window": np.repeat(np.arange(len(rows), dtype=np.int32), lengths)}


@torch.inference_mode()
def choices(model, tokenizer, items, device):
    """[items, most choices, 2]: log-likelihood of each choice behind its prompt, and its characters."""
    most = max((len(item["choices"]) for item in items), default=0)
    scores = np.full((len(items), most, 2), -np.inf, dtype=np.float64)
    asked = []
    for number, item in enumerate(items):
        prompt = tokenizer(item["prompt"])["input_ids"]
        for place, choice in enumerate(item["choices"]):
            both = tokenizer(f"{item['prompt']} {choice}")["input_ids"]
            asked.append((len(both), number, place, both, len(prompt), len(choice)))
    asked.sort(key=lambda each: each[0])
    for begin in range(0, len(asked), SEQUENCES):
        some = asked[begin : begin + SEQUENCES]
        width = some[-1][0]
        tokens = torch.tensor([ids + [0] * (width - length) for length, *_, ids, _, _ in some], device=device)
        mask = torch.tensor([[1] * length + [0] * (width - length) for length, *_ in some], device=device)
        logprobs = model(tokens, attention_mask=mask).logits[:, :-1].float().log_softmax(-1)
        own = logprobs.gather(2, tokens[:, 1:, None])[..., 0].double().cpu().numpy()
        for row, (length, number, place, _, prompt, characters) in enumerate(some):
            scores[number, place] = own[row, prompt - 1 : length - 1].sum(), characters
    return scores


def main(path):
    """Score what isn't scored yet; a file is there only when it is whole."""
    job = json.loads(Path(path).read_text())
    rows = [json.loads(line)["input_ids"] for line in Path(job["windows"]).read_text().splitlines()]
    tokenizer = AutoTokenizer.from_pretrained(job["source"])
    for checkpoint, file in job["subjects"]:
        target = Path(file)
        if target.exists():
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        model = load(checkpoint, job["device"])
        found = text(model, rows, job)
        found["scores"] = choices(model, tokenizer, job["items"], job["device"])
        part = target.with_suffix(".part")
        with part.open("wb") as handle:
            np.savez(handle, **found)
        part.replace(target)
        print(f"{target} is scored", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
