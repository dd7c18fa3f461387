"""The models of a recipe: its sections, their keys, types and defaults.

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


# A pebibyte and two years: far above any use, and sums of them don't overflow.
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
        False, description="Run Python code that the checkpoint ships. Enable only after reading it."
    )
    license: str | None = Field(
        None, description="SPDX expression, or the Hub's identifier; for a source that doesn't name its licence."
    )
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
    max_length: int = Field(512, ge=8, description="Tokens per row; longer rows are cut, and counted.")
    min_length: int = Field(16, ge=1, description="Rows of fewer tokens are left out.")
    seed: int = Field(0, description="Chooses the rows and their order.")
    chat_template: bool = Field(False, description="Render each row with the model's chat template first.")


class Override(Section):
    """Another scheme for some layers: mixed precision."""

    layers: str = Field(min_length=1, description="A name, the end of one, or `re:` and a regular expression.")
    scheme: Scheme = Field(description="Their scheme.")
    group_size: int | None = Field(None, ge=8, description="Their group size; null for one scale per channel.")


class Choice(Section):
    """Schemes among which a budget chooses for some layers: mixed formats."""

    layers: str = Field(min_length=1, description="A name, the end of one, or `re:` and a regular expression.")
    schemes: tuple[Scheme, ...] = Field(
        min_length=1, description="What these layers may get; BF16 leaves a layer unquantized."
    )
    group_size: int | None = Field(None, ge=8, description="The group size of those schemes that have groups.")


class Quantize(Section):
    """How to quantize."""

    engine: EngineName = Field(
        "auto", description="`auto` chooses by method, scheme and hardware; `qpack plan` shows why."
    )
    method: Method = Field(
        description="gptq, awq, awq+gptq, rtn (round to nearest), smoothquant (with gptq, for W8A8, FP8_DYNAMIC and "
        "W4A8), autoround (tuned by gradient, by AutoRound), online (vLLM quantizes the source as it loads) or none "
        "(the source as it is)."
    )
    scheme: Scheme = Field(description="Bits of weights and activations, as compressed-tensors names them.")
    group_size: int | None = Field(
        None,
        ge=8,
        description="Input channels that share a scale. For the W4 and W8A16 schemes; null for one scale per channel. "
        "FP4 and MX formats have blocks of their own.",
    )
    format: Literal["compressed-tensors", "awq", "gptq", "modelopt"] | None = Field(
        None, description="How the artifact is written, as servers call it; null for the engine's own."
    )
    budget: float | None = Field(
        None,
        gt=0,
        le=16,
        description="Mixed precision: average bits per weight with scales and zero points; null for one scheme.",
    )
    budget_per: Literal["weight", "token"] = Field(
        "weight",
        description="What `budget` is the average of: weights in memory, or weights read per token, of which an expert "
        "counts as often as it is chosen.",
    )
    choices: tuple[Choice, ...] = Field(
        (),
        description="With `budget`: the schemes that layers may get, by pattern; the first that matches counts, and "
        "others get `scheme`. Without it a budget chooses group sizes and bits of integers.",
    )
    ignore: tuple[str, ...] = Field(
        ("lm_head",), description="Layers that stay unquantized: names, or `re:` and a regular expression."
    )
    damping: float = Field(
        0.01, gt=0, le=1, description="GPTQ: share of the mean Hessian diagonal that is added to it."
    )
    iterations: int = Field(
        0,
        ge=0,
        le=1000,
        description="Steps of tuning each decoder layer's rounding and ranges by gradient: after `method` with gram, "
        "in place of its own 200 with autoround.",
    )
    overrides: tuple[Override, ...] = Field((), description="Other schemes for some layers, by pattern.")
    kv_cache: Literal["fp8"] | None = Field(
        None, description="fp8: calibrated scales for an FP8 KV cache, which the artifact is then served with."
    )


class Generate(Section):
    """How answers are generated over `/v1/chat/completions`: the server applies the model's chat template."""

    temperature: float = Field(0.0, ge=0, le=2, description="0 is greedy.")
    top_p: float = Field(1.0, gt=0, le=1, description="Nucleus sampling: the share of the probability to draw from.")
    repeats: int = Field(
        1, ge=1, le=1024, description="Answers per item; an item's score is their mean, and items are the samples."
    )
    max_tokens: int | None = Field(
        None, ge=1, description="Token budget of an answer, thinking included; null for the task's own."
    )
    system: str | None = Field(None, description="A system message in front of each prompt.")
    think_end: str = Field(
        "</think>", description="Thinking ends here, and the answer begins; for servers without a reasoning parser."
    )
    template: dict[str, JsonValue] = Field(
        default_factory=dict, description="Arguments of the chat template, e.g. `enable_thinking: true`."
    )


