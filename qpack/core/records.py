"""What the stages hand on to one another: frozen, and the same after a trip through JSON.

Units are in the names: `_bytes`, `_seconds`, `_ms`. Paths are relative to the folder that the result is stored in, so
that a store can be moved. Nothing here computes; `evals.stats.estimates` and `evals.gates.gates` do.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, JsonValue

from qpack.core.figures import DomainDifference, NeedleDifference
from qpack.core.figures import Estimate as Estimate
from qpack.core.figures import Interval as Interval
from qpack.core.findings import (
    Contamination,
    Continued,
    CrossChecked,
    Divergences,
    EffectiveDefaults,
    LayerError,
    Look,
    Needle,
    Position,
    Tail,
    TextDomain,
)
from qpack.core.frozen import Frozen
from qpack.core.speed import Interleaved, Latency, OtherWork, ToolLoad
from qpack.core.stage_records import EnvironmentRecord as EnvironmentRecord
from qpack.core.stage_records import StageRecord as StageRecord


class FileRecord(Frozen):
    """One file: POSIX path relative to its folder, size, and SHA-256 as hex."""

    path: str
    size_bytes: int
    sha256: str


class Fetched(Frozen):
    """The source model as a transformers checkpoint in `checkpoint/`.

    `resolved` is the source with everything that could move pinned: the commit of a hub revision, the version of a
    package. `digest` is the SHA-256 over the sorted (path, sha256) pairs of `files`. `base_model` is the model on the
    Hub (`org/name`) that the recipe names for a source from elsewhere.
    """

    source: str
    resolved: str
    digest: str
    files: tuple[FileRecord, ...]
    architecture: str
    parameters: int
    weights_bytes: int
    license: str | None = None
    base_model: str | None = None
    notes: tuple[str, ...] = ()


class HeldOut(Frozen):
    """Text set aside for perplexity and divergence before calibration sees any: windows of equal length in
    `tokens.jsonl`, domain after domain where the recipe names several texts. `row_digests` are those of all texts in
    them: a window may be joined from several.
    """

    digest: str
    windows: int
    window_tokens: int
    row_digests: tuple[str, ...]
    domains: tuple[TextDomain, ...] = ()


class Calibrated(Frozen):
    """Token batches in `tokens.jsonl` (one `{"input_ids": [...]}` a row), and what became of every text.

    `row_digests` are SHA-256 of the UTF-8 text of each row that was used, in order.
    """

    digest: str
    rows: int
    tokens: int
    max_length: int
    seed: int
    chat_template: bool
    row_digests: tuple[str, ...]
    lengths: tuple[int, ...]
    read: int
    cut: int
    dropped_short: int
    dropped_duplicate: int
    dropped_held_out: int
    padded_tokens: int
    double_bos_removed: int


class Quantized(Frozen):
    """The artifact in `checkpoint/`, ready to serve.

    `quantized_layers` of `linear_layers` hold quantized weights; the rest were left as the recipe's `ignore` says.
    `peak_memory_bytes` is the engine process's peak resident set on a CPU, the allocator's peak on a GPU. What was
    expected of it and of the weights before anything ran stands beside them, so that the error is known.
    `bits_per_weight` counts scales and zero points; `sites` says what each input's layers lost, if the engine tells.
    """

    engine: str
    engine_version: str
    method: str
    scheme: str
    group_size: int | None
    digest: str
    files: tuple[FileRecord, ...]
    weights_bytes: int
    quantized_layers: int
    linear_layers: int
    seconds: float
    peak_memory_bytes: int
    expected_peak_memory_bytes: int | None = None
    expected_weights_bytes: int | None = None
    format: str | None = None
    bits_per_weight: float | None = None
    sites: tuple[LayerError, ...] = ()

    @property
    def layers_by_scheme(self) -> dict[str, int]:
        """How many layers got each scheme, most first, where a budget chose among several; else nothing."""
        found: dict[str, int] = {}
        for site in self.sites:
            if site.scheme is not None:
                found[site.scheme] = found.get(site.scheme, 0) + len(site.linears)
        return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))


class Sample(Frozen):
    """One item of a task: `score` is 1 or 0 for right and wrong, or the metric's value."""

    id: str
    score: float


