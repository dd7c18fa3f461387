"""Checks of a serving manifest against its checkpoint and device. Pure; starts nothing."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.version import InvalidVersion

from qpack.core.errors import Problem
from qpack.core.jsonfile import JsonObject
from registry.serving.serving_manifest import GPU_SHARE, ServingManifest, version_range

_GIB = 2**30
_COMMIT = re.compile(r"[0-9a-f]{40}")
# Default of gpu-memory-utilization in vLLM 0.32.
_SHARE = 0.92


@dataclass(frozen=True)
class Draft:
    """The known facts of a draft model: its config.json (may be empty), the bytes of its loaded weights (None if
    unknown), and `why` something is unknown.
    """

    config: JsonObject = field(default_factory=dict)
    weights_bytes: int | None = None
    why: str = ""


def check(
    manifest: ServingManifest,
    config: JsonObject,
    *,
    weights_bytes: int,
    device_bytes: int | None,
    chat_template: bool,
    draft: Draft | None = None,
) -> list[Problem]:
    """Problems of the manifest of one profile.

    `config` is the checkpoint's config.json, `weights_bytes` the size of its weight files, `device_bytes` the memory of
    one device (None if unknown: memory isn't checked then). `draft` is the manifest's draft model, if any: its weights
    need memory beside the model's, and its keys and values share the cache budget. Unknown parts aren't counted;
    `unchecked` lists them.
    """
    return [
        *_quantization(manifest, config),
        *_shapes(config, manifest.devices),
        *_draft_shapes(manifest, draft),
        *_lengths(manifest, config, draft),
        *_memory(manifest, weights_bytes, device_bytes, draft),
        *_speculative(manifest),
        *_parsers(manifest, chat_template),
    ]


def unchecked(
    manifest: ServingManifest, config: JsonObject, *, device_bytes: int | None, draft: Draft | None = None
) -> list[str]:
    """What `check` could not check, and why. Same arguments."""
    left = []
    if device_bytes is None:
        left.append(f"memory: this machine has no {manifest.hardware}. Pass the memory of one device with --memory.")
    if manifest.kv_cache_memory_bytes is not None and cache_bytes(manifest, config) is None:
        left.append("the KV cache of one request: config.json doesn't have the shapes of standard attention.")
    if manifest.draft is not None:
        draft = draft or Draft()
        why = f" ({draft.why})" if draft.why else ""
        if draft.weights_bytes is None:
            left.append(f"memory of the draft model {manifest.draft}: the size of its weights isn't known{why}.")
        if cache_bytes(manifest, draft.config, draft_devices(manifest, draft.config)) is None:
            left.append(f"KV cache of the draft model {manifest.draft}: its shapes aren't known{why}.")
    return left


def version(manifest: ServingManifest, found: str) -> list[Problem]:
    """Whether the manifest allows vLLM version `found`."""
    wanted = manifest.engine.versions or version_range(manifest.engine.version)
    try:
        fits = SpecifierSet(wanted).contains(found, prereleases=True)
    except (InvalidSpecifier, InvalidVersion):
        fits = False
    if fits:
        return []
    what = f"the manifest is for vLLM {wanted}, and this is {found}."
    return [Problem(what, "engine.versions", "Measure the release with that version: flags and kernels change.")]


def loadable(config: JsonObject, methods: tuple[str, ...], found: str) -> list[Problem]:
    """Whether a vLLM that supports the quantization `methods` can load this checkpoint."""
    method = _method(config)
    if method is None or method in methods:
        return []
    return [Problem(f"vLLM {found} can't load weights quantized with {method}.", "model/config.json", "Use another.")]


def _method(config: JsonObject) -> str | None:
    quantized = config.get("quantization_config") or {}
    return quantized.get("quant_method")


def _quantization(manifest: ServingManifest, config: JsonObject) -> list[Problem]:
    """Overrides that contradict the checkpoint. The flag `quantization` itself can't be in a manifest."""
    overrides = manifest.json_argument("hf-overrides")
    given = overrides.get("quantization_config")
    if not isinstance(given, Mapping) or given.get("quant_method") == _method(config):
        return []
    return [
        Problem(
            f"says that the weights are quantized with {given.get('quant_method')}, and they are with "
            f"{_method(config) or 'nothing'}.",
            "arguments.hf-overrides",
            "Leave it out: vLLM reads the method from the checkpoint.",
        )
    ]


def draft_devices(manifest: ServingManifest, config: JsonObject) -> int:
    """Devices that share a draft model: as in vLLM, those of the model unless the manifest sets another number."""
    given = manifest.json_argument("speculative-config").get("draft_tensor_parallel_size")
    if isinstance(given, int) and given > 0:
        return given
    return 1 if config.get("model_type") == "mlp_speculator" else manifest.devices


def _draft_shapes(manifest: ServingManifest, draft: Draft | None) -> list[Problem]:
    if draft is None:
        return []
    where, parts = "arguments.speculative-config", draft_devices(manifest, draft.config)
    problems = [
        Problem(f"the draft model's {problem.what}", where, problem.hint) for problem in _shapes(draft.config, parts)
    ]
    if max(1, parts) not in (1, max(1, manifest.devices)):
        what = f"a draft model is split over 1 GPU or all {manifest.devices}, and not over {parts}."
        problems.append(Problem(what, where, "Leave draft_tensor_parallel_size out."))
    return problems


def _shapes(config: JsonObject, parts: int) -> list[Problem]:
    if parts < 2:
        return []
    problems = []
    for key, words in (
        ("num_attention_heads", "attention heads"),
        ("intermediate_size", "channels of the feed-forward layers"),
        ("vocab_size", "words of the vocabulary"),
    ):
        size = config.get(key)
        # vLLM pads the vocabulary to a multiple of 64.
        if isinstance(size, int) and (-(-size // 64) * 64 if key == "vocab_size" else size) % parts:
            problems.append(_unsplit(f"{size} {words}", parts))
    heads = config.get("num_key_value_heads")
    if isinstance(heads, int) and heads % parts and parts % heads:
        problems.append(_unsplit(f"{heads} key-value heads", parts))
    group, inner = _group(config), config.get("intermediate_size")
    if group and isinstance(inner, int) and inner % parts == 0 and (inner // parts) % group:
        what = f"groups of {group} channels don't fit into {inner // parts}, the share of one of {parts} GPUs."
        problems.append(Problem(what, _PARALLEL, "Take fewer GPUs, or quantize with a smaller group size."))
    return problems


_PARALLEL = "arguments.tensor-parallel-size"


def _unsplit(what: str, parts: int) -> Problem:
    return Problem(f"{what} can't be split over {parts} GPUs.", _PARALLEL, "Take a number that divides them.")


def _group(config: JsonObject) -> int | None:
    quantized = config.get("quantization_config") or {}
    groups = [
        (group.get("weights") or {}).get("group_size") for group in (quantized.get("config_groups") or {}).values()
    ]
    sizes = [size for size in (*groups, quantized.get("group_size")) if isinstance(size, int) and size > 0]
    return max(sizes, default=None)


def _lengths(manifest: ServingManifest, config: JsonObject, draft: Draft | None) -> list[Problem]:
    problems = []
    longest = config.get("max_position_embeddings")
    if isinstance(longest, int) and manifest.max_model_len > longest and not manifest.json_argument("hf-overrides"):
        what = f"{manifest.max_model_len} tokens are more than the {longest} that the model was made for."
        problems.append(Problem(what, "max_model_len", f"Set serve.max_model_len to {longest} or less."))
    needed, drafts = cache_bytes(manifest, config), _draft_cache(manifest, draft)
    if needed:
        needed += drafts
    if needed and manifest.kv_cache_memory_bytes is not None and needed > manifest.kv_cache_memory_bytes:
        part = f", {drafts / _GIB:.2f} GiB of it for the draft model" if drafts else ""
        what = (
            f"one request of {manifest.max_model_len} tokens needs {needed / _GIB:.2f} GiB of KV cache on a device"
            f"{part}, and the budget is {manifest.kv_cache_memory_bytes / _GIB:.2f} GiB."
        )
        problems.append(Problem(what, "kv_cache_memory_bytes", "Raise serve.kv_cache_gib or lower max_model_len."))
    return problems


def _draft_cache(manifest: ServingManifest, draft: Draft | None) -> int:
    """Bytes of the draft model's keys and values for one request, 0 if unknown.

    vLLM keeps them in the same blocks: the budget covers the layers of both models.
    """
    config = draft.config if draft is not None else {}
    return cache_bytes(manifest, config, draft_devices(manifest, config)) or 0


def cache_bytes(manifest: ServingManifest, config: JsonObject, devices: int | None = None) -> int | None:
    """Bytes of KV cache for one request of full length on one device: keys and values of every layer.

    `devices` share the heads; None for the manifest's. Returns None if the config doesn't have the shapes (models
    without standard attention).
    """
    try:
        layers, heads = int(config["num_hidden_layers"]), int(config["num_attention_heads"])
        shared = int(config.get("num_key_value_heads") or heads)
        width = int(config.get("head_dim") or int(config["hidden_size"]) // heads)
    except (KeyError, TypeError, ValueError):
        return None
    size = 1 if "fp8" in str(manifest.arguments.get("kv-cache-dtype", "")) else 4 if manifest.dtype == "float32" else 2
    here = max(1, shared // max(1, manifest.devices if devices is None else devices))
    return 2 * layers * here * width * size * manifest.max_model_len


def _memory(
    manifest: ServingManifest, weights_bytes: int, device_bytes: int | None, draft: Draft | None
) -> list[Problem]:
    if device_bytes is None:
        return []
    share = manifest.arguments.get(GPU_SHARE, _SHARE) if manifest.devices else 1.0
    if manifest.devices and manifest.kv_cache_memory_bytes is not None:
        share = _SHARE  # then the flag only says what has to be free at the start
    room = device_bytes * float(share) if isinstance(share, int | float | str) else device_bytes
    weights, cache = weights_bytes / max(1, manifest.devices), manifest.kv_cache_memory_bytes or 0
    drafts = 0.0
    if draft is not None and draft.weights_bytes is not None:
        drafts = draft.weights_bytes / max(1, draft_devices(manifest, draft.config))
    if weights + drafts + cache <= room:
        return []
    part = f", {drafts / _GIB:.1f} GiB of the draft model" if drafts else ""
    what = (
        f"{weights / _GIB:.1f} GiB of weights{part} and {cache / _GIB:.1f} GiB of KV cache don't fit into the "
        f"{room / _GIB:.1f} GiB that one device has for them."
    )
    return [Problem(what, "kv_cache_memory_bytes", "Use more devices, a smaller cache, or fewer bits.")]


def _speculative(manifest: ServingManifest) -> list[Problem]:
    config = manifest.json_argument("speculative-config")
    if manifest.draft is None or _COMMIT.fullmatch(str(config.get("revision", ""))):
        return []
    what = f"the draft model {manifest.draft} isn't pinned."
    return [Problem(what, "arguments.speculative-config", 'Add "revision": the 40 digits of its commit on the hub.')]


def _parsers(manifest: ServingManifest, chat_template: bool) -> list[Problem]:
    arguments, problems = manifest.arguments, []
    if arguments.get("enable-auto-tool-choice") and "tool-call-parser" not in arguments:
        what = "tools are on, and no parser reads the model's calls."
        problems.append(Problem(what, "arguments.enable-auto-tool-choice", "Add tool-call-parser."))
    if "tool-call-parser" in arguments and not arguments.get("enable-auto-tool-choice"):
        what = "is only used with enable-auto-tool-choice."
        problems.append(Problem(what, "arguments.tool-call-parser", "Add enable-auto-tool-choice: true."))
    if "tool-call-parser" in arguments and not chat_template and "chat-template" not in arguments:
        what = "tools need a chat template, and the model has none."
        problems.append(Problem(what, "arguments.tool-call-parser", "Add chat-template."))
    return problems
