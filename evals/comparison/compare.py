"""Artifact against baseline: pair the samples, refuse evidence that was measured differently, estimate differences."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from evals.comparison import continued_windows, expected, generated, needle_difference
from evals.gates import interim_analysis
from evals.measure import divergence
from evals.stats import divergence_estimate, estimates, recovery
from qpack.core import side_by_side
from qpack.core.errors import EvaluateError
from qpack.core.figures import DomainDifference
from qpack.core.findings import Continuations, Divergences
from qpack.core.problems import Code, Problem
from qpack.core.records import (
    Canary,
    Comparison,
    Estimate,
    Evidence,
    Hardware,
    Language,
    Memory,
    SpeedRatio,
    TaskDifference,
    TaskScore,
)
from qpack.core.side_by_side import server_bytes
from qpack.core.speed import Interleaved, Latency, Level, OpenLevel, OtherWork, Run, Turns

_MEASURED_DIFFERENTLY = Code("measured-differently", "Baseline and artifact were not measured in the same way.")
_OTHER_SAMPLES = Code("other-samples", "Baseline and artifact were not asked the same samples of a task.")


_SHOWN = 5


@dataclass(frozen=True)
class Published:
    """Scores that were published for the baseline's model, by task, and how far the measured ones may be from them."""

    scores: Mapping[str, float]
    tolerance: float


@dataclass(frozen=True)
class MeasuredModel:
    """One side of a comparison: a model's evidence, its `logprobs.npz`, and its greedy continuations if any."""

    evidence: Evidence
    logprobs: Path
    continuations: Continuations | None = None


def compare(
    before: MeasuredModel,
    after: MeasuredModel,
    *,
    interleaved: Interleaved | None = None,
    seed: int = 0,
    confidence: float = estimates.CONFIDENCE,
    published: Published | None = None,
) -> Comparison:
    """Compare the artifact (`after`) with its baseline (`before`). Pure but for reading the two `logprobs.npz`.

    `confidence` is two-sided (0.90: each end of an interval is a one-sided 95 % bound). The same `seed` gives the same
    intervals. Speed is from `interleaved` if both were loaded in turn, else from separate runs. Raises
    EvaluateError, with every reason as a problem, when the two can't be paired: other tasks, versions, few-shot counts,
    samples, text, load, hardware or KV cache budget.
    """
    baseline, artifact = before.evidence, after.evidence
    problems = differences(baseline, artifact)
    if problems:
        raise EvaluateError(
            _MEASURED_DIFFERENTLY,
            "baseline and artifact can't be compared: they were measured differently",
            hint="Evaluate both again with the same recipe on the same machine.",
            problems=tuple(problems),
        )
    b_top, a_top = divergence.load(before.logprobs), divergence.load(after.logprobs)
    # Both models have one vocabulary, and each file spells the tokens that its model named.
    spelling = divergence.spelling(after.logprobs) | divergence.spelling(before.logprobs)
    sums = divergence.sums(b_top, a_top)
    divergences = of_sums(sums, baseline.language.top_k, seed=seed, confidence=confidence)
    found = of_evidence(
        baseline,
        artifact,
        divergences,
        interleaved=interleaved,
        seed=seed,
        confidence=confidence,
        published=published,
    )
    texts = baseline.language.domains
    return found.model_copy(
        update={
            "chance_flips": divergence.chance_flips(b_top, a_top),
            "divergences": sums,
            "tail": divergence.tail(b_top, a_top),
            "worst": divergence.worst(b_top, a_top, spelling),
            "domains": domains(baseline.language, artifact.language, b_top, a_top, seed=seed, confidence=confidence),
            "continued": continued_windows.compare(before.continuations, after.continuations, b_top, a_top, texts)
            if before.continuations and after.continuations
            else None,
        }
    )


def of_sums(
    sums: Divergences, top_k: int, *, seed: int = 0, confidence: float = estimates.CONFIDENCE
) -> tuple[Estimate, Estimate]:
    """(KL divergence, flip rate) by the estimator that `sums` name; all that a release needs to hold of both."""
    return (
        divergence_estimate.mean_divergence(sums, seed=seed, confidence=confidence, k=top_k),
        divergence_estimate.flip_rate(sums.windows, seed=seed, confidence=confidence),
    )