class Generated(Frozen):
    """The answers to one item over /v1/chat/completions, repeat by repeat: generated `tokens` (thinking included), how
    many were `truncated` at the limit of tokens, and how many of those ended in a loop.
    """

    tokens: tuple[int, ...]
    truncated: int
    looped: int


class GenerationSettings(Frozen):
    """How answers were generated over /v1/chat/completions; see `evaluate.tasks.generate` of a recipe."""

    temperature: float
    top_p: float
    repeats: int
    max_tokens: int | None
    system: str | None
    think_end: str
    template: dict[str, JsonValue] = Field(default_factory=dict)


class TaskScore(Frozen):
    """One lm-eval task. `samples` are in the order of the data set; the same ids in the same order for every model.

    `limit` items were drawn with `seed`; `chat_template` is the SHA-256 of the template that prompts went through.
    `chance` is the mean score of guessing, where it is known. `tasks` counts the tasks of a group, whose items are all
    in `samples`. With `generation` a sample's score is the mean over repeats, and `generated` has the rest of its
    answers, in the order of `samples`.
    """

    task: str
    version: str
    metric: str
    few_shot: int
    mean: float
    samples: tuple[Sample, ...]
    limit: int | None = None
    seed: int = 0
    chat_template: str | None = None
    chance: float | None = None
    tasks: int = 1
    generation: GenerationSettings | None = None
    generated: tuple[Generated, ...] = ()


class Accuracy(Frozen):
    """lm-eval results, kept by sample so that two models can be paired. `look` is None where all was asked at once."""

    lm_eval_version: str
    tasks: tuple[TaskScore, ...]
    look: Look | None = None


class Window(Frozen):
    """One window of held-out text: `nll` is the summed negative log-likelihood (nats) of `tokens` predicted tokens."""

    nll: float
    tokens: int


class Language(Frozen):
    """Held-out text under the model, window by window.

    The top-k log-probabilities stand beside it in `logprobs.npz`: `ids` int32 [positions, top_k], `logprobs` float32
    [positions, top_k] (natural log, sorted from the most probable), `window` int32 [positions] (index into `windows`),
    `actual` int32 [positions] (the token that stands there); `vocabulary.json` spells every id. Positions are in the
    same order for every model, because the token ids sent are the same. `domains` share out `windows` in their order.

    With `whole_positions` above 0 the file also has `whole_at` int32 [whole_positions] (which of the positions) and
    `whole` float32 [whole_positions, vocabulary], the log-probability of every token there. `vocabulary` is the number
    of the model's tokens; None in records from before it was kept.
    """

    top_k: int
    windows: tuple[Window, ...]
    text_digest: str
    domains: tuple[TextDomain, ...] = ()
    whole_positions: int = 0
    vocabulary: int | None = None


class Memory(Frozen):
    """Memory of the running server.

    `weights_bytes` is what the safetensors files hold; `weights_loaded_bytes` what vLLM loaded on one device
    (GPU only). `kv_cache_bytes` is of one device too, `kv_cache_tokens` what the whole server holds.
    `resident_bytes` is the proportional set size of every process of the server, ready and idle; `peak_resident_bytes`
    the largest seen after the load. The KV cache's budget is the same for every model of a build.
    """

    weights_bytes: int
    weights_loaded_bytes: int | None
    kv_cache_bytes: int
    kv_cache_tokens: int
    resident_bytes: int
    peak_resident_bytes: int
    start_seconds: float


class Reply(Frozen):
    """A chat prompt and the greedy answer: what a person would look at first."""

    prompt: str
    text: str
    finish_reason: str
    streamed_the_same: bool


class Canary(Frozen):
    """The first questions to a server: does it answer as itself, and the same twice."""

    served_model: str
    replies: tuple[Reply, ...]


class Check(Frozen):
    """One promise of a served model: `why` says what was seen, or why it wasn't asked."""

    name: str
    claim: str
    outcome: Literal["pass", "fail", "skip"]
    why: str


class Proof(Frozen):
    """The canary: what a client relies on, asked of the server with the SDKs in `clients` (package to version)."""

    clients: dict[str, str]
    checks: tuple[Check, ...]


