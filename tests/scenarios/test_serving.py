"""Commands about serving, as far as they start no server."""

from __future__ import annotations

import http.server
import json
import signal
import socket
import threading
from pathlib import Path

import pytest
import yaml

from tests.patience import PATIENCE
from tests.scenarios.command import Qpack, wait_for
from tests.scenarios.releases import publish
from tests.unit.recipes import checkpoint


@pytest.fixture
def released(qpack: Qpack, tmp_path: Path) -> Qpack:
    """A registry with one release, `small:1`."""
    model = tmp_path / "model"
    checkpoint(model)
    (model / "tokenizer.json").write_text("{}")
    publish(model, qpack.home / "registry", tmp_path / "scratch", "0.32.0")
    return qpack


def test_one_file_goes_to_stdout_and_several_need_a_folder(released: Qpack, tmp_path: Path) -> None:
    one = released("export", "small", "--to", "ray")
    assert (one.code, one.err) == (0, "")
    assert yaml.safe_load(one.out)["applications"][0]["name"] == "small"
    several = released("export", "small", "--to", "compose")
    assert (several.code, several.out) == (2, "")
    assert "6 files" in several.err
    assert "--output" in several.err
    written = released("export", "small", "--to", "compose", "-o", "out")
    assert written.code == 0
    assert sorted(written.out.split()) == sorted(
        str(path.relative_to(tmp_path)) for path in (tmp_path / "out").rglob("*") if path.is_file()
    )


def test_an_export_is_of_the_profile_that_was_named(released: Qpack) -> None:
    wide, narrow = (
        json.loads(released("export", "small", "--to", "vllm", "--json", *profile).out)["files"]["vllm.yaml"]
        for profile in ((), ("--profile", "narrow"))
    )
    changed = set(wide.splitlines()) ^ set(narrow.splitlines())
    assert {line for line in changed if not line.startswith("#")} == {"max-num-seqs: 4", "max-num-seqs: 2"}


@pytest.mark.parametrize(
    ("arguments", "code", "problem", "says"),
    [
        (("--to", "kubernets"), 2, "error[invalid-option] --to", "'kubernetes'"),
        (("--to", "kubernetes"), 2, "error[invalid-option] --repository", "registry.example.com/models/small"),
        (("--to", "prometheus"), 2, "error[invalid-option] --output", "rules.yml"),
        (("--to", "vllm", "--profile", "narow"), 8, "registry[no-such-profile]", "'narrow'"),
        (("--to", "ray", "-o", "model/config.json"), 8, "registry[file-system]", "--output"),
    ],
)
def test_what_cant_be_exported_is_told_with_what_to_do(
    released: Qpack, arguments: tuple[str, ...], code: int, problem: str, says: str
) -> None:
    done = released("export", "small", *arguments)
    assert (done.code, done.out) == (code, "")
    assert problem in done.err
    assert says in done.err


def test_an_unknown_format_is_told_before_a_release_is_looked_for(released: Qpack) -> None:
    done = released("export", "nosuch", "--to", "kubernets")
    assert done.code == 2
    assert "error[invalid-option] --to" in done.err


def test_a_lint_for_another_vllm_says_how_to_give_it(released: Qpack) -> None:
    done = released("manifest", "lint", "small", "--vllm", "0.11.0")
    assert done.code == 3
    assert "environment[wrong-vllm]: the environment 'vllm' has 0.32.0, but 0.11.0 is required" in done.err
    assert "QPACK_ENV_VLLM=" in done.err


def test_a_dry_run_prints_the_command_and_leaves_nothing(released: Qpack) -> None:
    done = released("serve", "small", "--port", "8123", "--dry-run")
    assert done.code == 0
    assert "python -m vllm.entrypoints.openai.api_server" in done.out
    assert "--port=8123" in done.out
    assert not (released.home / "store").exists()


def test_a_port_that_is_in_use_is_found_before_anything_is_made(released: Qpack) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = released("serve", "small", "--port", str(port))
    assert done.code == 3, done.err
    assert f"environment[port]: port {port} " in done.err
    assert not (released.home / "envs").exists()
    assert not (released.home / "store").exists()


