"""The recipe: one YAML file says everything about a build.

`load` is strict. Unknown keys, wrong types, impossible combinations and missing files are all reported at once, each
with file:line and a suggestion. The models below are also the source of the JSON Schema in recipes/recipe.schema.json.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from evals.gates import Gates
from qpack import yamlfile
from qpack.errors import Problem, RecipeError
from qpack.yamlfile import YamlFile, dotted

Name = Annotated[str, Field(pattern=r"^[a-z0-9]+([._-][a-z0-9]+)*$", max_length=96)]
Method = Literal["gptq", "awq", "awq+gptq", "rtn", "smoothquant"]
Scheme = Literal["W4A16", "W4A16_ASYM", "W8A16", "W8A8", "FP8_DYNAMIC", "FP8", "FP8_BLOCK"]


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


class Section(BaseModel):
    """A part of the recipe: immutable, no unknown keys, no silent conversion of types."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Model(Section):
    """The source model."""

    source: str = Field(
        description="`hf://org/name@revision`, a folder, or `pkg://distribution/path` (a GGUF in a package)."
    )
    trust_remote_code: bool = Field(
        False, description="Run Python code that the checkpoint ships. Off unless you have read it."
    )
    license: str | None = Field(None, description="SPDX identifier, for a source that doesn't name its licence.")


class Texts(Section):
    """Where texts come from."""

    source: str = Field(
        description="A .jsonl or .txt file: a path, `pkg://distribution/path`, or `hf://datasets/org/name/file@revision`."
    )
    field: str = Field(
        "text", description="The key that holds the text in each line of a .jsonl file; it may hold chat messages."
    )


class Calibration(Texts):
    """What the quantizer sees."""

    samples: int = Field(128, ge=1, description="Rows to use.")
    max_length: int = Field(
        512, ge=8, description="Tokens a row; longer rows are cut, and the record says how many were."
    )
    min_length: int = Field(16, ge=1, description="Rows of fewer tokens are left out.")
    seed: int = Field(0, description="Which rows, and in which order.")
    chat_template: bool = Field(False, description="Render each row with the model's chat template first.")


class Quantize(Section):
    """How to quantize."""

    engine: Literal["auto", "llmcompressor", "gram"] = Field(
        "auto", description="`auto` picks by method, scheme and hardware; `qpack plan` says why."
    )
    method: Method = Field(
        description="gptq, awq, awq+gptq, rtn (round to nearest) or smoothquant (with gptq, for W8A8)."
    )
    scheme: Scheme = Field(description="Bits of weights and activations, as compressed-tensors names them.")
    group_size: int | None = Field(
        None,
        ge=8,
        description="Input channels that share a scale. For the W4 and W8A16 schemes; null for one scale a channel.",
    )
    ignore: tuple[str, ...] = Field(
        ("lm_head",), description="Layers to leave alone: names, or `re:` and a regular expression."
    )
    damping: float = Field(
        0.01, gt=0, le=1, description="GPTQ: share of the mean Hessian diagonal that is added to it."
    )


class TaskChoice(Section):
    """One lm-eval task."""

    task: str = Field(
        description="A task under evals/tasks/, or `lm_eval:NAME` for one that lm-eval brings (needs the hub)."
    )
    samples: int | None = Field(None, ge=1, description="Items to use, drawn with the seed; null for all.")


class Perplexity(Texts):
    """Held-out text for perplexity, divergence and flips. Take none that the calibration has seen."""

    windows: int = Field(64, ge=2)
    window_tokens: int = Field(256, ge=16)


class Evaluate(Section):
    """What is compared between baseline and artifact."""

    tasks: tuple[TaskChoice, ...] = Field(min_length=1)
    few_shot: int = Field(0, ge=0)
    seed: int = 0
    perplexity: Perplexity
    top_k: int = Field(16, ge=2, le=128, description="Log-probabilities kept at each position, for the divergence.")


class ServiceObjective(Section):
    """What a request has to keep to be good, in milliseconds. Goodput is the rate of good requests."""

    ttft_ms: float | None = Field(None, gt=0)
    time_per_output_token_ms: float | None = Field(None, gt=0)
    end_to_end_ms: float | None = Field(None, gt=0)


class Measure(Section):
    """The load that speed is measured under, by `vllm bench serve`."""

    concurrency: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (1, 4, 16), min_length=1, description="Closed loops: clients that each send when they are answered."
    )
    rates: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        (), description="Open loops: Poisson arrivals, requests a second."
    )
    rate_seconds: float = Field(30.0, gt=0, description="How long an open loop sends.")
    input_tokens: int = Field(128, ge=1)
    output_tokens: int = Field(32, ge=2)
    requests_per_client: int = Field(
        2, ge=1, description="Requests of one client in one run: concurrency times this in all."
    )
    prefix_tokens: int = Field(0, ge=0, description="Measure what a shared prefix of this length saves; 0 doesn't.")
    repeats: int = Field(3, ge=1, description="Runs a level. With one there is no interval.")
    max_repeats: int = Field(3, ge=1, description="More runs, until the medians are known to `precision`.")
    precision: float = Field(0.05, gt=0, description="Width of a median's 90 % interval, as a share of it.")
    objective: ServiceObjective | None = None


