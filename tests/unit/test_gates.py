from __future__ import annotations

import ast
import math
import re
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from evals.gates import gates
from evals.gates.gates import GATES, Gates, decide, figure, judge, samples_needed
from qpack.core.records import Estimate, Evidence, Release, Verdict
from tests.unit.evidence_samples import BOUNDS, CONCURRENCIES, TASKS, estimate, evidence, make_release

RANK = {"fail": 0, "undecided": 1, "pass": 2}
finite = st.floats(-1000, 1000)


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Release:
    return make_release(tmp_path_factory.mktemp("logprobs"))


@st.composite
def estimates(draw: st.DrawFn) -> Estimate:
    low, value, high = sorted(draw(st.tuples(finite, finite, finite)))
    samples = draw(st.integers(1, 10_000))
    return estimate(value, low, high, samples) if draw(st.booleans()) else estimate(value, samples=samples)


@given(estimates(), finite, st.floats(0, 100), st.sampled_from(["max", "min"]))
def test_a_looser_bound_never_makes_an_outcome_worse(figures: Estimate, bound: float, slack: float, kind: str):
    looser = bound + slack if kind == "max" else bound - slack
    strict, loose = decide(figures, kind, bound)[0], decide(figures, kind, looser)[0]
    assert RANK[loose] >= RANK[strict]


@given(estimates(), finite)
def test_a_ceiling_is_a_floor_seen_in_a_mirror(figures: Estimate, bound: float):
    interval = figures.interval
    mirrored = estimate(-figures.value, -interval.high, -interval.low) if interval else estimate(-figures.value)
    assert decide(figures, "max", bound)[0] == decide(mirrored, "min", -bound)[0]


@given(estimates(), finite, st.sampled_from(["max", "min"]))
def test_a_figure_that_passes_meets_its_bound_and_one_that_fails_misses_it(figures: Estimate, bound: float, kind: str):
    outcome, why = decide(figures, kind, bound)
    meets = figures.value <= bound if kind == "max" else figures.value >= bound
    assert {"pass": meets, "fail": not meets, "undecided": True}[outcome]
    assert figures.interval or outcome != "undecided", "without an interval the value decides"
    assert why.endswith(".")
    assert "\n" not in why


def test_the_ends_of_an_interval_decide():
    assert decide(estimate(0.01, 0.0, 0.02), "max", 0.02)[0] == "pass", "an end on the bound meets it"
    assert decide(estimate(0.01, 0.0, 0.021), "max", 0.02)[0] == "undecided"
    assert decide(estimate(0.03, 0.02, 0.04), "max", 0.02)[0] == "undecided"
    assert decide(estimate(0.03, 0.021, 0.04), "max", 0.02)[0] == "fail"
    assert decide(estimate(1.1, 1.0, 1.2), "min", 1.0)[0] == "pass"
    assert decide(estimate(1.0, 0.9, 1.1), "min", 1.0)[0] == "undecided"
    assert decide(estimate(0.8, 0.7, 0.9), "min", 1.0)[0] == "fail"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_figure_that_is_not_finite_fails_either_way(value: float):
    for kind in ("max", "min"):
        outcome, why = decide(estimate(value), kind, 1e9 if kind == "max" else -1e9)
        assert outcome == "fail"
        assert str(value) in why


def test_an_interval_that_is_not_a_number_fails():
    assert decide(estimate(0.0, math.nan, 1.0), "max", 2.0)[0] == "fail"


def test_an_interval_without_end_is_undecided():
    outcome, why = decide(estimate(1.0, 0.0, math.inf, samples=1), "max", 2.0, "windows of text")
    assert outcome == "undecided"
    assert "more windows of text" in why


def test_no_samples_fail_even_with_a_good_figure():
    outcome, why = decide(estimate(0.0, samples=0), "max", 1.0)
    assert outcome == "fail"
    assert why.startswith("Nothing was measured")


def test_undecided_says_how_many_samples_it_would_take():
    _, why = decide(estimate(0.01, -0.01, 0.03, samples=500), "max", 0.02, "items")
    assert re.search(r"about 2,000 items .* 0\.01 \(now 500\)", why)


@given(st.floats(0.0, 0.1), st.floats(0.001, 0.1), st.floats(0.0, 0.1), st.integers(1, 5000))
def test_with_the_samples_asked_for_the_interval_would_decide(value: float, half: float, bound: float, samples: int):
    figures = estimate(value, value - half, value + half, samples)
    needed = samples_needed(figures, bound)
    if decide(figures, "max", bound)[0] != "undecided" or needed is None:
        return
    assert needed > samples
    narrower = half * math.sqrt(samples / needed)
    assert decide(estimate(value, value - narrower, value + narrower, needed), "max", bound)[0] != "undecided"


def test_a_figure_on_its_bound_has_no_number_that_settles_it():
    assert samples_needed(estimate(0.02, 0.0, 0.04), 0.02) is None
    assert samples_needed(estimate(0.02), 0.5) is None


def test_every_gate_reads_a_figure_from_real_evidence(release: Release):
    verdict = judge(release.comparison, release.artifact, dict.fromkeys(GATES, 0.5))
    found = {result.gate.partition("[")[0] for result in verdict.gates}
    assert found == set(GATES)
    assert all(math.isfinite(r.estimate.value) and r.estimate.samples > 0 for r in verdict.gates)


