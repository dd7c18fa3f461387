"""Claims about the canary in a build: what is asked follows from the manifest, and a failed check stops the release."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import tests.unit.registry_examples as examples
from evals.comparison.verdicts import verdict
from evals.report import html_report
from qpack.cli.render.figures import figures
from qpack.core.records import Check, Proof, Release
from qpack.pipeline.planned_serving import promise
from quantize.checkpoint.source import Source
from registry.release import card
from registry.serving.serving_manifest import ServedModel, ServingEngine, ServingManifest, select
from tests.unit.evidence_samples import BOUNDS, make_release

KEPT = Check(name="stop", claim="A stop string ends the answer.", outcome="pass", why="stopped at 'sea'")
BROKEN = Check(name="structured", claim="A JSON schema binds.", outcome="fail", why="'The sea' isn't of the schema")
NOT_ASKED = Check(name="tools", claim="A tool is called.", outcome="skip", why="the manifest declares no tools")


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Release:
    return make_release(tmp_path_factory.mktemp("logprobs"))


def proved(release: Release, *checks: Check) -> Release:
    artifact = release.artifact.model_copy(update={"proof": Proof(clients={"openai": "3.3.0"}, checks=checks)})
    found = verdict(release.comparison, release.baseline, artifact, {"size_ratio": 0.9})
    return release.model_copy(update={"artifact": artifact, "verdict": found})


def test_a_failed_check_fails_the_verdict_in_its_own_words_whatever_the_bounds(release: Release) -> None:
    found = proved(release, KEPT, BROKEN, NOT_ASKED).verdict
    assert (found.outcome, [gate.outcome for gate in found.gates]) == ("fail", ["pass", "fail"])
    assert found.gates[-1].gate == "canary"
    assert "structured: A JSON schema binds. Seen: 'The sea' isn't of the schema" in found.gates[-1].why


def test_a_check_that_can_t_be_made_is_passed_over_with_its_reason(release: Release) -> None:
    found = proved(release, KEPT, NOT_ASKED).verdict
    assert found.outcome == "pass"
    assert found.gates[-1].why == "1 checks passed; skipped: tools (the manifest declares no tools)."


def test_a_proof_without_a_single_check_proves_nothing(release: Release) -> None:
    assert proved(release, NOT_ASKED).verdict.outcome == "fail"


def test_evidence_without_a_proof_is_judged_by_its_bounds_alone(release: Release) -> None:
    found = verdict(release.comparison, release.baseline, release.artifact, BOUNDS)
    assert "canary" not in {gate.gate for gate in found.gates}


def test_report_card_and_show_say_what_was_asked_and_seen(
    release: Release, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    found = proved(release, KEPT, BROKEN, NOT_ASKED)
    figures(found)
    shown = capsys.readouterr().out
    assert "canary: structured failed: 'The sea' isn't of the schema" in shown
    assert "canary: tools skipped: the manifest declares no tools" in shown
    texts = {"report": html_report.render(found), "card": card.render(found, examples.serving())}
    assert "structured: A JSON schema binds. Seen:" in texts["report"].partition('id="gates"')[0], "it comes first"
    for name, text in texts.items():
        for words in ("stopped at", "A JSON schema binds.", "skipped", "openai 3.3.0"):
            assert words in text, (name, words)


def manifest(**arguments: object) -> ServingManifest:
    return ServingManifest.model_validate(
        {
            "model": ServedModel(name="m", digest="", served_model_name="m"),
            "engine": ServingEngine(version="0.32.0"),
            "hardware": "cpu",
            "dtype": "auto",
            "max_model_len": 512,
            "kv_cache_memory_bytes": None,
            "arguments": arguments,
            "acceptance_floor": 0.25,
            "profiles": {"drafts": {"acceptance_floor": 0.5, "arguments": {"speculative-config": {"method": "ngram"}}}},
        }
    )


def test_what_is_asked_is_what_the_manifest_says() -> None:
    plain = promise(manifest())
    assert (plain.tools, plain.prefix_caching, plain.drafting, plain.logprobs) == (False, True, False, 20)
    assert "vllm:spec_decode_num_draft_tokens_total" not in plain.metrics
    told = promise(manifest(**{"enable-auto-tool-choice": True, "enable-prefix-caching": False, "max-logprobs": 0}))
    assert (told.tools, told.prefix_caching, told.logprobs) == (True, False, 0)
    assert promise(manifest(**{"max-logprobs": -1})).logprobs == 20


def test_a_picture_is_asked_of_a_model_that_reads_images_and_thinking_of_one_with_a_parser() -> None:
    def of(config: dict[str, Any], **arguments: Any) -> tuple[bool, bool]:
        found = promise(manifest(**arguments), Source("m", "folder", "m", None, None, (), config))
        return found.images, found.thinking

    eye = {"vision_config": {"depth": 2}}
    assert of({}) == of({"vision_config": None}) == (False, False)
    assert of(eye) == (True, False)
    assert of(eye, **{"limit-mm-per-prompt": {"image": 0}}) == (False, False)
    assert of(eye, **{"limit-mm-per-prompt": '{"image": 1}', "reasoning-parser": "qwen3"}) == (True, True)
    assert promise(manifest()).images is False


def test_a_profile_has_its_own_floor() -> None:
    drafts = promise(select(manifest(), "drafts"))
    assert (drafts.drafting, drafts.acceptance_floor) == (True, 0.5)
    assert "vllm:spec_decode_num_draft_tokens_total" in drafts.metrics
    assert promise(manifest()).acceptance_floor == 0.25
