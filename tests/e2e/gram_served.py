"""Loads checkpoints in vLLM, one after the other in one process, and asks them the same. Runs in vLLM's environment.

`python gram_served.py CHECKPOINT...` prints for each the log-probabilities that it gives to the tokens of fixed
prompts, and its greedy answer.
"""

import json
import os
import sys

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"

from vllm import LLM, SamplingParams
from vllm.distributed import cleanup_dist_env_and_memory

PROMPTS = [[(37 * i + 11 * j) % 4000 + 10 for j in range(24)] for i in range(4)]


def main(*checkpoints):
    """One line of JSON, a list with an entry for each checkpoint."""
    found = []
    for checkpoint in checkpoints:
        model = LLM(
            checkpoint, dtype="bfloat16", enforce_eager=True, max_model_len=128, kv_cache_memory_bytes=2**26, seed=0,
            disable_log_stats=True,
        )  # fmt: skip
        asked = SamplingParams(temperature=0, max_tokens=12, prompt_logprobs=0, ignore_eos=True)
        answers = model.generate([{"prompt_token_ids": prompt} for prompt in PROMPTS], asked, use_tqdm=False)
        found.append(
            {
                "logprobs": [
                    [entry[token].logprob for entry, token in zip(a.prompt_logprobs[1:], prompt[1:], strict=True)]
                    for a, prompt in zip(answers, PROMPTS, strict=True)
                ],
                "tokens": [list(answer.outputs[0].token_ids) for answer in answers],
            }
        )
        model.llm_engine.engine_core.shutdown()
        del model
        cleanup_dist_env_and_memory()
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