def test_a_gate_on_every_task_gives_a_result_for_each(release: Release):
    verdict = judge(release.comparison, release.artifact, {"task_accuracy_drop": 0.5})
    assert [r.gate for r in verdict.gates] == [f"task_accuracy_drop[{name}]" for name, _ in TASKS]


def test_a_gate_on_speed_gives_a_result_for_each_concurrency(release: Release):
    verdict = judge(release.comparison, release.artifact, {"throughput_ratio": 1.0, "ttft_ratio": 1.0})
    levels = [str(c) for c in CONCURRENCIES]
    assert [r.gate for r in verdict.gates] == [
        f"{gate}[{level}]" for gate in ("throughput_ratio", "ttft_ratio") for level in levels
    ]
    outcomes = {r.gate: r.outcome for r in verdict.gates}
    assert outcomes["throughput_ratio[1]"] == outcomes["ttft_ratio[1]"] == "pass"
    assert outcomes["throughput_ratio[16]"] == outcomes["ttft_ratio[16]"] == "fail"
    assert {r.kind for r in verdict.gates[:3]} == {"min"}


def failing(of: Evidence, failed: int) -> Evidence:
    first, *others = of.latency.levels
    run = first.runs[0].model_copy(update={"failed": failed})
    level = first.model_copy(update={"runs": (run, *first.runs[1:])})
    return of.model_copy(update={"latency": of.latency.model_copy(update={"levels": (level, *others)})})


def test_failed_requests_are_counted_over_all_runs_of_the_artifact(release: Release):
    artifact = failing(evidence(quantized=True), 3)
    (result,) = judge(release.comparison, artifact, {"failed_requests": 2}).gates
    assert (result.estimate.value, result.outcome) == (3, "fail")
    assert result.estimate.samples == 3 * 8 * sum(CONCURRENCIES) + 3
    assert judge(release.comparison, artifact, {"failed_requests": 3}).outcome == "pass"


def test_a_gate_with_nothing_to_read_fails(release: Release):
    comparison = release.comparison.model_copy(update={"tasks": ()})
    (result,) = judge(comparison, release.artifact, {"task_accuracy_drop": 1}).gates
    assert result.outcome == "fail"


def test_the_worst_gate_decides_the_verdict(release: Release):
    def outcome(**bounds: float) -> str:
        return judge(release.comparison, release.artifact, bounds).outcome

    value = release.comparison.accuracy_drop.value
    assert outcome() == "pass"
    assert outcome(size_ratio=0.9) == "pass"
    assert outcome(size_ratio=0.9, accuracy_drop=value) == "undecided"
    assert outcome(size_ratio=0.1, accuracy_drop=value) == "fail"


def test_gates_are_judged_in_one_order_whatever_the_recipe_has(release: Release):
    backwards = dict(reversed(list(BOUNDS.items())))
    assert judge(release.comparison, release.artifact, backwards) == release.verdict
    assert Verdict.model_validate_json(release.verdict.model_dump_json()) == release.verdict


def test_a_gate_that_does_not_exist_is_an_error(release: Release):
    with pytest.raises(ValueError, match="no such gate: acuracy_drop"):
        judge(release.comparison, release.artifact, {"acuracy_drop": 0.1})


def test_the_recipe_model_has_one_described_field_for_each_gate():
    assert list(Gates.model_fields) == list(GATES)
    for name, field in Gates.model_fields.items():
        assert field.description == GATES[name].meaning


def test_bounds_are_the_gates_that_are_set():
    assert Gates().bounds() == {}
    assert Gates(failed_requests=0, accuracy_drop=0).bounds() == {"accuracy_drop": 0.0, "failed_requests": 0.0}


@pytest.mark.parametrize(
    "wrong",
    [
        {"accuracy_drop": True},
        {"accuracy_drop": "0.02"},
        {"accuracy_drop": math.nan},
        {"accuracy_drop": 2},
        {"perplexity_ratio": math.inf},
        {"size_ratio": 0},
        {"flip_rate": 18.5},
        {"failed_requests": 0.5},
        {"failed_requests": -1},
        {"accuracy": 0.02},
    ],
)
def test_a_bound_that_makes_no_sense_is_refused(wrong: dict[str, object]):
    with pytest.raises(ValidationError):
        Gates.model_validate(wrong)


def test_a_recipe_can_embed_gates_without_loading_numpy():
    """`qpack --help` must stay fast, and recipe.py imports evals.gates.gates."""
    tree = ast.parse(Path(gates.__file__).read_text(encoding="utf-8"))
    plain = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    origin = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    beyond = {m for m in plain | origin if m and m.partition(".")[0] not in sys.stdlib_module_names}
    assert beyond == {"pydantic", "qpack.core.records", "qpack.core.speed"}


def test_figures_are_short_and_readable():
    cases = {0.03124999: "0.03125", -0.004: "−0.004", 1234.5: "1,234", 1: "1", 0: "0", 12.5: "12.5", 1e-9: "0"}
    assert {value: figure(value) for value in cases} == cases
    assert figure(-1e-9) == "0"
    assert figure(math.inf) == "infinity"