class TaskChoice(Section):
    """One lm-eval task."""

    task: str = Field(
        description="A task under evals/tasks/, `lm_eval:NAME` for a task or group of lm-eval's (needs the hub), or "
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
    chat: bool = Field(
        False, description="Render prompts with the model's chat template, and send them to `/v1/completions`."
    )
    metric: str | None = Field(
        None, description="The metric, or `metric,filter` of a task with several filters; null for the task's first."
    )
    generate: Generate | None = Field(
        None, description="Ask over `/v1/chat/completions`, and how; null for a task of choices, or a suite's own."
    )


class HeldOutText(Texts):
    """Held-out text of one domain. Besides .jsonl and .txt, any other file of text, cut where it has blank lines."""

    name: Name = Field(description="The domain's name in reports and gates.")


class Perplexity(Section):
    """Held-out text for perplexity, divergence and flips. Take none that the calibration has seen."""

    source: str | None = Field(None, description="As in `calibration`; for one text. Put several under `texts`.")
    field: str = Field("text", description="As in `calibration`.")
    windows: int = Field(
        64,
        ge=2,
        description="Windows of each text. Rows shorter than a window are joined where longer ones are too few.",
    )
    window_tokens: int = Field(256, ge=16)
    texts: tuple[HeldOutText, ...] = Field(
        (), description="In place of `source`: texts of several domains, each with its own figures."
    )
    whole_positions: int = Field(
        128,
        ge=0,
        le=100_000,
        description="Positions, drawn at random from all windows, at which the whole distribution is asked for, so "
        "that the KL divergence is estimated over the whole vocabulary. 0 leaves a lower bound.",
    )
    continue_tokens: int = Field(
        0,
        ge=0,
        description="Tokens that each model writes greedily in place of the end of each window; the report shows the "
        "windows that differ most; 0 is off.",
    )

    def each(self) -> tuple[HeldOutText, ...]:
        """The texts, of `source` or of `texts`."""
        return self.texts or (HeldOutText(name="text", source=self.source or "", field=self.field),)


class NeedleCheck(Section):
    """Facts hidden in held-out text as long as `serve.max_model_len`, and asked for."""

    depths: tuple[Annotated[float, Field(ge=0, le=1)], ...] = Field(
        (0.0, 0.25, 0.5, 0.75, 1.0), min_length=1, max_length=20, description="Where facts are hidden; 0 is the start."
    )
    prompts: int = Field(2, ge=1, le=20, description="Prompts per depth, each as long as the context.")
    answer_tokens: int = Field(32, ge=8, description="Maximum tokens per answer.")


class CrossCheck(Section):
    """The artifact by plain transformers too, on the CPU: a fault of a kernel is told from what quantization costs."""

    windows: int = Field(8, ge=2, le=1000, description="Windows of the held-out text, spread evenly.")


class Evaluate(Section):
    """Tasks and texts on which baseline and artifact are compared."""

    tasks: tuple[TaskChoice, ...] = Field(min_length=1)
    few_shot: int = Field(0, ge=0)
    seed: int = 0
    expect: dict[str, Annotated[float, Field(ge=0, le=1)]] = Field(
        default_factory=dict,
        description="Published scores of the source model, by task: a baseline that doesn't have them is no baseline.",
    )
    expect_tolerance: float = Field(0.03, ge=0, le=1, description="How far a score may be from the published one.")
    run_code: bool = Field(
        False, description="Execute the code that models write (`suite:code`), in a sandbox; Linux only."
    )
    perplexity: Perplexity
    top_k: int = Field(128, ge=2, le=128, description="Log-probabilities per position, for the divergence.")
    needle: NeedleCheck | None = Field(None, description="Long context: facts hidden at several depths; null is off.")
    cross_check: CrossCheck | None = Field(
        None,
        description="The artifact by plain transformers beside vLLM; null is off. For the format compressed-tensors.",
    )
    native_baseline: bool = Field(
        False,
        description="Measure a source that is quantized already in its own format, too, and compare the artifact with "
        "that: a second baseline beside the unpacked one, which the gates judge by.",
    )
    emulate: Literal["never", "when-needed", "always"] = Field(
        "never",
        description="Judge the artifact by a 16-bit twin with the same arithmetic: where vLLM has no kernel for it on "
        "this machine, or always. Speed and memory don't count then.",
    )


class ServiceObjective(Section):
    """What a request has to keep to be good, in milliseconds. Goodput is the rate of good requests."""

    ttft_ms: float | None = Field(None, gt=0)
    time_per_output_token_ms: float | None = Field(None, gt=0)
    end_to_end_ms: float | None = Field(None, gt=0)


class Measure(Section):
    """The load that speed is measured under, by `vllm bench serve`."""

    concurrency: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (1, 4, 16), min_length=1, description="Closed loops: concurrent clients, each with one request at a time."
    )
    rates: tuple[Annotated[float, Field(gt=0, le=10**6)], ...] = Field(
        (), description="Open loops: Poisson arrivals, requests per second."
    )
    rate_seconds: float = Field(30.0, gt=0, le=10**6, description="Duration of each open loop.")
    input_tokens: int = Field(128, ge=1)
    output_tokens: int = Field(32, ge=2)
    requests_per_client: int = Field(2, ge=1, description="Requests per client and run.")
    prefix_tokens: int = Field(0, ge=0, description="Length of a shared prefix, to measure prefix caching; 0 is off.")
    rounds: int = Field(
        0,
        ge=0,
        description="Rounds of load on baseline and artifact in turn, both servers up, one request per client; "
        "0 compares separate runs. Use six or more for a useful interval.",
    )
    repeats: int = Field(3, ge=1, description="Runs per level. One run has no interval.")
    max_repeats: int | None = Field(
        None, ge=1, description="Maximum runs per level, until medians reach `precision`; null: as many as `repeats`."
    )
    precision: float = Field(0.05, gt=0, description="Width of a median's 90 % interval, relative to the median.")
    objective: ServiceObjective | None = None
    also: tuple[Literal["guidellm", "inference-perf"], ...] = Field(
        (), description="Load generators that put the same levels on the server too; their figures are kept beside."
    )


