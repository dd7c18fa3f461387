"""The recipe: one YAML file describes a whole build.

`load` is strict. Unknown keys, wrong types, impossible combinations and missing files are all reported together, each
with file:line and a suggestion. The models are in `qpack.recipe.models`.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from evals.gates.gates import DOMAIN_GATES
from qpack.core import yamlfile
from qpack.core.errors import Problem, RecipeError
from qpack.core.yamlfile import YamlFile, dotted
from qpack.recipe.models import Recipe

# Flags that follow from other keys of the recipe, or that are set when the server is started.
_MANAGED = frozenset(
    {
        "model",
        "served-model-name",
        "host",
        "port",
        "max-model-len",
        "dtype",
        "kv-cache-memory-bytes",
        "tensor-parallel-size",
        "max-logprobs",
        "quantization",
    }
)


@dataclass(frozen=True)
class Loaded:
    """A valid recipe and the file it came from."""

    recipe: Recipe
    file: YamlFile
    settings: tuple[str, ...] = ()

    @property
    def base(self) -> Path:
        """What relative paths in the recipe are relative to."""
        return self.file.path.resolve().parent

    def problem(self, what: str, *at: str | int, hint: str = "") -> Problem:
        """A problem at a key of this recipe."""
        return Problem(f"{dotted(at)}: {what}", self.file.where(at), hint)


def load(path: Path, settings: list[str] | None = None) -> Loaded:
    """Read a recipe, overridden by `--set` settings. Raises RecipeError with every problem."""
    file, problems = yamlfile.load(path)
    if file is None:
        raise RecipeError.of(problems)
    if not isinstance(file.data, dict):
        raise RecipeError.of([Problem("a recipe is a mapping: `key: value` lines", f"{path}:1")])
    file, wrong = yamlfile.override(file, settings or [])
    problems += wrong
    try:
        # JSON mode: YAML lists become the models' tuples, while types stay strict.
        recipe = Recipe.model_validate_json(_json(file.data), strict=True)
    except ValidationError as error:
        reported = {problem.where for problem in problems}
        more = [problem_of(file, details) for details in error.errors()]
        raise RecipeError.of(problems + [problem for problem in more if problem.where not in reported]) from None
    loaded = Loaded(recipe, file, tuple(settings or ()))
    problems += combinations(loaded)
    if problems:
        raise RecipeError.of(problems)
    return loaded


def combinations(loaded: Loaded) -> list[Problem]:
    """Keys that are fine alone and can't go together."""
    from quantize.schemes.schemes import FORMATS, MIXABLE, SCHEMES

    recipe, problems = loaded.recipe, []
    q = recipe.quantize
    scheme = SCHEMES[q.scheme]
    if q.method not in scheme.methods:
        allowed = ", ".join(scheme.methods)
        problems.append(
            loaded.problem(f"{q.method} doesn't make {q.scheme}.", "quantize", "method", hint=f"Use one of: {allowed}.")
        )
    if q.group_size is not None and not scheme.grouped:
        problems.append(
            loaded.problem(
                f"{q.scheme} has no groups.",
                "quantize",
                "group_size",
                hint="Remove the key, or use W4A16, W4A16_ASYM, W8A16 or W8A16_ASYM.",
            )
        )
    if q.format is not None and q.scheme not in FORMATS[q.format]:
        hint = f"Use {', '.join(FORMATS[q.format])}; compressed-tensors holds every scheme."
        if q.scheme == "BF16":
            hint = "It is in no format of quantized weights: remove the key."
        problems.append(loaded.problem(f"{q.format} can't hold {q.scheme}.", "quantize", "format", hint=hint))
    if q.budget is not None and (q.scheme not in MIXABLE or q.format not in (None, "compressed-tensors")):
        what = f"{q.scheme} in the format {q.format}" if q.scheme in MIXABLE else q.scheme
        hint = f"Use {' and '.join(MIXABLE)} in the format compressed-tensors."
        problems.append(loaded.problem(f"{what} doesn't mix precisions.", "quantize", "budget", hint=hint))
    problems += _mixed(loaded)
    calibrated = [
        q.method in ("gptq", "awq", "awq+gptq", "smoothquant"),
        scheme.calibrated,
        q.kv_cache is not None,
        *(SCHEMES[other.scheme].calibrated for other in q.overrides),
    ]
    if recipe.calibration is None and any(calibrated):
        problems.append(
            loaded.problem(
                f"{q.method} {q.scheme}{' with a calibrated KV cache' if q.kv_cache else ''} needs calibration texts.",
                "quantize",
                "method",
                hint="Add a `calibration:` section.",
            )
        )
    if recipe.calibration and recipe.calibration.min_length > recipe.calibration.max_length:
        problems.append(loaded.problem("is above calibration.max_length", "calibration", "min_length"))
    longest = recipe.measure.prefix_tokens + recipe.measure.input_tokens + recipe.measure.output_tokens
    for what, tokens, at in (
        ("prefix_tokens + input_tokens + output_tokens", longest, ("measure", "input_tokens")),
        ("window_tokens", recipe.evaluate.perplexity.window_tokens + 1, ("evaluate", "perplexity", "window_tokens")),
    ):
        if tokens > recipe.serve.max_model_len:
            problems.append(
                loaded.problem(
                    f"{what} needs {tokens} tokens, above serve.max_model_len {recipe.serve.max_model_len}", *at
                )
            )
    problems += _flags(loaded, recipe.serve.arguments, "serve", "arguments")
    for name, profile in recipe.serve.profiles.items():
        problems += _flags(loaded, profile.arguments, "serve", "profiles", name, "arguments")
    names = [choice.task for choice in recipe.evaluate.tasks]
    for i, name in enumerate(names):
        if name in names[:i]:
            problems.append(loaded.problem("is a duplicate", "evaluate", "tasks", i, "task"))
    problems += _looks(loaded)
    problems += _held_out(loaded)
    if not recipe.gates.model_dump(exclude_none=True):
        problems.append(loaded.problem("set at least one gate", "gates", hint="For example `accuracy_drop: 0.02`."))
    return problems


