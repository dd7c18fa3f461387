"""Servers by strangers: `chat`, `batch`, `canary` and `drift` talk to any, and an answer is used or an error."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evals.server import batch, chat, client, drift, first_questions
from evals.server.client import Endpoint, Sampling
from qpack.core.errors import EvaluateError
from tests.fuzz.law import fuzz, refused_or_read, some
from tests.fuzz.mutations import damaged, documents, json_lines

MODELS = {"object": "list", "data": [{"id": "small", "object": "model", "max_model_len": 512}]}
CHAT = {
    "id": "chatcmpl-1",
    "system_fingerprint": "vllm-0.32.0-tp1-abc",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "Paris."}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 3, "completion_tokens": 2},
}
TEXT = {**CHAT, "choices": [{"index": 0, "text": " Paris.", "finish_reason": "stop"}]}
DELTA = {"id": "c", "choices": [{"index": 0, "delta": {"content": "Paris."}, "finish_reason": None}]}
PIECE = {"id": "c", "choices": [{"index": 0, "text": "Paris.", "finish_reason": None}]}
METRICS = b'# TYPE vllm:cache_config_info gauge\nvllm:cache_config_info{block_size="16",cache_dtype="auto"} 1.0\n'
ANSWERS: dict[str, bytes] = {
    "/version": b'{"version": "0.32.0"}',
    "/v1/models": json.dumps(MODELS).encode(),
    "/v1/chat/completions": json.dumps(CHAT).encode(),
    "/v1/completions": json.dumps(TEXT).encode(),
    "/metrics": METRICS,
}


class Stranger:
    """What the server answers: by path, a body; with the status for all of them."""

    def __init__(self) -> None:
        self.bodies = dict(ANSWERS)
        self.stream = b""
        self.status = 200


@pytest.fixture(scope="module")
def stranger() -> Iterator[tuple[str, Stranger]]:
    """A server on this machine that answers as it is told, and its address."""
    told = Stranger()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(told.bodies.get(self.path, b"{}"))

        def do_POST(self) -> None:
            asked = self.rfile.read(int(self.headers["Content-Length"]))
            self._answer(told.stream if b'"stream":true' in asked.replace(b" ", b"") else told.bodies[self.path])

        def _answer(self, body: bytes) -> None:
            self.send_response(told.status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    with serving(Handler) as address:
        yield address, told


@contextmanager
def serving(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@st.composite
def streams(draw: st.DrawFn, event: Any) -> bytes:
    """Server-sent events near valid ones, some without an end."""
    events = [json.dumps(event).encode(), draw(documents(event)).replace(b"\n", b" ")]
    end = draw(st.sampled_from((b"data: [DONE]\n\n", b"", b"data: [DONE", b"data:\n\n", b": ping\n\n")))
    body = b"".join(b"data: " + one + b"\n\n" for one in events) + end
    return draw(damaged(body)) if draw(st.integers(0, 3)) == 0 else body


@st.composite
def told(draw: st.DrawFn) -> tuple[dict[str, bytes], bytes, int]:
    """Answers of a server of which one or two are hostile."""
    valid = {"/version": {"version": "0.32.0"}, "/v1/models": MODELS}
    valid |= {"/v1/chat/completions": CHAT, "/v1/completions": TEXT}
    bodies = dict(ANSWERS)
    for path in draw(st.lists(st.sampled_from(sorted(ANSWERS)), min_size=1, max_size=2)):
        bodies[path] = draw(documents(valid[path]) if path in valid else damaged(METRICS))
    stream = draw(streams(draw(st.sampled_from((DELTA, PIECE)))))
    return bodies, stream, draw(st.sampled_from((200, 200, 200, 200, 400, 404)))


@some
@given(answers=told(), chatting=st.booleans())
def test_a_conversation_ends_in_text_or_an_error(
    answers: tuple[dict[str, bytes], bytes, int], chatting: bool, stranger: tuple[str, Stranger]
) -> None:
    address, server = stranger
    server.bodies, server.stream, server.status = answers
    model = refused_or_read(lambda: chat.served_model(address))
    assert model is None or isinstance(model, str)
    refused_or_read(lambda: chat.has_template(address, "small"))
    refused_or_read(lambda: client.max_model_len(address, "small"))
    asked = [{"role": "user", "content": "Hello"}]
    text = refused_or_read(lambda: list(chat.answer(Endpoint(address, "small", chatting), asked, Sampling(4))))
    assert text is None or all(isinstance(piece, str) for piece in text)


@some
@given(answers=told(), chatting=st.booleans())
def test_the_first_questions_end_in_replies_or_an_error(
    answers: tuple[dict[str, bytes], bytes, int], chatting: bool, stranger: tuple[str, Stranger]
) -> None:
    address, server = stranger
    server.bodies, server.stream, server.status = answers
    refused_or_read(lambda: first_questions.measure(Endpoint(address, "small", chatting)))


@some
@given(answers=told())
def test_a_look_at_a_server_ends_in_differences_or_an_error(
    answers: tuple[dict[str, bytes], bytes, int], stranger: tuple[str, Stranger]
) -> None:
    address, server = stranger
    server.bodies, server.stream, server.status = answers
    expected = drift.Expected("0.32.0", "small", 512, {"dtype": "auto", "kv-cache-dtype": "auto"}, ("vllm:x",))

    def look() -> drift.Drift:
        return drift.compare(expected, drift.read_server(address, "small"))

    found = refused_or_read(look)
    assert found is None or all(isinstance(one.found, str) for one in found.differences)


PROMPTS = [{"prompt": "Hello"}, {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3}]
BATCH = [
    {"custom_id": f"r-{n}", "method": "POST", "url": "/v1/chat/completions", "body": {"messages": [], "n": n}}
    for n in range(2)
]


@fuzz
@given(content=st.one_of(json_lines(PROMPTS), json_lines(BATCH)))
def test_a_file_of_prompts_is_read_or_refused_by_its_name(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_bytes(content)

    def read() -> tuple[batch.Request, ...]:
        return batch.read(file, Endpoint("", "small", chat=True), Sampling(4)).requests

    requests = refused_or_read(read, where="")
    for request in requests or ():
        httpx.Request("POST", "http://127.0.0.1/", json=request.body)


@some
@given(answers=told(), kind=st.sampled_from(("json", "openai")))
def test_a_batch_writes_a_line_for_each_answer_or_ends_in_an_error(
    answers: tuple[dict[str, bytes], bytes, int], kind: batch.Kind, stranger: tuple[str, Stranger], tmp_path: Path
) -> None:
    address, server = stranger
    server.bodies, server.stream, server.status = answers
    output = tmp_path / "out.jsonl"
    output.unlink(missing_ok=True)
    body = {"model": "small", "messages": [], "stream": False}
    requests = tuple(batch.Request(n, f"r-{n}", batch.PATHS[0], body) for n in (1, 2))

    def run() -> batch.Done:
        return batch.run(address, batch.Batch(kind, requests), output, concurrency=2, timeout=30)

    done = refused_or_read(run)
    if done is not None:
        assert batch.finished(output, requests) == 2, "the same command has nothing left to do"


@fuzz
@given(content=json_lines([{"custom_id": "r-1", "text": "a"}, {"custom_id": "r-2", "text": "b"}]))
def test_what_an_earlier_batch_left_is_gone_on_with_or_refused(content: bytes, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    output.write_bytes(content)
    requests = tuple(batch.Request(n, f"r-{n}", batch.PATHS[0], {}) for n in (1, 2))
    count = refused_or_read(lambda: batch.finished(output, requests), where="out.jsonl")
    assert count in (None, 0, 1, 2)
    if count is None:
        assert output.read_bytes() == content, "what isn't ours is left as it is"


def test_a_stream_that_never_ends_a_line_is_refused() -> None:
    with pytest.raises(EvaluateError):
        list(chat.pieces(iter(["data: {"]), chat=True))
