"""The protocol of engines. To add one: a module that satisfies it, a worker, an environment, a line in catalog.py."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from qpack.core.problems import Problem
from qpack.core.records import Quantized
from qpack.runtime.specs import Spec
from quantize.checkpoint.source import Source
from quantize.engines.workers.engine_answer import Answer
from quantize.schemes.schemes import SCHEMES

if TYPE_CHECKING:
    from qpack.core.store import Inputs

LIBRARIES = 478_736_384
"""Measured: peak resident set of a process that only imports llm-compressor 0.14.0.1 with torch 2.13."""


@dataclass(frozen=True)
class Override:
    """Another scheme for layers that match a pattern: a name, the end of one, or `re:` and an expression."""

    layers: str
    scheme: str
    group_size: int | None


_DECIDES = ("method", "scheme", "group_size", "ignore", "damping", "trust_remote_code")


@dataclass(frozen=True)
class Choice:
    """Schemes among which a budget chooses for the layers that a pattern matches."""

    layers: str
    schemes: tuple[str, ...]
    group_size: int | None

    def groups(self, scheme: str) -> int | None:
        """The group size of one of the schemes."""
        return self.group_size if SCHEMES[scheme].grouped else None


@dataclass(frozen=True)
class Request:
    """A request to an engine: plain values from the recipe. `group_size` None is one scale per channel.

    `format` None is the engine's own. `budget` is bits per weight, for mixed precision. `target` and `tensor_parallel`
    describe the hardware that will serve it. `overrides` are other schemes for some layers; `kv_cache` None leaves the
    KV cache in the model's data type. `iterations` are tuning steps per layer. `kept` are the patterns at the end of
    `ignore` that the recipe doesn't name: layers that are left alone by default. `choices` are what a budget chooses
    among, the first that matches for each layer; `per_token`: the budget is of weights read per token.
    """

    method: str
    scheme: str
    group_size: int | None
    ignore: tuple[str, ...]
    damping: float
    trust_remote_code: bool
    format: str | None = None
    budget: float | None = None
    target: str = "cpu"
    tensor_parallel: int = 1
    overrides: tuple[Override, ...] = ()
    kv_cache: str | None = None
    iterations: int = 0
    kept: tuple[str, ...] = ()
    choices: tuple[Choice, ...] = ()
    per_token: bool = False

    @property
    def own_ignore(self) -> tuple[str, ...]:
        """The recipe's patterns of `ignore`."""
        return self.ignore[: len(self.ignore) - len(self.kept)]

    @property
    def budget_bits(self) -> float:
        """The budget, or infinity without one."""
        return math.inf if self.budget is None else self.budget

    def key(self, own: str) -> Inputs:
        """The fields that affect the artifact's bytes, for a stage's key; `own` is the engine's own format."""
        asked = {name: getattr(self, name) for name in _DECIDES}
        if self.format not in (None, own):
            asked["format"] = self.format
        if self.budget is not None:
            # The groups that a budget may choose depend on the GPUs that share a layer.
            asked |= {"budget": self.budget, "tensor_parallel": self.tensor_parallel}
        if self.choices:
            asked["choices"] = [dataclasses.asdict(choice) for choice in self.choices]
        if self.per_token:
            asked["per_token"] = True
        if self.overrides:
            asked["overrides"] = [dataclasses.asdict(other) for other in self.overrides]
        if self.iterations:
            asked["iterations"] = self.iterations
        return asked if self.kv_cache is None else {**asked, "kv_cache": self.kv_cache}


@dataclass(frozen=True)
class MemoryProfile:
    """Host memory of an engine beside the source's weights, from its source code and a profile.

    `libraries` is the peak resident set of its worker before it loads a model, in bytes. `float32`: when it multiplies
    (and so holds the weights) in 32 bits. `logits`: the output layer runs on every row, and its result becomes float32.
    `packed`: quantized layers are kept packed beside the others, and copied when they are written.
    """

    libraries: int = LIBRARIES
    float32: Literal["never", "on a CPU", "always"] = "never"
    logits: bool = False
    packed: bool = False


@dataclass(frozen=True)
class Paths:
    """What an engine reads, and where it keeps finished layers (`scratch`). `tokens` are calibration rows, JSON lines
    of {"input_ids": [...]}; None where nothing is calibrated.
    """

    checkpoint: Path
    tokens: Path | None
    scratch: Path

    @property
    def rows(self) -> str:
        """The file of calibration rows, for an engine that can't do without them."""
        if self.tokens is None:
            raise ValueError("this engine needs calibration rows")
        return str(self.tokens)


class Engine(Protocol):
    """An adapter: pure functions, no torch. WORKER does the work in ENVIRONMENT."""

    NAME: str
    ENVIRONMENT: Spec
    WORKER: Path
    FORMATS: tuple[str, ...]
    """The formats that it saves, by the names of servers: compressed-tensors, awq, gptq. The first is its own."""
    MIXED_PRECISION: bool
    """Whether it chooses bits and group sizes per layer, within a budget."""
    TUNES: bool
    """Whether it tunes layers by gradient after rounding them, for the recipe's `iterations`."""
    RESUMABLE: bool
    """Whether it keeps finished layers in the job's `scratch` and resumes from there."""
    ROWS_TOGETHER: bool
    """Whether all calibration rows go through a layer at once, so that memory grows with their number."""
    LAYERWISE: bool
    """Whether it holds one decoder layer at a time, and reads each from disk."""
    KEEPS_UNLOADED: bool
    """Whether the artifact has the source's tensors that transformers doesn't load (for speculative decoding)."""
    MEMORY: MemoryProfile
    """What its worker holds in host memory."""
    SUPPORTED: frozenset[tuple[str, str]]
    """The supported (method, scheme) pairs."""

    def check(self, request: Request, source: Source) -> list[Problem]:
        """What it can't do with this model, from headers only, each at the recipe's key that asks for it."""

    def job(self, request: Request, paths: Paths) -> object:
        """The worker's job: a dataclass, declared in a module beside the worker."""

    def read(self, request: Request, out: Path, answer: Answer) -> Quantized:
        """The result, from the worker's answer and the files in `out/checkpoint`."""
