"""Loads artifacts in vLLM one after the other and asks each for a few tokens, in vLLM's environment.

    PYTHON architectures_serve.py ROWS SECONDS FOLDER...

ROWS gets a JSON object a line: the folder, and that it served or why not. Folders that have a line are skipped.
"""

import gc
import json
import os
import signal
import sys
import traceback
from pathlib import Path

os.environ |= {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "HF_HUB_OFFLINE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
}
PROMPT = [(37 * i) % 1900 + 5 for i in range(24)]


class TooLong(Exception):
    """A model took more seconds than it may."""


def main(rows, seconds, *folders):
    """Every folder that has no line yet."""
    known = Path(rows).read_text().splitlines() if Path(rows).exists() else []
    done = {json.loads(line)["folder"] for line in known}

    def alarm(*_):
        raise TooLong(f"more than {seconds} s")

    signal.signal(signal.SIGALRM, alarm)
    for folder in folders:
        if folder in done:
            continue
        signal.alarm(int(seconds))
        try:
            row = {"served": served(folder)}
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            traceback.print_exc()
            words = f"{type(error).__name__}: {' '.join(str(error).split())}"
            row = {"failed": words[:400]}
        finally:
            signal.alarm(0)
        with open(rows, "a", encoding="utf-8") as file:
            file.write(json.dumps({"folder": folder, **row}) + "\n")
        gc.collect()


def served(folder):
    """Log probabilities of the greedy answer. Raises where one of them isn't a number."""
    import torch
    from vllm import LLM, SamplingParams
    from vllm.distributed import destroy_model_parallel
    from vllm.model_executor.models import registry

    # One process: the groups of the model before are still there, and a look at each class in a process of its own
    # takes longer than the model.
    destroy_model_parallel()
    registry._run_in_subprocess = lambda look: look()
    given = {"enforce_eager": True, "dtype": "bfloat16", "max_model_len": 128, "kv_cache_memory_bytes": 1 << 26}
    if torch.cuda.is_available():
        given["gpu_memory_utilization"] = 0.03  # a GPU may be shared; what is kept free is 3 % of it
    model = LLM(model=folder, skip_mm_profiling=True, **given)
    asked = SamplingParams(max_tokens=4, temperature=0, logprobs=1)
    (answer,) = model.generate([{"prompt_token_ids": PROMPT}], asked, use_tqdm=False)
    found = [next(iter(each.values())).logprob for each in answer.outputs[0].logprobs]
    if any(value != value for value in found):
        raise ValueError("the answer's log probabilities are NaN")
    del model
    return [round(value, 3) for value in found]


if __name__ == "__main__":
    main(*sys.argv[1:])
