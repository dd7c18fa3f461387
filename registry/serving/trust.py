"""The settings that a release may make without permission: those that only tune the server. Releases are untrusted.

Some of vLLM's flags and variables name code to import, libraries to load or files to read. The ones that only tune are
listed here by hand; their values are checked against vLLM's parser (`registry.serving.flag_table`). Everything else
needs permission (docs/decisions/0045 and 0061). Pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from pydantic import JsonValue

from qpack.core.errors import RegistryError
from qpack.core.problems import Code, KeyPath, Location, Problem
from registry.serving import flag_table
from registry.serving.flag_table import Flag
from registry.serving.manifest_fields import Argument
from registry.serving.plain_text import shown
from registry.serving.serving_manifest import ServingManifest, published_image

_FOREIGN_CODE = Code("foreign-code", "A release could run code, load libraries or read files, without permission.")

FLAGS = frozenset(
    (
        *("async-scheduling", "attention-backend", "block-size"),
        *("cpu-offload-gb", "cudagraph-capture-sizes", "data-parallel-size", "disable-cascade-attn"),
        *("disable-custom-all-reduce", "disable-hybrid-kv-cache-manager", "disable-sliding-window"),
        *("disable-uvicorn-access-log", "distributed-executor-backend", "enable-auto-tool-choice"),
        *("enable-chunked-prefill", "enable-expert-parallel", "enable-force-include-usage", "enable-log-requests"),
        *("enable-prefix-caching", "enable-prompt-tokens-details", "enable-server-load-tracking", "enforce-eager"),
        *("generation-config", "gpu-memory-utilization", "kv-cache-dtype", "language-model-only"),
        *("logprobs-mode", "long-prefill-token-threshold", "max-cudagraph-capture-size", "max-log-len"),
        *("max-logprobs", "max-num-batched-tokens"),
        *("max-num-seqs", "mm-processor-cache-gb", "num-gpu-blocks-override", "optimization-level"),
        *("performance-mode", "pipeline-parallel-size", "reasoning-parser", "response-role"),
        *("return-tokens-as-token-ids", "safetensors-load-strategy", "scheduling-policy", "seed"),
        *("speculative-config", "stream-interval", "structured-outputs-config", "tensor-parallel-size"),
        *("tokenizer-mode", "tool-call-parser", "uvicorn-log-level"),
    )
)
# Keys of flags that take JSON. Others may name a plugin.
KEYS = {
    "speculative-config": frozenset(
        (
            *("method", "model", "revision", "num_speculative_tokens", "prompt_lookup_max", "prompt_lookup_min"),
            *("draft_tensor_parallel_size", "max_model_len", "enforce_eager", "disable_padded_drafter_batch"),
        )
    ),
    "structured-outputs-config": frozenset(
        (
            *("backend", "disable_any_whitespace", "disable_additional_properties", "reasoning_parser"),
            *("enable_in_reasoning",),
        )
    ),
}
# vLLM accepts any text here. Other values are a folder, or are sent to clients.
NAMES = {"generation-config": frozenset(("auto", "vllm")), "response-role": frozenset(("assistant",))}
# Names that vLLM defines for external code, and for a method that writes files.
_FOREIGN = {
    "attention-backend": frozenset(("CUSTOM",)),
    "method": frozenset(("custom_class", "extract_hidden_states")),
}
VARIABLES = frozenset(
    (
        *("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "TOKENIZERS_PARALLELISM", "OMP_NUM_THREADS", "MKL_NUM_THREADS"),
        *("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "NCCL_P2P_DISABLE", "NCCL_IB_DISABLE", "NCCL_NVLS_ENABLE"),
        *("NCCL_SHM_DISABLE", "NCCL_CUMEM_ENABLE", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"),
        *("VLLM_ALLOW_CHUNKED_LOCAL_ATTN_WITH_HYBRID_KV_CACHE", "VLLM_ALLOW_LONG_MAX_MODEL_LEN"),
        *("VLLM_ALLREDUCE_USE_FLASHINFER", "VLLM_ALLREDUCE_USE_SYMM_MEM", "VLLM_BATCH_INVARIANT"),
        *("VLLM_BLOCKSCALE_FP8_GEMM_FLASHINFER", "VLLM_COMPUTE_NANS_IN_LOGITS", "VLLM_CPU_ATTN_SPLIT_KV"),
        *("VLLM_CPU_INT4_W4A8", "VLLM_CPU_KVCACHE_SPACE", "VLLM_CPU_NUM_OF_RESERVED_CPU"),
        *("VLLM_CPU_OMP_THREADS_BIND", "VLLM_DEEP_GEMM_WARMUP", "VLLM_DISABLE_COMPILE_CACHE"),
        *("VLLM_DISABLE_LOG_LOGO", "VLLM_DISABLE_PYNCCL", "VLLM_DISABLE_SHARED_EXPERTS_STREAM"),
        *("VLLM_ENABLE_CUDAGRAPH_GC", "VLLM_ENABLE_INDUCTOR_COORDINATE_DESCENT_TUNING"),
        *("VLLM_ENABLE_INDUCTOR_MAX_AUTOTUNE", "VLLM_ENABLE_V1_MULTIPROCESSING", "VLLM_ENGINE_READY_TIMEOUT_S"),
        *("VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS", "VLLM_FLOAT32_MATMUL_PRECISION", "VLLM_HTTP_TIMEOUT_KEEP_ALIVE"),
        *("VLLM_KV_CACHE_LAYOUT", "VLLM_LOGGING_COLOR", "VLLM_LOGGING_LEVEL", "VLLM_LOG_BATCHSIZE_INTERVAL"),
        *("VLLM_LOG_STATS_INTERVAL", "VLLM_MARLIN_INPUT_DTYPE", "VLLM_MARLIN_USE_ATOMIC_ADD"),
        *("VLLM_MEMORY_PROFILER_ESTIMATE_CUDAGRAPHS", "VLLM_MLA_DISABLE", "VLLM_MOE_USE_DEEP_GEMM"),
        *("VLLM_MQ_MAX_CHUNK_BYTES_MB", "VLLM_MSGPACK_ZERO_COPY_THRESHOLD", "VLLM_PP_LAYER_PARTITION"),
        *("VLLM_ROCM_FP8_PADDING", "VLLM_ROCM_MOE_PADDING", "VLLM_ROCM_USE_AITER", "VLLM_ROCM_USE_AITER_LINEAR"),
        *("VLLM_ROCM_USE_AITER_MHA", "VLLM_ROCM_USE_AITER_MLA", "VLLM_ROCM_USE_AITER_MOE"),
        *("VLLM_ROCM_USE_AITER_RMSNORM", "VLLM_ROCM_USE_AITER_UNIFIED_ATTENTION", "VLLM_SKIP_P2P_CHECK"),
        *("VLLM_TOOL_PARSE_REGEX_TIMEOUT_SECONDS", "VLLM_USE_AOT_COMPILE", "VLLM_USE_DEEP_GEMM"),
        *("VLLM_USE_DEEP_GEMM_E8M0", "VLLM_USE_FASTOKENS", "VLLM_USE_FLASHINFER_SAMPLER"),
        *("VLLM_USE_NCCL_SYMM_MEM", "VLLM_USE_STANDALONE_COMPILE", "VLLM_USE_TRITON_AWQ"),
        *("VLLM_USE_V2_MODEL_RUNNER", "VLLM_V1_OUTPUT_PROC_CHUNK_SIZE", "VLLM_WORKER_MULTIPROC_METHOD"),
        *("VLLM_XGRAMMAR_CACHE_MB",),
    )
)
_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
# Dots only in numbers, no slashes: neither a class to import nor a file.
_SETTING = re.compile(r"[A-Za-z0-9_,:|+-]*|-?[0-9]*\.[0-9]+")
_HUB_MODEL = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*/[A-Za-z0-9_-][A-Za-z0-9._-]*")
# A branch or a tag can be moved by the repository's owner.
_HUB_COMMIT = re.compile(r"[0-9a-f]{40}")


def check(reference: str, found: tuple[Problem, ...], trusted: bool) -> None:
    """Raise RegistryError if settings were found that need permission, and it wasn't given."""
    if found and not trusted:
        raise RegistryError(
            _FOREIGN_CODE,
            f"{reference} could run its own code here, which needs permission",
            hint="Check the settings above. If you trust the author of the release, add --trust-release.",
            problems=found,
        )


