"""Speculative decoding with a model's own layers for multi-token prediction: whether the artifact has them.

Where they are missing, vLLM 0.32 starts with weights that nothing was loaded into, and accepts none of their drafts.
"""

from __future__ import annotations

from collections.abc import Mapping

from qpack.core import jsonfile
from qpack.core.problems import Code, Location, Problem
from quantize.checkpoint import model_facts
from quantize.checkpoint.source import Source

_NO_DRAFT_LAYERS = Code("no-draft-layers", "The model is to draft with layers of its own, and would have none.")

FLAG = "speculative-config"


def check(source: Source, arguments: Mapping[str, object], dropped_by: str | None, *at: str) -> list[Problem]:
    """`arguments` are a section of the recipe, at `at`; `dropped_by` names an engine that saves only what transformers
    loads. Of a source without headers nothing is known.
    """
    method = _method(arguments.get(FLAG))
    if method is None or not source.tensors:
        return []
    if not model_facts.of(source).draft_layers:
        why, hint = "the source has none", "Name a `model` to draft with, or `method: ngram`."
    elif dropped_by is not None:
        why = f"{dropped_by} doesn't save them"
        hint = "Use `engine: llmcompressor` or `engine: gram`, which keep them."
    else:
        return []
    what = f"`method: {method}` drafts with the model's own layers, and {why}"
    return [Problem(_NO_DRAFT_LAYERS, what, Location(key=(*at, FLAG)), hint)]


def _method(value: object) -> str | None:
    """The method, where it drafts with layers of the served checkpoint: `mtp`, or an older name of it (`deepseek_mtp`).
    With a `model` they are another checkpoint's.
    """
    try:
        settings = jsonfile.loads(value.encode()) if isinstance(value, str) else value
    except jsonfile.NotJson:
        return None
    if not isinstance(settings, Mapping) or settings.get("model"):
        return None
    method = settings.get("method")
    return method if isinstance(method, str) and (method == "mtp" or method.endswith("_mtp")) else None
