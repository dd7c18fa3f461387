"""The time that is left of a load: its levels differ in speed, and each request is weighed by its level."""

from __future__ import annotations

import itertools

from evals.workers.vllm_bench_job import Level, share

# Llama-3-8B's shape on one H200, 512 tokens in and 128 out: output tokens per second at each number of clients.
MEASURED = {1: 199.5, 16: 2341.1, 64: 5035.1, 256: 5414.4}
LEVELS = [Level(2 * clients, clients, None) for clients in MEASURED]
SECONDS = [level.num_prompts * 128 / MEASURED[level.concurrency or 0] for level in LEVELS]


def left(weights: list[float]) -> list[float]:
    """What is said to be left after each level but the last, over what was."""
    said = []
    done, passed = itertools.accumulate(weights), itertools.accumulate(SECONDS)
    for part, now in list(zip(done, passed, strict=True))[:-1]:
        said.append(now * (sum(weights) - part) / part / (sum(SECONDS) - now))
    return said


def test_what_is_said_to_be_left_of_a_load_is_within_a_factor_of_two_and_a_half() -> None:
    assert all(0.4 < ratio < 2.5 for ratio in left([level.num_prompts * share(level) for level in LEVELS]))


def test_counting_requests_alike_was_wrong_by_more_than_ten() -> None:
    assert max(left([level.num_prompts for level in LEVELS])) > 10
