"""The planted defect study without servers: a damage that is there is caught, and the undamaged artifact isn't."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from evals.measure.divergence import load
from tests.unit.evidence_samples import accuracy, language, write_logprobs

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import planted_tables as study


def answers(folder: Path, name: str, *, seed: int = 0, noise: float = 0.3, harm: float = 0.02) -> study.Answers:
    """What a server said of a made-up model; `noise` moves its distribution, `harm` its right answers."""
    quantized = name != "baseline"
    top = load(write_logprobs(folder / f"{name}.npz", quantized=quantized, seed=seed, noise=noise))
    return study.Answers(accuracy(quantized=quantized, harm=harm), language(quantized=quantized), top)


def test_a_moved_distribution_fails_and_the_undamaged_artifact_passes(tmp_path: Path) -> None:
    baseline, good = answers(tmp_path, "baseline"), answers(tmp_path, "good")
    bounds = study.bounds_of(study.Paired.of(baseline, good))
    bad = study.Paired.of(baseline, answers(tmp_path, "bad", noise=1.5)).figures(0)
    assert study.judged(bad, bounds)["kl_divergence"] == "fail"
    assert "fail" not in study.judged(study.Paired.of(baseline, good).figures(0), bounds).values()


def test_a_draw_keeps_pairs_together_and_windows_whole(tmp_path: Path) -> None:
    whole = study.Paired.of(answers(tmp_path, "baseline"), answers(tmp_path, "good"))
    drawn = whole.draw(0.5, np.random.default_rng(0))
    assert len(drawn.tokens) == -(-len(whole.tokens) // 2)
    for (b, a), (whole_b, whole_a) in zip(drawn.tasks, whole.tasks, strict=True):
        assert set(zip(b, a, strict=True)) <= set(zip(whole_b, whole_a, strict=True))
    sizes = np.bincount(whole.window.astype(int))
    assert set(np.bincount(drawn.window.astype(int))) <= set(sizes)


def test_the_tables_name_every_subject_every_false_alarm_and_what_was_said_before_any_gate(tmp_path: Path) -> None:
    subjects = {"good": answers(tmp_path, "good"), "bad": answers(tmp_path, "bad", noise=1.5)}
    controls = {f"control {n}": answers(tmp_path, f"control{n}", seed=0, noise=0.3 + n / 100) for n in (1, 2)}
    text = "\n".join(study.tables(answers(tmp_path, "baseline"), subjects, controls, {"lost": "refused: gone"}, 2))
    assert "refused: gone" in text
    assert "2 controls as they were measured" in text
    assert "False alarms: " in text
    assert text.count("| bad |") >= 2


def test_the_fewest_samples_are_those_from_which_on_a_gate_nearly_always_fails() -> None:
    assert study._fewest({0.5: 0.2, 1.0: 0.96, 2.0: 1.0}, 24) == "24"
    assert study._fewest({0.5: 1.0, 1.0: 0.5, 2.0: 1.0}, 24) == "48"
    assert study._fewest({0.5: 1.0, 1.0: 1.0, 2.0: 0.9}, 24) == "-"
