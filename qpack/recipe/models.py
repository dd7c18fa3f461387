"""The sections of a recipe, and all of it: what may stand where, and what is meant when it doesn't.

These models are also the source of the JSON Schema in recipes/recipe.schema.json.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from evals.gates.gates import Gates
from quantize.engines.catalog import ENGINES
from quantize.schemes.schemes import METHODS, SCHEMES

Name = Annotated[str, Field(pattern=r"^[a-z0-9]+([._-][a-z0-9]+)*$", max_length=96)]
if TYPE_CHECKING:
    EngineName = str
    Method = str
    Scheme = str
else:  # The names that there are: a new engine or scheme is added in its own dict alone.
    EngineName = Literal[("auto", *ENGINES)]
    Method = Literal[METHODS]
    Scheme = Literal[tuple(SCHEMES)]


# A pebibyte and two years: far above any use, and what is worked out from them is still a number.
_MOST_GIB, _MOST_MINUTES = 2**20, 2**20


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
    base_model: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*$",
        max_length=200,
        description="`org/name` on the Hub, for a source from elsewhere that holds that model.",
    )


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


class Override(Section):
    """Another scheme for some layers: mixed precision."""

    layers: str = Field(min_length=1, description="A name, the end of one, or `re:` and a regular expression.")
    scheme: Scheme = Field(description="Their scheme.")
    group_size: int | None = Field(None, ge=8, description="Their group size; null for one scale a channel.")


class Quantize(Section):
    """How to quantize."""

    engine: EngineName = Field(
        "auto", description="`auto` picks by method, scheme and hardware; `qpack plan` says why."
    )
    method: Method = Field(
        description="gptq, awq, awq+gptq, rtn (round to nearest), smoothquant (with gptq, for W8A8 and FP8_DYNAMIC) or "
        "none (the source as it is)."
    )
    scheme: Scheme = Field(description="Bits of weights and activations, as compressed-tensors names them.")
    group_size: int | None = Field(
        None,
        ge=8,
        description="Input channels that share a scale. For the W4 and W8A16 schemes; null for one scale a channel.",
    )
    format: Literal["compressed-tensors", "awq", "gptq"] | None = Field(
        None, description="How the artifact is written, as servers call it; null for the engine's own."
    )
    budget: float | None = Field(
        None,
        gt=0,
        le=16,
        description="Mixed precision: bits a weight on average, scales and zero points included; null for one scheme.",
    )
    ignore: tuple[str, ...] = Field(
        ("lm_head",), description="Layers to leave alone: names, or `re:` and a regular expression."
    )
    damping: float = Field(
        0.01, gt=0, le=1, description="GPTQ: share of the mean Hessian diagonal that is added to it."
    )
    overrides: tuple[Override, ...] = Field((), description="Other schemes for some layers, by pattern.")
    kv_cache: Literal["fp8"] | None = Field(
        None, description="fp8: calibrated scales for an FP8 KV cache, which the artifact is then served with."
    )


class TaskChoice(Section):
    """One lm-eval task."""

    task: str = Field(
        description="A task under evals/tasks/, `lm_eval:NAME` for one that lm-eval brings (needs the hub), or "
        "`suite:NAME` for a set of tasks."
    )
    samples: int | None = Field(
        None, ge=1, description="Items to use, drawn with the seed; null for all, or a suite's own."
    )
    max_samples: int | None = Field(
        None,
        ge=8,
        description="In place of `samples`, and for every task: at most so many items, of which the artifact is asked "
        "a quarter, half, three quarters, all, until the accuracy gates are decided.",
    )
    few_shot: int | None = Field(
        None, ge=0, description="Examples in each prompt; null for evaluate.few_shot, or a suite's own."
    )
    chat: bool = Field(False, description="Render prompts with the model's chat template.")


class HeldOutText(Texts):
    """Held-out text of one domain. Besides .jsonl and .txt, any other file of text, cut where it has blank lines."""

    name: Name = Field(description="What the domain is called in the report and in gates.")


class Perplexity(Section):
    """Held-out text for perplexity, divergence and flips. Take none that the calibration has seen."""

    source: str | None = Field(None, description="As in `calibration`; for one text. Several stand under `texts`.")
    field: str = Field("text", description="As in `calibration`.")
    windows: int = Field(
        64,
        ge=2,
        description="Windows of each text. Rows shorter than a window are joined where longer ones are too few.",
    )
    window_tokens: int = Field(256, ge=16)
    texts: tuple[HeldOutText, ...] = Field(
        (), description="In place of `source`: texts of several domains, each with figures of its own."
    )
    continue_tokens: int = Field(
        0,
        ge=0,
        description="Every window is also continued greedily by so many tokens, in place of its last ones, and both "
        "models' continuations of the worst windows are shown; 0 doesn't.",
    )

    def each(self) -> tuple[HeldOutText, ...]:
        """The texts, whichever way they are named."""
        return self.texts or (HeldOutText(name="text", source=self.source or "", field=self.field),)


class NeedleCheck(Section):
    """Facts hidden in held-out text as long as `serve.max_model_len`, and asked for."""

    depths: tuple[Annotated[float, Field(ge=0, le=1)], ...] = Field(
        (0.0, 0.25, 0.5, 0.75, 1.0), min_length=1, max_length=20, description="Where facts are hidden; 0 is the start."
    )
    prompts: int = Field(2, ge=1, le=20, description="Prompts at each depth, each as long as the context.")
    answer_tokens: int = Field(32, ge=8, description="Tokens that an answer may have.")


class Evaluate(Section):
    """What is compared between baseline and artifact."""

    tasks: tuple[TaskChoice, ...] = Field(min_length=1)
    few_shot: int = Field(0, ge=0)
    seed: int = 0
    perplexity: Perplexity
    top_k: int = Field(16, ge=2, le=128, description="Log-probabilities kept at each position, for the divergence.")
    needle: NeedleCheck | None = Field(None, description="Long context: facts hidden at several depths; null doesn't.")


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
    rates: tuple[Annotated[float, Field(gt=0, le=10**6)], ...] = Field(
        (), description="Open loops: Poisson arrivals, requests a second."
    )
    rate_seconds: float = Field(30.0, gt=0, le=10**6, description="How long an open loop sends.")
    input_tokens: int = Field(128, ge=1)
    output_tokens: int = Field(32, ge=2)
    requests_per_client: int = Field(
        2, ge=1, description="Requests of one client in one run: concurrency times this in all."
    )
    prefix_tokens: int = Field(0, ge=0, description="Measure what a shared prefix of this length saves; 0 doesn't.")
    rounds: int = Field(
        0,
        ge=0,
        description="Rounds in which baseline and artifact are loaded in turn, both servers up, one request a client; "
        "0 compares runs apart. Six or more make a useful interval.",
    )
    repeats: int = Field(3, ge=1, description="Runs a level. With one there is no interval.")
    max_repeats: int = Field(3, ge=1, description="More runs, until the medians are known to `precision`.")
    precision: float = Field(0.05, gt=0, description="Width of a median's 90 % interval, as a share of it.")
    objective: ServiceObjective | None = None


Flag = bool | int | float | str | list[JsonValue] | dict[str, JsonValue]
Target = Literal["cpu", "ampere", "ada", "hopper", "blackwell"]


class ServeProfile(Section):
    """Another way to serve the same artifact. What it leaves out is as in `serve`; nothing is measured for it."""

    target: Target | None = Field(None, description="Hardware that will serve it.")
    tensor_parallel: int | None = Field(None, ge=1, description="GPUs that share the model.")
    max_model_len: int | None = Field(None, ge=64)
    dtype: Literal["auto", "bfloat16", "float16", "float32"] | None = None
    kv_cache_gib: float | None = Field(None, gt=0, le=_MOST_GIB, description="The KV cache's budget on one device.")
    arguments: dict[str, Flag | None] = Field(
        default_factory=dict, description="Flags laid over those of `serve`; null takes one away."
    )
    environment: dict[str, str] = Field(default_factory=dict, description="Variables laid over those of `serve`.")
    acceptance_floor: float | None = Field(None, ge=0, le=1, description="As in `serve`.")


class Serve(Section):
    """How the model is served: the evals run against a server that is started this way."""

    target: Literal["auto", "cpu", "ampere", "ada", "hopper", "blackwell"] = Field(
        "auto", description="Hardware that will serve it; auto is this machine."
    )
    max_model_len: int = Field(2048, ge=64)
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    kv_cache_gib: float = Field(
        1.0, gt=0, le=_MOST_GIB, description="The KV cache's budget, the same for baseline and artifact."
    )
    port: int | None = Field(
        None, ge=1, le=65535, description="Port of the server that the evals run against; null for any free one."
    )
    tensor_parallel: int = Field(1, ge=1)
    arguments: dict[str, Flag] = Field(
        default_factory=dict, description="More `vllm serve` flags, without the dashes; a mapping is given as JSON."
    )
    environment: dict[str, str] = Field(
        default_factory=dict, description="Environment variables for vLLM. No secrets: they are published."
    )
    acceptance_floor: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Share of drafted tokens that the canary has to see accepted; null: one is enough.",
    )
    profiles: dict[Name, ServeProfile] = Field(
        default_factory=dict, description="Other ways to serve the artifact, by name: more GPUs, other flags."
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

    stage_minutes: float = Field(720, gt=0, le=_MOST_MINUTES, description="A worker that takes longer is stopped.")
    server_start_minutes: float = Field(20, gt=0, le=_MOST_MINUTES, description="vLLM has to be ready by then.")


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
