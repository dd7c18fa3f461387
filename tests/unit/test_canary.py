"""Streams taken apart, answers that are none, and how a server's errors are told."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evals.server import chat, client, first_questions
from qpack.core.errors import EvaluateError
from tests.codes import coded


@pytest.mark.parametrize("text", ["", "  \n", "!" * 16, "! " * 16, "\n\n0000000000000000"])
def test_nothing_and_one_character_over_and_over_are_no_answers(text: str):
    with pytest.raises(EvaluateError, check=coded("server-answer")):
        first_questions.check_text("prompt", text)


@pytest.mark.parametrize("text", ["Paris", "!", "....", "ab" * 20])
def test_a_short_or_varied_answer_is_one(text: str):
    first_questions.check_text("prompt", text)


@given(st.lists(st.text()))
def test_a_stream_gives_its_pieces_in_order(pieces: list[str]):
    chat = [
        {"choices": [{"delta": {"role": "assistant"}}]},
        *({"choices": [{"delta": {"content": p}}]} for p in pieces),
    ]
    plain = [*({"choices": [{"text": p}]} for p in pieces), {"choices": [], "usage": {}}]
    for events, is_chat in ((chat, True), (plain, False)):
        lines = [line for event in events for line in (f"data: {json.dumps(event)}", "")]
        assert first_questions.stream_text([*lines, "data: [DONE]"], chat=is_chat) == "".join(pieces)


def test_a_stream_without_an_end_is_an_error():
    with pytest.raises(EvaluateError, check=coded("server-answer")):
        first_questions.stream_text(['data: {"choices": [{"text": "a"}]}'], chat=False)


def test_an_error_inside_a_stream_is_told_in_the_server_s_words():
    with pytest.raises(EvaluateError, check=coded("server-answer"), match="engine died"):
        first_questions.stream_text(['data: {"error": {"message": "engine died"}}'], chat=False)


def test_a_chat_template_may_be_a_file_or_in_the_tokenizer_s_configuration(tmp_path: Path):
    assert not first_questions.has_chat_template(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": null}')
    assert not first_questions.has_chat_template(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": "{{ messages }}"}')
    assert first_questions.has_chat_template(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    assert first_questions.has_chat_template(tmp_path)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ('{"error": {"message": "too long", "code": 400}}', "too long"),
        ('{"error": "too long"}', "too long"),
        ('{"message": "too long"}', "too long"),
        ("Internal Server Error", "Internal Server Error"),
        ("", "an empty body"),
    ],
)
def test_an_http_error_is_told_with_path_status_and_the_server_s_words(body: str, words: str):
    response = httpx.Response(500, text=body, request=httpx.Request("POST", "http://127.0.0.1:8000/v1/completions"))
    with pytest.raises(EvaluateError, check=coded("server-status"), match=f"HTTP 500: .*{words}"):
        client.checked(response)


def test_a_time_out_and_a_lost_connection_are_told_apart():
    url = "http://127.0.0.1:8000"
    assert "no response" in client.unreachable(url, httpx.ReadTimeout(""), 5.0).what
    assert "can't connect" in client.unreachable(url, httpx.ConnectError("refused"), 5.0).what
    assert "ReadError" in client.unreachable(url, httpx.ReadError("reset"), 5.0).what


def test_a_page_of_html_is_no_words_of_a_server():
    response = httpx.Response(404, html="<html>\n<body>Not found</body></html>")
    assert client.server_words(response).startswith("a page of HTML")


@pytest.mark.parametrize(("status", "chats"), [(200, True), (400, False), (401, True)])
def test_a_model_without_a_chat_template_is_known_by_its_400(status: int, chats: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(httpx, "post", lambda *_, **__: httpx.Response(status))
    assert chat.has_template("http://127.0.0.1:8000", "m") is chats


@pytest.mark.parametrize("key", ["reasoning", "reasoning_content"])
def test_what_a_server_splits_off_as_reasoning_is_part_of_the_first_answers(key: str) -> None:
    """A reasoning model may think for all of the tokens that a first question has."""
    parts = [{key: "so 2 "}, {key: "+ 2"}, {"content": None}, {"content": " is 4"}]
    lines = [f"data: {json.dumps({'choices': [{'delta': part}]})}" for part in parts]
    assert first_questions.stream_text([*lines, "data: [DONE]"], chat=True) == "so 2 + 2 is 4"
    assert chat.whole({key: "so 2 + 2", "content": " is 4"}) == "so 2 + 2 is 4"
    assert chat.whole({key: "so 2 + 2", "content": None}) == "so 2 + 2"
    assert chat.texts_of(lines[0].removeprefix("data: "), chat=True) == ("",), "a chat shows answers"
