"""Scores held-out windows with a model and with roundings of it, in plain transformers; run by divergence.py.

    PYTHON divergence_worker.py JOB.json

JOB: `checkpoint`, `texts` (.jsonl), `field`, `windows`, `window_tokens`, `top_k`, `whole_at` (which of all positions
have their whole distribution stored), `out`, and `artifacts`, a list of {"name", "bits", "group_size" (null: a row),
"symmetric"}. Every linear but lm_head is rounded to the nearest. All is computed in float32.

Each model gets a file OUT/NAME.npz: `ids` and `logprobs` [positions, top_k] as a server's prompt_logprobs has them,
`nll` [positions] of the actual token, `window` [positions], `whole_at`, `whole` float32 [whole_at, vocabulary]; an
artifact's also `kl` float64 [positions], over the whole vocabulary against the baseline. A file that is there is passed
over.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def cut(job):
    """The windows: token ids of whole texts, each window from one text, in the order of the file."""
    tokenizer = AutoTokenizer.from_pretrained(job["checkpoint"])
    seen, rows = set(), []
    for line in Path(job["texts"]).read_text(encoding="utf-8").splitlines():
        text = json.loads(line)[job["field"]]
        if text in seen:
            continue
        seen.add(text)
        ids = tokenizer(text)["input_ids"][: job["window_tokens"]]
        if len(ids) == job["window_tokens"]:
            rows.append(ids)
        if len(rows) == job["windows"]:
            return rows
    raise SystemExit(f"{job['texts']} has {len(rows)} windows of {job['window_tokens']} tokens, not {job['windows']}")


def rounded(weight, bits, group_size, symmetric):
    """The weight after rounding to the nearest of 2 ** bits values in each group of a row."""
    rows, columns = weight.shape
    groups = weight.reshape(rows, -1, group_size or columns)
    if symmetric:
        most = 2 ** (bits - 1) - 1
        scale = groups.abs().amax(-1, keepdim=True).clamp(min=1e-10) / most
        return ((groups / scale).round().clamp(-most - 1, most) * scale).reshape(rows, columns)
    low, high = groups.amin(-1, keepdim=True).clamp(max=0), groups.amax(-1, keepdim=True).clamp(min=0)
    scale = ((high - low) / (2**bits - 1)).clamp(min=1e-10)
    zero = (-low / scale).round()
    return (((groups / scale).round() + zero).clamp(0, 2**bits - 1).sub(zero) * scale).reshape(rows, columns)


def load(job, artifact):
    """The model in float32, its linears rounded as the artifact says."""
    model = AutoModelForCausalLM.from_pretrained(job["checkpoint"], dtype=torch.float32, local_files_only=True).eval()
    if artifact is not None:
        for name, module in model.named_modules():
            if isinstance(module, torch.nn.Linear) and name != "lm_head":
                module.weight.data = rounded(
                    module.weight.data, artifact["bits"], artifact["group_size"], artifact["symmetric"]
                )
    return model


@torch.inference_mode()
def score(job, rows, artifact, store):
    """What one model's file holds. `store` [positions, vocabulary] is the baseline's: written without an artifact."""
    model, found, start = load(job, artifact), {"ids": [], "logprobs": [], "nll": [], "kl": [], "whole": []}, 0
    for row in rows:
        tokens = torch.tensor([row])
        logprobs = model(tokens).logits[0, :-1].float().log_softmax(-1)
        place = slice(start, start + len(logprobs))
        start = place.stop
        top = logprobs.topk(job["top_k"])
        found["ids"].append(top.indices.int().numpy())
        found["logprobs"].append(top.values.numpy())
        found["nll"].append(-logprobs.gather(1, tokens[0, 1:, None])[:, 0].numpy())
        if artifact is None:
            store[place] = logprobs.numpy()
        else:
            before = torch.from_numpy(np.array(store[place]))
            found["kl"].append((before.exp() * (before - logprobs)).sum(-1, dtype=torch.float64).numpy())
        found["whole"].append(
            logprobs[[at - place.start for at in job["whole_at"] if place.start <= at < place.stop]].numpy()
        )
    lengths = [len(row) - 1 for row in rows]
    arrays = {name: np.concatenate(parts) for name, parts in found.items() if parts}
    arrays["whole_at"] = np.array(job["whole_at"], dtype=np.int32)
    return {**arrays, "window": np.repeat(np.arange(len(rows), dtype=np.int32), lengths)}


def main(path):
    """Score what isn't scored yet; a file is there only when it is whole."""
    job = json.loads(Path(path).read_text())
    torch.set_num_threads(1)
    out = Path(job["out"])
    out.mkdir(parents=True, exist_ok=True)
    rows = cut(job)
    (out / "windows.jsonl").write_text("".join(json.dumps({"input_ids": row}) + "\n" for row in rows))
    positions, file = sum(len(row) - 1 for row in rows), out / "baseline.f32"
    vocabulary = AutoModelForCausalLM.from_pretrained(job["checkpoint"], local_files_only=True).config.vocab_size
    made = (out / "baseline.npz").exists() and file.exists()
    store = np.memmap(file, np.float32, "r" if made else "w+", shape=(positions, vocabulary))
    for artifact in (None, *job["artifacts"]):
        name = "baseline" if artifact is None else artifact["name"]
        target = out / f"{name}.npz"
        if target.exists() and (artifact is not None or made):
            continue
        part = target.with_suffix(".part")
        with part.open("wb") as handle:
            np.savez(handle, **score(job, rows, artifact, store))
        part.replace(target)
        print(name, flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
