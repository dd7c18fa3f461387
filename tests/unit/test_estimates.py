"""Claims about `qpack plan`'s times: what they follow from, how near they are, and where there is none."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import measured_builds
from qpack.core.records import Hardware
from qpack.core.store import Store
from qpack.pipeline import estimate, plan, rates
from qpack.pipeline.rates import Ran
from qpack.recipe import recipe_file
from qpack.runtime import hardware
from tests.unit.recipes import RECIPE, workspace

CPU = Hardware(target="cpu", name="a CPU", cores=2, memory_bytes=2**34)
GPU = CPU.model_copy(update={"target": "hopper", "name": "a GPU", "accelerators": 1})
GPTQ = "quantize llmcompressor gptq"


def test_builds_that_were_measured_are_predicted_within_a_factor_of_one_and_a_half() -> None:
    builds = measured_builds.read()
    assert len({one.machine for one in builds}) >= 4
    assert len(builds) >= 18
    far = [
        (one.build, one.machine, one.predicted / one.seconds)
        for one in builds
        if not 1 / 1.5 <= one.predicted / one.seconds <= 1.5
    ]
    assert far == []
    assert sum(not one.fitted for one in builds) >= 2, "some of them no rate was fitted to"


def test_a_measured_figure_stands_on_the_page_that_it_is_from() -> None:
    pages = Path(__file__).parents[2] / "docs" / "benchmarks"
    for one in measured_builds.read():
        text = (pages / f"{one.page}.md").read_text().replace(",", "")
        if one.seconds < 500:  # a whole build is a sum
            assert f"{one.seconds:g}" in text or f"{one.seconds:.0f}" in text, one


works = st.builds(
    rates.quantizing, st.floats(2e7, 1e9), st.integers(1, 1000), st.integers(1, 1024), st.floats(100, 1e6)
)


@given(works, st.sampled_from(sorted(rates.RATES)), st.integers(1, 4))
def test_more_work_takes_no_less_and_more_cores_no_more(work: rates.Work, key: tuple[str, str], cores: int) -> None:
    rate = rates.RATES[key]
    more = {name: 2 * amount for name, amount in work.items()}
    assert 0 < rate.seconds(work, cores) <= rate.seconds(more, cores)
    assert rate.seconds(work, cores + 1) <= rate.seconds(work, cores)


@given(works, st.floats(0.1, 10), st.integers(1, 5))
def test_what_ran_here_corrects_the_rates_by_its_ratio_and_not_by_its_time(
    work: rates.Work, slower: float, runs: int
) -> None:
    rate = rates.RATES[GPTQ, "cpu-avx512"]
    half = {name: amount / 2 for name, amount in work.items()}
    ran = [Ran(GPTQ, half, rate.seconds(half, 2) * slower)] * runs
    found = rates.estimate(GPTQ, work, CPU, "cpu-avx512", ran)
    assert found is not None
    assert found.seconds == pytest.approx(rate.seconds(work, 2) * slower)
    assert found.within >= 1.1


def test_the_error_is_how_far_runs_here_were_apart() -> None:
    work, rate = rates.quantizing(134.5e6, 210, 32, 16384), rates.RATES[GPTQ, "cpu-avx512"]
    ran = [Ran(GPTQ, work, rate.seconds(work, 2) * slower) for slower in (0.5, 2.0)]
    found = rates.estimate(GPTQ, work, CPU, "cpu-avx512", ran)
    assert found is not None
    assert found.within == pytest.approx(2.0)
    assert "2 earlier runs here" in found.basis


@pytest.mark.parametrize(
    ("kind", "machine", "like", "parameters"),
    [
        (GPTQ, CPU, "cpu-avx512", 8e9),  # 60 times as large as what was measured on a CPU
        (GPTQ, CPU, "cpu-avx2", 134e6),
        (GPTQ, CPU, None, 134e6),
        (GPTQ, CPU.model_copy(update={"cores": 64}), "cpu-avx512", 134e6),
        (GPTQ, GPU.model_copy(update={"target": "ampere"}), "ampere", 8e9),
        ("quantize autogptq gptq", GPU, "hopper", 8e9),
        ("quantize llmcompressor awq+gptq", GPU, "hopper", 8e9),
    ],
)
def test_where_nothing_comparable_was_measured_there_is_no_estimate(
    kind: str, machine: Hardware, like: str | None, parameters: float
) -> None:
    assert rates.estimate(kind, rates.quantizing(parameters, 224, 64, 16384), machine, like, []) is None


def test_a_model_of_another_size_that_ran_here_is_nothing_comparable() -> None:
    """135 million parameters on a CPU said 1 min 42 s for 8 billion on a GPU once."""
    small = Ran(GPTQ, rates.quantizing(134.5e6, 210, 48, 6900), 102.0)
    large = rates.quantizing(8.03e9, 224, 128, 65536)
    assert rates.estimate(GPTQ, large, CPU, "cpu-avx512", [small]) is None


def test_the_class_of_a_machine_is_its_widest_instructions_or_its_gpu() -> None:
    flags = ("avx2", "fma", "avx512f", "avx512_bf16")
    assert rates.machine_class(CPU, flags) == "cpu-avx512"
    assert rates.machine_class(CPU, (*flags, "amx_tile")) == "cpu-amx"
    assert rates.machine_class(CPU, ("avx2",)) == "cpu-avx2"
    assert rates.machine_class(CPU, ("asimd",)) is None
    assert rates.machine_class(GPU, flags) == "hopper"


def test_a_plan_counts_the_tokens_of_its_rows_and_remembers_what_ran(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "detect", lambda: CPU)
    monkeypatch.setattr(hardware, "instructions", lambda: ("avx512f",))
    store = Store(tmp_path / "home")
    made = plan.make(recipe_file.load(workspace(tmp_path, RECIPE)), store, thorough=False)
    ask = made.recipe.calibration
    if ask is not None:
        assert 0 < estimate.calibration_tokens(made, store) <= ask.samples * ask.max_length
    before = {step.stage: step for step in estimate.steps(made, store)}
    assert before["hold_out"].seconds is None
    assert before["hold_out"].basis == "nothing comparable was measured"
    work = estimate.work_of(made, "hold_out", store)
    assert work is not None
    monkeypatch.setattr(estimate, "work_of", lambda *_: work)
    from qpack.core.store import Entry

    entry = Entry(made.recipe, tmp_path, "k", 12.5, reused=False)
    estimate.remember(made, store, {"hold_out": entry, "judge": Entry(made.recipe, tmp_path, "k", 9.0, reused=True)})
    after = {step.stage: step for step in estimate.steps(made, store)}
    assert after["hold_out"].seconds == pytest.approx(12.5)
    assert after["judge"].seconds is None, "what came from the store took no time"
    assert [ran.kind for ran in estimate.recall(store, CPU)] == ["windows"]
    assert estimate.recall(store, GPU) == [], "another machine"


@pytest.mark.parametrize(
    "damage", ["[]", '{"ran": 3}', '{"ran": [{"kind": "a"}, 7, {"kind": "a", "work": 3, "seconds": 1}]}']
)
def test_a_damaged_note_of_times_is_no_estimate(damage: str, tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.remember(estimate._note(CPU), {})
    (note,) = (tmp_path / "notes").glob("rates-*.json")
    note.write_text(damage)
    assert estimate.recall(store, CPU) == []


@pytest.mark.parametrize(
    ("kind", "tokens", "measured"),
    [
        ("quantize llmcompressor awq", 10_067, 2.9 * 2**30),
        ("quantize llmcompressor awq", 65_536, 7.9e9),
        ("quantize llmcompressor gptq", 65_536, 4.0e9),
        ("quantize gram awq+gptq", 65_536, 7.8e9),
    ],
)
def test_gpu_memory_to_quantize_is_near_what_was_measured(kind: str, tokens: int, measured: float) -> None:
    """Llama 3 8B: 218 million weights a layer, 4,096 and 14,336 channels (docs/benchmarks/gram.md, performance.md)."""
    found = rates.GPU_MEMORY[kind].bytes(2 * 218_103_808, tokens, 4096 + 14336)
    assert measured / 1.5 <= found <= measured * 1.5
