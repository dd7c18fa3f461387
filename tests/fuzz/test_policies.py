"""Policies, gates, history, references and flags: read or refused with a place, and no policy is lost by its damage."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from qpack.recipe import gate_policy
from qpack.serve import bench
from registry.core.journal import Journal
from registry.core.protocol import Event, Ref
from registry.local import alias_policy
from tests.fuzz.law import fuzz, refused_or_read
from tests.fuzz.mutations import damaged, documents, json_lines, texts, yaml_documents

POLICY: dict[str, Any] = {
    "aliases": {
        "production": {
            "verdict": "pass",
            "signed_by": ["release.pub"],
            "identities": [{"identity": "a@example.org", "issuer": "https://issuer.example.org"}],
            "hardware": ["hopper"],
            "min_accuracy_samples": 500,
            "min_perplexity_windows": 16,
        },
        "staging": {"verdict": "any"},
    }
}
GATES = {"gates": {"accuracy_drop": 0.02, "perplexity_ratio": 1.1, "size_ratio": 0.5}}
EVENT = Event(
    id="1",
    when="2026-01-02T03:04:05Z",
    who="me",
    what="promote",
    name="small",
    version="2",
    digest="sha256:" + "1" * 64,
    alias="production",
    previous="1",
    note="why",
    verdict="pass",
)


@fuzz
@given(content=yaml_documents(POLICY))
def test_a_promotion_policy_is_read_or_refused_by_its_name(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "release.pub").write_text("a key")
    (tmp_path / alias_policy.FILE).write_bytes(content)
    found = refused_or_read(lambda: alias_policy.of_registry(tmp_path), where=alias_policy.FILE)
    # A policy that can't be read is an error, never no policy.
    assert found is None or found.aliases


@fuzz
@given(content=yaml_documents(GATES))
def test_gates_are_read_or_refused_by_their_file(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "gates.yaml"
    file.write_bytes(content)
    found = refused_or_read(lambda: gate_policy.load(file))
    assert found is None or found.values


@fuzz
@given(content=json_lines([EVENT.model_dump(mode="json"), {**EVENT.model_dump(mode="json"), "id": "2"}]))
def test_a_history_is_read_or_refused_by_its_file(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "history.jsonl"
    file.write_bytes(content)
    events = refused_or_read(lambda: Journal(file).read(EVENT), where="history.jsonl")
    assert events is None or all(isinstance(event, Event) for event in events)


@fuzz
@given(text=st.one_of(texts, damaged(b"org/small:v1@sha256:" + b"ab" * 32).map(lambda b: b.decode("utf-8", "replace"))))
def test_a_reference_is_one_or_refused(text: str) -> None:
    found = refused_or_read(lambda: Ref.parse(text))
    assert found is None or Ref.parse(str(found)) == found


@fuzz
@given(setting=st.one_of(texts, texts.map(lambda value: f"max-num-seqs={value}"), texts.map(lambda n: f"--{n}=1")))
def test_a_flag_of_the_command_line_is_read_or_refused(setting: str) -> None:
    refused_or_read(lambda: bench.flags([setting]), where="--flag")
    refused_or_read(lambda: bench.objective([setting]), where="--slo")


@fuzz
@given(content=json_lines([{"prompt": "Once upon a time"}, {"prompt": "There"}]))
def test_prompts_of_a_bench_are_taken_or_refused(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_bytes(content)
    refused_or_read(lambda: bench.check_prompts(file), where="prompts.jsonl")


@fuzz
@given(document=documents({"model_type": "llama", "hidden_size": 64}))
def test_a_config_given_by_hand_is_an_object_or_refused(document: bytes, tmp_path: Path) -> None:
    from qpack.cli.options import read_config

    file = tmp_path / "config.json"
    file.write_bytes(document)
    found = refused_or_read(lambda: read_config(file))
    assert found is None or json.dumps(found)
