"""`qpack bench` on things that can't be measured: told before anything is started."""

from __future__ import annotations

import json
from pathlib import Path

from tests.scenarios.command import Qpack


def ready(qpack: Qpack) -> Qpack:
    """With an interpreter that stands in for the environment: these commands must end before it is used."""
    return Qpack(qpack.home, qpack.cwd, {**qpack.variables, "QPACK_ENV_VLLM": str(qpack.python)})


def test_a_folder_that_is_not_there_is_exit_2(qpack: Qpack) -> None:
    done = ready(qpack)("bench", "no/such/folder")
    assert done.code == 2
    assert "no/such/folder" in done.err


def test_a_checkpoint_without_weights_is_exit_2_and_names_the_option(qpack: Qpack, tmp_path: Path) -> None:
    folder = tmp_path / "shape"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    done = ready(qpack)("bench", str(folder))
    assert done.code == 2
    assert "--random-weights" in done.err


def test_a_release_that_is_not_there_is_exit_8(qpack: Qpack) -> None:
    assert ready(qpack)("bench", "nosuch").code == 8


def test_a_server_that_is_not_up_is_exit_5(qpack: Qpack) -> None:
    done = ready(qpack)("bench", "http://127.0.0.1:9")
    assert done.code == 5
    assert "http://127.0.0.1:9" in done.err


def test_no_load_at_all_is_exit_2(qpack: Qpack) -> None:
    done = ready(qpack)("bench", "x", "--concurrency", "")
    assert done.code == 2
    assert "--concurrency" in done.err


def test_a_load_generator_that_nobody_knows_is_exit_2(qpack: Qpack) -> None:
    done = ready(qpack)("bench", "x", "--also", "guidellm,wrk")
    assert done.code == 2
    assert "--also wrk" in done.err


def test_levels_that_are_no_numbers_are_exit_2(qpack: Qpack) -> None:
    done = ready(qpack)("bench", "x", "--concurrency", "1;4")
    assert done.code == 2
    assert "--concurrency" in done.err


def test_prompts_that_are_none_are_exit_2_with_their_line(qpack: Qpack, tmp_path: Path) -> None:
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "one"}\n{"text": "two"}\n')
    done = ready(qpack)("bench", "x", "--prompts", "prompts.jsonl")
    assert done.code == 2
    assert "error[bad-prompt] prompts.jsonl:2: " in done.err
