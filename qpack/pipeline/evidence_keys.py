"""The keys of a model's evidence: what each part is asked, by which modules, on which server and hardware."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evals.measure import load_tools, suite
from qpack.core.store import Inputs
from qpack.pipeline import planned_serving, stage_keys
from qpack.pipeline.stage_keys import Known, Step
from qpack.recipe import eval_requests
from registry.serving import serving_manifest

_MEASURED = "evals.parts.collect_evidence"
CODE: dict[str, tuple[str, ...]] = {
    "performance": (_MEASURED, "evals.parts.performance"),
    "interleaved": (_MEASURED, "evals.parts.interleaved"),
    "drafting": (_MEASURED, "evals.parts.interleaved"),
    "proof": (_MEASURED, "evals.server.canary"),
    "language": (_MEASURED, "evals.measure.perplexity"),
    "continuations": (_MEASURED, "evals.measure.continuations"),
    "needle": (_MEASURED, "evals.measure.needle"),
    "cross_check": (_MEASURED, "evals.measure.cross_check"),
    "guidellm": (_MEASURED, "evals.measure.load_tools"),
    "inference_perf": (_MEASURED, "evals.measure.load_tools"),
    "accuracy": (_MEASURED, "evals.measure.accuracy"),
    "stop": ("evals.parts.interim_tasks",),
}
"""The modules that make each part; `stop` is the interim analysis."""


@dataclass(frozen=True)
class Side:
    """One of the two models: the stage that measures it, the step that its files are from, the step of the windows."""

    stage: str
    model: str
    windows: str
    quantized: bool

    def part(
        self,
        known: Known,
        before: Mapping[str, Step],
        name: str,
        inputs: Inputs,
        after: tuple[str, ...] | None = None,
    ) -> Step:
        """The step of a part: after the model's, unless `after` says otherwise."""
        code = known.code.closure(CODE[name])
        return stage_keys.step(f"{self.stage}.{name}", before, after or (self.model,), code, inputs)


def performance(known: Known, side: Side, before: Mapping[str, Step]) -> Step:
    """The step of speed and memory, which is measured first."""
    ask = stage_keys.plain(eval_requests.specs(known.recipe).performance)
    inputs = {**served(known, quantized=side.quantized), "ask": ask, "hardware": stage_keys.machine(known.machine)}
    return side.part(known, before, "performance", inputs)


def shared(known: Known, side: Side, before: Mapping[str, Step], stop: Inputs | None) -> Iterator[Step]:
    """The steps that both models have, after `performance`. `stop` is the rule of the interim analysis."""
    specs = eval_requests.specs(known.recipe)
    common = {**served(known, quantized=side.quantized), "hardware": stage_keys.kernels(known.machine, known.target)}
    text = (side.model, side.windows)
    wanted = {"top_k": specs.language.top_k, "whole_positions": specs.language.whole_positions}
    yield side.part(known, before, "language", {**common, "ask": wanted}, text)
    if specs.continuations is not None:
        yield side.part(known, before, "continuations", {**common, "ask": stage_keys.plain(specs.continuations)}, text)
    if specs.needle is not None:
        yield side.part(known, before, "needle", {**common, "ask": stage_keys.plain(specs.needle)}, text)
    if specs.cross_check is not None and side.quantized:
        # No server takes part in it: only the weights, the windows and the environment.
        inputs = {**stage_keys.worker(known, "vllm"), "ask": stage_keys.plain(specs.cross_check)}
        yield side.part(known, before, "cross_check", inputs, text)
    for tool in known.recipe.measure.also:
        speed = {**common, **stage_keys.worker(known, "vllm", tool), "hardware": stage_keys.machine(known.machine)}
        yield side.part(known, before, load_tools.part_of(tool), {**speed, "ask": stage_keys.plain(specs.performance)})
    scorer = {**stage_keys.worker(known, "vllm", "lm-eval"), "data": _task_data(known)}
    rule = {"stop": stop} if stop is not None else {}
    yield side.part(known, before, "accuracy", {**common, **scorer, "ask": stage_keys.plain(specs.tasks), **rule})


def served(known: Known, *, quantized: bool) -> dict[str, Any]:
    """How a model is served, and by what."""
    return {
        "serving": command(known, quantized=quantized),
        "inherited": dict(known.variables),
        **stage_keys.worker(known, "vllm"),
        # A source that is released as it is, is the artifact.
        **(known.emulation if quantized or known.request.method == "none" else {}),
    }


def command(known: Known, *, quantized: bool, without: tuple[str, ...] | None = None) -> dict[str, Any]:
    """The server's arguments, with nothing for its folder and name, and its variables: each recipe has its own name,
    and the answers don't depend on it. `without` isn't None for a server beside another one.
    """
    asked, emulated = (known.serving, known.machine, known.source, known.request), bool(known.emulation)
    share = planned_serving.share(*asked, quantized=quantized, emulated=emulated)
    manifest = planned_serving.served(known.serving, known.recipe, share, quantized=quantized)
    manifest = planned_serving.measured(manifest)
    if without is not None:
        manifest = serving_manifest.beside(manifest, without)
    unnamed = manifest.model.model_copy(update={"name": "", "served_model_name": ""})
    manifest = manifest.model_copy(update={"model": unnamed})
    arguments = serving_manifest.vllm_arguments(manifest, Path(), host="", port=0)
    return {
        "arguments": arguments,
        "variables": dict(sorted(manifest.environment.items())),
        "hardware": manifest.hardware,
    }


def _task_data(known: Known) -> dict[str, str | None]:
    """Digests of the task files that come with qpack, and of their data. lm-eval fetches the data of a Hub task, at the
    revision in its task file.
    """
    found: dict[str, str | None] = {}
    for task in eval_requests.tasks(known.recipe):
        if (own := suite.TASKS.get(task.name)) is not None:
            found[f"{task.name}.yaml"] = known.digest(suite.TASKS_DIR / f"{task.name}.yaml")
            if not own.file:
                found["generated.py"] = known.digest(suite.TASKS_DIR / "generated.py")
                continue
            data = suite.data_file(own)
            found[own.file] = known.digest(data) if data else "not there"
    return found