def of_evidence(
    baseline: Evidence,
    artifact: Evidence,
    divergences: tuple[Estimate, Estimate],
    *,
    interleaved: Interleaved | None,
    seed: int = 0,
    confidence: float = estimates.CONFIDENCE,
    published: Published | None = None,
) -> Comparison:
    """The part of the comparison that needs no log-probabilities; the evidence must have no `differences`.

    `divergences` are KL divergence and flip rate, taken as they are.
    """
    kl_divergence, flip_rate = divergences
    pairs = paired_scores(baseline, artifact)
    # Accuracy that stopped early has the wider interval of its look.
    level, at = interim_analysis.confidence(artifact.accuracy, confidence), interim_analysis.sentence(artifact.accuracy)

    def looked(found: Estimate) -> Estimate:
        return found.model_copy(update={"method": f"{found.method}; repeated interval at {at}"}) if at else found

    def drop(some: Sequence[tuple[estimates.Floats, estimates.Floats]]) -> Estimate:
        return looked(estimates.paired_drop(some, seed=seed, confidence=level))

    tasks = tuple(
        TaskDifference(
            task=task.task,
            metric=task.metric,
            baseline=float(b.mean()) if len(b) else float("nan"),
            artifact=float(a.mean()) if len(a) else float("nan"),
            drop=drop([(b, a)]),
            recovery=looked(recovery.recovery([(b, a)], confidence=level)),
        )
        for task, (b, a) in zip(baseline.accuracy.tasks, pairs, strict=True)
    )
    b_nll, a_nll, tokens = paired_windows(baseline.language, artifact.language)
    why = "measure.rounds is 0" if interleaved is None else interleaved.apart
    if artifact.emulated is not None:
        speed: tuple[SpeedRatio, ...] = ()
        beside: tuple[OtherWork | None, OtherWork | None] = (None, None)
    elif interleaved is None or why:
        levels = zip(baseline.latency.levels, artifact.latency.levels, strict=True)
        speed = tuple(separate(b, a, confidence) for b, a in levels)
        beside = (baseline.latency.other_work, artifact.latency.other_work)
    else:
        speed = tuple(paired(turns, confidence) for turns in interleaved.levels)
        beside = (interleaved.other_work, interleaved.other_work)
    return Comparison(
        tasks=tasks,
        recovery=looked(recovery.recovery(pairs, confidence=level)),
        accuracy_drop=drop(pairs),
        perplexity_baseline=estimates.perplexity(b_nll, tokens),
        perplexity_artifact=estimates.perplexity(a_nll, tokens),
        perplexity_ratio=estimates.perplexity_ratio(b_nll, a_nll, tokens, seed=seed, confidence=confidence),
        kl_divergence=kl_divergence,
        flip_rate=flip_rate,
        size_ratio=_exact_ratio(
            artifact.memory.weights_bytes, baseline.memory.weights_bytes, "bytes of the safetensors files; exact"
        ),
        memory_ratio=_memory_ratio(baseline.memory, artifact.memory),
        speed=tuple(on_shared_machine(ratio, beside) for ratio in speed),
        apart=why,
        other_work=max(filter(None, beside), key=lambda work: work.share, default=None),
        expected=expected.compare(baseline.accuracy, published.scores, published.tolerance) if published else (),
        cross_check=_cross_check(artifact, seed, confidence),
        generated=generated.compare(baseline.accuracy.tasks, artifact.accuracy.tasks, seed=seed, confidence=confidence),
        needle=needle_difference.compare(baseline.needle, artifact.needle, seed=seed, confidence=confidence)
        if baseline.needle and artifact.needle
        else None,
    )


def with_recovery(comparison: Comparison, baseline: Evidence, artifact: Evidence) -> Comparison:
    """The comparison, with the recovery that records from before it was kept don't have. As it is where the scores
    can't be paired.
    """
    there = [task.task for task in comparison.tasks]
    scored = [[task.task for task in side.accuracy.tasks] for side in (baseline, artifact)]
    if comparison.recovery is not None or scored != [there, there]:
        return comparison
    pairs = paired_scores(baseline, artifact)
    if any(len(b) != len(a) for b, a in pairs):
        return comparison
    level = interim_analysis.confidence(artifact.accuracy)
    tasks = tuple(
        task.model_copy(update={"recovery": recovery.recovery([pair], confidence=level)})
        for task, pair in zip(comparison.tasks, pairs, strict=True)
    )
    return comparison.model_copy(update={"tasks": tasks, "recovery": recovery.recovery(pairs, confidence=level)})


