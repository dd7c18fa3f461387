"""The quantization schemes, and vLLM's kernels for them by hardware.

Sources: the compressed-tensors preset schemes, and vLLM's kernel selection (`vllm/model_executor/kernels/linear/`),
tried on a CPU and an H100 (docs/reference/engines.md says which combinations were run).
"""

from __future__ import annotations

from dataclasses import dataclass

TARGETS = ("cpu", "ampere", "ada", "hopper", "blackwell")


@dataclass(frozen=True)
class Scheme:
    """`weight_bits` and `activation_bits` are per value; `grouped`: one scale per group of input channels, whose
    size the recipe chooses. `block` is the size where the format fixes it (for FP8_BLOCK also of output channels).

    `calibrated`: activations get static scales, so every method needs texts. `stored_bits` are bits of a weight in the
    file, where they aren't `weight_bits`.
    """

    name: str
    weight_bits: int
    activation_bits: int
    grouped: bool
    calibrated: bool
    methods: tuple[str, ...]
    kernels: dict[str, str]
    missing: dict[str, str]
    block: int | None = None
    stored_bits: int | None = None


UNCHANGED = ("none", "online")
"""The methods whose artifact is the source's files: it is served as it is, or quantized by the server as it loads."""

_ROUNDED = ("gptq", "awq", "awq+gptq", "rtn")
_TUNED = (*_ROUNDED, "autoround")
_WEIGHT_ONLY = {"cpu": "CPUWNA16", "ampere": "Marlin", "ada": "Marlin", "hopper": "Machete", "blackwell": "Marlin"}
_FP8 = {
    "cpu": "torch (slow)",
    "ampere": "Marlin (weight only)",
    "ada": "CUTLASS",
    "hopper": "CUTLASS",
    "blackwell": "CUTLASS",
}
_INT8 = {"cpu": "oneDNN", "ampere": "CUTLASS", "ada": "CUTLASS", "hopper": "CUTLASS"}
_BLACKWELL_INT8 = {"blackwell": "vLLM has no INT8 W8A8 kernel for Blackwell; use FP8_DYNAMIC there"}
_W8A16 = {target: kernel for target, kernel in _WEIGHT_ONLY.items() if target != "cpu"}
_CPU_W8A16 = {"cpu": "vLLM's CPU kernel for grouped integer weights reads 4 bits; use W4A16 or W8A8"}
_NO_ZEROS = "vLLM's Marlin kernel reads 8 bits without zero points; use W8A16"
_W8A16_ASYM = {**_CPU_W8A16, **dict.fromkeys(("ampere", "ada", "blackwell"), _NO_ZEROS)}
# Tried: q, k and v have scales of their own, vLLM gives them one with `static_scaled_fp8_quant`, and its libraries for
# CPUs declare that operator without arguments.
_FP8_STATIC = {target: kernel for target, kernel in _FP8.items() if target != "cpu"}
_CPU_STATIC = {"cpu": "vLLM's build for CPUs can't give joined layers one scale; use FP8_DYNAMIC or W8A8"}
_FP8_BLOCK = {target: kernel for target, kernel in _FP8.items() if target != "cpu"}
_CPU_BLOCK = {
    "cpu": "vLLM's block-scaled FP8 kernel for CPUs needs AMX (Sapphire Rapids or newer); use W8A8 instead",
}

# Below Blackwell vLLM multiplies 16-bit activations with unpacked weights; two families of Blackwell differ in kernels:
# sm_10x (B200, B300) and sm_12x (RTX PRO, RTX 50, DGX Spark).
_MARLIN = dict.fromkeys(("ampere", "ada", "hopper"), "Marlin (weight only)")
_NVFP4 = {**_MARLIN, "blackwell": "FlashInfer CuTe-DSL (sm_10x), FlashInfer CUTLASS (sm_12x)"}
_NVFP4A16 = {
    **dict.fromkeys(("ampere", "ada", "hopper"), "Marlin"),
    "blackwell": "FlashInfer CuTe-DSL (sm_10x), Marlin (sm_12x)",
}
_MXFP4 = {**_MARLIN, "blackwell": "FlashInfer CuTe-DSL"}
# vLLM reads the weights' format alone, and takes the kernel of MXFP4 (`_get_scheme_from_parts`).
_MXFP4A16 = {
    **dict.fromkeys(("ampere", "ada", "hopper"), "Marlin"),
    "blackwell": "FlashInfer CuTe-DSL (quantizes activations too)",
}
_MXFP8 = {**_MARLIN, "blackwell": "FlashInfer CuTe-DSL (sm_10x), FlashInfer CUTLASS (sm_12x)"}
_CPU_BLOCKS = {
    "cpu": "vLLM has no kernel for FP4 and MX formats on CPUs; use W4A16 or W8A8, or judge it with evaluate.emulate",
}
_HOPPER_ONLY = "vLLM's kernel for 4-bit weights with FP8 activations runs on Hopper alone; use W4A16"
_NOT_HOPPER = dict.fromkeys(("cpu", "ampere", "ada", "blackwell"), _HOPPER_ONLY)
_CPU_ONLY = "vLLM's kernel for 4-bit weights with INT8 activations runs on CPUs alone; use W4A16 or W8A8"
_NOT_CPU = dict.fromkeys(("ampere", "ada", "hopper", "blackwell"), _CPU_ONLY)

