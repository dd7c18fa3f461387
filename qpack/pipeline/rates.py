"""How long a step takes, from its work and from rates that were measured: on machines like this one, and on this one.

A rate is linear: seconds = start + (sum of coefficient x amount) / cores. The amounts are counted in advance
(`qpack.pipeline.estimate`), the coefficients rest on measured runs (docs/benchmarks/estimates.md has each of them, with
what the rates predict). What ran here before corrects them: the ratio of measured to predicted seconds of earlier runs
is this machine's own. Pure.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from evals.measure.eval_specs import Load
    from qpack.core.records import Hardware
    from quantize.engines.protocol import Request


Work = Mapping[str, float]
"""Amounts by name. `parameters` is the model's size; `tokens` are parameters x tokens that go through the model, `rows`
linear layers x calibration rows, `steps` parameters x decoding steps, `batch` parameters x tokens in those steps, and
`items` parameters x questions.
"""


def quantize_kind(engine: str, request: Request) -> str:
    """What rates of quantization belong to: the engine, the method, and whether more is asked of it than usual."""
    more = "+tuned" if request.iterations else "+mixed" if request.budget is not None else ""
    return f"quantize {engine} {request.method}{more}"


def quantizing(parameters: float, linears: int, rows: int, tokens: float) -> Work:
    """Of a model with that many linear layers, with `rows` calibration rows of `tokens` tokens in all."""
    return {"parameters": parameters, "rows": linears * rows, "tokens": parameters * tokens}


def loading(parameters: float, load: Load) -> Work:
    """A server's start, and its load: closed loops decode in steps, each for all clients at once."""
    steps = load.repeats * load.requests_per_client * load.output_tokens
    each = steps * (1 + load.input_tokens / load.output_tokens)
    return {
        "parameters": parameters,
        "steps": parameters * steps * len(load.concurrency),
        "batch": parameters * each * sum(load.concurrency),
        "seconds": load.repeats * load.rate_seconds * len(load.rates),
    }


def reading(parameters: float, tokens: int) -> Work:
    """Text of that many tokens, scored."""
    return {"parameters": parameters, "tokens": parameters * tokens}


def answering(parameters: float, items: int) -> Work:
    """Items of tasks, answered."""
    return {"parameters": parameters, "items": parameters * items}


_REACH = 10.0
"""How much larger or smaller than a measured model another one may be: beyond that nothing is comparable."""
_MOST_CORES = 4
"""More cores were not measured."""
_SEED_ERROR = 1.5
"""What the rates' predictions of the measured runs stay within."""


@dataclass(frozen=True)
class Rate:
    """Coefficients in seconds of one core, or of one GPU: per amount of `Work`. `smallest` and `largest` are the
    parameters of the models that were measured.
    """

    start: float
    coefficients: Mapping[str, float]
    smallest: float
    largest: float

    def seconds(self, work: Work, cores: int) -> float:
        """For an amount of work; `cores` is 1 for a GPU."""
        return self.start + sum(self.coefficients.get(name, 0.0) * amount for name, amount in work.items()) / cores


@dataclass(frozen=True)
class Ran:
    """What ran on this machine before: the step's kind, its work, and how long it took."""

    kind: str
    work: Work
    seconds: float


@dataclass(frozen=True)
class Estimate:
    """Seconds, what they rest on, and the factor that they are known to."""

    seconds: float
    basis: str
    within: float


def machine_class(machine: Hardware, instructions: Iterable[str]) -> str | None:
    """What rates belong to: a GPU's architecture, or the widest matrix instructions of a CPU. None for another CPU."""
    if machine.target != "cpu":
        return machine.target
    known = tuple(instructions)
    widest = ("amx", "avx512", "avx2")
    return next((f"cpu-{name}" for name in widest if any(flag.startswith(name) for flag in known)), None)


def estimate(kind: str, work: Work, machine: Hardware, like: str | None, earlier: Sequence[Ran]) -> Estimate | None:
    """Seconds of a step; None where nothing comparable was measured. `like` is the machine's class, `earlier` what ran
    here.
    """
    cores = machine.cores if machine.target == "cpu" else 1
    mine = [ran for ran in earlier if ran.kind == kind and _comparable(ran.work, work)]
    rate = RATES.get((kind, like or ""))
    if rate is not None and mine:
        factors = [ran.seconds / rate.seconds(ran.work, cores) for ran in mine]
        factor = statistics.geometric_mean(factors)
        within = max(max(factors) / factor, factor / min(factors)) if len(factors) > 1 else _SEED_ERROR
        return Estimate(rate.seconds(work, cores) * factor, _here(len(mine)), max(within, 1.1))
    if mine:
        factors = [ran.seconds / _size(ran.work) for ran in mine]
        within = max(factors) / min(factors) if len(factors) > 1 else 2.0
        return Estimate(statistics.geometric_mean(factors) * _size(work), _here(len(mine)), max(within, 1.1))
    if rate is None or (machine.target == "cpu" and machine.cores > _MOST_CORES):
        return None
    size = work.get("parameters", rate.smallest)
    if not rate.smallest / _REACH <= size <= rate.largest * _REACH:
        return None
    return Estimate(rate.seconds(work, cores), f"measured on machines like this ({like})", _SEED_ERROR)


