"""Loads two servers in turn with `vllm bench serve`: A B B A ..., the same prompts to both in a round.

Runs inside the environment of vLLM, beside vllm_bench_worker, whose runs these are. The job:

    servers: [{base_url, model, tokenizer}, {...}] (reference, subject), concurrency: [clients, ...], rounds,
    warmups, input_tokens, output_tokens, seed, prompts (as there; may be missing)

In each round every level is run once on both, one request a client. Who is first alternates from level to level and
from round to round, so that what drifts favours neither.
"""

import qpack_worker
import vllm_bench_worker as load


def closed(clients):
    """A closed loop as vllm_bench_worker takes it."""
    return {"concurrency": clients, "rate": None, "prefix_tokens": 0}


def run(job):
    """Warm-ups for both, then the rounds."""
    servers = [{**job, **server} for server in job["servers"]]
    levels, done = job["concurrency"], 0
    warmups = [min(clients, job["warmups"]) for clients in levels]
    total = 2 * (sum(warmups) + job["rounds"] * sum(levels))

    def tell():
        nonlocal done
        done += 1
        qpack_worker.progress(min(done, total), total, "requests, in turn")

    load.count_requests(tell)
    for index, count in enumerate(warmups):
        for server in servers:
            if count:
                load.bench(server, closed(count), count, min(8, job["output_tokens"]), job["seed"] + 1000 * index + 999)
    rounds = [[] for _ in levels]
    for turn in range(job["rounds"]):
        for index, clients in enumerate(levels):
            seed = job["seed"] + 1000 * index + turn
            subject_first = (turn + index) % 2 == 1
            found = {}
            for who in (1, 0) if subject_first else (0, 1):
                found[who] = load.raw(load.bench(servers[who], closed(clients), clients, job["output_tokens"], seed))
            rounds[index].append({"subject_first": subject_first, "reference": found[0], "subject": found[1]})
    return {"tool": f"vllm bench serve {load.vllm_version()}", "levels": rounds}


if __name__ == "__main__":
    qpack_worker.main(run)