def test_a_release_is_shown_with_its_files(released: Qpack) -> None:
    files = json.loads(released("show", "small", "--json").out)["files"]
    shown = released("show", "small").out
    assert {file["path"] for file in files} >= {"release.json", "serving.json", "model/config.json"}
    assert [file["path"] for file in files if f"{file['path']} " not in shown] == []


def test_a_server_that_is_not_there_is_an_error_of_its_own(released: Qpack) -> None:
    for command in (("chat", "http://127.0.0.1:9", "hello"), ("drift", "http://127.0.0.1:9", "small")):
        done = released(*command)
        assert done.code == 5
        assert "127.0.0.1:9" in done.err


def test_a_bad_prompt_file_is_refused_before_anything_is_started(released: Qpack, tmp_path: Path) -> None:
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "a"}\n{"promt": "b"}\n')
    done = released("batch", "small", "prompts.jsonl", "-o", "out.jsonl")
    assert done.code == 5
    assert "error[bad-request] prompts.jsonl:2: " in done.err
    assert not (tmp_path / "out.jsonl").exists()


class OneAnswer(http.server.BaseHTTPRequestHandler):
    """Answers the prompt `0` and lets every other wait for ever."""

    left_waiting = threading.Event()

    def do_GET(self) -> None:
        self.answer({"data": [{"id": "m"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if body["messages"][0]["content"] not in ("Hello", "0"):
            self.left_waiting.set()
            threading.Event().wait()
        self.answer({"choices": [{"message": {"content": "nothing"}, "finish_reason": "stop"}]})

    def answer(self, data: object) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(data).encode())

    def log_message(self, *_: object) -> None:
        pass


def test_a_batch_that_is_stopped_keeps_its_answers_and_neither_it_nor_a_chat_waits_for_others(
    qpack: Qpack, tmp_path: Path
) -> None:
    (tmp_path / "prompts.txt").write_text("".join(f"{number}\n" for number in range(8)))
    out = tmp_path / "out.jsonl"
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), OneAnswer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        server.daemon_threads, server.block_on_close = True, False
        url = f"http://127.0.0.1:{server.server_port}"
        with qpack.started("batch", url, "prompts.txt", "-o", "out.jsonl", "--concurrency", "2") as running:
            wait_for(lambda: out.exists() and out.read_text().endswith("\n"), "nothing was answered")
            running.send_signal(signal.SIGINT)
            assert running.wait(PATIENCE) == 130
            assert running.stderr is not None
            assert "resumes" in running.stderr.read()
        OneAnswer.left_waiting.clear()
        with qpack.started("chat", url, "wait") as running:
            assert OneAnswer.left_waiting.wait(PATIENCE)
            running.send_signal(signal.SIGINT)
            assert running.wait(PATIENCE) == 130
            assert running.stderr is not None
            assert running.stderr.read() == "qpack: interrupted: all processes were stopped\n"
        server.shutdown()
    assert [json.loads(line)["line"] for line in out.read_text().splitlines()] == [1]
    stopped = qpack("batch", url, "prompts.txt", "-o", "out.jsonl")
    assert stopped.code == 5
    assert "evaluate[no-response]" in stopped.err


def test_a_batch_that_is_answered_already_starts_no_server(released: Qpack, tmp_path: Path) -> None:
    prompts, out = tmp_path / "prompts.jsonl", tmp_path / "out.jsonl"
    asked = {"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {"prompt": "x"}}
    prompts.write_text(json.dumps(asked) + "\n")
    out.write_text('{"custom_id": "a"}\n')
    done = released("batch", "small", prompts, "-o", out, "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["before"] == 1
    assert "starting" not in done.err
    assert out.read_text() == '{"custom_id": "a"}\n'


def test_the_schema_of_manifests_is_json(released: Qpack) -> None:
    assert json.loads(released("manifest", "schema").out)["title"] == "qpack serving manifest"


def test_a_profile_for_gpus_that_are_not_here_is_refused_before_anything_starts(released: Qpack) -> None:
    done = released("serve", "small", "--profile", "two-gpus")
    assert done.code == 3
    assert "environment[too-few-devices]" in done.err
    assert not (released.home / "envs").exists()


def test_a_release_that_brings_flags_of_any_kind_is_started_with_leave_alone(released: Qpack, tmp_path: Path) -> None:
    """Its maker can be a stranger, and such flags can run code. Nothing is started, and no environment is made."""
    (tmp_path / "prompts").write_text("Hello\n")
    for command in (
        ("serve", "small"),
        ("chat", "small", "Hello"),
        ("canary", "small"),
        ("batch", "small", "prompts", "-o", "answers"),
        ("serve", "small", "--dry-run"),
        ("drift", "http://127.0.0.1:9", "small"),
        ("export", "small", "--to", "vllm", "-o", "written"),
        ("export", "small", "--to", "prometheus", "-o", "written"),
    ):
        done = released(*command, "--profile", "gone")
        assert (done.code, done.out) == (8, ""), done
        assert "error[foreign-code] serving.json: arguments.worker-use-ray" in done.err
        assert not (released.home / "envs").exists()
    assert not (tmp_path / "written").exists()
    # With leave it is the GPUs that are missing.
    assert released("serve", "small", "--profile", "two-gpus", "--trust-release").code == 3
    assert released("export", "small", "--to", "ray", "--profile", "two-gpus", "--trust-release").code == 0


HOSTILE = {
    "a flag in a list": {"arguments": {"seed": ["0", "--trust-remote-code"]}},
    "a model in a list": {"arguments": {"seed": ["0", "evil/model"]}},
    "a flag of code": {"arguments": {"worker-cls": "evil.Worker"}},
    "the beginning of a flag": {"arguments": {"trust-remote": True}},
    "a parser of nobody": {"arguments": {"tool-call-parser": "evil"}},
    "a library": {"environment": {"LD_PRELOAD": "/tmp/evil.so"}},
    "an image": {"engine": {"version": "0.32.0", "image": "evil.example/vllm:1"}},
    "a directive": {"model": {"name": "small", "digest": "", "served_model_name": "x\nExecStartPre=+/bin/id"}},
    "code in a probe": {"probes": {"health": "/'+__import__('os').system('id')+'"}},
    "a line of a shell": {"profiles": {"x\nid": {}}},
    "an escape of a terminal": {"hardware": "cpu\x1b[31m"},
    "text that is reordered": {"metrics": ["\u202ea"]},
}


@pytest.mark.parametrize("said", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_manifest_starts_nothing_and_is_written_nowhere(
    qpack: Qpack, tmp_path: Path, said: dict[str, object]
) -> None:
    model = tmp_path / "model"
    checkpoint(model)
    (model / "tokenizer.json").write_text("{}")
    publish(model, qpack.home / "registry", tmp_path / "scratch", "0.32.0", said)
    for command in (("chat", "small", "Hello"), ("serve", "small", "--dry-run")):
        done = qpack(*command)
        assert (done.code, done.out) == (8, ""), done
        assert "serving.json: " in done.err
        assert all(line.isprintable() for line in done.err.split("\n"))
    for form in ("systemd", "compose"):
        done = qpack("export", "small", "--to", form, "-o", "written")
        assert (done.code, done.out) == (8, ""), done
        assert "serving.json: " in done.err
    assert not (tmp_path / "written").exists()
    assert not (qpack.home / "envs").exists()


def test_a_recipe_with_a_flag_that_no_server_can_have_ends_with_its_field(qpack: Qpack, tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "recipes" / "smollm2-135m-gptq.yaml").read_text()
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(text.replace("enforce-eager: true", 'seed: [0, "--trust-remote-code"]'))
    done = qpack("plan", recipe)
    assert done.code == 2, done
    line = 1 + text.partition("  arguments:")[0].count("\n")
    assert f"recipe.yaml:{line}: serve.arguments" in done.err
