"""The recipe: one YAML file describes a whole build.

`load` is strict. Unknown keys, wrong types, impossible combinations and missing files are all reported together, each
with file:line and a suggestion. The models are in `qpack.recipe.models`.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from evals.gates.gates import ACCURACY_GATES, DOMAIN_GATES
from qpack.core import yamlfile
from qpack.core.errors import RecipeError
from qpack.core.problems import Code, Location, Problem, Severity
from qpack.core.yamlfile import INVALID_VALUE, NO_MAPPING, NO_SUCH_KEY, YamlFile
from qpack.recipe.models import Recipe

NO_GATE = Code("no-gate", "There is no gate, so that nothing would be proved.")
DUPLICATE_NAME = Code("duplicate-name", "Two items of a list have the same name.")
_MISSING_KEY = Code("missing-key", "A key is missing.")
_METHOD_SCHEME = Code("method-scheme", "The method doesn't make the scheme.")
_NO_GROUPS = Code("no-groups", "A group size is given for a scheme without groups.")
_FORMAT_SCHEME = Code("format-scheme", "The format can't hold the scheme.")
_BUDGET_SCHEME = Code("budget-scheme", "A budget is given for a scheme or a format that doesn't mix precisions.")
_NO_BUDGET = Code("no-budget", "A key is for a budget, and the recipe has none.")
_NO_CALIBRATION = Code("no-calibration", "The method needs calibration texts, and the recipe names none.")
_LENGTHS = Code("lengths", "The least length is above the greatest.")
ABOVE_MODEL_LEN = Code("above-max-model-len", "Evaluation sends more tokens than the server takes.")
EXCLUSIVE_KEYS = Code("exclusive-keys", "Two keys can't go together.")
_UNEVEN_LOOKS = Code("uneven-looks", "Some tasks have max_samples, and others don't.")
_UNKNOWN_EXPECTED = Code("unknown-expected", "A published score is of a task that the recipe doesn't ask.")
_NO_EARLY_GATE = Code("no-early-gate", "Tasks have max_samples, and no accuracy gate could stop them early.")
_NO_HELD_OUT_TEXT = Code("no-held-out-text", "The recipe names no held-out text.")
_SHORT_WINDOW = Code("short-window", "Continuations leave nothing of a window of held-out text.")
UNMEASURED_GATE = Code("unmeasured-gate", "A gate is set on what the recipe doesn't measure.")
_FLAG_SPELLING = Code("flag-spelling", "A flag of the server is written with dashes in front or underscores inside.")
_MANAGED_FLAG = Code("managed-flag", "A flag of the server follows from another key of the recipe.")

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
        "quantization-config",
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
        """The folder that relative paths in the recipe start at."""
        return self.file.path.resolve().parent

    def problem(
        self, code: Code, message: str, *at: str | int, hint: str = "", severity: Severity = "error"
    ) -> Problem:
        """A problem at a key of this recipe."""
        return Problem(code, message, self.file.where(at), hint, severity)

    def located(self, problem: Problem, *at: str | int) -> Problem:
        """A problem at `at`, or else at its own key, with the line that the key has in this recipe."""
        place = self.file.where(at or problem.where.key)
        return replace(problem, where=replace(place, name=problem.where.name, more=problem.where.more))


def load(path: Path, settings: list[str] | None = None) -> Loaded:
    """Read a recipe, overridden by `--set` settings. Raises RecipeError with every problem."""
    file, problems = yamlfile.load(path)
    if file is None:
        raise RecipeError.of(problems)
    if not isinstance(file.data, dict):
        raise RecipeError.of([Problem(NO_MAPPING, "a recipe is a mapping: `key: value` lines", Location(str(path), 1))])
    file, wrong = yamlfile.override(file, settings or [])
    problems += wrong
    try:
        # JSON mode: YAML lists become the models' tuples, while types stay strict.
        recipe = Recipe.model_validate_json(_json(file.data), strict=True)
    except ValidationError as error:
        reported = {_line(problem) for problem in problems}
        more = [problem_of(file, details) for details in _causes(error.errors())]
        problems += [problem for problem in more if _line(problem) not in reported]
        # In the file's order; what the command line gave comes last.
        raise RecipeError.of(sorted(problems, key=lambda problem: _line(problem).line or math.inf)) from None
    loaded = Loaded(recipe, file, tuple(settings or ()))
    problems += combinations(loaded)
    if problems:
        raise RecipeError.of(problems)
    return loaded


def _causes(errors: Sequence[Any]) -> list[Any]:
    """Pydantic's errors without those that others bring about: a list is too short because its items are wrong."""
    places = [error["loc"] for error in errors]

    def follows(error: Any) -> bool:
        at = error["loc"]
        return error["type"] == "too_short" and any(len(loc) > len(at) and loc[: len(at)] == at for loc in places)

    return [error for error in errors if not follows(error)]


