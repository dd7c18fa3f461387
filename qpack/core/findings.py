"""Records beside the figures: where two models differ most, overlaps of calibration and evaluation data, and a server's
effective defaults.
"""

from __future__ import annotations

from qpack.core.frozen import Frozen


class Overlap(Frozen):
    """An item whose text is also in a calibration row: the row's digest (`Calibrated.row_digests`), the `share` of the
    item's runs of words that are in calibration rows, and the first such run.
    """

    item: str
    row: str
    share: float
    words: str


class OverlapSet(Frozen):
    """One eval set (a task, or the held-out text), checked against the calibration rows. `too_short` items of all
    `items` have too few words to check.
    """

    name: str
    items: int
    too_short: int
    overlaps: tuple[Overlap, ...]


class Contamination(Frozen):
    """Calibration rows that are also in eval sets (`evals.measure.contamination`). The texts of `unchecked` sets are
    known only to lm-eval.
    """

    ngram: int
    rows: int
    sets: tuple[OverlapSet, ...]
    unchecked: tuple[str, ...]


class TextDomain(Frozen):
    """A kind of held-out text, and how many windows there are of it."""

    name: str
    windows: int


class Likely(Frozen):
    """A token as text and its probability."""

    text: str
    probability: float


class Position(Frozen):
    """A position of the held-out text where artifact and baseline differ most: `kl` in nats (lower bound), the text
    before it, the actual token, and each model's most probable tokens.
    """

    window: int
    kl: float
    context: str
    actual: str
    baseline: tuple[Likely, ...]
    artifact: tuple[Likely, ...]


class Continuation(Frozen):
    """A greedy continuation of a window: the end of the prompt (`before`), the actual text (`follows`), the model's
    `text`, and its token ids.
    """

    before: str
    follows: str
    text: str
    tokens: tuple[int, ...]


class Continuations(Frozen):
    """Every window of held-out text without its last `tokens`, continued by as many; in the windows' order."""

    tokens: int
    windows: tuple[Continuation, ...]


class ContinuedWindow(Frozen):
    """A window that both models continued: its mean `kl` in nats (lower bound) and share of `flips`, and how many
    leading tokens of the two continuations are the same (`alike`). `domain` is empty where there is one text.
    """

    window: int
    domain: str
    kl: float
    flips: float
    before: str
    follows: str
    baseline: str
    artifact: str
    alike: int


class Continued(Frozen):
    """Greedy continuations by both models, of `tokens` tokens: how many of all `windows` are the `same`, how many
    leading tokens agree on average (`alike`), and the windows that differ most in their distributions, the worst first.
    """

    tokens: int
    windows: int
    same: int
    alike: float
    worst: tuple[ContinuedWindow, ...]


class NeedleAnswer(Frozen):
    """One question about a fact hidden at a `depth` (0 is the beginning) of a long text; `found` when the reply holds
    `expected`.
    """

    depth: float
    expected: str
    reply: str
    found: bool


class Needle(Frozen):
    """Facts hidden in text as long as the served context, `context_tokens`; `prompt_tokens` of the longest prompt.

    `prompts_digest` is the SHA-256 over the texts asked: equal digests mean that answers can be paired. `chat` tells
    whether they used the model's chat template.
    """

    context_tokens: int
    prompt_tokens: int
    chat: bool
    prompts_digest: str
    answers: tuple[NeedleAnswer, ...]


class CrossChecked(Frozen):
    """Windows of the held-out text (by index) under the artifact in plain transformers: the summed negative
    log-likelihood (nats) of each.
    """

    tool: str
    windows: tuple[int, ...]
    nll: tuple[float, ...]


class Tail(Frozen):
    """What the top-k lists leave open: the mean probability that the baseline gives to tokens outside them, and the
    mean divergence (nats) if no such token changed its log-probability by more than the most changed listed one.
    `kl_at_least` is the lower bound that the lists give; in records without it `kl_divergence` is that bound.
    """

    mass: float
    kl_at_most: float
    kl_at_least: float | None = None


class WindowDivergence(Frozen):
    """Sums over the positions of a window of held-out text (`evals.stats.divergence_estimate` has the symbols).

    Over all `positions`: `flips`, the lists' lower bound of the KL divergence in nats (`bound`), and the `covariates`
    [2]. Over the `sampled` positions, whose whole distribution is known: `rest`, by which the divergence is above its
    bound, `sampled_covariates` [2], and the products that a regression needs: `squares` [x1 x1, x1 x2, x2 x2] and
    `products` [x1 y, x2 y].
    """

    positions: int
    flips: int
    bound: float
    covariates: tuple[float, float] = (0.0, 0.0)
    sampled: int = 0
    rest: float = 0.0
    sampled_covariates: tuple[float, float] = (0.0, 0.0)
    squares: tuple[float, float, float] = (0.0, 0.0, 0.0)
    products: tuple[float, float] = (0.0, 0.0)


class Divergences(Frozen):
    """What `kl_divergence` and `flip_rate` are computed from, window by window. `estimator` is the version of the
    estimator of `kl_divergence` (`evals.stats.divergence_estimate`).
    """

    estimator: int
    windows: tuple[WindowDivergence, ...]


class LayerError(Frozen):
    """What quantizing the layers that read one input cost, on the calibration rows.

    `error_before` is that of plain rounding, `error_after` of what was stored: mean squared changes of the outputs, as
    shares of their mean square; None without calibration. `exponent` of the chosen scales is None where none were
    better; `clipped` is the share of groups whose range was shrunk; `damping` what was added to the diagonal of the
    inputs' Gram matrix, as a share of its mean; `dead_channels` were zero in every row. `routed_tokens`, of an expert:
    how many calibration tokens the router sent to it. `scheme` is what a budget chose for them.
    """

    layer: str
    site: str
    linears: tuple[str, ...]
    bits: int
    group_size: int | None
    error_before: float | None = None
    error_after: float | None = None
    exponent: float | None = None
    clipped: float | None = None
    damping: float | None = None
    dead_channels: int | None = None
    routed_tokens: int | None = None
    scheme: str | None = None


class Look(Frozen):
    """The look at which accuracy stopped early: `number` of `looks`, after `share` of the items, with `tail` as the
    one-sided level of its interval (`evals.gates.interim_analysis`).
    """

    number: int
    looks: int
    share: float
    tail: float


class EffectiveDefaults(Frozen):
    """The server's effective defaults, which vLLM derives from version, model and hardware. `kv_cache_dtype` auto is
    the model's own type. None is what it didn't report.
    """

    kv_cache_dtype: str | None = None
    prefix_caching: bool | None = None
    chunked_prefill: bool | None = None
