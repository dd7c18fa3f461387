"""Flags of vLLM that a model needs on a target: without them its server ends, so they are set where the recipe sets
none. From vLLM 0.32.0's source.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from qpack.core import model_shapes
from qpack.core.problems import Code, Location, Problem
from quantize.checkpoint import model_config, sources
from quantize.checkpoint.source import Source
from quantize.schemes import kernels

_NEEDS_FLAG = Code("needs-flag", "vLLM serves the model on the target with one value of a flag alone.")

PREFIX_CACHING = "enable-prefix-caching"
_DRAFTS = "speculative-config"


@dataclass(frozen=True)
class NeededFlag:
    """`name` without its leading dashes, the value it needs, vLLM's own, and why."""

    name: str
    value: bool
    usual: bool
    why: str


# `MambaMixer2.forward` reads a state per chunk where a row keeps one for the cache, and the kernel for CPUs returns the
# last state alone: the second prompt that is longer than a block ends the engine with an IndexError.
_NO_PREFIX_CACHE = NeededFlag(
    PREFIX_CACHING,
    value=False,
    usual=True,
    why=f"Mamba-2 layers: vLLM {kernels.VLLM} on CPUs ends at a prompt that its prefix cache keeps a state of",
)


# With drafts `preprocess_mamba` copies states by a Triton kernel, and CPUs have no Triton: the first prompt ends the
# engine with "'function' object is not subscriptable".
_NO_PREFIX_CACHE_WITH_DRAFTS = NeededFlag(
    PREFIX_CACHING,
    value=False,
    usual=True,
    why=f"Recurrent layers: vLLM {kernels.VLLM} on CPUs can't draft tokens beside a prefix cache of their states",
)


def needed(source: Source, target: str, arguments: Mapping[str, object]) -> tuple[NeededFlag, ...]:
    """The flags that the model needs on the target, beside these arguments of its server."""
    if target != "cpu":
        return ()
    if has_mamba2(source):
        return (_NO_PREFIX_CACHE,)
    return (_NO_PREFIX_CACHE_WITH_DRAFTS,) if arguments.get(_DRAFTS) and keeps_states(source) else ()


def needed_by(folder: Path, target: str, arguments: Mapping[str, object]) -> tuple[NeededFlag, ...]:
    """The same for a checkpoint's folder, by its headers; by its config where it has no readable weights."""
    found, _ = sources.find(str(folder), folder, None)
    config, _ = model_config.read_file(folder / "config.json")
    name = str(folder)
    return needed(found or Source(name, "folder", name, folder, None, (), config), target, arguments)


def set_wrongly(
    source: Source, target: str, arguments: Mapping[str, object], *at: str, base: Mapping[str, object] | None = None
) -> list[Problem]:
    """A problem for each needed flag that `arguments`, a section of the recipe at `at`, sets otherwise. They are laid
    over those of `base`.
    """
    return [
        Problem(
            _NEEDS_FLAG,
            flag.why,
            Location(key=(*at, flag.name)),
            f"Set it to {str(flag.value).lower()}, or remove it.",
        )
        for flag in needed(source, target, {**(base or {}), **arguments})
        if flag.name in arguments and arguments[flag.name] is not flag.value
    ]


def advise(source: Source, target: str, arguments: Mapping[str, object]) -> list[Problem]:
    """A note for each flag that is set because the model needs it."""
    return [
        Problem(
            _NEEDS_FLAG,
            f"{flag.name}: {str(flag.value).lower()} is set. {flag.why}.",
            Location(key=("serve", "arguments")),
            severity="note",
        )
        for flag in needed(source, target, arguments)
        if flag.name not in arguments
    ]


def has_mamba2(source: Source) -> bool:
    """Whether it has Mamba-2 layers: a decay per head (`A_log` is a vector; Mamba-1 has one per channel and state) and
    a skip `D`, which linear attention (Qwen3-Next, Kimi) lacks. Without headers by the config.
    """
    if source.tensors:
        skips = {tensor.name[: -len(".D")] for tensor in source.tensors if tensor.name.endswith(".D")}
        return any(
            len(tensor.shape) == 1 and tensor.name[: -len(".A_log")] in skips
            for tensor in source.tensors
            if tensor.name.endswith(".A_log")
        )
    config = model_shapes.language_model(source.config)
    heads = any(isinstance(config.get(key), int) for key in _HEADS)
    kinds = config.get("layer_types") or config.get("layers_block_type")
    return heads and (not isinstance(kinds, list) or any(kind in _KINDS for kind in kinds))


def keeps_states(source: Source) -> bool:
    """Whether it has layers that keep a state per request, and not keys and values: linear attention, Mamba, short
    convolutions (LFM2).
    """
    if any(tensor.name.endswith(_STATE_TENSORS) for tensor in source.tensors):
        return True
    config = model_shapes.language_model(source.config)
    kinds = config.get("layer_types") or config.get("layers_block_type")
    return isinstance(kinds, list) and any(kind in (*_KINDS, "conv") for kind in kinds)


_STATE_TENSORS = (".A_log", ".conv.conv.weight")
# Falcon-H1, Bamba and Granite 4; Nemotron-H; Zamba 2.
_HEADS = ("mamba_n_heads", "mamba_num_heads", "n_mamba_heads")
# transformers 5 writes "linear_attention" for each of them.
_KINDS = ("mamba", "mamba2", "hybrid", "linear_attention")