Flag = bool | int | float | str | list[JsonValue] | dict[str, JsonValue]
Target = Literal["cpu", "ampere", "ada", "hopper", "blackwell"]


class ServeProfile(Section):
    """Another way to serve the same artifact. Unset keys are as in `serve`; it isn't measured."""

    target: Target | None = Field(None, description="Hardware that serves it.")
    tensor_parallel: int | None = Field(None, ge=1, description="GPUs that share the model.")
    max_model_len: int | None = Field(None, ge=64)
    dtype: Literal["auto", "bfloat16", "float16", "float32"] | None = None
    kv_cache_gib: float | None = Field(None, gt=0, le=_MOST_GIB, description="The KV cache's budget on one device.")
    arguments: dict[str, Flag | None] = Field(
        default_factory=dict, description="Override flags of `serve`; null removes one."
    )
    environment: dict[str, str] = Field(default_factory=dict, description="Override variables of `serve`.")
    acceptance_floor: float | None = Field(None, ge=0, le=1, description="As in `serve`.")


class Serve(Section):
    """How the model is served, while it is measured too."""

    target: Literal["auto", "cpu", "ampere", "ada", "hopper", "blackwell"] = Field(
        "auto", description="Hardware that serves it; auto: this machine."
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
        description="Smallest share of accepted draft tokens in the canary; null: at least one token.",
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
    alias: Name | None = Field("latest", description="Alias to move to this release once it is published.")


class Limits(Section):
    """When to give up."""

    stage_minutes: float = Field(720, gt=0, le=_MOST_MINUTES, description="Time limit of a worker.")
    server_start_minutes: float = Field(20, gt=0, le=_MOST_MINUTES, description="Time limit of vLLM's start.")


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