def _here(runs: int) -> str:
    return f"{runs} earlier run{'s' if runs > 1 else ''} here, by work"


def _comparable(done: Work, wanted: Work) -> bool:
    ratio = _size(wanted) / _size(done)
    return 1 / _REACH <= ratio <= _REACH


def _size(work: Work) -> float:
    """One number for work whose rate isn't known: the largest of its amounts."""
    return max([*work.values(), 1.0])


def total(estimates: Sequence[Estimate | None]) -> tuple[float, float] | None:
    """(seconds, factor) of several steps together; None without any. Errors of steps of one machine go together, so
    the factor is that of the larger steps.
    """
    known = [each for each in estimates if each is not None]
    if not known:
        return None
    seconds = math.fsum(each.seconds for each in known)
    return seconds, math.fsum(each.seconds * each.within for each in known) / max(seconds, 1e-9)


_SMOL, _LLAMA = 134.5e6, 8.03e9
"""Parameters of the models that were measured: SmolLM2-135M and Llama 3 8B's shape."""


def _smol(start: float, **coefficients: float) -> Rate:
    return Rate(start, coefficients, _SMOL, _SMOL)


def _both(start: float, **coefficients: float) -> Rate:
    return Rate(start, coefficients, _SMOL, _LLAMA)


def _llama(start: float, **coefficients: float) -> Rate:
    return Rate(start, coefficients, _LLAMA, _LLAMA)


RATES: Mapping[tuple[str, str], Rate] = {
    # One GPU: llm-compressor runs each row through each layer by itself, so rows count more than tokens.
    ("fetch folder", "hopper"): _llama(1.0, parameters=3.5e-10),
    ("windows", "hopper"): _both(15.0),
    ("rows", "hopper"): _both(8.0),
    ("quantize llmcompressor awq", "hopper"): _both(10.0, rows=4.6e-3, parameters=5.9e-9, tokens=5e-14),
    ("quantize llmcompressor gptq", "hopper"): _both(8.0, rows=2.3e-4, parameters=6.6e-9, tokens=5e-14),
    ("quantize gram awq+gptq", "hopper"): _both(7.0, parameters=5e-10, tokens=8.6e-15),
    ("performance", "hopper"): _llama(95.0, parameters=2.5e-9, steps=6.2e-13, batch=4.1e-15, seconds=1.0),
    ("proof", "hopper"): _llama(5.0),
    ("language", "hopper"): _llama(5.0, tokens=2.3e-14),
    ("accuracy", "hopper"): _llama(8.0, items=1.1e-12),
    ("verdict", "hopper"): _llama(5.0),
    # One core of a CPU with AVX-512 and without AMX.
    ("quantize llmcompressor rtn", "cpu-avx512"): _smol(11.0, parameters=1.5e-8),
    ("quantize llmcompressor gptq", "cpu-avx512"): _smol(13.0, parameters=5.1e-7, tokens=1.13e-10),
    ("quantize llmcompressor awq", "cpu-avx512"): _smol(13.0, parameters=4.6e-7, tokens=9.96e-10),
    ("quantize gram awq+gptq", "cpu-avx512"): _smol(8.0, parameters=2.5e-7, tokens=5.25e-11),
    # With AMX.
    ("quantize llmcompressor rtn", "cpu-amx"): _smol(11.0, parameters=1.5e-8),
    ("quantize llmcompressor gptq", "cpu-amx"): _smol(13.0, parameters=1.7e-7, tokens=1.9e-10),
    ("quantize llmcompressor awq", "cpu-amx"): _smol(13.0, parameters=3.7e-7, tokens=4.1e-10),
    ("quantize gram rtn", "cpu-amx"): _smol(8.0, parameters=7e-9),
    ("quantize gram gptq", "cpu-amx"): _smol(8.0, parameters=9e-8, tokens=4.9e-11),
    ("quantize gram awq", "cpu-amx"): _smol(8.0, parameters=3.8e-7, tokens=4.9e-11),
    ("quantize gram awq+gptq", "cpu-amx"): _smol(8.0, parameters=2.6e-7, tokens=4.9e-11),
}
"""By the step's kind and the machine's class."""


@dataclass(frozen=True)
class GpuMemory:
    """Peak of GPU memory while a model is quantized: `layer` bytes per byte of the largest decoder layer in 16 bits,
    `token` bytes per calibration token and channel (hidden and intermediate size together).
    """

    layer: float
    token: float
    runs: int

    def bytes(self, layer_bytes: int, tokens: float, channels: int) -> int:
        """For a model and its calibration rows."""
        return round(self.layer * layer_bytes + self.token * tokens * channels)


GPU_MEMORY: Mapping[str, GpuMemory] = {
    "quantize llmcompressor awq": GpuMemory(5.15, 4.68, 2),
    "quantize llmcompressor gptq": GpuMemory(6.7, 0.89, 1),
    "quantize gram awq+gptq": GpuMemory(15.4, 0.89, 1),
}
"""By the step's kind. Measured with Llama 3 8B's shape on an H100 and an H200. A token's share of the last two isn't
measured: it is what the states of a layer's input and output take.
"""