class Performance(Frozen):
    """Speed and memory of the server, measured first, right after its start, before other requests.

    `variables` are those inherited by the server that can change its figures (`qpack.runtime.variables`).
    """

    server: str
    canary: Canary
    latency: Latency
    memory: Memory
    ran_with: EffectiveDefaults | None = None
    variables: dict[str, str] = Field(default_factory=dict)


class Hardware(Frozen):
    """Where something ran. `target` is what kernels are chosen by: cpu, ampere, ada, hopper, blackwell."""

    target: str
    name: str
    cores: int
    memory_bytes: int
    accelerators: int = 0
    accelerator_memory_bytes: int = 0


class Emulated(Frozen):
    """An artifact that was judged by its twin: a checkpoint in 16 bits with the same arithmetic, served on `on` in its
    place, because of `why`. `how` says what the twin is. Accuracy and figures of text count, speed and memory don't.
    """

    on: str
    how: str
    why: str

    def __str__(self) -> str:
        return (
            f"Emulated on {self.on}, as {self.how} ({self.why}). Accuracy, perplexity and divergence count; speed and"
            " memory weren't measured."
        )


class Evidence(Frozen):
    """All that is known of one model, from one server started as it will be served. `proof` is of what is published: a
    baseline has none. `loads` are by other load generators. `variables` as in Performance. `emulated` is None where the
    model itself was served.
    """

    model_digest: str
    server: str
    hardware: Hardware
    accuracy: Accuracy
    language: Language
    latency: Latency
    memory: Memory
    canary: Canary
    proof: Proof | None = None
    needle: Needle | None = None
    cross_check: CrossChecked | None = None
    loads: tuple[ToolLoad, ...] = ()
    variables: dict[str, str] = Field(default_factory=dict)
    emulated: Emulated | None = None


class TaskDifference(Frozen):
    """Artifact against baseline on the same items: `drop` is baseline minus artifact (positive is worse), `recovery`
    artifact over baseline (None in records from before it was kept).
    """

    task: str
    metric: str
    baseline: float
    artifact: float
    drop: Estimate
    recovery: Estimate | None = None


class ExpectedScore(Frozen):
    """A score that was published for the baseline's model, and the score measured here: the baseline is sane when they
    agree within the `tolerance`.
    """

    task: str
    published: float
    tolerance: float
    measured: Estimate


class GainedItem(Frozen):
    """An item that the artifact scores better than the baseline, in a task whose gain is beyond noise. Texts are empty
    where nobody keeps them: answers are kept of tasks asked over chat.
    """

    task: str
    item: str
    baseline: float
    artifact: float
    prompt: str = ""
    baseline_answer: str = ""
    artifact_answer: str = ""


class GenerationDifference(Frozen):
    """How the answers to a task differ beside their scores: the share of answers `truncated` at the limit of tokens
    (the artifact's, and the baseline's value), endless loops (`loop_rate`: artifact minus baseline, as a share of the
    answers), and the ratio of mean lengths in tokens, artifact over baseline.
    """

    task: str
    answers: int
    truncated_baseline: float
    truncated: Estimate
    loops_baseline: float
    loop_rate: Estimate
    tokens_baseline: float
    length_ratio: Estimate


class SpeedRatio(Frozen):
    """Artifact over baseline at one concurrency: throughput above 1 is faster; times below 1 are faster.

    `throughput` is the ratio of `tokens_per_second` (baseline, artifact): geometric means over the rounds where both
    were loaded in turn, else over each one's own runs. Releases of 0.1 have medians over the rounds there, or nothing.
    `ttft` is `ttft_p50` with its interval; `failed` counts the artifact's failed requests in the rounds.
    """

    concurrency: int
    throughput: Estimate
    ttft_p50: float
    inter_token_p50: float
    ttft: Estimate | None = None
    tokens_per_second: tuple[float, float] | None = None
    failed: int = 0