def _line(problem: Problem) -> Location:
    """The line of a file or the option of the command line, without the key."""
    return replace(problem.where, key=())


def combinations(loaded: Loaded) -> list[Problem]:
    """Keys that exclude each other."""
    from quantize.schemes.schemes import FORMATS, MIXABLE, SCHEMES, UNCHANGED

    recipe, problems = loaded.recipe, []
    q = recipe.quantize
    scheme = SCHEMES[q.scheme]
    if q.method not in scheme.methods:
        allowed = ", ".join(scheme.methods)
        problems.append(
            loaded.problem(
                _METHOD_SCHEME,
                f"{q.method} doesn't make {q.scheme}.",
                *("quantize", "method"),
                hint=f"Use one of: {allowed}.",
            )
        )
    if q.group_size is not None and not scheme.grouped:
        problems.append(
            loaded.problem(
                _NO_GROUPS,
                f"{q.scheme} has no groups.",
                *("quantize", "group_size"),
                hint=f"Remove the key, or use {', '.join(s.name for s in SCHEMES.values() if s.grouped)}.",
            )
        )
    if q.format is not None and q.scheme not in FORMATS[q.format]:
        hint = f"Use {', '.join(FORMATS[q.format])}; compressed-tensors holds every scheme."
        if not set(scheme.methods) - set(UNCHANGED):
            hint = "It is in no format of quantized weights: remove the key."
        problems.append(
            loaded.problem(_FORMAT_SCHEME, f"{q.format} can't hold {q.scheme}.", "quantize", "format", hint=hint)
        )
    able = q.scheme in MIXABLE or bool(q.choices)
    if q.budget is not None and (not able or q.format not in (None, "compressed-tensors")):
        what = f"{q.scheme} in the format {q.format}" if able else q.scheme
        hint = f"Use {' and '.join(MIXABLE)} in the format compressed-tensors."
        problems.append(
            loaded.problem(_BUDGET_SCHEME, f"{what} doesn't mix precisions.", "quantize", "budget", hint=hint)
        )
    problems += _mixed(loaded)
    calibrated = [
        q.method not in ("rtn", *UNCHANGED),
        scheme.calibrated,
        q.kv_cache is not None,
        *(SCHEMES[other.scheme].calibrated for other in q.overrides),
        *(SCHEMES[name].calibrated for choice in q.choices for name in choice.schemes),
    ]
    if recipe.calibration is None and any(calibrated):
        problems.append(
            loaded.problem(
                _NO_CALIBRATION,
                f"{q.method} {q.scheme}{' with a calibrated KV cache' if q.kv_cache else ''} needs calibration texts.",
                "quantize",
                "method",
                hint="Add a `calibration:` section.",
            )
        )
    if recipe.calibration and recipe.calibration.min_length > recipe.calibration.max_length:
        problems.append(loaded.problem(_LENGTHS, "is above calibration.max_length", "calibration", "min_length"))
    longest = recipe.measure.prefix_tokens + recipe.measure.input_tokens + recipe.measure.output_tokens
    for what, tokens, at in (
        ("prefix_tokens + input_tokens + output_tokens", longest, ("measure", "input_tokens")),
        ("window_tokens", recipe.evaluate.perplexity.window_tokens + 1, ("evaluate", "perplexity", "window_tokens")),
    ):
        if tokens > recipe.serve.max_model_len:
            problems.append(
                loaded.problem(
                    ABOVE_MODEL_LEN,
                    f"{what} needs {tokens} tokens, above serve.max_model_len {recipe.serve.max_model_len}",
                    *at,
                )
            )
    problems += _flags(loaded, recipe.serve.arguments, "serve", "arguments")
    for name, profile in recipe.serve.profiles.items():
        problems += _flags(loaded, profile.arguments, "serve", "profiles", name, "arguments")
    problems += [
        loaded.problem(
            _UNKNOWN_EXPECTED,
            "no task of the recipe has this name.",
            *("evaluate", "expect", name),
            hint=f"Known: {', '.join(choice.task for choice in recipe.evaluate.tasks)}.",
        )
        for name in recipe.evaluate.expect
        if not {name, f"lm_eval:{name}"} & {choice.task for choice in recipe.evaluate.tasks}
    ]
    names = [choice.task for choice in recipe.evaluate.tasks]
    for i, name in enumerate(names):
        if name in names[:i]:
            problems.append(loaded.problem(DUPLICATE_NAME, "is a duplicate", "evaluate", "tasks", i, "task"))
    problems += _looks(loaded)
    problems += _held_out(loaded)
    if not recipe.gates.model_dump(exclude_none=True):
        problems.append(
            loaded.problem(
                NO_GATE,
                "set at least one gate",
                "gates",
                hint="For example `accuracy_drop: 0.02`.",
            )
        )
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
            problems.append(
                loaded.problem(_METHOD_SCHEME, f"{q.method} doesn't make {other.scheme}.", *at, "scheme", hint=hint)
            )
        if other.group_size is not None and not theirs.grouped:
            problems.append(
                loaded.problem(_NO_GROUPS, f"{other.scheme} has no groups.", *at, "group_size", hint="Remove the key.")
            )
    problems += _choices(loaded)
    if q.kv_cache is not None and "kv-cache-dtype" in loaded.recipe.serve.arguments:
        hint = "Remove one of the two: quantize.kv_cache sets the flag for the artifact."
        problems.append(
            loaded.problem(
                _MANAGED_FLAG, "follows from quantize.kv_cache", "serve", "arguments", "kv-cache-dtype", hint=hint
            )
        )
    return problems


