from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from evals.server import batch
from evals.server.client import Endpoint, Sampling
from qpack.core.errors import EvaluateError
from tests.codes import coded


def read(tmp_path: Path, text: str, *, chat: bool = True) -> batch.Batch:
    file = tmp_path / "prompts.jsonl"
    file.write_text(text)
    return batch.read(file, Endpoint("", "small", chat), Sampling(8))


def test_the_first_line_says_what_kind_all_are(tmp_path: Path) -> None:
    assert read(tmp_path, "a question\n\nanother\n").kind == "text"
    assert read(tmp_path, '{"prompt": "a"}\n').kind == "json"
    line = json.dumps({"custom_id": "1", "method": "POST", "url": "/v1/completions", "body": {"prompt": "a"}})
    assert read(tmp_path, line).kind == "openai"


def test_a_prompt_becomes_a_message_where_the_model_has_a_chat_template(tmp_path: Path) -> None:
    (request,) = read(tmp_path, "hello\n").requests
    assert (request.path, request.body["messages"]) == ("/v1/chat/completions", [{"role": "user", "content": "hello"}])
    (request,) = read(tmp_path, "hello\n", chat=False).requests
    assert (request.path, request.body["prompt"]) == ("/v1/completions", "hello")


def test_settings_of_a_line_win_over_those_of_the_command(tmp_path: Path) -> None:
    (one, two) = read(tmp_path, '{"prompt": "a", "max_tokens": 99}\n{"prompt": "b"}\n').requests
    assert (one.body["max_tokens"], two.body["max_tokens"]) == (99, 8)
    assert one.body["model"] == "small"


def test_every_bad_line_is_told_at_once_and_nothing_is_sent(tmp_path: Path) -> None:
    good = json.dumps({"custom_id": "1", "url": "/v1/completions", "body": {}})
    bad = json.dumps({"custom_id": "2", "url": "/v1/files", "body": {}})
    with pytest.raises(EvaluateError, check=coded("bad-request"), match="3") as caught:
        read(tmp_path, f"{good}\n{bad}\nnot json\n{good}\n")
    wanted = [("bad-request", 2), ("bad-request", 3), ("duplicate-id", 4)]
    assert [(problem.code.name, problem.where.line) for problem in caught.value.problems] == wanted


def test_only_a_line_feed_ends_a_line(tmp_path: Path) -> None:
    odd = "one\u2028two\x85three\x0bfour"
    found = read(tmp_path, "\ufeff" + json.dumps({"prompt": odd}, ensure_ascii=False) + '\r\n{"prompt": "b"}\r\n')
    assert found.kind == "json"
    assert [request.body["messages"][0]["content"] for request in found.requests] == [odd, "b"]


def answers(*requests: batch.Request) -> str:
    return "".join(json.dumps({"custom_id": request.name}) + "\n" for request in requests)


def test_a_run_goes_on_after_its_last_whole_line(tmp_path: Path) -> None:
    requests = read(tmp_path, "a\nb\nc\n").requests
    out = tmp_path / "out.jsonl"
    assert batch.finished(out, requests) == 0
    for wrong in (tmp_path / "no" / "out.jsonl", tmp_path):
        with pytest.raises(EvaluateError, check=coded("unreadable-file")):
            batch.finished(wrong, requests)
    out.write_text(answers(*requests[:2]) + '{"custom_id": "half')
    assert batch.finished(out, requests) == 2
    assert out.read_text() == answers(*requests[:2]), "half a line is cut off"


@pytest.mark.parametrize("lines", [(1,), (0, 2), (0, 1, 2, 0)])
def test_answers_of_another_run_are_never_written_to(tmp_path: Path, lines: tuple[int, ...]) -> None:
    requests = read(tmp_path, "a\nb\nc\n").requests
    out = tmp_path / "out.jsonl"
    out.write_text(answers(*(requests[i] for i in lines)))
    before = out.read_bytes()
    with pytest.raises(EvaluateError, check=coded("other-requests")):
        batch.finished(out, requests)
    assert out.read_bytes() == before


@pytest.mark.parametrize("change", [{"max_tokens": 32}, {"temperature": 0.5}])
@pytest.mark.parametrize("text", ["a\nb\n", '{"prompt": "a"}\n{"prompt": "b"}\n'])
def test_answers_belong_to_the_prompt_with_its_settings(tmp_path: Path, text: str, change: dict[str, float]) -> None:
    file, out = tmp_path / "prompts", tmp_path / "out.jsonl"
    file.write_text(text)
    endpoint, sampling = Endpoint("http://127.0.0.1:1", "m", chat=True), Sampling(24)
    out.write_text(answers(*batch.read(file, endpoint, sampling).requests))
    assert batch.finished(out, batch.read(file, endpoint, sampling).requests) == 2
    with pytest.raises(EvaluateError, check=coded("other-requests")):
        batch.finished(out, batch.read(file, endpoint, replace(sampling, **change)).requests)
    with pytest.raises(EvaluateError, check=coded("other-requests")):
        batch.finished(out, batch.read(file, replace(endpoint, model="other"), sampling).requests)


def test_an_openai_request_with_the_same_custom_id_and_another_body_is_another(tmp_path: Path) -> None:
    line = {"custom_id": "1", "method": "POST", "url": batch.PATHS[1], "body": {"prompt": "a", "max_tokens": 24}}
    requests = read(tmp_path, json.dumps(line) + "\n").requests
    response = httpx.Response(200, json={"id": "x", "choices": []})
    out = tmp_path / "out.jsonl"
    out.write_text(json.dumps(batch._line("openai", requests[0], response)) + "\n")
    assert batch.finished(out, requests) == 1
    line["body"] = {"prompt": "a", "max_tokens": 32}
    with pytest.raises(EvaluateError, check=coded("other-requests")):
        batch.finished(out, read(tmp_path, json.dumps(line) + "\n").requests)
