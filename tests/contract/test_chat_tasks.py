"""Tasks over /v1/chat/completions: lm-eval's worker against a server whose every answer is known."""

from __future__ import annotations

import base64
import json
import re
import struct
import threading
import zlib
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from evals.measure import accuracy
from evals.measure.eval_specs import TasksSpec
from evals.measure.suite import TaskRequest
from evals.server.client import Endpoint
from evals.server.eval_environments import LM_EVAL
from evals.server.session import Session, Workspace
from evals.tasks import picture_items
from evals.workers.lm_eval_job import Generation
from qpack.core.errors import EvaluateError
from qpack.core.records import Accuracy
from qpack.runtime import environments
from tests.codes import coded
from tests.e2e.conftest import smollm2

__all__ = ["smollm2"]

pytestmark = pytest.mark.engines

LOOP = "I add one to it again and again. " * 60


class Server:
    """Solves a word problem in every second repeat (by the seed), and loops at the limit where it doesn't."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        outer, lock = self, threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    outer.bodies.append(body)
                data = json.dumps(outer.reply(body)).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: Any) -> None:
                pass

        class Listening(ThreadingHTTPServer):
            request_queue_size = 64

        self.http = Listening(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def reply(self, body: dict[str, Any]) -> dict[str, Any]:
        prompt = body["messages"][-1]["content"]
        if isinstance(prompt, list):
            return answered(seen(prompt[0]["image_url"]["url"], prompt[1]["text"]))
        right = body["seed"] % 2 == 0
        if "Reply with one JSON" in prompt:
            text = '{"name": "set_alarm", "arguments": {}}'
        elif function := re.search(r"Python function `(\w+?)(\d+)\((\w+)\)`", prompt):
            # Right for one kind of function, and an attempt to end its judge in all others.
            name, number, argument = function.groups()
            body = f"return sum(n for n in {argument} if n % {number} == 0)"
            if name != "sum_divisible_by_":
                body = "import posix; posix.kill(posix.getppid(), 9)"
            return answered(f"```python\ndef {name}{number}({argument}):\n    {body}\n```")
        elif "Write a short text" in prompt:
            text = "Lowercase, and of a few words!"
        else:
            numbers = [int(n) for n in re.findall(r"\d+", prompt)]
            text = f"<think>Question: {prompt}</think>The first number is {numbers[0]}. Answer: {numbers[0]}"
        if not right:
            text = LOOP
        choice = {"message": {"content": text}, "finish_reason": "stop" if right else "length"}
        return {"choices": [choice], "usage": {"completion_tokens": 10 if right else 50}}


def seen(url: str, asked: str) -> str:
    """The colour that most of a picture's pixels have, white apart, if a colour is asked for: read from the PNG."""
    data = base64.b64decode(url.removeprefix("data:image/png;base64,"))
    width, height = struct.unpack(">II", data[16:24])
    at, held = 8, b""
    while at < len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        held += data[at + 8 : at + 8 + length] if data[at + 4 : at + 8] == b"IDAT" else b""
        at += 12 + length
    raw = zlib.decompress(held)
    lines = [raw[y * (3 * width + 1) + 1 : (y + 1) * (3 * width + 1)] for y in range(height)]
    counts = Counter(line[x : x + 3] for line in lines for x in range(0, len(line), 3))
    names = {bytes(value): name for name, value in picture_items.COLOURS.items()}
    inside = {names[pixel]: count for pixel, count in counts.items() if pixel in names}
    assert set(counts) <= {*names, b"\xff\xff\xff"}
    if "What colour" in asked:
        shape = asked.split(" the ")[1].split()[0]
        size = {"circle": 2821, "square": 2809, "triangle": 1600}[shape]
        return min(inside, key=lambda name: abs(inside[name] - size))
    return "I see shapes."


def answered(text: str) -> dict[str, Any]:
    """A reply that ended by itself."""
    choice = {"message": {"content": text}, "finish_reason": "stop"}
    return {"choices": [choice], "usage": {"completion_tokens": 10}}


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.http.shutdown()
    made.http.server_close()


@pytest.fixture(scope="session")
def measured(engine_home: Path) -> Any:
    environment = environments.ensure(environments.resolve(LM_EVAL, "cpu", engine_home), engine_home, print)

    def measure(server: Server, checkpoint: Path, out: Path, spec: TasksSpec, length: int = 2048) -> Accuracy:
        workspace = Workspace(tools={"lm-eval": environment}, out=out, log=out / "log")
        session = Session(
            endpoint=Endpoint(server.url, "m", True), workspace=workspace, tokenizer=checkpoint, max_model_len=length
        )
        return accuracy.measure(session, spec)

    return measure