def beyond_tuning(manifest: ServingManifest, files: Iterable[str]) -> tuple[Problem, ...]:
    """Settings that could run code, load libraries or read files: in the manifest of one profile, and among the model's
    `files`. Used wherever a release is started or exported.
    """
    found = [*_of_image(manifest), *_of_arguments(manifest), *_of_variables(manifest)]
    what = "it is a pickle, and a server may load it."
    found += [Problem(_FOREIGN_CODE, what, Location(path)) for path in files if _pickled(path)]
    return tuple(found)


def _beyond_it(key: KeyPath, what: str) -> Problem:
    return Problem(_FOREIGN_CODE, what, Location("serving.json", key=key))


def _pickled(path: str) -> bool:
    return path.lower().endswith(_PICKLED)


def _of_image(manifest: ServingManifest) -> Iterator[Problem]:
    image = manifest.engine.image
    if image is not None and image != published_image(manifest):
        what = f"it runs in {image}, which isn't vLLM's own {published_image(manifest)}."
        yield _beyond_it(("engine", "image"), what)


def _of_arguments(manifest: ServingManifest) -> Iterator[Problem]:
    for flag, value in {"dtype": manifest.dtype, **manifest.arguments}.items():
        known = flag_table.flags().get(flag)
        if known is None or flag not in (*FLAGS, "dtype"):
            # Turning off a switch that is off by default does nothing.
            if known is None or value is not False or (known.type, known.default) != ("switch", False):
                what = f"it starts the server with `--{flag}`, which can do more than tune it."
                yield _beyond_it(("arguments", flag), what)
        elif why := _beyond(flag, known, value, manifest):
            yield _beyond_it(("arguments", flag), f"`--{flag}` takes {why}")


