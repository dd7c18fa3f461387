"""Loads checkpoints with vLLM, one after the other, and asks each for the log-probabilities of prompts.

    VLLM-ENVIRONMENT/bin/python benchmarks/engines_vllm.py JOB

Part of `benchmarks/engines.py`. JOB: `subjects` (name, arguments as those of vLLM's server, log, out), `windows` (JSON
lines of {"input_ids": [...]}), `count` (how many of them), `top_k`, `seconds` (no load starts later), `limit` (seconds
for each). vLLM is imported once; each checkpoint has a process of its own, forked from that, so that what fails leaves
nothing behind. `out` gets what vLLM answered, or why it did not.
"""

import json
import os
import sys
import time
import traceback
from pathlib import Path

# One process for each checkpoint: the engine runs where it is asked.
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"

import vllm
from vllm.engine.arg_utils import EngineArgs
from vllm.utils.argparse_utils import FlexibleArgumentParser


def ask(subject, rows, top_k):
    """Load the checkpoint and score the rows."""
    # A twin's plugin is found by vLLM as one that was installed.
    os.environ.update(subject["own"])
    if "PYTHONPATH" in subject["own"]:
        sys.path.insert(0, subject["own"]["PYTHONPATH"])
    started = time.monotonic()
    # What is of the server alone (its port and so on) stays aside.
    arguments, _ = EngineArgs.add_cli_args(FlexibleArgumentParser()).parse_known_args(subject["arguments"])
    model = vllm.LLM.from_engine_args(EngineArgs.from_cli_args(arguments))
    loaded = time.monotonic() - started
    answers = model.generate(
        [{"prompt_token_ids": row} for row in rows],
        vllm.SamplingParams(max_tokens=4, temperature=0.0, prompt_logprobs=top_k),
        use_tqdm=False,
    )
    return {
        "vllm": vllm.__version__,
        "load_seconds": loaded,
        "seconds": time.monotonic() - started - loaded,
        "text": answers[0].outputs[0].text,
        "prompt_logprobs": [
            [
                entries and {token: {"logprob": one.logprob, "rank": one.rank} for token, one in entries.items()}
                for entries in answer.prompt_logprobs
            ]
            for answer in answers
        ],
    }


def write(path, answer):
    """Whole or not at all."""
    with open(f"{path}.part", "w", encoding="utf-8") as file:
        json.dump(answer, file)
    Path(f"{path}.part").replace(path)


def child(subject, rows, top_k):
    """Everything of one checkpoint; what vLLM prints goes to its log."""
    log = os.open(subject["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    try:
        answer = ask(subject, rows, top_k)
    except BaseException as error:
        traceback.print_exc()
        # The first cause is the reason for those after it.
        while error.__cause__ is not None or (error.__context__ is not None and not error.__suppress_context__):
            error = error.__cause__ or error.__context__
        answer = {"vllm": vllm.__version__, "failed": f"{type(error).__name__}: {error}"}
    write(subject["out"], answer)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def main():
    """The subjects in order."""
    with open(sys.argv[1], encoding="utf-8") as file:
        job = json.load(file)
    with open(job["windows"], encoding="utf-8") as file:
        rows = [json.loads(line)["input_ids"] for line in file][: job["count"]]
    end = time.monotonic() + job["seconds"]
    for subject in job["subjects"]:
        if time.monotonic() > end:
            break
        print(f"== vLLM: {subject['name']}", flush=True)
        pid = os.fork()
        if pid == 0:
            child(subject, rows, job["top_k"])
        late = time.monotonic() + job["limit"]
        while os.waitpid(pid, os.WNOHANG)[0] == 0:
            if time.monotonic() > late:
                os.kill(pid, 9)
                os.waitpid(pid, 0)
                break
            time.sleep(0.2)
        if not Path(subject["out"]).exists():
            print(f"   {subject['name']}: no answer within {job['limit']} s, or killed", flush=True)


if __name__ == "__main__":
    main()
