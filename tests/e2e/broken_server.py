"""A server that keeps every promise but one: a real vLLM behind something that breaks the one named in the path.

`http://HOST:PORT/BREAK/v1/...` is the vLLM's `/v1/...`, broken as `BREAKS[BREAK]` says.
"""

from __future__ import annotations

import json
import re
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx

Body = dict[str, Any]
_AT_ONCE = 4


@dataclass(frozen=True)
class Break:
    """`asked` changes a request, `answered` a status and a whole answer; `busy` refuses more than four at once, `deaf`
    goes on reading for a client that has left. `crowded` changes a request that comes while others are answered. A
    request with the key `hangs_up` gets no answer: its connection is closed.
    """

    asked: Callable[[Body], Body] = lambda body: body
    answered: Callable[[str, int, bytes], tuple[int, bytes]] = lambda _, status, body: (status, body)
    busy: bool = False
    deaf: bool = False
    crowded: Callable[[Body], Body] = lambda body: body
    hangs_up: str = ""


def without(*keys: str) -> Callable[[Body], Body]:
    return lambda body: {key: value for key, value in body.items() if key not in keys}


def with_(**more: Any) -> Callable[[Body], Body]:
    return lambda body: {**body, **more}


def short_streams(body: Body) -> Body:
    return {**body, "max_tokens": 2} if body.get("stream") else body


def cut_prompts(body: Body) -> Body:
    prompt = body.get("prompt")
    return {**body, "prompt": prompt[:100]} if isinstance(prompt, list) else body


def salted(body: Body) -> Body:
    return {**body, "cache_salt": uuid.uuid4().hex}


def metric(name: str, value: str | None) -> Callable[[str, int, bytes], tuple[int, bytes]]:
    """Every sample of a metric gets `value`; None takes it away."""

    def change(path: str, status: int, body: bytes) -> tuple[int, bytes]:
        if path != "/metrics":
            return status, body
        lines = [
            line if not line.startswith(name) else re.sub(r"\S+$", value, line)
            for line in body.decode().splitlines()
            if value is not None or not line.startswith(name)
        ]
        return status, "\n".join(lines).encode()

    return change


def large_blocks(path: str, status: int, body: bytes) -> tuple[int, bytes]:
    return status, re.sub(rb'\bblock_size="\d+"', b'block_size="100000"', body) if path == "/metrics" else body


def renamed(path: str, status: int, body: bytes) -> tuple[int, bytes]:
    return status, body.replace(b'"id":"', b'"id":"other-') if path == "/v1/models" else body


def crash_for_400(path: str, status: int, body: bytes) -> tuple[int, bytes]:
    return (500, b"Internal Server Error") if status == 400 else (status, body)


def blanks(_path: str, status: int, body: bytes) -> tuple[int, bytes]:
    """An answer that follows the schema and is cut among blanks, as a small model's without compact JSON."""
    try:
        whole = json.loads(body)
        (choice,) = whole["choices"]
    except (ValueError, KeyError, TypeError):
        return status, body
    started, more = choice.get("message", choice), {"finish_reason": "length"}
    name = "content" if "message" in choice else "text"
    if not str(started.get(name) or "").startswith("{"):
        return status, body
    started[name] = '{"tide"' + "\n" * 57
    return status, json.dumps({**whole, "choices": [{**choice, **more}]}).encode()


BREAKS = {
    "nothing": Break(),
    "another-model": Break(answered=renamed),
    "short-streams": Break(asked=short_streams),
    "no-stop": Break(asked=without("stop")),
    "cut-prompts": Break(asked=cut_prompts),
    "crash-for-400": Break(answered=crash_for_400),
    "no-schema": Break(asked=without("response_format")),
    "blanks": Break(answered=blanks),
    "no-tools": Break(asked=without("tools", "tool_choice")),
    "no-logprobs": Break(asked=without("logprobs")),
    "not-greedy": Break(asked=with_(temperature=2.0, seed=1)),
    "garbage-in-a-crowd": Break(crowded=with_(temperature=2.0, seed=1)),
    "no-schema-in-a-crowd": Break(crowded=without("response_format")),
    "four-at-once": Break(busy=True),
    "deaf": Break(deaf=True),
    "no-prefix-cache": Break(asked=salted),
    "nothing-accepted": Break(answered=metric("vllm:spec_decode_num_accepted_tokens_total", "0.0")),
    "hangs-up": Break(hangs_up="logprobs"),
    "large-blocks": Break(answered=large_blocks),
    "no-cache-metric": Break(answered=metric("vllm:kv_cache_usage_perc", None)),
}


@contextmanager
def broken(upstream: str) -> Iterator[str]:
    """The address in front of the server at `upstream`."""
    places = threading.Semaphore(_AT_ONCE)
    running: list[object] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def do_GET(self) -> None:
            self.pass_on("GET", None)

        def do_POST(self) -> None:
            self.pass_on("POST", json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def pass_on(self, method: str, body: Body | None) -> None:
            _, name, rest = self.path.split("/", 2)
            path, how = f"/{rest}", BREAKS[name]
            if body and how.hangs_up in body:
                self.close_connection = True
                return
            if body is not None and path != "/tokenize":
                body = how.asked(body)
                if running:
                    body = how.crowded(body)
            if how.busy and body and not places.acquire(blocking=False):
                self.whole(503, b'{"error": {"message": "too busy"}}')
                return
            running.append(self)
            try:
                with httpx.stream(method, upstream + path, json=body, timeout=None) as answer:  # the client decides
                    if body and body.get("stream"):
                        self.streamed(answer, deaf=how.deaf)
                    else:
                        self.whole(*how.answered(path, answer.status_code, answer.read()))
            finally:
                running.remove(self)
                if how.busy and body:
                    places.release()

        def whole(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def streamed(self, answer: httpx.Response, *, deaf: bool) -> None:
            self.send_response(answer.status_code)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Connection", "close")
            self.end_headers()
            self.close_connection = True
            for chunk in answer.iter_raw():
                try:
                    self.wfile.write(chunk)
                    self.wfile.flush()
                except OSError:
                    if not deaf:
                        raise

    class Quiet(ThreadingHTTPServer):
        daemon_threads = True
        # Sixteen connections come at once.
        request_queue_size = 64

        def handle_error(self, *_: Any) -> None:
            """A client that left is no news."""

    server = Quiet(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