KV_CACHE_FP8 = ("cpu", "ada", "hopper", "blackwell")
"""Targets whose attention reads an FP8 KV cache: Triton's and FlashInfer's from compute capability 8.9 on, and vLLM's
own on CPUs with AVX-512 (`vllm/v1/attention/backends/`, read in 0.32.0)."""

UNQUANTIZED = "BF16"
"""The scheme of what stays in 16 bits."""

AS_IT_IS = "SOURCE"
"""The scheme of a release that is the source's files, in whatever precision they are."""

SCHEMES: dict[str, Scheme] = {
    scheme.name: scheme
    for scheme in (
        Scheme("W4A16", 4, 16, True, False, _TUNED, _WEIGHT_ONLY, {}),
        Scheme("W4A16_ASYM", 4, 16, True, False, _ROUNDED, _WEIGHT_ONLY, {}),
        Scheme("W8A16", 8, 16, True, False, ("gptq", "awq+gptq", "rtn", "autoround"), _W8A16, _CPU_W8A16),
        Scheme("W8A16_ASYM", 8, 16, True, False, ("gptq", "awq+gptq", "rtn"), {"hopper": "Machete"}, _W8A16_ASYM),
        Scheme("W8A8", 8, 8, False, False, ("smoothquant", "gptq", "rtn"), _INT8, _BLACKWELL_INT8),
        Scheme("FP8_DYNAMIC", 8, 8, False, False, ("smoothquant", "gptq", "rtn", "online"), _FP8, {}),
        Scheme("FP8", 8, 8, False, True, ("rtn",), _FP8_STATIC, _CPU_STATIC),
        Scheme("FP8_TENSOR", 8, 8, False, False, ("online",), _FP8_STATIC, _CPU_STATIC),
        Scheme("FP8_BLOCK", 8, 8, False, False, ("rtn", "online"), _FP8_BLOCK, _CPU_BLOCK, block=128),
        Scheme("NVFP4", 4, 4, False, True, _TUNED, _NVFP4, _CPU_BLOCKS, block=16),
        Scheme("NVFP4A16", 4, 16, False, False, _ROUNDED, _NVFP4A16, _CPU_BLOCKS, block=16),
        Scheme("MXFP4", 4, 4, False, False, (*_TUNED, "online"), _MXFP4, _CPU_BLOCKS, block=32),
        Scheme("MXFP4A16", 4, 16, False, False, _ROUNDED, _MXFP4A16, _CPU_BLOCKS, block=32),
        Scheme("MXFP8", 8, 8, False, False, ("gptq", "rtn", "autoround", "online"), _MXFP8, _CPU_BLOCKS, block=32),
        Scheme("W4AFP8", 4, 8, True, False, _ROUNDED, {"hopper": "CUTLASS"}, _NOT_HOPPER),
        Scheme("W4A8", 4, 8, True, False, ("smoothquant", *_ROUNDED), {"cpu": "Dynamic4bit"}, _NOT_CPU, stored_bits=8),
        Scheme(UNQUANTIZED, 16, 16, False, False, ("none",), dict.fromkeys(TARGETS, "torch"), {}),
        Scheme(AS_IT_IS, 16, 16, False, False, ("none",), dict.fromkeys(TARGETS, "the source's own"), {}),
    )
}

ONLINE = {
    "FP8_DYNAMIC": "fp8_per_channel",
    "FP8_TENSOR": "fp8_per_tensor",
    "FP8_BLOCK": "fp8_per_block",
    "MXFP8": "mxfp8",
    "MXFP4": "mxfp4",
}
"""Schemes that vLLM quantizes to as it loads a 16-bit checkpoint, and its names for them (`--quantization`;
`vllm/config/quantization.py`, read in 0.32.0). Its names for experts alone are left out."""

METHODS = tuple(dict.fromkeys(method for scheme in SCHEMES.values() for method in scheme.methods))
"""Every method of any scheme."""

FORMATS: dict[str, tuple[str, ...]] = {
    "compressed-tensors": tuple(name for name, scheme in SCHEMES.items() if set(scheme.methods) - set(UNCHANGED)),
    "awq": ("W4A16_ASYM",),
    "gptq": ("W4A16", "W8A16"),
    "modelopt": ("FP8", "FP8_DYNAMIC", "NVFP4", "NVFP4A16", "MXFP8"),
}
"""The schemes of each format, by the formats' names in servers."""

MIXABLE = ("W4A16", "W4A16_ASYM")
"""The schemes that a budget may start from: layers get other group sizes, or 8 bits."""