def _mixed(loaded: Loaded) -> list[Problem]:
    """Overrides, and the flag that follows from `kv_cache`."""
    from quantize.schemes.schemes import SCHEMES

    problems, q = [], loaded.recipe.quantize
    for i, other in enumerate(q.overrides):
        theirs = SCHEMES[other.scheme]
        at: tuple[str | int, ...] = ("quantize", "overrides", i)
        if q.method not in theirs.methods:
            hint = f"Use one of: {', '.join(theirs.methods)}."
            problems.append(loaded.problem(f"{q.method} doesn't make {other.scheme}.", *at, "scheme", hint=hint))
        if other.group_size is not None and not theirs.grouped:
            problems.append(loaded.problem(f"{other.scheme} has no groups.", *at, "group_size", hint="Remove the key."))
    if q.kv_cache is not None and "kv-cache-dtype" in loaded.recipe.serve.arguments:
        hint = "Remove one of the two: quantize.kv_cache sets the flag for the artifact."
        problems.append(
            loaded.problem("follows from quantize.kv_cache", "serve", "arguments", "kv-cache-dtype", hint=hint)
        )
    return problems


def _looks(loaded: Loaded) -> list[Problem]:
    """`max_samples` is for all tasks or none, and needs a gate that can be decided early."""
    chosen, gates = loaded.recipe.evaluate.tasks, loaded.recipe.gates
    if all(choice.max_samples is None for choice in chosen):
        return []
    problems = []
    for i, choice in enumerate(chosen):
        at = ("evaluate", "tasks", i)
        if choice.max_samples is None:
            problems.append(loaded.problem("has no max_samples, and another task has.", *at, hint="All or none."))
        elif choice.samples is not None:
            what = "samples and max_samples exclude each other."
            problems.append(loaded.problem(what, *at, "max_samples", hint="Remove one of them."))
    if gates.accuracy_drop is None and gates.task_accuracy_drop is None:
        hint = "Set gates.accuracy_drop or gates.task_accuracy_drop, or use `samples`."
        problems.append(
            loaded.problem("no accuracy gate can stop it early.", "evaluate", "tasks", 0, "max_samples", hint=hint)
        )
    return problems


