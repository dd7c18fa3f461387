"""Claims about speed on a shared machine: what other work took, what it does to ratios, gates and pages."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evals.comparison import recheck
from evals.comparison.compare import MeasuredModel, compare
from evals.gates.gates import SPEED_GATES, judge
from evals.measure.bench import Benched
from evals.parts.collect_evidence import undisturbed
from evals.report import html_report, markdown, release_comparison
from evals.stats import estimates
from qpack.cli.render import bench as bench_command
from qpack.cli.render.figures import figures
from qpack.core.records import Comparison, Estimate, Interval, Performance, Release
from qpack.core.speed import MOST_OTHER_WORK, OtherWork
from qpack.core.store import Store
from qpack.pipeline import estimate, plan
from qpack.recipe import recipe_file
from qpack.runtime.other_work import Snapshot, between, busy_seconds
from registry.release import card
from tests.unit import evidence_samples as samples
from tests.unit.recipes import RECIPE, workspace
from tests.unit.registry_examples import serving

STAT = """cpu  40 10 30 900 20 1 1 8 5 0
cpu0 100 10 40 700 50 3 2 45 90 0
cpu1 300 0 100 500 100 0 0 0 0 0
cpu2 900 0 0 100 0 0 0 0 0 0
intr 1 2 3
"""


def test_busy_time_is_that_of_the_usable_cores_without_waiting_and_with_stolen_time() -> None:
    assert busy_seconds(STAT, {0}) * 100 == pytest.approx(100 + 10 + 40 + 3 + 2 + 45)
    assert busy_seconds(STAT, {0, 1}) * 100 == pytest.approx(200 + 400)
    with pytest.raises(ValueError, match="core"):
        busy_seconds(STAT, {0, 7})


@given(
    seconds=st.floats(2, 1000),
    cores=st.integers(1, 128),
    own=st.floats(0.001, 1),
    others=st.floats(0, 1),
)
def test_the_share_is_what_was_busy_less_what_was_ours(seconds: float, cores: int, own: float, others: float) -> None:
    room = seconds * cores
    mine, theirs = own * room, (1 - own) * others * room
    found = between(Snapshot(5.0, 70.0, 3.0, cores), Snapshot(5.0 + seconds, 70.0 + mine + theirs, 3.0 + mine, cores))
    assert found is not None
    assert found.share == pytest.approx(theirs / room, abs=1e-6)
    assert found.disturbs == (found.share > MOST_OTHER_WORK)


@pytest.mark.parametrize(
    "after",
    [None, Snapshot(5.5, 71.0, 3.0, 2), Snapshot(9.0, 71.0, 3.0, 4), Snapshot(9.0, 70.0, 3.0, 2)],
    ids=["unreadable", "too short", "other cores", "nothing counted"],
)
def test_where_it_cant_be_known_nothing_is_claimed(after: Snapshot | None) -> None:
    assert between(Snapshot(5.0, 70.0, 3.0, 2), after) is None


def test_more_of_our_own_than_was_busy_is_no_other_work() -> None:
    found = between(Snapshot(0.0, 0.0, 0.0, 2), Snapshot(10.0, 10.0, 10.1, 2))
    assert found == OtherWork(share=0.0, cores=2)


ratios = st.builds(
    lambda low, value, high: Estimate(
        value=low * value, samples=3, method="m", interval=Interval(low=low, high=low * value * high, confidence=0.9)
    ),
    st.floats(0.01, 10),
    st.floats(1, 3),
    st.floats(1, 3),
)


@given(ratios, st.floats(0, 1), st.floats(0, 1))
def test_a_widened_interval_holds_the_old_one_and_every_speed_that_the_lost_cores_could_have_given(
    ratio: Estimate, after: float, before: float
) -> None:
    wide = estimates.widened(ratio, after, before)
    assert ratio.interval is not None
    assert wide.interval is not None
    assert wide.value == ratio.value
    assert wide.interval.low <= ratio.interval.low * (1 + 1e-12)
    assert wide.interval.high >= ratio.interval.high * (1 - 1e-12)
    if max(after, before) < 0.99:
        assert wide.interval.low <= ratio.value * (1 - before) * (1 + 1e-9)
        assert wide.interval.high * (1 + 1e-9) >= ratio.value / (1 - after)


def shared(tmp_path: Path, before: float, after: float, rounds: int = 0) -> Release:
    """A release whose baseline and artifact were loaded beside other work; with rounds, beside `after`."""
    made = samples.make_release(tmp_path, rounds=rounds)

    def beside(evidence, share):  # type: ignore[no-untyped-def]
        work = OtherWork(share=share, cores=2)
        return evidence.model_copy(update={"latency": evidence.latency.model_copy(update={"other_work": work})})

    sides = beside(made.baseline, before), beside(made.artifact, after)
    turns = made.interleaved and made.interleaved.model_copy(update={"other_work": OtherWork(share=after, cores=2)})
    logprobs = (tmp_path / "baseline.npz", tmp_path / "artifact.npz")
    found = compare(*map(MeasuredModel, sides, logprobs), interleaved=turns)
    return made.model_copy(
        update={"baseline": sides[0], "artifact": sides[1], "comparison": found, "interleaved": turns}
    )


BOUNDS = {"throughput_ratio": 0.01, "ttft_ratio": 100.0, "size_ratio": 0.6}


def outcomes(release: Release) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for gate in judge(release.comparison, release.artifact, BOUNDS).gates:
        found.setdefault(gate.gate.partition("[")[0], set()).add(gate.outcome)
    return found


def test_the_gates_on_speed_are_those_of_ratios_of_speed() -> None:
    assert {"throughput_ratio", "ttft_ratio"} == SPEED_GATES


@pytest.mark.parametrize("rounds", [0, 5])
def test_a_gate_on_speed_is_undecided_beside_other_work_however_loose_its_bound(tmp_path: Path, rounds: int) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    quiet, busy = shared(tmp_path / "a", 0.02, 0.09, rounds), shared(tmp_path / "b", 0.02, 0.5, rounds)
    assert outcomes(quiet) == {gate: {"pass"} for gate in BOUNDS}
    assert outcomes(busy) == {"throughput_ratio": {"undecided"}, "ttft_ratio": {"undecided"}, "size_ratio": {"pass"}}
    widths = [width(release.comparison) for release in (quiet, busy)]
    assert all(wide > narrow for narrow, wide in zip(*widths, strict=True))
    assert recheck.figures(busy, seed=0) == (), "what was stated can be computed again"


def width(comparison: Comparison) -> list[float]:
    found = []
    for speed in comparison.speed:
        for ratio in (speed.throughput, speed.ttft):
            assert ratio is not None
            found.append(ratio.interval.high / ratio.interval.low if ratio.interval else 1.0)
    return found


def test_a_release_that_hides_the_other_work_doesnt_verify(tmp_path: Path) -> None:
    release = shared(tmp_path, 0.0, 0.5)
    hidden = release.comparison.model_copy(update={"other_work": None})
    assert recheck.figures(release.model_copy(update={"comparison": hidden}), seed=0)


def test_console_report_card_and_comment_say_that_the_machine_was_shared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    for release, said in ((shared(tmp_path / "a", 0.0, 0.05), False), (shared(tmp_path / "b", 0.48, 0.0), True)):
        figures(release)
        found = {
            "console": capsys.readouterr().out,
            "report": html_report.render(release),
            "comment": markdown.render(release, release.verdict, "a"),
            "card": card.render(release, serving()),
        }
        for name, text in found.items():
            told = "48%" in text.replace("\\", "") and "other work took" in text.lower()
            assert told == said, name
        assert ("clients</dt>" in found["report"]) == (not said), "no tile of a speed that shows nothing"
        assert ("; Speed, " in found["report"]) == (not said), "no panel either"


def test_releases_aren_t_ranked_by_a_speed_that_shows_nothing(tmp_path: Path) -> None:
    release = shared(tmp_path, 0.0, 0.5)
    found = release_comparison.compare({"first": release, "other": release})
    assert [row.tokens_per_second for row in found.rows] == [None, None]
    assert "50%" in found.left_out[0]
    assert all(row.memory_bytes for row in found.rows)


def test_a_bench_says_that_its_machine_was_shared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    latency = shared(tmp_path, 0.0, 0.5).artifact.latency
    one = Benched(
        model="m", quantization="q", random_weights=False, server="vllm", hardware=None, start_seconds=None,
        footprint=None, latency=latency,
    )  # fmt: skip
    bench_command.benched([one], None, as_json=False)
    assert "other work took 50% of the 2 cores" in capsys.readouterr().out
    bench_command.benched([one], None, as_json=True)
    assert json.loads(capsys.readouterr().out)[0]["latency"]["other_work"] == {"share": 0.5, "cores": 2}


def test_a_part_that_was_measured_beside_other_work_is_known_by_its_record(tmp_path: Path) -> None:
    for share, quiet in ((0.05, True), (0.5, False)):
        artifact = shared(tmp_path, 0.0, share).artifact
        part = Performance(server="v", canary=artifact.canary, latency=artifact.latency, memory=artifact.memory)
        assert undisturbed(part) is quiet
    assert undisturbed(artifact.accuracy)


@pytest.mark.parametrize(("gates", "done"), [("", True), ("  throughput_ratio: 0.01\n", False)])
def test_a_plan_says_that_a_disturbed_load_is_measured_again_where_a_gate_needs_it(
    gates: str, done: bool, tmp_path: Path
) -> None:
    text = RECIPE.replace("gates:\n", f"gates:\n{gates}")
    assert gates in text
    store = Store(tmp_path / "home")
    made = plan.make(recipe_file.load(workspace(tmp_path / "a", text)), store, thorough=True)
    step = made.steps["baseline.performance"]
    assert step.key is not None
    artifact = shared(tmp_path, 0.0, 0.5).artifact
    part = Performance(server="v", canary=artifact.canary, latency=artifact.latency, memory=artifact.memory)
    store.once(step.stage, step.key, Performance, lambda _: part, inputs=step.inputs)
    (found,) = [one for one in estimate.steps(made, store) if one.stage == "baseline.performance"]
    assert found.done is done
