"""Loads two servers in turn with `vllm bench serve`: A B B A ..., the same prompts to both in a round.

Runs inside the environment of vLLM, beside vllm_bench_worker, whose runs these are.

In each round every level is run once on both, one request per client. Which server is first alternates from level to
level and from round to round, so that drift favours neither.
"""

import qpack_worker
import vllm_bench_worker as load
from vllm_bench_job import Level, Turn, TurnsAnswer, TurnsJob


def closed(clients):
    """A closed loop with one request per client."""
    return Level(num_prompts=clients, concurrency=clients, rate=None)


def run(job, out):
    """Warm-ups for both, then the rounds."""
    servers = {"reference": job.reference, "subject": job.subject}
    asked, levels, done = job.requests, job.concurrency, 0
    tokens = asked.output_tokens
    prompts = load.prompts_of(asked, job.reference, out)
    warmups = [min(clients, asked.warmups) for clients in levels]
    total = 2 * (sum(warmups) + job.rounds * sum(levels))

    def report():
        nonlocal done
        done += 1
        qpack_worker.progress(min(done, total), total, "requests, interleaved")

    load.count_requests(report)
    for index, count in enumerate(warmups):
        for server in servers.values():
            if count:
                load.bench(server, prompts, closed(count), min(8, tokens), asked.seed + 1000 * index + 999)
    rounds = [[] for _ in levels]
    for turn in range(job.rounds):
        for index, clients in enumerate(levels):
            seed = asked.seed + 1000 * index + turn
            subject_first = (turn + index) % 2 == 1
            order = sorted(servers, reverse=subject_first)
            runs = {who: load.bench(servers[who], prompts, closed(clients), tokens, seed) for who in order}
            rounds[index].append(Turn(subject_first=subject_first, **runs))
    return TurnsAnswer(f"vllm bench serve {load.vllm_version()}", tuple(map(tuple, rounds)))


if __name__ == "__main__":
    qpack_worker.main(run, TurnsJob)
