"""vLLM's prompt_logprobs, taken apart."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evals.measure import perplexity
from qpack.core.errors import EvaluateError
from tests.codes import coded


def entries(logits: list[float], actual: int, top_k: int) -> dict[str, Any]:
    """What vLLM answers for one position: the actual token on top of the k most probable."""
    total = math.log(math.fsum(map(math.exp, logits)))
    logprobs = [logit - total for logit in logits]
    order = sorted(range(len(logits)), key=lambda i: -logprobs[i])
    found = {actual: order.index(actual) + 1} | {i: rank for rank, i in enumerate(order[:top_k], start=1)}
    return {str(i): {"logprob": logprobs[i], "rank": rank, "decoded_token": "?"} for i, rank in found.items()}


def test_the_first_token_is_not_predicted_and_the_rest_is():
    answer = [None, entries([1.0, 2.0, 3.0, 0.0], 0, 2), entries([1.0, 2.0, 3.0, 0.0], 2, 2)]
    actual, ids, logprobs = perplexity.parse(answer, [3, 0, 2], 2)
    assert len(actual) == 2
    assert ids.tolist() == [[2, 1], [2, 1]]
    assert actual[1] == pytest.approx(float(logprobs[1, 0]), rel=1e-6)
    assert actual[0] < float(logprobs[0, 1])


@given(
    st.integers(1, 6),
    st.lists(st.tuples(st.lists(st.integers(-3, 3), min_size=8, max_size=8), st.integers(0, 7)), min_size=1),
)
def test_the_top_k_are_the_most_probable_tokens_wherever_the_actual_one_is(
    top_k: int, positions: list[tuple[list[int], int]]
):
    answer = [None, *(entries([float(x) for x in logits], actual, top_k) for logits, actual in positions)]
    actual, ids, logprobs = perplexity.parse(answer, [0, *(token for _, token in positions)], top_k)
    assert ids.shape == logprobs.shape == (len(positions), top_k)
    assert (np.diff(logprobs, axis=1) <= 0).all()
    for row, values, own, (logits, token) in zip(ids.tolist(), logprobs, actual, positions, strict=True):
        assert [logits[i] for i in row] == sorted(logits, reverse=True)[:top_k]
        if token in row:
            assert own == pytest.approx(float(values[row.index(token)]), rel=1e-5)
        else:
            assert own <= float(values[-1]) + 1e-5
    assert all(len(set(row)) == top_k for row in ids.tolist())


def test_fewer_log_probabilities_than_asked_for_are_an_error():
    with pytest.raises(EvaluateError, check=coded("server-answer"), match=r"\b1\b"):
        perplexity.parse([None, entries([1.0, 2.0, 3.0], 0, 1)], [2, 0], 4)


def test_a_missing_position_is_an_error():
    with pytest.raises(EvaluateError, check=coded("server-answer"), match=r"\b1\b.*\b2\b"):
        perplexity.parse([None], [2, 0], 1)
    with pytest.raises(EvaluateError, check=coded("server-answer"), match=r"\b1\b"):
        perplexity.parse([None, None], [2, 0], 1)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -9999.0])
def test_a_log_probability_that_is_not_finite_is_an_error(value: float):
    position = entries([1.0, 2.0, 3.0], 0, 2)
    position["0"]["logprob"] = value
    with pytest.raises(EvaluateError, check=coded("server-answer")):
        perplexity.parse([None, position], [2, 0], 2)


def test_windows_that_predict_nothing_are_an_error(tmp_path: Path):
    file = tmp_path / "windows.jsonl"
    for rows in ([], [[5]], [[1, 2], [3]]):
        file.write_text("".join(json.dumps({"input_ids": row}) + "\n" for row in rows))
        with pytest.raises(EvaluateError):
            perplexity.read_windows(file)


def test_the_digest_tells_windows_apart_that_hold_the_same_tokens():
    assert perplexity.digest([[1, 2], [3, 4]]) != perplexity.digest([[1, 2, 3, 4]])
    assert perplexity.digest([[1, 2], [3, 4]]) == perplexity.digest([(1, 2), (3, 4)])


def test_every_token_that_the_server_names_is_spelt():
    answer = [None, entries([1.0, 2.0, 3.0, 0.0], 0, 2), entries([1.0, 2.0, 3.0, 0.0], 2, 2)]
    answer[1]["0"]["decoded_token"] = " zero"
    answer[2]["1"]["decoded_token"] = None
    assert perplexity.spelled(answer) == {"0": " zero", "2": "?", "1": "?"}
