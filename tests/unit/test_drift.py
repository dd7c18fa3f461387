from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import tests.unit.registry_examples as examples
from evals.server import drift
from qpack.core.hashing import digest_tree
from registry.serving.serving_manifest import settings, vllm_arguments
from tests.unit.export_examples import manifest

METRICS = 'vllm:a_total{engine="0"} 1.0\nvllm:cache_config_info{kv_cache_memory_bytes="536870912"} 1.0\n'
EXPECTED = drift.Expected(
    version="0.32.0",
    model="small",
    max_model_len=2048,
    flags={"dtype": "bfloat16", "enforce-eager": True, "kv-cache-memory-bytes": "536870912"},
    metrics=("vllm:a_total",),
)
SEEN = drift.Seen(
    version="0.32.0",
    models={"small": 2048},
    fingerprint="vllm-0.32.0-bce348db",
    metrics=METRICS,
    flags={"dtype": "bfloat16", "enforce-eager": True, "kv-cache-memory-bytes": 536870912, "port": "1"},
    source=drift.COMMAND_LINE,
)


def test_a_server_that_is_as_it_was_made_has_not_drifted() -> None:
    assert drift.compare(EXPECTED, SEEN).differences == ()


def test_every_difference_is_named_with_both_sides() -> None:
    seen = replace(
        SEEN,
        version="0.33.0",
        models={"small": 4096},
        fingerprint="vllm-0.33.0-tp2-bce348db",
        metrics="",
        flags={**SEEN.flags, "dtype": "float16", "max-num-seqs": "4"} if SEEN.flags else None,
    )
    found = {d.what: (d.expected, d.found) for d in drift.compare(EXPECTED, seen).differences}
    assert found == {
        "version": ("0.32.0", "0.33.0"),
        "max_model_len": ("2048", "4096"),
        "system_fingerprint": ("vllm-0.32.0", "vllm-0.33.0-tp2"),
        "--dtype": ("bfloat16", "float16"),
        "--max-num-seqs": ("not set", "4"),
        "metric vllm:a_total": ("there", "missing"),
    }


def test_another_model_is_one_difference() -> None:
    found = drift.compare(EXPECTED, replace(SEEN, models={"other": 2048})).differences
    assert [(d.what, d.found) for d in found] == [("model", "other")]


def test_where_arguments_cant_be_seen_that_is_said_and_the_rest_compared() -> None:
    far = replace(SEEN, flags=None, source="nowhere", metrics=METRICS.replace("536870912", "1"))
    found = drift.compare(EXPECTED, far)
    assert [d.what for d in found.differences] == ["--kv-cache-memory-bytes"]
    assert found.unseen == ("dtype", "enforce-eager")


@pytest.mark.parametrize(
    ("flags", "prints"),
    [
        ({}, "vllm-0.32.0"),
        ({"tensor-parallel-size": "2"}, "vllm-0.32.0-tp2"),
        ({"data-parallel-size": "4", "pipeline-parallel-size": "2"}, "vllm-0.32.0-pp2-dp4"),
        ({"tensor-parallel-size": "8", "enable-expert-parallel": True}, "vllm-0.32.0-tp8-ep"),
        ({"tensor-parallel-size": "8", "fingerprint-mode": "hash"}, "vllm-0.32.0"),
    ],
)
def test_the_fingerprint_of_a_release_is_known_but_for_its_hash(flags: dict[str, Any], prints: str) -> None:
    def differ(fingerprint: str) -> list[tuple[str, str]]:
        wanted, seen = replace(EXPECTED, flags=flags), replace(SEEN, flags=flags, fingerprint=fingerprint)
        return [(d.what, d.expected) for d in drift.compare(wanted, seen).differences]

    assert differ(f"{prints}-bce348db") == []
    assert differ("vllm-0.32.0-tp3-bce348db") == [("system_fingerprint", prints)]