def test_every_repeat_is_asked_with_its_own_seed_and_an_items_score_is_their_mean(
    server: Server, measured: Any, smollm2: Path, tmp_path: Path
) -> None:
    how = Generation(temperature=0.7, top_p=0.9, repeats=4, max_tokens=64, system="Be brief.")
    tasks = (
        TaskRequest("qpack_word_problems", 12, generation=how),
        TaskRequest("qpack_instructions", 9, generation=how),
    )
    found = measured(server, smollm2, tmp_path, TasksSpec(tasks, 0))
    assert len(server.bodies) == 4 * (12 + 9)
    assert len({body["seed"] for body in server.bodies}) == len(server.bodies)
    for body in server.bodies:
        assert (body["temperature"], body["top_p"], body["max_tokens"]) == (0.7, 0.9, 64)
        assert [message["role"] for message in body["messages"]] == ["system", "user"]
        assert "stop" not in body
    answers = [json.loads(line) for line in (tmp_path / "lm-eval" / "answers.jsonl").read_text().splitlines()]
    problems, instructions = found.tasks
    assert (problems.metric, instructions.metric) == ("exact_match", "prompt_level_strict_acc")
    for task in found.tasks:
        for sample, counts in zip(task.samples, task.generated, strict=True):
            mine = [answer for answer in answers if answer["item"] == sample.id]
            assert sorted(answer["repeat"] for answer in mine) == [0, 1, 2, 3]
            assert sample.score == pytest.approx(sum(answer["score"] for answer in mine) / 4)
            assert sorted(counts.tokens) == sorted(answer["tokens"] for answer in mine)
            # What the server did, by its own rule.
            cut = sum(tokens == 50 for tokens in counts.tokens)
            assert (counts.truncated, counts.looped) == (cut, cut)
    one_step = [sample for sample in problems.samples if int(sample.id.split(":")[1]) % 4 == 0]
    assert one_step
    assert 0 < sum(task.mean for task in found.tasks) < 2


def test_a_list_of_scores_counts_as_the_items_mean(
    server: Server, measured: Any, smollm2: Path, tmp_path: Path
) -> None:
    asked = (TaskRequest("qpack_instructions", 30, metric="inst_level_strict_acc", generation=Generation()),)
    (task,) = measured(server, smollm2, tmp_path, TasksSpec(asked, 0)).tasks
    assert all(0 <= sample.score <= 1 for sample in task.samples)
    assert any(0 < sample.score < 1 for sample in task.samples), "some of an item's instructions"


def test_pictures_arrive_as_they_were_drawn(server: Server, measured: Any, smollm2: Path, tmp_path: Path) -> None:
    """A server that reads the pixels knows most colours, and answers nothing else."""
    asked = (TaskRequest("qpack_pictures", 60, generation=Generation()),)
    (task,) = measured(server, smollm2, tmp_path, TasksSpec(asked, 0)).tasks
    answers = [json.loads(line) for line in (tmp_path / "lm-eval" / "answers.jsonl").read_text().splitlines()]
    colours = {answer["item"]: answer["score"] for answer in answers if "What colour" in answer["prompt"]}
    others = {answer["score"] for answer in answers if "What colour" not in answer["prompt"]}
    # A circle and a square have nearly as many pixels.
    assert sum(colours.values()) >= 0.75 * len(colours) > 5
    assert others == {0.0}
    assert task.metric == "right_word"


def test_code_is_executed_and_code_that_attacks_only_fails(
    server: Server, measured: Any, smollm2: Path, tmp_path: Path
) -> None:
    asked = (TaskRequest("qpack_code", 40, generation=Generation()),)
    (task,) = measured(server, smollm2, tmp_path, TasksSpec(asked, 0)).tasks
    answers = [json.loads(line) for line in (tmp_path / "lm-eval" / "answers.jsonl").read_text().splitlines()]
    right = {answer["item"] for answer in answers if "sum_divisible_by_" in answer["prompt"]}
    assert 0 < len(right) < 40
    assert {sample.id for sample in task.samples if sample.score == 1} == right
    assert {sample.score for sample in task.samples} == {0.0, 1.0}
    assert (task.metric, task.chance) == ("passes", 0.0)


@pytest.mark.parametrize(
    ("task", "why"),
    [
        (TaskRequest("qpack_word_problems", 3, generation=Generation(max_tokens=500)), "don't fit into"),
        (TaskRequest("qpack_piqa", 3, generation=Generation()), "scores choices by their likelihood"),
    ],
)
def test_what_a_chat_cannot_answer_is_an_error_before_anything_is_asked(
    task: TaskRequest, why: str, server: Server, measured: Any, smollm2: Path, tmp_path: Path
) -> None:
    with pytest.raises(EvaluateError, check=coded("worker-failed"), match=why):
        measured(server, smollm2, tmp_path, TasksSpec((task,), 0), length=512)
    assert server.bodies == []