class Comparison(Frozen):
    """Artifact against baseline, paired over the same samples.

    `recovery` is the artifact's mean score over the baseline's (`evals.stats.recovery`; None in records from before it
    was kept). `tail` bounds what `kl_divergence` leaves out; `worst` are the positions of the held-out text that differ
    most. `apart` says why the two weren't loaded in turn; None when they were. `domains` has the figures of each
    held-out text where there are several. `chance_flips` is the flip rate of a model that predicts as the artifact
    does, whatever the text. `divergences` is what `kl_divergence` and `flip_rate` are computed from; without it
    (records from before it was kept) `kl_divergence` is a lower bound. `other_work` is the most that other processes
    took of the machine during a load that `speed` is from. `generated` is of the tasks that were asked over
    /v1/chat/completions, `expected` the baseline beside published scores, `gained` some items of gains beyond noise.
    `cross_check` is the artifact's perplexity in vLLM over that in plain transformers, on the same windows.
    """

    tasks: tuple[TaskDifference, ...]
    accuracy_drop: Estimate
    perplexity_baseline: float
    perplexity_artifact: float
    perplexity_ratio: Estimate
    kl_divergence: Estimate
    flip_rate: Estimate
    size_ratio: Estimate
    memory_ratio: Estimate
    speed: tuple[SpeedRatio, ...]
    tail: Tail | None = None
    worst: tuple[Position, ...] = ()
    apart: str | None = "not asked for"
    domains: tuple[DomainDifference, ...] = ()
    continued: Continued | None = None
    needle: NeedleDifference | None = None
    chance_flips: float | None = None
    divergences: Divergences | None = None
    recovery: Estimate | None = None
    other_work: OtherWork | None = None
    generated: tuple[GenerationDifference, ...] = ()
    expected: tuple[ExpectedScore, ...] = ()
    gained: tuple[GainedItem, ...] = ()
    cross_check: Estimate | None = None

    @property
    def kl_label(self) -> str:
        """What `kl_divergence` is, as a label: of the whole vocabulary, or a lower bound."""
        whole = self.divergences is not None and self.divergences.estimator > 1
        return "KL divergence, nats" if whole else "KL divergence, nats (lower bound)"


Outcome = Literal["pass", "fail", "undecided"]


class GateResult(Frozen):
    """One gate: `estimate` was compared with `bound`. `kind` says whether the bound is a ceiling (max) or a floor
    (min). `holm_p` is the p-value of meeting the bound, adjusted for all gates that were tried
    (`evals.gates.multiplicity`); None where the figure has no sampling noise.
    """

    gate: str
    kind: Literal["max", "min"]
    bound: float
    estimate: Estimate
    outcome: Outcome
    why: str
    holm_p: float | None = None


class Verdict(Frozen):
    """fail when any gate fails, else undecided when any is undecided, else pass.

    `anomalies` are figures that are better than quantization can explain (`evals.comparison.anomalies`), a sentence
    each.
    """

    outcome: Outcome
    gates: tuple[GateResult, ...]
    anomalies: tuple[str, ...] = ()


class Judged(Frozen):
    """The verdict and the figures that it rests on. `contamination` is None when nothing was calibrated, `native` (the
    artifact beside the source as it is stored) where that wasn't measured.
    """

    comparison: Comparison
    verdict: Verdict
    contamination: Contamination | None = None
    native: Comparison | None = None


class Native(Frozen):
    """A quantized source as it is stored: a second baseline, by which no gate judges. `form` says how it is stored."""

    form: str
    evidence: Evidence
    comparison: Comparison


class Release(Frozen):
    """The release manifest, `release.json`: what was made, from what, where, how it was measured, and what was decided.

    `artifact` lists the served files under `model/`. `recipe` is the resolved recipe as plain data, `recipe_text` the
    same as a file: as written, or with what was set over it. `forced` marks a release that was published although a
    gate didn't pass. `interleaved` is the load on baseline (reference) and artifact in turn, `drafting` that on the
    artifact without and with its draft.
    """

    api_version: Literal["qpack/v1"] = "qpack/v1"
    name: str
    created: str
    qpack_version: str
    recipe: dict[str, object]
    recipe_text: str
    source: Fetched
    calibration: Calibrated | None
    quantized: Quantized
    environments: tuple[EnvironmentRecord, ...]
    baseline: Evidence
    artifact: Evidence
    comparison: Comparison
    verdict: Verdict
    forced: bool
    stages: tuple[StageRecord, ...]
    contamination: Contamination | None = None
    interleaved: Interleaved | None = None
    drafting: Interleaved | None = None
    native: Native | None = None


class Published(Frozen):
    """Where a release went: `reference` is `name:version`, `digest` the `sha256:...` of its manifest."""

    reference: str
    version: str
    digest: str
    alias: str | None
    location: str
    already_there: bool
