"""`qpack bench` on a real, very small model: everything that it measures, in one run of a real vLLM."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evals.comparison import speculative
from qpack.core.speed import Run
from tests.scenarios.command import Finished, Qpack

pytestmark = [pytest.mark.engines, pytest.mark.slow("a benchmark of a real vLLM, with each kind of load")]

DRAFT = "speculative-config={method: ngram, num_speculative_tokens: 3, prompt_lookup_max: 4, prompt_lookup_min: 1}"


@pytest.fixture(scope="module")
def repeating(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The very small model made to stay with a token for a while and then go on to another, so that what an n-gram
    draft guesses is sometimes right: tied to its embeddings, with layers that add little.
    """
    folder = tmp_path_factory.mktemp("repeating") / "model"
    shutil.copytree(tiny_model, folder)
    data = bytearray((folder / "model.safetensors").read_bytes())
    first = 8 + int.from_bytes(data[:8], "little")
    # Views of bfloat16 as integers: the upper half of a float32.
    tensors = {
        name: np.frombuffer(
            memoryview(data)[first + tensor["data_offsets"][0] : first + tensor["data_offsets"][1]], "<u2"
        )
        for name, tensor in json.loads(data[8:first]).items()
        if name != "__metadata__"
    }
    tensors["lm_head.weight"][:] = tensors["model.embed_tokens.weight"]
    for name, bits in tensors.items():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            bits[:] = ((bits.astype("<u4") << 16).view("<f4") * np.float32(0.1)).view("<u4") >> 16
    (folder / "model.safetensors").write_bytes(data)
    return folder


@pytest.fixture(scope="module")
def benched(repeating: Path, engine_home: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Finished, Any]:
    """The model with an n-gram draft, put under every kind of load: what was printed, and the JSON."""
    folder = tmp_path_factory.mktemp("bench")
    (folder / "home").mkdir()
    (folder / "home" / "envs").symlink_to(engine_home / "envs")
    texts = [json.dumps({"prompt": f"one two three {i} one two three {i} one two three"}) for i in range(6)]
    (folder / "prompts.jsonl").write_text("\n".join(texts))
    done = Qpack(folder / "home", folder, {"VLLM_CPU_OMP_THREADS_BIND": "nobind"})(
        "bench", repeating, "--concurrency", "1,2", "--rate", "4", "--rate-seconds", "3",
        "--input-tokens", "16", "--output-tokens", "12",
        "--prefix-tokens", "64", "--repeats", "2", "--slo", "end_to_end_ms=60000", "--kv-cache-gib", "0.1",
        "--flag", "enforce-eager", "--flag", DRAFT, "--prompts", "prompts.jsonl", "--against-transformers",
        "--output", "out.json", timeout=900,
    )  # fmt: skip
    assert done.code == 0, done.err
    return done, json.loads((folder / "out.json").read_text())[0]


def test_closed_and_open_loops_have_runs_with_every_time_and_no_failure(benched: tuple[Finished, Any]) -> None:
    latency = benched[1]["latency"]
    assert [level["concurrency"] for level in latency["levels"]] == [1, 2]
    (opened,) = latency["open_levels"]
    runs = [run for level in (*latency["levels"], opened) for run in level["runs"]]
    # Runs go on until the medians are known, so there may be more than the two that were asked for.
    assert all(len(level["runs"]) >= 2 for level in (*latency["levels"], opened))
    for run in runs:
        assert (run["failed"], run["good"]) == (0, run["completed"])
        assert run["output_tokens"] == 12 * run["completed"]
        for name in ("ttft_ms", "inter_token_ms", "time_per_output_token_ms", "end_to_end_ms"):
            times = run[name]
            assert 0 <= times["p50"] <= times["p90"] <= times["p95"] <= times["p99"]
        assert run["ttft_ms"]["p50"] <= run["end_to_end_ms"]["p50"]
    assert latency["prefix"]["shared_tokens"] == 64
    assert min(latency["prefix"]["hit_ttft_ms"], latency["prefix"]["miss_ttft_ms"]) > 0


def test_memory_is_as_the_server_says_with_the_cache_that_was_asked_for(benched: tuple[Finished, Any]) -> None:
    held = benched[1]["footprint"]
    assert held["kv_cache_bytes"] == pytest.approx(0.1 * 2**30, rel=0.01)
    assert held["longest_context_tokens"] == min(held["kv_cache_tokens"], 512)
    assert held["resident_bytes"] > held["kv_cache_bytes"]


def test_a_server_with_a_draft_is_loaded_in_turn_with_the_same_server_without_it(benched: tuple[Finished, Any]) -> None:
    found = benched[1]["drafting"]
    assert found["apart"] is None
    assert [len(level["rounds"]) for level in found["levels"]] == [4, 4]
    rounds = [turn for level in found["levels"] for turn in level["rounds"]]
    assert all(turn["reference"]["drafts"] is None for turn in rounds), "the server without the draft drafted"
    assert "with and without the draft, interleaved: 1 at once:" in benched[0].out


def test_what_the_draft_guessed_right_is_the_servers_own_count_and_is_printed(benched: tuple[Finished, Any]) -> None:
    done, found = benched
    alone, in_turn = found["latency"]["levels"], found["drafting"]["levels"]
    loads = [(f"draft, {level['concurrency']} at once, random tokens", level["runs"]) for level in alone]
    loads += [
        (
            f"with and without the draft, interleaved: {level['concurrency']} at once",
            [turn["subject"] for turn in level["rounds"]],
        )
        for level in in_turn
    ]
    assert len(loads) == 4
    for said, raw in loads:
        runs = [Run.model_validate(run) for run in raw]
        for run, counted in ((run, run.drafts) for run in runs if run.drafts):
            assert 0 <= counted.accepted_tokens <= counted.draft_tokens <= 3 * counted.drafts
            # A step gives one token and those that were accepted; the last ones may be beyond the end of the answer.
            assert counted.drafts + counted.accepted_tokens <= run.output_tokens + 3 * run.completed
        rate, length = speculative.accepted(runs)
        assert rate is not None, said
        assert 0 < rate <= 1
        assert f"{said}: {rate:.0%} of the drafted tokens accepted, {length:.2f} tokens per step" in done.out


def test_the_table_is_the_fields_and_plain_transformers_stand_beside_it(benched: tuple[Finished, Any]) -> None:
    done, found = benched
    head = done.out.splitlines()[0]
    for column in ("model", "quantization", "KV tokens", "TTFT p50/p95/p99 ms", "output tok/s", "goodput req/s"):
        assert column in head
    assert [batch["batch"] for batch in found["plain"]["batches"]] == [1, 2]
    assert "times that" in done.out