class Serve(Section):
    """How the model is served: the evals run against a server that is started this way."""

    target: Literal["auto", "cpu", "ampere", "ada", "hopper", "blackwell"] = Field(
        "auto", description="Hardware that will serve it; auto is this machine."
    )
    max_model_len: int = Field(2048, ge=64)
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    kv_cache_gib: float = Field(1.0, gt=0, description="The KV cache's budget, the same for baseline and artifact.")
    port: int | None = Field(
        None, ge=1, le=65535, description="Port of the server that the evals run against; null for any free one."
    )
    tensor_parallel: int = Field(1, ge=1)
    arguments: dict[str, bool | int | float | str] = Field(
        default_factory=dict, description="More `vllm serve` flags, without the dashes."
    )
    environment: dict[str, str] = Field(
        default_factory=dict, description="Environment variables for vLLM. No secrets: they are published."
    )


class Publish(Section):
    """Where the release goes."""

    registry: Literal["local"] = "local"
    version: str | None = Field(
        None, pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,127}$", description="Immutable; null for the next number."
    )
    alias: Name | None = Field("latest", description="Moves to this release once it is published.")


class Limits(Section):
    """When to give up."""

    stage_minutes: float = Field(720, gt=0, description="A worker that takes longer is stopped.")
    server_start_minutes: float = Field(20, gt=0, description="vLLM has to be ready by then.")


class Recipe(Section):
    """The whole recipe. Paths in it are relative to the file."""

    name: Name
    model: Model
    calibration: Calibration | None = Field(None, description="Not needed by round to nearest and FP8_DYNAMIC.")
    quantize: Quantize
    evaluate: Evaluate
    measure: Measure = Measure()
    gates: Gates
    serve: Serve = Serve()
    publish: Publish = Publish()
    limits: Limits = Limits()
    environments: dict[str, str] = Field(
        default_factory=dict,
        description="Your own interpreters, by environment name; the rest are built from the locks.",
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
    """Read a recipe, with `--set` settings laid over it. Raises RecipeError with every problem at once."""
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
        told = {problem.where for problem in problems}
        more = [_problem(file, details) for details in error.errors()]
        raise RecipeError.of(problems + [problem for problem in more if problem.where not in told]) from None
    loaded = Loaded(recipe, file, tuple(settings or ()))
    problems += combinations(loaded)
    if problems:
        raise RecipeError.of(problems)
    return loaded


def combinations(loaded: Loaded) -> list[Problem]:
    """Keys that are fine alone and can't go together."""
    from quantize.schemes import SCHEMES

    recipe, problems = loaded.recipe, []
    q = recipe.quantize
    scheme = SCHEMES[q.scheme]
    if q.method not in scheme.methods:
        allowed = ", ".join(scheme.methods)
        problems.append(
            loaded.problem(
                f"{q.method} doesn't make {q.scheme}.", "quantize", "method", hint=f"It is made by: {allowed}."
            )
        )
    if q.group_size is not None and not scheme.grouped:
        problems.append(
            loaded.problem(
                f"{q.scheme} has no groups.",
                "quantize",
                "group_size",
                hint="Remove the key, or take W4A16, W4A16_ASYM or W8A16.",
            )
        )
    if recipe.calibration is None and (q.method in ("gptq", "awq", "awq+gptq", "smoothquant") or scheme.calibrated):
        problems.append(
            loaded.problem(
                f"{q.method} {q.scheme} needs calibration texts.",
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
    for flag in recipe.serve.arguments:
        if flag.lstrip("-") != flag or "_" in flag:
            problems.append(
                loaded.problem("write the flag without dashes in front and with - inside", "serve", "arguments", flag)
            )
        elif flag in _MANAGED:
            problems.append(
                loaded.problem(
                    "qpack sets this flag itself", "serve", "arguments", flag, hint="See `serve:` in docs/recipes.md."
                )
            )
    names = [choice.task for choice in recipe.evaluate.tasks]
    for i, name in enumerate(names):
        if name in names[:i]:
            problems.append(loaded.problem("stands twice", "evaluate", "tasks", i, "task"))
    if not recipe.gates.model_dump(exclude_none=True):
        problems.append(
            loaded.problem(
                "there is no gate: nothing would be proved", "gates", hint="For example `accuracy_drop: 0.02`."
            )
        )
    return problems


def schema() -> dict[str, Any]:
    """The JSON Schema of a recipe, for editors."""
    generated = Recipe.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **generated, "title": "qpack recipe"}


def _json(data: Any) -> str:
    import json

    return json.dumps(data)


def _problem(file: YamlFile, details: Any) -> Problem:
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
        return Problem(f"{name}: '{details['input']}' is not known.", file.where(at), hint)
    message = details["msg"].removeprefix("Input ").removeprefix("should be ")
    return Problem(
        f"{name}: {details['input']!r} should be {message}"
        if isinstance(details["input"], str | int | float | bool)
        else f"{name}: should be {message}",
        file.where(at),
    )


def known_keys(at: tuple[str | int, ...]) -> list[str]:
    """The keys that the recipe may have at a place."""
    import typing

    model: Any = Recipe
    for part in at:
        if isinstance(part, int):
            continue
        annotation = model.model_fields[part].annotation if part in model.model_fields else None
        models = [
            a for a in (annotation, *typing.get_args(annotation)) if isinstance(a, type) and issubclass(a, BaseModel)
        ]
        if not models:
            return []
        model = models[0]
    return sorted(model.model_fields)
