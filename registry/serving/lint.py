"""Checks of a serving manifest against its checkpoint and device. Pure; starts nothing."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.version import InvalidVersion

from qpack.core import model_shapes
from qpack.core.jsonfile import JsonObject
from qpack.core.problems import Code, Location, Problem
from registry.serving import parallel
from registry.serving.objectives import BUCKETS, bucket
from registry.serving.serving_manifest import GPU_SHARE, ServingManifest, version_range

_GIB = 2**30
_COMMIT = re.compile(r"[0-9a-f]{40}")
# Default of gpu-memory-utilization in vLLM 0.32.
_SHARE = 0.92


_OTHER_VLLM = Code("other-vllm", "The manifest is for other versions of vLLM.")
_UNKNOWN_METHOD = Code("unknown-method", "The server's vLLM can't load weights quantized with this method.")
_OTHER_METHOD = Code("other-method", "The manifest says another quantization method than the checkpoint.")
_DRAFT_SPLIT = Code("draft-split", "A draft model is split over a number of GPUs that vLLM doesn't take.")
_UNPINNED_DRAFT = Code("unpinned-draft", "The draft model has no commit, and can change.")
_ABOVE_CONTEXT = Code("above-context", "The server takes more tokens than the model was made for.")
_MEMORY = Code("device-memory", "Weights and KV cache don't fit into the memory of one device.")
_UNCOUNTED = Code("uncounted-objective", "No bucket of vLLM's histogram ends at an objective's threshold.")
_TOOLS = Code("tool-calls", "Flags for tool calls don't go together, or need a chat template.")


def _at(flag: str) -> Location:
    return Location(key=("arguments", flag))


_DRAFT = _at("speculative-config")
_CACHE = Location(key=("kv_cache_memory_bytes",))


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
        *parallel.check(manifest, config, _group(config)),
        *_draft_shapes(manifest, draft),
        *_lengths(manifest, config, draft),
        *_memory(manifest, weights_bytes * parallel.weights_share(manifest, config), device_bytes, draft),
        *_speculative(manifest),
        *_parsers(manifest, chat_template),
        *_objectives(manifest),
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
    hint = "Measure the release with that version: flags and kernels change."
    return [Problem(_OTHER_VLLM, what, Location(key=("engine", "versions")), hint)]


def loadable(config: JsonObject, methods: tuple[str, ...], found: str) -> list[Problem]:
    """Whether a vLLM that supports the quantization `methods` can load this checkpoint."""
    method = _method(config)
    if method is None or method in methods:
        return []
    what = f"vLLM {found} can't load weights quantized with {method}."
    return [Problem(_UNKNOWN_METHOD, what, Location("model/config.json"), "Use another.")]


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
            _OTHER_METHOD,
            f"says that the weights are quantized with {given.get('quant_method')}, and they are with "
            f"{_method(config) or 'nothing'}.",
            Location(key=("arguments", "hf-overrides")),
            "Leave it out: vLLM reads the method from the checkpoint.",
        )
    ]


def draft_devices(manifest: ServingManifest, config: JsonObject) -> int:
    """Devices that share a draft model: as in vLLM, those of the model unless the manifest sets another number."""
    given = manifest.json_argument("speculative-config").get("draft_tensor_parallel_size")
    if isinstance(given, int) and given > 0:
        return given
    return 1 if config.get("model_type") == "mlp_speculator" else manifest.tensor_parallel


def _draft_shapes(manifest: ServingManifest, draft: Draft | None) -> list[Problem]:
    if draft is None:
        return []
    parts = draft_devices(manifest, draft.config)
    where = replace(_DRAFT, name="the draft model")
    problems = parallel.check_draft(draft.config, _group(draft.config), parts, where)
    if parts not in (1, manifest.tensor_parallel):
        what = f"a draft model is split over 1 GPU or all {manifest.tensor_parallel}, and not over {parts}."
        problems.append(Problem(_DRAFT_SPLIT, what, _DRAFT, "Leave draft_tensor_parallel_size out."))
    return problems


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
        hint = f"Set serve.max_model_len to {longest} or less."
        problems.append(Problem(_ABOVE_CONTEXT, what, Location(key=("max_model_len",)), hint))
    needed, drafts = cache_bytes(manifest, config), _draft_cache(manifest, draft)
    if needed and manifest.kv_cache_memory_bytes is not None:
        part = f", {drafts / _GIB:.2f} GiB of it for the draft model" if drafts else ""
        budget = manifest.kv_cache_memory_bytes
        problems += model_shapes.short_cache(manifest.max_model_len, needed + drafts, budget, _CACHE, part)
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
    size = 1 if "fp8" in str(manifest.arguments.get("kv-cache-dtype", "")) else 4 if manifest.dtype == "float32" else 2
    token = model_shapes.cache_bytes_per_token(config, manifest.tensor_parallel if devices is None else devices, size)
    # Each group of a pipeline keeps those of its own layers.
    return None if token is None else -(-token // manifest.pipeline_parallel) * manifest.max_model_len


def _memory(manifest: ServingManifest, weights: float, device_bytes: int | None, draft: Draft | None) -> list[Problem]:
    """`weights` are the bytes on one device."""
    if device_bytes is None:
        return []
    share = manifest.arguments.get(GPU_SHARE, _SHARE) if manifest.devices else 1.0
    if manifest.devices and manifest.kv_cache_memory_bytes is not None:
        share = _SHARE  # then the flag only says what has to be free at the start
    room = device_bytes * float(share) if isinstance(share, int | float | str) else device_bytes
    cache = (manifest.kv_cache_memory_bytes or 0) * parallel.cache_share(manifest)
    drafts = 0.0
    if draft is not None and draft.weights_bytes is not None:
        parts = draft_devices(manifest, draft.config)
        # A CPU's workers are all on one host: a draft that isn't split is there once for each.
        drafts = draft.weights_bytes * (manifest.workers if manifest.hardware == "cpu" else 1) / parts
    if weights + drafts + cache <= room:
        return []
    part = f", {drafts / _GIB:.1f} GiB of the draft model" if drafts else ""
    what = (
        f"{weights / _GIB:.1f} GiB of weights{part} and {cache / _GIB:.1f} GiB of KV cache don't fit into the "
        f"{room / _GIB:.1f} GiB that one device has for them."
    )
    return [Problem(_MEMORY, what, _CACHE, "Use more devices, a smaller cache, or fewer bits.")]


def _objectives(manifest: ServingManifest) -> list[Problem]:
    """Thresholds that vLLM's histograms don't count: an alert on one never fires."""
    return [
        Problem(
            _UNCOUNTED,
            f"vllm:{goal.indicator} has no bucket of {goal.threshold_seconds:g} s: alerts on it never fire.",
            Location(key=("objectives", number, "threshold_seconds")),
            f"Use {above:g}." if (above := bucket(goal.indicator, goal.threshold_seconds)) else "Use a smaller one.",
        )
        for number, goal in enumerate(manifest.objectives)
        if goal.threshold_seconds not in BUCKETS[goal.indicator]
    ]


def _speculative(manifest: ServingManifest) -> list[Problem]:
    config = manifest.json_argument("speculative-config")
    if manifest.draft is None or _COMMIT.fullmatch(str(config.get("revision", ""))):
        return []
    what = f"the draft model {manifest.draft} isn't pinned."
    return [Problem(_UNPINNED_DRAFT, what, _DRAFT, 'Add "revision": the 40 digits of its commit on the hub.')]


def _parsers(manifest: ServingManifest, chat_template: bool) -> list[Problem]:
    arguments, problems = manifest.arguments, []
    if arguments.get("enable-auto-tool-choice") and "tool-call-parser" not in arguments:
        what = "tools are on, and no parser reads the model's calls."
        problems.append(Problem(_TOOLS, what, _at("enable-auto-tool-choice"), "Add tool-call-parser."))
    if "tool-call-parser" in arguments and not arguments.get("enable-auto-tool-choice"):
        what = "is only used with enable-auto-tool-choice."
        problems.append(Problem(_TOOLS, what, _at("tool-call-parser"), "Add enable-auto-tool-choice: true."))
    if "tool-call-parser" in arguments and not chat_template and "chat-template" not in arguments:
        what = "tools need a chat template, and the model has none."
        problems.append(Problem(_TOOLS, what, _at("tool-call-parser"), "Add chat-template."))
    return problems
