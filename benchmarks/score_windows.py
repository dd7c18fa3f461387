"""Scores windows of tokens with many checkpoints through vLLM's engine in one process; runs in vLLM's environment.

    PYTHON score_windows.py JOB.json

JOB: `windows` (JSON lines of {"input_ids"}), `top_k`, `engine` (vLLM's arguments by name), `unpack` (whether to do so
first, see unpack_checkpoint.py) and `subjects`, a list of [checkpoint, file]. Each file gets what a server's
`prompt_logprobs` holds, window by window. A checkpoint whose file is there is passed over. Starting a server for each
takes longer than all of its windows.
"""

import gc
import json
import os
import sys
import tempfile
from pathlib import Path

# The engine in this process: it is imported once, and not once a checkpoint.
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"

from unpack_checkpoint import unpack
from vllm import LLM, SamplingParams
from vllm.distributed.parallel_state import cleanup_dist_env_and_memory


def score(checkpoint, rows, job):
    """Every window's prompt_logprobs, as the server's JSON spells them."""
    llm = LLM(model=checkpoint, **job["engine"])
    asked = SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=job["top_k"])
    answers = llm.generate([{"prompt_token_ids": row} for row in rows], asked, use_tqdm=False)
    found = [
        [
            entries
            and {
                str(token): {"logprob": entry.logprob, "rank": entry.rank, "decoded_token": entry.decoded_token}
                for token, entry in entries.items()
            }
            for entries in answer.prompt_logprobs
        ]
        for answer in answers
    ]
    llm.llm_engine.engine_core.shutdown()
    del llm
    cleanup_dist_env_and_memory()
    gc.collect()
    return found


def main(path):
    """Score what isn't scored yet; a file is there only when it is whole."""
    job = json.loads(Path(path).read_text())
    rows = [json.loads(line)["input_ids"] for line in Path(job["windows"]).read_text().splitlines()]
    for checkpoint, file in job["subjects"]:
        target = Path(file)
        if target.exists():
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_suffix(".part")
        with tempfile.TemporaryDirectory() as folder:
            if job["unpack"]:
                unpack(checkpoint, f"{folder}/unpacked")
            part.write_text(json.dumps(score(f"{folder}/unpacked" if job["unpack"] else checkpoint, rows, job)))
        part.rename(target)
        print(f"{target} is scored", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