def test_a_fingerprint_of_one_s_own_is_compared_whole_and_one_left_out_is_not() -> None:
    own = {"fingerprint-mode": "custom", "fingerprint-value": "a-b"}
    for flags, fingerprint, count in ((own, "a-b", 0), (own, "a-c", 1), ({"fingerprint-mode": "none"}, None, 0)):
        found = drift.compare(replace(EXPECTED, flags=flags), replace(SEEN, flags=flags, fingerprint=fingerprint))
        assert len(found.differences) == count


def test_the_manifest_s_variables_are_compared_and_others_are_not() -> None:
    wanted = replace(EXPECTED, environment={"VLLM_A": "1", "VLLM_B": "2"})
    found = drift.compare(wanted, replace(SEEN, environment={"VLLM_A": "1", "VLLM_B": "3", "HOME": "/"}))
    assert [(d.what, d.expected, d.found) for d in found.differences] == [("VLLM_B", "2", "3")]
    assert found.unseen == ()
    assert drift.compare(wanted, SEEN).unseen == ("VLLM_A", "VLLM_B")


@pytest.mark.parametrize(("there", "count"), [("True", 0), ("False", 1)])
def test_a_default_that_was_changed_is_seen_from_elsewhere_too(there: str, count: int) -> None:
    metrics = METRICS.replace("info{", f'info{{cache_dtype="auto",enable_prefix_caching="{there}",')
    far = replace(SEEN, flags=None, source="nowhere", metrics=metrics)
    wanted = replace(EXPECTED, defaults={"enable-prefix-caching": True, "kv-cache-dtype": "auto"})
    found = drift.compare(wanted, far).differences
    assert [(d.what, d.expected, d.found) for d in found] == [("--enable-prefix-caching", "true", "false")] * count
    assert drift.compare(EXPECTED, far).differences == ()


def test_files_that_arent_the_release_s_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in (("config.json", "{}"), ("model.safetensors", "weights"), ("tokenizer.json", "words")):
        (tmp_path / name).write_text(text)
    records, _ = digest_tree(tmp_path)
    assert drift.changed_files(tmp_path, records) == drift.Drift((), drift.COMMAND_LINE)
    (tmp_path / "config.json").write_text("[]")
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "model.safetensors").write_text("wEights")
    found = drift.changed_files(tmp_path, records).differences
    assert [d.what for d in found] == ["model/config.json", "model/model.safetensors", "model/tokenizer.json"]
    assert (found[2].expected, found[2].found) == ("there", "missing")
    # Weights too large to be read are told apart by their size alone.
    monkeypatch.setattr(drift, "SMALL", 4)
    assert "model/model.safetensors" not in [d.what for d in drift.changed_files(tmp_path, records).differences]
    (tmp_path / "model.safetensors").write_text("more weights")
    assert ("7 bytes", "12 bytes") in [
        (d.expected, d.found) for d in drift.changed_files(tmp_path, records).differences
    ]
    assert drift.changed_files(None, records).unseen == ("the model's files",)


def test_flags_are_read_back_as_they_are_written() -> None:
    made = examples.serving().model_copy(update={"arguments": {**manifest().profiles["two-gpus"].arguments}})
    made = made.model_copy(
        update={"arguments": {k: v for k, v in made.arguments.items() if v is not None} | {"middleware": ["a", "b"]}}
    )
    found = drift.parse(vllm_arguments(made, "m", host="h", port=1))
    wanted = dict(settings(made, "m", host="h", port=1))
    assert set(found) == set(wanted)
    seen = replace(SEEN, flags=wanted, fingerprint="vllm-0.32.0-tp2-bce348db")
    assert drift.compare(replace(EXPECTED, flags=found, model="small"), seen).differences == ()


def test_a_file_of_flags_that_holds_none_is_an_error_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "vllm.yaml").write_text("- seed\n")
    with pytest.raises(ValueError, match="has no flags"):
        drift._with_config({"config": "vllm.yaml"}, tmp_path)