def _cross_check(artifact: Evidence, seed: int, confidence: float) -> Estimate | None:
    """The artifact's perplexity in vLLM over that in plain transformers, on the windows that both scored."""
    checked, windows = artifact.cross_check, artifact.language.windows
    if checked is None or not checked.windows or max(checked.windows) >= len(windows) or min(checked.windows) < 0:
        return None
    if len(checked.nll) != len(checked.windows):
        return None
    served = np.array([windows[at].nll for at in checked.windows], dtype=np.float64)
    tokens = np.array([windows[at].tokens for at in checked.windows], dtype=np.float64)
    plain = np.array(checked.nll, dtype=np.float64)
    return estimates.perplexity_ratio(plain, served, tokens, seed=seed, confidence=confidence)


def domains(
    baseline: Language,
    artifact: Language,
    before: divergence.TopK,
    after: divergence.TopK,
    *,
    seed: int = 0,
    confidence: float = estimates.CONFIDENCE,
) -> tuple[DomainDifference, ...]:
    """The figures of each text domain, over its windows; none where there is one text."""
    found = []
    texts = domain_texts(baseline, artifact, seed=seed, confidence=confidence)
    for text, windows in zip(texts, domain_windows(baseline), strict=True):
        b_top, a_top = (divergence.part(top, windows) for top in (before, after))
        sums = divergence.sums(b_top, a_top)
        kl, flips = of_sums(sums, baseline.top_k, seed=seed, confidence=confidence)
        found.append(
            DomainDifference(
                domain=text.domain,
                windows=text.windows,
                perplexity_baseline=text.perplexity_baseline,
                perplexity_artifact=text.perplexity_artifact,
                perplexity_ratio=text.perplexity_ratio,
                kl_divergence=kl,
                flip_rate=flips,
                tail=divergence.tail(b_top, a_top),
            )
        )
    return tuple(found)


@dataclass(frozen=True)
class DomainText:
    """Perplexities of a text domain; see `DomainDifference`."""

    domain: str
    windows: int
    perplexity_baseline: float
    perplexity_artifact: float
    perplexity_ratio: Estimate


def domain_texts(
    baseline: Language, artifact: Language, *, seed: int = 0, confidence: float = estimates.CONFIDENCE
) -> tuple[DomainText, ...]:
    """The perplexities of each text domain; none where there is one text."""
    nll = paired_windows(baseline, artifact)
    found = []
    for domain, windows in zip(baseline.domains, domain_windows(baseline), strict=False):
        b_nll, a_nll, tokens = (values[windows.start : windows.stop] for values in nll)
        found.append(
            DomainText(
                domain=domain.name,
                windows=domain.windows,
                perplexity_baseline=estimates.perplexity(b_nll, tokens),
                perplexity_artifact=estimates.perplexity(a_nll, tokens),
                perplexity_ratio=estimates.perplexity_ratio(b_nll, a_nll, tokens, seed=seed, confidence=confidence),
            )
        )
    return tuple(found)


def domain_windows(language: Language) -> tuple[range, ...]:
    """Each text domain's windows; none where there is one text."""
    found, start = [], 0
    for domain in language.domains if len(language.domains) > 1 else ():
        found.append(range(start, start + domain.windows))
        start = found[-1].stop
    return tuple(found)


def differences(baseline: Evidence, artifact: Evidence) -> list[Problem]:
    """Every reason why the two can't be compared."""
    problems = pairing_problems(baseline, artifact)
    problems += first_question_problems(baseline.canary, artifact.canary)
    problems += _load_problems(baseline.latency, artifact.latency)
    problems += _unequal("hardware", _machine(baseline.hardware), _machine(artifact.hardware))
    problems += _unequal("KV cache budget in bytes", baseline.memory.kv_cache_bytes, artifact.memory.kv_cache_bytes)
    reported = [memory.weights_loaded_bytes is not None for memory in (baseline.memory, artifact.memory)]
    problems += _unequal("loaded weights reported by the server", *reported)
    return problems


