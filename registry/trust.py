"""What a release may have a server do without anybody's leave: be tuned. A release can be somebody else's.

vLLM takes flags and variables that name code to import, libraries to load and files to read, and takes a flag by any
unambiguous beginning of its name. So those that only tune are listed, and everything else needs leave
(docs/decisions/0045). Pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from pydantic import JsonValue

from qpack.errors import Problem, RegistryError
from registry.serving_manifest import Argument, ServingManifest

# Their values are switches, numbers, or names that vLLM itself defines.
FLAGS = frozenset(
    (
        *("async-scheduling", "attention-backend", "block-size", "compilation-config"),
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
# Of flags that take JSON; a key that isn't here may name a plugin.
_KEYS = {
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
_VARIABLES = frozenset(
    (
        *("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "TOKENIZERS_PARALLELISM", "OMP_NUM_THREADS", "MKL_NUM_THREADS"),
        *("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "NCCL_P2P_DISABLE", "NCCL_IB_DISABLE", "NCCL_NVLS_ENABLE"),
        *("NCCL_SHM_DISABLE", "NCCL_CUMEM_ENABLE", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"),
    )
)
# They open the server's own RPC, have it unpickle what comes over the network, or say where libraries and files are.
_OPENING = re.compile(r"INSECURE|DEV_MODE|RUNTIME_LORA|PICKLE|_(PATH|ROOT|DIR|FOLDER|URL|ENDPOINT)$")
_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
# No dot but in a number and no slash: a value can be neither a class to import nor a file.
_NAME = re.compile(r"[A-Za-z0-9_+-]*|-?\d*\.\d+")
_SETTING = re.compile(r"[A-Za-z0-9_,:|+-]*|-?\d*\.\d+")
_HUB_MODEL = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*/[A-Za-z0-9_-][A-Za-z0-9._-]*")


def check(reference: str, found: tuple[Problem, ...], trusted: bool) -> None:
    """Raise RegistryError when something was found, and nobody gave leave: whoever made a release can be a stranger."""
    if found and not trusted:
        raise RegistryError(
            f"{reference} could run code of its own here, and nobody gave leave",
            hint="Look at what is named above. If you trust whoever made the release, say --trust-release.",
            problems=found,
        )


def beyond_tuning(manifest: ServingManifest, files: Iterable[str]) -> tuple[Problem, ...]:
    """What could run code, load libraries or read files that the release names: in the manifest of one profile, and
    among the model's `files`.
    """
    found = [*_of_arguments(manifest), *_of_variables(manifest)]
    found += [(path, "it is a pickle, and a server may load it.") for path in files if _pickled(path)]
    return tuple(Problem(what, at) for at, what in found)


def _pickled(path: str) -> bool:
    return path.lower().endswith(_PICKLED)


def _of_arguments(manifest: ServingManifest) -> Iterator[tuple[str, str]]:
    for flag, value in {"dtype": manifest.dtype, **manifest.arguments}.items():
        if flag not in (*FLAGS, "dtype"):
            # A flag that is turned off does nothing.
            if value is not False:
                yield (
                    f"serving.json: arguments.{flag}",
                    f"it starts the server with `--{flag}`, which can do more than tune it.",
                )
        elif not _tunes(flag, value, manifest):
            yield f"serving.json: arguments.{flag}", f"the value of `--{flag}` can name code or a file."


def _tunes(flag: str, value: Argument, manifest: ServingManifest) -> bool:
    if flag not in _KEYS:
        return _plain(value)
    told = manifest.json_argument(flag)
    if not told or not set(told) <= _KEYS[flag]:
        return False
    model = told.get("model", "org/name")
    named = isinstance(model, str) and _HUB_MODEL.fullmatch(model) is not None
    return named and told.get("method") != "custom_class" and all(_plain(v) for k, v in told.items() if k != "model")


def _plain(value: JsonValue | Argument) -> bool:
    if isinstance(value, list):
        return all(_plain(item) for item in value)
    if isinstance(value, dict):
        return False
    return not isinstance(value, str) or _NAME.fullmatch(value) is not None


def _of_variables(manifest: ServingManifest) -> Iterator[tuple[str, str]]:
    for name, value in manifest.environment.items():
        known = name in _VARIABLES or (name.startswith("VLLM_") and not _OPENING.search(name))
        if not known or not _SETTING.fullmatch(value):
            yield (
                f"serving.json: environment.{name}",
                f"it sets the variable {name}, which can do more than tune the server.",
            )
