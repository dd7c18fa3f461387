"""A release as a build would make it, with made-up figures."""

from __future__ import annotations

from evals.comparison import compare
from evals.comparison.verdicts import verdict
from evals.stats.estimates import CONFIDENCE
from qpack.core.records import (
    Accuracy,
    Calibrated,
    Canary,
    EnvironmentRecord,
    Estimate,
    Evidence,
    Fetched,
    FileRecord,
    Hardware,
    Interval,
    Language,
    Memory,
    Quantized,
    Release,
    Reply,
    Sample,
    StageRecord,
    TaskScore,
    Window,
)
from qpack.core.speed import Latency, Level, Percentiles, Run
from registry.serving.serving_manifest import ServedModel, ServingEngine, ServingManifest

HARDWARE = Hardware(target="cpu", name="Example CPU", cores=2, memory_bytes=8 * 2**30)
RECIPE = "name: small-gptq\nmodel: hf://example/small@main  # pinned when it is fetched\nquantize:\n  method: gptq\n"


def estimate(value: float, low: float | None = None, high: float | None = None, *, n: int = 500, how: str) -> Estimate:
    bounds = None if low is None or high is None else Interval(low=low, high=high, confidence=CONFIDENCE)
    return Estimate(value=value, samples=n, interval=bounds, method=how)


def _times(scale: float) -> Percentiles:
    return Percentiles(mean=11 * scale, p50=10 * scale, p90=14 * scale, p95=15 * scale, p99=20 * scale)


def _level(concurrency: int, rate: float) -> Level:
    def run(factor: float) -> Run:
        return Run(
            seconds=10.0,
            completed=16,
            failed=0,
            input_tokens=2048,
            output_tokens=1024,
            requests_per_second=rate * factor / 64,
            output_tokens_per_second=rate * factor,
            total_tokens_per_second=rate * factor * 3,
            good=None,
            ttft_ms=_times(4 * concurrency * factor),
            inter_token_ms=_times(1 * factor),
            time_per_output_token_ms=_times(1 * factor),
            end_to_end_ms=_times(80 * factor),
        )

    return Level(concurrency=concurrency, input_tokens=128, output_tokens=64, runs=(run(1.0), run(1.1), run(0.9)))


def _evidence(digest: str, mean: float, nll: float, weights: int, rate: float) -> Evidence:
    samples = tuple(Sample(id=str(number), score=float(number < 500 * mean)) for number in range(500))
    return Evidence(
        model_digest=digest,
        server="vllm 0.32.0",
        hardware=HARDWARE,
        accuracy=Accuracy(
            lm_eval_version="0.4.9",
            tasks=(
                TaskScore(task="openbookqa", version="1", metric="acc_norm", few_shot=0, mean=mean, samples=samples),
            ),
        ),
        language=Language(top_k=20, windows=(Window(nll=nll, tokens=511),) * 3, text_digest="ab" * 32),
        latency=Latency(tool="vllm bench serve 0.32.0", levels=tuple(_level(n, rate * n**0.5) for n in (1, 4, 16))),
        memory=Memory(
            weights_bytes=weights,
            weights_loaded_bytes=None,
            kv_cache_bytes=2**29,
            kv_cache_tokens=23296,
            resident_bytes=weights + 900 * 2**20,
            peak_resident_bytes=weights + 1000 * 2**20,
            start_seconds=22.0,
        ),
        canary=Canary(
            served_model="small",
            replies=(Reply(prompt="Hi", text="Hello.", finish_reason="stop", streamed_the_same=True),),
        ),
    )


def release(
    *,
    source: str = "hf://example/small@main",
    license_id: str | None = "Apache-2.0",
    files: tuple[FileRecord, ...] = (),
    failed: bool = False,
    undecided: bool = False,
) -> Release:
    """A release whose comparison and verdict are those of its evidence; KL divergence and flip rate are made up.

    `failed` makes a gate fail, `undecided` leaves it open, and both make the release forced.
    """
    baseline = _evidence("1" * 64, 0.372, 1550.0, 269_060_552, 30.0)
    artifact = _evidence("4" * 64, 0.364, 1640.0, 115_000_000, 24.0)
    kl = estimate(0.2754, 0.261, 0.29, n=3, how="KL over the top 20, the rest in one bin")
    flips = estimate(0.255, 0.241, 0.27, n=3, how="share of positions whose most probable token differs")
    comparison = compare.of_evidence(baseline, artifact, (kl, flips), interleaved=None)
    gates = {"flip_rate": 0.2 if failed else 0.25 if undecided else 0.3}
    judged = verdict(comparison, baseline, artifact, gates)
    assert judged.outcome == ("fail" if failed else "undecided" if undecided else "pass")
    return Release(
        name="small-gptq",
        created="2026-01-02T03:04:05Z",
        qpack_version="0.1.0",
        recipe={"name": "small-gptq", "gates": gates},
        recipe_text=RECIPE,
        source=Fetched(
            source=source,
            resolved=source.replace("@main", "@" + "c" * 40),
            digest="1" * 64,
            files=(),
            architecture="LlamaForCausalLM",
            parameters=134_515_008,
            weights_bytes=269_060_552,
            license=license_id,
            notes=("The weights were read from a GGUF file | dequantized.",),
        ),
        calibration=Calibrated(
            digest="2" * 64,
            rows=128,
            tokens=32768,
            max_length=256,
            seed=7,
            chat_template=False,
            row_digests=("3" * 64,),
            lengths=(256,),
            read=140,
            cut=120,
            dropped_short=10,
            dropped_duplicate=2,
            dropped_held_out=1,
            padded_tokens=0,
            double_bos_removed=0,
        ),
        quantized=Quantized(
            engine="llmcompressor",
            engine_version="0.14.0.1",
            method="gptq",
            scheme="W4A16",
            group_size=64,
            digest="4" * 64,
            files=files,
            weights_bytes=115_000_000,
            quantized_layers=210,
            linear_layers=211,
            seconds=52.4,
            peak_memory_bytes=2**31,
        ),
        environments=(
            EnvironmentRecord(
                name="llmcompressor",
                variant="cpu",
                lock_sha256="5" * 64,
                python="3.11.9",
                packages={"llmcompressor": "0.14.0.1", "torch": "2.13.0+cpu", "numpy": "2.4.0"},
            ),
        ),
        baseline=baseline,
        artifact=artifact,
        comparison=comparison,
        verdict=judged,
        forced=judged.outcome != "pass",
        stages=(
            StageRecord(stage="quantize", key="6" * 64, seconds=52.4, reused=False),
            StageRecord(stage="measure-baseline", key="7" * 64, seconds=140.0, reused=True),
        ),
    )


def serving() -> ServingManifest:
    return ServingManifest(
        model=ServedModel(name="small-gptq", digest="4" * 64, served_model_name="small-gptq"),
        engine=ServingEngine(version="0.32.0"),
        hardware="cpu",
        dtype="bfloat16",
        max_model_len=2048,
        kv_cache_memory_bytes=2**29,
        arguments={"enforce-eager": True, "structured-outputs-config": {"backend": "xgrammar"}, "max-num-seqs": 16},
        environment={"HF_HUB_OFFLINE": "1"},
    )
