"""Held-out rows through a source model and artifacts of it: gram_quality.py ROWS COUNT SOURCE ARTIFACT...

Run by gram.py in an environment with torch, transformers and compressed-tensors. Prints one line of JSON: for the
source the mean negative log-likelihood of each row's tokens, for each artifact that and the mean KL divergence from
the source (nats a token).
"""

import json
import sys

import torch
from transformers import AutoModelForCausalLM


def log_probabilities(folder, rows):
    """Each row's next-token distributions [tokens - 1, vocabulary], one row at a time."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, local_files_only=True).eval()
    with torch.no_grad():
        for row in rows:
            yield torch.log_softmax(model(row[None]).logits[0, :-1].float(), -1)


def likelihood(scores, row):
    """Mean negative log-likelihood of a row's tokens after the first."""
    return -scores.gather(-1, row[1:, None]).mean().item()


def main(path, count, source, *artifacts):
    """Compare, and print."""
    with open(path, encoding="utf-8") as file:
        rows = [torch.tensor(json.loads(line)["input_ids"]) for line in file][: int(count)]
    before = [scores.bfloat16() for scores in log_probabilities(source, rows)]
    found = []
    for artifact in artifacts:
        quality = {"nll": [], "kl": []}
        for row, reference, scores in zip(rows, before, log_probabilities(artifact, rows), strict=True):
            quality["nll"].append(likelihood(scores, row))
            quality["kl"].append((reference.float().exp() * (reference.float() - scores)).sum(-1).mean().item())
        found.append(quality)
    print(
        json.dumps(
            {"source": [likelihood(s.float(), r) for s, r in zip(before, rows, strict=True)], "artifacts": found}
        )
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