def pairing_problems(baseline: Evidence, artifact: Evidence) -> list[Problem]:
    """Every reason why scores and held-out text can't be paired, on whatever machine they were measured."""
    problems = _task_problems(baseline.accuracy.tasks, artifact.accuracy.tasks)
    problems += _unequal("lm-eval version", baseline.accuracy.lm_eval_version, artifact.accuracy.lm_eval_version)
    b, a = baseline.language, artifact.language
    problems += _unequal("digest of the held-out text", b.text_digest, a.text_digest)
    problems += _unequal("top-k of the log-probabilities", b.top_k, a.top_k)
    problems += _unequal("positions with whole distributions", b.whole_positions, a.whole_positions)
    problems += _unequal("tokens in the vocabulary", b.vocabulary, a.vocabulary)
    b_texts, a_texts = (", ".join(f"{d.name} {d.windows}" for d in x.domains) or "one text" for x in (b, a))
    problems += _unequal("text domains", b_texts, a_texts)
    b_tokens, a_tokens = [w.tokens for w in b.windows], [w.tokens for w in a.windows]
    if b_tokens != a_tokens:
        what = (
            f"held-out text: {sum(b_tokens):,} tokens in {len(b_tokens)} windows against "
            f"{sum(a_tokens):,} in {len(a_tokens)}, or other boundaries"
        )
        problems.append(Problem(_MEASURED_DIFFERENTLY, what))
    hidden = (
        [n.prompts_digest[:12], n.context_tokens, n.chat] if (n := x.needle) else "none" for x in (baseline, artifact)
    )
    return problems + _unequal("needle prompts", *hidden)


def first_question_problems(baseline: Canary, artifact: Canary) -> list[Problem]:
    """First questions that differ. A model without a chat template continues a text instead of answering a question, so
    a template that the artifact lost shows here.
    """
    b, a = ([reply.prompt for reply in canary.replies] for canary in (baseline, artifact))
    if b == a:
        return []
    what = f"first questions: '{b[0] if b else ''}' for the baseline, '{a[0] if a else ''}' for the artifact"
    return [Problem(_MEASURED_DIFFERENTLY, what, hint="Only one of them has a chat template.")]


def _task_problems(baseline: Sequence[TaskScore], artifact: Sequence[TaskScore]) -> list[Problem]:
    names, other = [t.task for t in baseline], [t.task for t in artifact]
    if names != other:
        return _unequal("tasks", ", ".join(names), ", ".join(other))
    problems: list[Problem] = []
    for b, a in zip(baseline, artifact, strict=True):
        problems += _unequal(f"{b.task}: version", b.version, a.version)
        problems += _unequal(f"{b.task}: metric", b.metric, a.metric)
        problems += _unequal(f"{b.task}: few-shot examples", b.few_shot, a.few_shot)
        problems += _unequal(f"{b.task}: chat template", b.chat_template, a.chat_template)
        problems += _unequal(f"{b.task}: seed", b.seed, a.seed)
        problems += _unequal(f"{b.task}: how answers are generated", b.generation, a.generation)
        problems += _sample_problems(b, a)
    return problems


def _sample_problems(baseline: TaskScore, artifact: TaskScore) -> list[Problem]:
    b, a = [s.id for s in baseline.samples], [s.id for s in artifact.samples]
    if b == a and len(set(b)) == len(b):
        return []
    task = baseline.task
    in_b, in_a = Counter(b), Counter(a)
    found = (
        ("samples only in the baseline", [i for i in in_b if i not in in_a]),
        ("samples only in the artifact", [i for i in in_a if i not in in_b]),
        ("duplicate samples", sorted(i for i in in_b | in_a if max(in_b[i], in_a[i]) > 1)),
    )
    problems = [Problem(_OTHER_SAMPLES, f"{task}: {len(ids)} {what}: {_some(ids)}") for what, ids in found if ids]
    if not problems:
        moved = [x for x, y in zip(b, a, strict=True) if x != y]
        problems.append(Problem(_OTHER_SAMPLES, f"{task}: {len(moved)} samples in another order: {_some(moved)}"))
    return problems


def _load_problems(baseline: Latency, artifact: Latency) -> list[Problem]:
    def shape(level: Level | OpenLevel) -> str:
        load = f"{level.rate:g} requests/s" if isinstance(level, OpenLevel) else f"{level.concurrency} clients"
        return f"{load} with {level.input_tokens} tokens in and {level.output_tokens} out"

    def shapes(latency: Latency) -> str:
        return "; ".join([*map(shape, latency.levels), *map(shape, latency.open_levels)])

    problems = _unequal("load tool", baseline.tool, artifact.tool)
    return problems + _unequal("load", shapes(baseline), shapes(artifact))


def _machine(hardware: Hardware) -> str:
    # Not memory_bytes: the total that the kernel reports changes from boot to boot.
    memory = hardware.accelerator_memory_bytes
    return f"{hardware.target}, {hardware.name}, {hardware.cores} cores, {hardware.accelerators} x {memory:,} bytes"


def _unequal(what: str, baseline: object, artifact: object) -> list[Problem]:
    if baseline == artifact:
        return []
    return [Problem(_MEASURED_DIFFERENTLY, f"{what}: {baseline} for the baseline, {artifact} for the artifact")]


