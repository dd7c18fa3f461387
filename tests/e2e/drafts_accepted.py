"""Write, as JSON, how many tokens a model in vLLM drafted with its own layers, and how many of them it accepted.

`python drafts_accepted.py CHECKPOINT OUT`, in vLLM's environment, of a checkpoint whose own code may run.
"""

import json
import sys
from pathlib import Path

from vllm import LLM, SamplingParams

if __name__ == "__main__":
    model = LLM(
        sys.argv[1],
        dtype="bfloat16",
        max_model_len=256,
        enforce_eager=True,
        kv_cache_memory_bytes=10**8,
        disable_log_stats=False,
        trust_remote_code=True,
        speculative_config={"method": "mtp", "num_speculative_tokens": 1},
    )
    prompts = [{"prompt_token_ids": [3 + 7 * i * k % 2000 for i in range(40)]} for k in range(1, 5)]
    model.generate(prompts, SamplingParams(temperature=0, max_tokens=24, ignore_eos=True), use_tqdm=False)
    counted = {metric.name: metric.value for metric in model.get_metrics() if hasattr(metric, "value")}
    names = ("vllm:spec_decode_num_draft_tokens", "vllm:spec_decode_num_accepted_tokens")
    # vLLM writes to stdout itself.
    Path(sys.argv[2]).write_text(json.dumps([counted[name] for name in names]))
