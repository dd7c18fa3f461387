"""What a recipe asks of a model: its tasks, and what decides when enough of their items were asked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from evals.gates.gates import ACCURACY_GATES, DOMAIN_GATES, GENERATION_GATES, TASK_GATES
from evals.measure import suite
from evals.measure.eval_specs import (
    ContinuationsSpec,
    CrossCheckSpec,
    InterleavedSpec,
    LanguageSpec,
    Load,
    NeedleSpec,
    PerformanceSpec,
    TasksSpec,
)
from evals.workers.lm_eval_job import Generation
from qpack.core.findings import TextDomain
from qpack.core.records import Accuracy
from qpack.core.speed import Objective
from qpack.recipe.models import Measure, Recipe, TaskChoice


@dataclass(frozen=True)
class EvalSpecs:
    """What each part of the evidence is asked: the same data is in the part's key, and is given to its measure. None is
    not asked.
    """

    performance: PerformanceSpec
    interleaved: InterleavedSpec
    drafting: InterleavedSpec
    language: LanguageSpec
    continuations: ContinuationsSpec | None
    needle: NeedleSpec | None
    cross_check: CrossCheckSpec | None
    tasks: TasksSpec


def specs(r: Recipe, domains: tuple[TextDomain, ...] = ()) -> EvalSpecs:
    """What the recipe asks. `domains` are those of the held-out text, which follow from its windows."""
    seed, measured, needle = r.evaluate.seed, load(r.measure), r.evaluate.needle
    tokens = r.evaluate.perplexity.continue_tokens
    return EvalSpecs(
        performance=PerformanceSpec(measured, seed),
        interleaved=InterleavedSpec(measured, r.measure.rounds, seed),
        drafting=InterleavedSpec(measured, r.measure.rounds, seed, texts=True),
        language=LanguageSpec(r.evaluate.top_k, domains, r.evaluate.perplexity.whole_positions),
        continuations=ContinuationsSpec(tokens) if tokens else None,
        needle=NeedleSpec(**needle.model_dump(), seed=seed) if needle else None,
        cross_check=CrossCheckSpec(r.evaluate.cross_check.windows) if r.evaluate.cross_check else None,
        tasks=TasksSpec(tasks(r), seed),
    )


def load(ask: Measure) -> Load:
    """The recipe's load, as the benchmark takes it."""
    settings = ask.model_dump(exclude={"objective", "rounds", "also"})
    settings["max_repeats"] = ask.max_repeats or ask.repeats
    return Load(**settings, objective=Objective(**ask.objective.model_dump()) if ask.objective else None)


def requests(r: Recipe, choice: TaskChoice) -> tuple[suite.TaskRequest, ...]:
    """One entry of the recipe's tasks as the suite takes it."""
    asked = choice.generate
    request = suite.TaskRequest(
        choice.task,
        choice.max_samples or choice.samples,
        r.evaluate.few_shot,
        metric=choice.metric,
        chat=choice.chat,
        generation=Generation(**asked.model_dump()) if asked else None,
    )
    return suite.expand(request, few_shot=choice.few_shot)


def tasks(r: Recipe) -> tuple[suite.TaskRequest, ...]:
    """The recipe's tasks as the suite takes them."""
    return tuple(request for choice in r.evaluate.tasks for request in requests(r, choice))


def interim_analysis(r: Recipe) -> bool:
    """Whether the artifact's accuracy is looked at while it comes in."""
    return any(choice.max_samples is not None for choice in r.evaluate.tasks)


def stop_rule(r: Recipe) -> tuple[dict[str, float], int]:
    """What decides when to stop: the accuracy gates' bounds, and how many figures with an interval are held against a
    bound in all.
    """
    bounds = r.gates.bounds()
    several = {**dict.fromkeys(TASK_GATES, len(tasks(r))), "throughput_ratio": len(r.measure.concurrency)}
    several |= dict.fromkeys(GENERATION_GATES, sum(task.generation is not None for task in tasks(r)))
    several |= dict.fromkeys(DOMAIN_GATES, len(r.evaluate.perplexity.texts))
    with_interval = (
        "recovery",
        "accuracy_drop",
        "perplexity_ratio",
        "kl_divergence",
        "flip_rate",
        "needle_drop",
        *several,
    )
    tests = sum(several.get(gate, 1) for gate in bounds if gate in with_interval)
    return {gate: bounds[gate] for gate in ACCURACY_GATES if gate in bounds}, tests


def stop_of(r: Recipe, baseline: Accuracy) -> Callable[[Accuracy], bool] | None:
    """Whether the artifact's answers so far decide the accuracy gates; None for a recipe that asks all at once."""
    if not interim_analysis(r):
        return None
    bounds, tests = stop_rule(r)

    def stop(artifact: Accuracy) -> bool:
        from evals.gates.interim_analysis import settled

        return settled(baseline, artifact, bounds, tests, r.evaluate.seed)

    return stop