def _choices(loaded: Loaded) -> list[Problem]:
    """Schemes that a budget chooses among."""
    from quantize.schemes.schemes import SCHEMES, UNQUANTIZED

    problems, q = [], loaded.recipe.quantize
    if q.choices and q.budget is None:
        what, hint = "chooses within a budget, and there is none.", "Set `quantize.budget`, or use `overrides`."
        problems.append(loaded.problem(_NO_BUDGET, what, "quantize", "choices", hint=hint))
    if q.choices and q.overrides:
        what, hint = "excludes `overrides`.", "Give those layers a choice of one scheme."
        problems.append(loaded.problem(EXCLUSIVE_KEYS, what, "quantize", "choices", hint=hint))
    if q.budget_per != "weight" and q.budget is None:
        what, hint = "is of `budget`, and there is none.", "Set `quantize.budget`, or remove the key."
        problems.append(loaded.problem(_NO_BUDGET, what, "quantize", "budget_per", hint=hint))
    for i, choice in enumerate(q.choices):
        at: tuple[str | int, ...] = ("quantize", "choices", i)
        for name in choice.schemes:
            theirs = SCHEMES[name]
            if name != UNQUANTIZED and q.method not in theirs.methods:
                hint = f"Use one of: {', '.join(theirs.methods)}."
                problems.append(
                    loaded.problem(_METHOD_SCHEME, f"{q.method} doesn't make {name}.", *at, "schemes", hint=hint)
                )
        if choice.group_size is not None and not any(SCHEMES[name].grouped for name in choice.schemes):
            what = f"{', '.join(choice.schemes)} has no groups."
            problems.append(loaded.problem(_NO_GROUPS, what, *at, "group_size", hint="Remove the key."))
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
            problems.append(
                loaded.problem(_UNEVEN_LOOKS, "has no max_samples, and another task has.", *at, hint="All or none.")
            )
        elif choice.samples is not None:
            what = "samples and max_samples exclude each other."
            problems.append(loaded.problem(EXCLUSIVE_KEYS, what, *at, "max_samples", hint="Remove one of them."))
    if gates.bounds().keys().isdisjoint(ACCURACY_GATES):
        hint = f"Set one of {', '.join(ACCURACY_GATES)}, or use `samples`."
        problems.append(
            loaded.problem(
                _NO_EARLY_GATE,
                "no accuracy gate can stop it early.",
                *("evaluate", "tasks", 0, "max_samples"),
                hint=hint,
            )
        )
    return problems