def _beyond(flag: str, known: Flag, value: Argument, manifest: ServingManifest) -> str | None:
    """What is allowed instead of a value, for a sentence with "takes"; None if the value is allowed."""
    if flag in KEYS:
        return _beyond_keys(flag, known, manifest)
    if flag in NAMES and not (isinstance(value, str) and value in NAMES[flag]):
        return f"{' or '.join(sorted(NAMES[flag]))} without permission, and this is {shown(value)}."
    if isinstance(value, str) and value in _FOREIGN.get(flag, ()):
        return f"vLLM's own names without permission, and {shown(value)} is external code."
    if why := flag_table.misfit(known, value):
        return f"{why}, and this is {shown(value)}."
    return None


def _beyond_keys(flag: str, known: Flag, manifest: ServingManifest) -> str | None:
    given = manifest.json_argument(flag)
    if not given:
        return "an object of JSON."
    for key, value in given.items():
        if key not in KEYS[flag]:
            return f"the key {shown(key)} with permission alone."
        if not _tunes(key, known.fields[key], value):
            return f"no {shown(value)} as {key} without permission."
    if flag == "speculative-config" and "model" in given and "revision" not in given:
        return "a draft model at a commit alone without permission (`revision`, 40 digits)."
    return None


def _tunes(key: str, known: Flag, value: JsonValue) -> bool:
    if key == "model":
        return isinstance(value, str) and _HUB_MODEL.fullmatch(value) is not None
    if key == "revision":
        return isinstance(value, str) and _HUB_COMMIT.fullmatch(value) is not None
    if known.type != "text" and isinstance(value, str):
        return False  # a number in JSON isn't text
    return not (isinstance(value, str) and value in _FOREIGN.get(key, ())) and flag_table.misfit(known, value) is None


def _of_variables(manifest: ServingManifest) -> Iterator[Problem]:
    for name, value in manifest.environment.items():
        if name not in VARIABLES or not _SETTING.fullmatch(value):
            what = f"it sets the variable {name}, which can do more than tune the server."
            yield _beyond_it(("environment", name), what)