def _held_out(loaded: Loaded) -> list[Problem]:
    """One held-out text or several, what is asked of it, and gates on what isn't asked."""
    asked, problems = loaded.recipe.evaluate.perplexity, []
    at = ("evaluate", "perplexity")
    if asked.source is None and not asked.texts:
        hint = "Name a file in `source`, or several under `texts`."
        problems.append(loaded.problem("no held-out text", *at, hint=hint))
    if asked.source is not None and asked.texts:
        hint = "Move it under `texts`, with a name."
        problems.append(loaded.problem("source and texts exclude each other", *at, "source", hint=hint))
    names = [text.name for text in asked.texts]
    problems += [
        loaded.problem("is a duplicate", *at, "texts", i, "name") for i, name in enumerate(names) if name in names[:i]
    ]
    if asked.continue_tokens >= asked.window_tokens:
        what = f"{asked.continue_tokens} tokens are as many as a window has:  {asked.window_tokens}"
        problems.append(loaded.problem(what, *at, "continue_tokens"))
    if loaded.recipe.gates.needle_drop is not None and loaded.recipe.evaluate.needle is None:
        hint = "Add `needle: {}` to `evaluate:`."
        problems.append(loaded.problem("the recipe has no needle test", "gates", "needle_drop", hint=hint))
    for gate, bound in loaded.recipe.gates.bounds().items():
        if gate in DOMAIN_GATES and len(names) < 2:
            hint = f"Name two or more under evaluate.perplexity.texts, or set gates.{DOMAIN_GATES[gate]}."
            what = f"{bound:g} for each text domain, and there is one text"
            problems.append(loaded.problem(what, "gates", gate, hint=hint))
    return problems


def _flags(loaded: Loaded, arguments: Mapping[str, Any], *at: str) -> list[Problem]:
    problems = []
    for flag in arguments:
        if flag.lstrip("-") != flag or "_" in flag:
            problems.append(loaded.problem("write the flag without dashes in front and with - inside", *at, flag))
        elif flag in _MANAGED:
            hint = "See `serve:` in docs/reference/recipes.md."
            problems.append(loaded.problem("qpack sets this flag itself", *at, flag, hint=hint))
    return problems


def schema() -> dict[str, Any]:
    """The JSON Schema of a recipe, for editors."""
    generated = Recipe.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **generated, "title": "qpack recipe"}


def _json(data: Any) -> str:
    import json

    return json.dumps(data)


def problem_of(file: YamlFile, details: Any) -> Problem:
    """One of pydantic's errors as a problem at its line, with the key or value that was probably meant."""
    at = tuple(details["loc"])
    name, kind = dotted(at), details["type"]
    if kind == "extra_forbidden":
        near = difflib.get_close_matches(str(at[-1]), known_keys(at[:-1]), n=1, cutoff=0.55)
        keys = ", ".join(known_keys(at[:-1]))
        return Problem(
            f"{name}: unknown key.", file.where(at), f"Did you mean '{near[0]}'?" if near else f"Known: {keys}."
        )
    if kind == "missing":
        return Problem(f"{name}: is missing", file.where(at[:-1]))
    if kind == "literal_error":
        allowed = [part.strip().strip("'") for part in details["ctx"]["expected"].replace(" or ", ", ").split(",")]
        near = difflib.get_close_matches(str(details["input"]), allowed, n=1, cutoff=0.5)
        hint = f"Did you mean '{near[0]}'?" if near else f"One of: {', '.join(allowed)}."
        return Problem(f"{name}: {_shown(details['input'])} is not known.", file.where(at), hint)
    message = details["msg"].removeprefix("Input ")
    given = f"{_shown(details['input'])} " if isinstance(details["input"], str | int | float | bool) else ""
    # "should be a valid integer" reads on behind the value; "String should have at most 96 characters" doesn't.
    between = "" if message.startswith("should") or not given else "is invalid: "
    return Problem(f"{name}: {given}{between}{message}", file.where(at))


def _shown(value: object) -> str:
    """A value as a message shows it: its beginning, where it is long."""
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:197]}..."


def known_keys(at: tuple[str | int, ...]) -> list[str]:
    """The keys that the recipe may have at a place."""
    import typing

    model: Any = Recipe
    free = False
    for part in at:
        if isinstance(part, int):
            continue
        if free:
            free = False  # the name of a profile
            continue
        annotation = model.model_fields[part].annotation if part in model.model_fields else None
        free = typing.get_origin(annotation) is dict
        models = [
            a for a in (annotation, *typing.get_args(annotation)) if isinstance(a, type) and issubclass(a, BaseModel)
        ]
        if not models:
            return []
        model = models[0]
    return sorted(model.model_fields)