def _held_out(loaded: Loaded) -> list[Problem]:
    """One held-out text or several, its options, and gates on figures that aren't measured."""
    asked, problems = loaded.recipe.evaluate.perplexity, []
    at = ("evaluate", "perplexity")
    if asked.source is None and not asked.texts:
        hint = "Name a file in `source`, or several under `texts`."
        problems.append(loaded.problem(_NO_HELD_OUT_TEXT, "no held-out text", *at, hint=hint))
    if asked.source is not None and asked.texts:
        hint = "Move it under `texts`, with a name."
        problems.append(loaded.problem(EXCLUSIVE_KEYS, "source and texts exclude each other", *at, "source", hint=hint))
    names = [text.name for text in asked.texts]
    problems += [
        loaded.problem(DUPLICATE_NAME, "is a duplicate", *at, "texts", i, "name")
        for i, name in enumerate(names)
        if name in names[:i]
    ]
    if asked.continue_tokens >= asked.window_tokens:
        what = f"{asked.continue_tokens} tokens are as many as a window has: {asked.window_tokens}"
        problems.append(loaded.problem(_SHORT_WINDOW, what, *at, "continue_tokens"))
    if loaded.recipe.gates.needle_drop is not None and loaded.recipe.evaluate.needle is None:
        hint = "Add `needle: {}` to `evaluate:`."
        problems.append(
            loaded.problem(UNMEASURED_GATE, "the recipe has no needle test", "gates", "needle_drop", hint=hint)
        )
    for gate, bound in loaded.recipe.gates.bounds().items():
        if gate in DOMAIN_GATES and len(names) < 2:
            hint = f"Name two or more under evaluate.perplexity.texts, or set gates.{DOMAIN_GATES[gate]}."
            what = f"{bound:g} for each text domain, and there is one text"
            problems.append(loaded.problem(UNMEASURED_GATE, what, "gates", gate, hint=hint))
    return problems


def _flags(loaded: Loaded, arguments: Mapping[str, Any], *at: str) -> list[Problem]:
    problems = []
    for flag in arguments:
        if flag.lstrip("-") != flag or "_" in flag:
            what = "write the flag without dashes in front and with - inside"
            problems.append(loaded.problem(_FLAG_SPELLING, what, *at, flag))
        elif flag in _MANAGED:
            hint = "See `serve:` in docs/reference/recipes.md."
            problems.append(loaded.problem(_MANAGED_FLAG, "qpack sets this flag itself", *at, flag, hint=hint))
    return problems


def schema() -> dict[str, Any]:
    """The JSON Schema of a recipe, for editors."""
    generated = Recipe.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **generated, "title": "qpack recipe"}


def _json(data: Any) -> str:
    import json

    return json.dumps(data)


def problem_of(file: YamlFile, details: Any) -> Problem:
    """One of pydantic's errors as a problem at its line, with a suggestion."""
    at = tuple(details["loc"])
    kind = details["type"]
    if kind == "extra_forbidden":
        near = difflib.get_close_matches(str(at[-1]), known_keys(at[:-1]), n=1, cutoff=0.55)
        keys = ", ".join(known_keys(at[:-1]))
        hint = f"Did you mean '{near[0]}'?" if near else f"Known: {keys}."
        return Problem(NO_SUCH_KEY, "unknown key", file.where(at), hint)
    if kind == "missing":
        return Problem(_MISSING_KEY, "is missing", file.where(at))
    if kind == "literal_error":
        allowed = [part.strip().strip("'") for part in details["ctx"]["expected"].replace(" or ", ", ").split(",")]
        near = difflib.get_close_matches(str(details["input"]), allowed, n=1, cutoff=0.5)
        hint = f"Did you mean '{near[0]}'?" if near else f"One of: {', '.join(allowed)}."
        return Problem(INVALID_VALUE, f"{_shown(details['input'])} is not known.", file.where(at), hint)
    message = details["msg"].removeprefix("Input ")
    given = f"{_shown(details['input'])} " if isinstance(details["input"], str | int | float | bool) else ""
    # "should be a valid integer" reads on behind the value; "String should have at most 96 characters" doesn't.
    between = "" if message.startswith("should") or not given else "is invalid: "
    return Problem(INVALID_VALUE, f"{given}{between}{message}", file.where(at))


def _shown(value: object) -> str:
    """A value for a message; long ones are cut."""
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
