"""Real workers and a real vLLM that die, hang, can't start or are stopped: what is said, and that nothing is left."""

from __future__ import annotations

import json
import signal
import socket
from pathlib import Path

import pytest

from tests.patience import PATIENCE
from tests.scenarios.command import Finished, Qpack
from tests.scenarios.conftest import REAL, lay_out

pytestmark = pytest.mark.engines

TOKENS = "tokens_worker.py"


@pytest.fixture(scope="module")
def quantized(
    tiny_model: Path, engine_home: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Qpack, Finished, int]:
    """A build that got as far as the server and found its port taken: the home, how it ended, and the port."""
    qpack = lay_out(tmp_path_factory.mktemp("quantized") / "folder", tiny_model, engine_home)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        return qpack, qpack("build", "recipe.yaml", "--set", f"serve.port={port}", timeout=600), port


def log_of(done: Finished) -> str:
    """The text of the log that the error names."""
    return Path(done.err.rpartition("Log: ")[2].strip()).read_text()


def test_a_port_in_use_is_named_with_the_way_out(quantized: tuple[Qpack, Finished, int]) -> None:
    qpack, done, port = quantized
    assert done.code == 3, done.err
    assert f"environment[port]: port {port} " in done.err
    assert "serve.port" in done.err
    assert qpack.finished() == ["fetch", "hold_out", "quantize"]
    assert not qpack.half_done()
    assert qpack.ended()


def test_stages_are_plain_lines_without_a_terminal(quantized: tuple[Qpack, Finished, int]) -> None:
    _, done, _ = quantized
    assert done.out == ""
    assert "\x1b" not in done.err
    assert [line.partition(":")[0] for line in done.err.splitlines() if line.startswith("[")] == [
        "[1/9] fetch",
        "[2/9] hold_out",
        "[3/9] calibrate",
        "[4/9] quantize",
        "[5/9] baseline",
    ]


def test_vllm_that_fails_to_start_is_told_in_its_own_words(quantized: tuple[Qpack, Finished, int]) -> None:
    qpack, _, _ = quantized
    done = qpack("build", "recipe.yaml", "--set", "serve.arguments.no-such-flag=true", timeout=300)
    assert done.code == 5, done.err
    assert "evaluate[server-ended]" in done.err
    assert ": --no-such-flag" in done.err
    assert "--no-such-flag" in log_of(done)
    assert "from the store" in done.err  # what was finished wasn't run again
    assert qpack.finished() == ["fetch", "hold_out", "quantize"]
    assert not qpack.half_done()
    assert qpack.ended()


def test_a_server_that_is_not_ready_in_time_is_stopped(quantized: tuple[Qpack, Finished, int]) -> None:
    qpack, _, _ = quantized
    done = qpack("build", "recipe.yaml", "--set", "limits.server_start_minutes=0.05", timeout=300)
    assert done.code == 5, done.err
    assert "evaluate[server-not-ready]: vLLM was not ready after 3 s" in done.err
    assert "limits.server_start_minutes" in done.err
    assert qpack.ended()


def test_a_calibration_set_of_rows_that_are_too_short_says_what_became_of_them(
    quantized: tuple[Qpack, Finished, int],
) -> None:
    qpack, _, _ = quantized
    (qpack.cwd / "short.txt").write_text("".join(f"row {i}\n" for i in range(8)))
    calibration = "calibration:\n  source: short.txt\n  samples: 4\nquantize:\n"
    (qpack.cwd / "gptq.yaml").write_text(
        REAL.replace("quantize:\n", calibration).replace("method: rtn", "method: gptq")
    )
    done = qpack("build", "gptq.yaml")
    assert done.code == 4, done.err
    assert "the calibration set is too small: 4 rows asked for, 0 usable of 8 (8 short" in done.err
    assert "calibration.min_length" in done.err
    assert "calibrate" not in qpack.finished()
    assert not qpack.half_done()


def test_a_worker_that_is_killed_is_an_error_that_names_its_log(real: Qpack) -> None:
    with real.started("build", "recipe.yaml") as running:
        real.worker(TOKENS).kill()
        _, err = running.communicate(timeout=PATIENCE)
    assert running.returncode == 4
    assert "tokens_worker was killed (SIGKILL)" in err
    assert "memory" in err
    assert Path(err.rpartition("Log: ")[2].strip()).exists()
    assert real.finished() == ["fetch"]
    assert not real.half_done()
    assert real.ended()


def test_a_worker_that_hangs_is_stopped_at_its_limit(real: Qpack) -> None:
    with real.started("build", "recipe.yaml", "--set", "limits.stage_minutes=0.02") as running:
        # Stopped, it does nothing and ignores SIGTERM: the hardest way to hang.
        real.worker(TOKENS).suspend()
        _, err = running.communicate(timeout=PATIENCE)
    assert running.returncode == 4
    assert "tokens_worker was stopped: it did not finish within 1 s" in err
    assert "Raise limits.stage_minutes" in err
    assert not real.half_done()
    assert real.ended()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_build_that_is_interrupted_leaves_nothing_running_and_goes_on_later(
    number: signal.Signals, real: Qpack
) -> None:
    with real.started("build", "recipe.yaml") as running:
        real.worker(TOKENS)
        running.send_signal(number)
        out, err = running.communicate(timeout=PATIENCE)
    assert running.returncode == 130
    assert out == ""
    assert "Traceback" not in err
    assert "qpack: interrupted: " in err
    assert "resumes" in err
    assert real.finished() == ["fetch"]
    assert not real.half_done()
    assert real.ended()
    (fetch, *_) = [step for step in _steps(real) if step["stage"] == "fetch"]
    assert fetch["done"]


def _steps(qpack: Qpack) -> list[dict[str, object]]:
    steps: list[dict[str, object]] = json.loads(qpack("plan", "recipe.yaml", "--json").out)["steps"]
    return steps
