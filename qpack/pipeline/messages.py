"""A build in words: what a stage is about to do, and what came of it."""

from __future__ import annotations

import shlex

from qpack.core.errors import GateFailed, GateUndecided, Problem
from qpack.core.records import Verdict
from qpack.pipeline.plan import Plan
from qpack.pipeline.state import Build, need


def about(plan: Plan, stage: str) -> str:
    """What a stage does in this build, in a few words."""
    r = plan.recipe
    names = ", ".join(choice.task for choice in r.evaluate.tasks)
    return {
        "fetch": r.model.source,
        "hold_out": f"{r.evaluate.perplexity.windows} windows of {r.evaluate.perplexity.window_tokens} tokens"
        + (f" of each of {', '.join(text.name for text in texts)}" if (texts := r.evaluate.perplexity.texts) else ""),
        "calibrate": f"{r.calibration.samples} rows of up to {r.calibration.max_length} tokens"
        if r.calibration
        else "not needed",
        "quantize": "nothing is quantized: the source as it is"
        if r.quantize.method == "none"
        else f"{r.quantize.method} {r.quantize.scheme}"
        + (f" in groups of {r.quantize.group_size}" if r.quantize.group_size else "")
        + (f" within {r.quantize.budget:g} bits a weight" if r.quantize.budget else "")
        + f" with {plan.engine.NAME}",
        "baseline": f"the source model in vLLM: {names}, held-out text, load",
        "artifact": "the same files: the same evidence, and the canary"
        if r.quantize.method == "none"
        else "the same questions to the quantized model",
        "judge": ", ".join((*r.gates.bounds(), "canary")),
        "package": "artifact, manifests, card",
        "publish": f"{r.publish.registry} registry as {r.name}"
        + (f", alias {r.publish.alias}" if r.publish.alias else ""),
    }[stage]


def summary(build: Build, stage: str) -> str:
    """A stage's result in a few words, for the line that it leaves."""
    if stage == "quantize":
        made, source = need(build.quantized).result, need(build.fetched).result
        layers = f"{made.quantized_layers} of {made.linear_layers} linear layers"
        return f"; {layers}, {made.weights_bytes / 2**20:,.0f} MiB after {source.weights_bytes / 2**20:,.0f} MiB"
    if stage in ("baseline", "artifact"):
        observed = need(build.baseline if stage == "baseline" else build.artifact)
        means = ", ".join(f"{task.task} {task.mean:.3f}" for task in observed.accuracy.result.tasks)
        if (look := observed.accuracy.result.look) is not None:
            means += f", stopped at look {look.number} of {look.looks}"
        return f"; {means}"
    if stage == "calibrate" and build.calibrated:
        record = build.calibrated.result
        return f"; {record.rows} rows, {record.tokens} tokens, {record.cut} cut"
    if stage == "judge":
        verdict = need(build.judged).result.verdict
        passed = sum(gate.outcome == "pass" for gate in verdict.gates)
        odd = f"; {len(verdict.anomalies)} too good to be true" if verdict.anomalies else ""
        return f"; {verdict.outcome}: {passed} of {len(verdict.gates)} gates passed{odd}"
    if stage == "publish":
        published = need(build.published)
        return f"; {published.reference}" + (" was there already" if published.already_there else "")
    return ""


def refusal(build: Build, verdict: Verdict) -> GateFailed | GateUndecided:
    """The error that a verdict other than pass ends a build with."""
    missed = tuple(Problem(gate.why, gate.gate) for gate in verdict.gates if gate.outcome == verdict.outcome)
    loaded = build.plan.loaded
    settings = [part for setting in loaded.settings for part in ("--set", setting)]
    report = f"`{shlex.join(['qpack', 'report', str(loaded.file.path), *settings])}` writes the evidence down."
    if verdict.outcome == "fail":
        return GateFailed("the artifact is not good enough; nothing was published", hint=report, problems=missed)
    hint = f"Evaluate more samples, or loosen the bound. {report}"
    return GateUndecided("the samples don't decide; nothing was published", hint=hint, problems=missed)