def _some(ids: Sequence[str]) -> str:
    more = len(ids) - _SHOWN
    return ", ".join(ids[:_SHOWN]) + (f" and {more:,} more" if more > 0 else "")


def _scores(task: TaskScore) -> estimates.Floats:
    return np.array([s.score for s in task.samples], dtype=np.float64)


def paired_scores(baseline: Evidence, artifact: Evidence) -> list[tuple[estimates.Floats, estimates.Floats]]:
    """A pair of arrays [items] per task."""
    return [(_scores(b), _scores(a)) for b, a in zip(baseline.accuracy.tasks, artifact.accuracy.tasks, strict=True)]


def paired_windows(
    baseline: Language, artifact: Language
) -> tuple[estimates.Floats, estimates.Floats, estimates.Floats]:
    """(baseline nll, artifact nll, tokens), each [windows]."""
    b = np.array([w.nll for w in baseline.windows], dtype=np.float64)
    a = np.array([w.nll for w in artifact.windows], dtype=np.float64)
    return b, a, np.array([w.tokens for w in baseline.windows], dtype=np.float64)


def separate(baseline: Level, artifact: Level, confidence: float = estimates.CONFIDENCE) -> SpeedRatio:
    """Artifact over baseline at one concurrency, from separate runs of each."""
    return _ratio(baseline.concurrency, baseline.runs, artifact.runs, estimates.ratio_of_runs, confidence)


def paired(turns: Turns, confidence: float = estimates.CONFIDENCE) -> SpeedRatio:
    """Subject over reference at one concurrency, paired per round."""
    b, a = [turn.reference for turn in turns.rounds], [turn.subject for turn in turns.rounds]
    found = _ratio(turns.concurrency, b, a, estimates.ratio_of_rounds, confidence)
    return found.model_copy(update={"failed": sum(run.failed for run in a)})


def _ratio(
    concurrency: int, b: Sequence[Run], a: Sequence[Run], ratio: Callable[..., Estimate], confidence: float
) -> SpeedRatio:
    """`a` over `b`, by an estimator of ratios."""
    ttft = ratio(*_figures(b, a, _ttft), confidence=confidence)
    return SpeedRatio(
        concurrency=concurrency,
        throughput=ratio(*_figures(b, a, _rate), confidence=confidence),
        ttft_p50=ttft.value,
        inter_token_p50=_medians(*_figures(b, a, _inter_token)),
        ttft=ttft,
        tokens_per_second=side_by_side.mean_rates(b, a),
    )


def on_shared_machine(speed: SpeedRatio, beside: tuple[OtherWork | None, OtherWork | None]) -> SpeedRatio:
    """Ratios with wider intervals where other work took too much of the machine beside baseline or artifact."""
    if not any(work is not None and work.disturbs for work in beside):
        return speed
    before, after = (work.share if work else 0.0 for work in beside)
    return speed.model_copy(
        update={
            "throughput": estimates.widened(speed.throughput, after, before),
            # A time is the inverse of a rate.
            "ttft": estimates.widened(speed.ttft, before, after) if speed.ttft else None,
        }
    )


def _rate(run: Run) -> float:
    return run.output_tokens_per_second


def _ttft(run: Run) -> float:
    return run.ttft_ms.p50


def _inter_token(run: Run) -> float:
    return run.inter_token_ms.p50


def _figures(
    baseline: Sequence[Run], artifact: Sequence[Run], figure: Callable[[Run], float]
) -> tuple[estimates.Floats, estimates.Floats]:
    b, a = (np.array([figure(run) for run in runs], dtype=np.float64) for runs in (baseline, artifact))
    return b, a


def _medians(baseline: estimates.Floats, artifact: estimates.Floats) -> float:
    # Medians, so that one disturbed run doesn't decide.
    there = len(baseline) and len(artifact) and np.median(baseline) > 0
    return float(np.median(artifact) / np.median(baseline)) if there else float("nan")


def _memory_ratio(baseline: Memory, artifact: Memory) -> Estimate:
    method = "peak proportional set size of the server's processes, KV cache included"
    if artifact.weights_loaded_bytes is not None:
        method = "loaded weights and KV cache on the accelerator"
    return _exact_ratio(server_bytes(artifact), server_bytes(baseline), method)


def _exact_ratio(artifact: int, baseline: int, method: str) -> Estimate:
    value = artifact / baseline if baseline > 0 else float("nan")
    return Estimate(value=value, samples=1, interval=None, method=method)
