"""The vLLM kernel of a linear layer, or why there is none: the shapes and group sizes that each kernel supports.

From the source of vLLM 0.32.0, `vllm/model_executor/kernels/linear/`: the order is `_POSSIBLE_KERNELS`, the conditions
are each kernel's `can_implement`; `validate_fp8_block_shape` in `quantization/utils/fp8_utils.py`; and which scheme a
config gets, `_get_scheme_from_parts` in `quantization/compressed_tensors/compressed_tensors.py`. Kernels that need
packages that vLLM doesn't install (Conch, Humming) and those for other vendors' hardware are left out.
"""

from __future__ import annotations

from dataclasses import dataclass

from quantize.schemes.schemes import SCHEMES, Scheme

VLLM = "0.32.0"

AVX512 = f"vLLM {VLLM} supports {{}} on x86 only with AVX-512, which this CPU doesn't have"

_MARLIN_GROUPS = (None, 32, 64, 128)
_MACHETE_GROUPS = (None, 64, 128)
_TRITON_GROUPS = (None, 32, 64, 128, 256)
_W4AFP8_GROUP = 128
# FlashInfer's smallest side of a matrix in MXFP8.
_MXFP8_SIDE = 128


@dataclass(frozen=True)
class Shape:
    """A linear layer on one GPU: [rows, columns] (out, in); `whole_columns` before sharding; `joined`: fused with
    others and not the last of them.
    """

    rows: int
    columns: int
    whole_columns: int
    joined: bool = False


@dataclass(frozen=True)
class Fit:
    """The kernel, or None and the reason."""

    kernel: str | None
    why: str = ""


def fit(name: str, group_size: int | None, shape: Shape, target: str) -> Fit:
    """VLLM's kernel for a layer of this shape. The scheme has a kernel on the target (`SCHEMES`)."""
    scheme = SCHEMES[name]
    if name == "FP8_BLOCK":
        return _block(scheme, shape, target)
    if scheme.block is not None:
        return _micro(scheme, scheme.block, shape, target)
    if not scheme.grouped:
        return _whole(scheme, shape, target)
    if group_size is not None and shape.columns % group_size:
        return Fit(None, f"groups of {group_size} don't divide {shape.columns} input channels on one GPU")
    if name == "W4AFP8":
        return _w4afp8(group_size, shape)
    if name == "W4A8":
        return Fit(scheme.kernels.get(target))
    return _cpu(scheme, group_size, shape) if target == "cpu" else _cuda(scheme, name, group_size, shape, target)


def _whole(scheme: Scheme, shape: Shape, target: str) -> Fit:
    """A scale a channel or a tensor. vLLM 0.32.0's CUTLASS kernel for FP8 pads a layer to multiples of 16, and with a
    scale for each output channel it then sets a loader that is set (`kernels/linear/scaled_mm/cutlass.py`); 0.26.0 on
    an H200 ended with "Overwriting existing tensor attribute".
    """
    kernel = scheme.kernels.get(target)
    if scheme.name == "FP8_DYNAMIC" and kernel == "CUTLASS" and shape.rows % 16 and not shape.joined:
        why = f"its CUTLASS kernel fails at output channels that 16 doesn't divide, and a layer has {shape.rows}"
        return Fit(None, why)
    return Fit(kernel)


def for_experts(name: str, target: str) -> str:
    """Why experts of this scheme can't be served on the target; empty if they can. From vLLM 0.32.0
    (`fused_moe/oracle/` and `fused_moe/experts/cpu_moe.py`), and tried: the server exits with "No WNA16 MoE backend" or
    "No FP8 MoE backend".
    """
    scheme = SCHEMES[name]
    if target != "cpu" or scheme.weight_bits == 16:
        return ""
    if scheme.weight_bits == 4:
        return "its 4-bit experts run on Arm CPUs alone"
    if name.startswith("FP8"):
        return "it has no backend on CPUs for FP8 experts with scales by channel or tensor"
    return "its INT8 experts need AMX on x86 (Sapphire Rapids or newer)"


def missing_here(name: str) -> str:
    """Why an x86 CPU without AVX-512 can't serve a scheme that has a CPU kernel; empty if it can. From vLLM 0.32.0's
    wheel: its extension for AVX2 has no `cpu_gemm_wna16`.
    """
    scheme = SCHEMES.get(name)
    return AVX512.format(name) if scheme is not None and scheme.kernels.get("cpu") == "CPUWNA16" else ""


def _cpu(scheme: Scheme, group_size: int | None, shape: Shape) -> Fit:
    if scheme.weight_bits != 4:
        return Fit(None, "the CPU kernel reads 4 bits")
    if group_size is not None and group_size % 2:
        return Fit(None, "the CPU kernel takes groups of an even size")
    for size, what in ((shape.columns, "input"), (shape.rows, "output")):
        if size % 32:
            return Fit(None, f"the CPU kernel takes multiples of 32, and a layer has {size} {what} channels")
    return Fit("CPUWNA16")


def _micro(scheme: Scheme, block: int, shape: Shape, target: str) -> Fit:
    """FP4 and MX formats: every kernel pads what isn't as it takes it, but for blocks that don't divide."""
    if shape.columns % block:
        return Fit(None, f"blocks of {block} don't divide {shape.columns} input channels on one GPU")
    if scheme.name == "MXFP8" and target == "blackwell" and min(shape.rows, shape.columns) < _MXFP8_SIDE:
        return Fit("Marlin (weight only)")
    return Fit(scheme.kernels.get(target))


def _w4afp8(group_size: int | None, shape: Shape) -> Fit:
    if group_size != _W4AFP8_GROUP:
        return Fit(None, f"the kernel takes groups of {_W4AFP8_GROUP}")
    for size, what in ((shape.columns, "input"), (shape.rows, "output")):
        if size % 128:
            return Fit(None, f"the kernel takes multiples of 128, and a layer has {size} {what} channels on one GPU")
    return Fit("CUTLASS")


def _cuda(scheme: Scheme, name: str, group_size: int | None, shape: Shape, target: str) -> Fit:
    asymmetric = name.endswith("ASYM")
    if target == "hopper" and group_size in _MACHETE_GROUPS and shape.columns % 64 == 0 and shape.rows % 128 == 0:
        return Fit("Machete")
    if group_size in _MARLIN_GROUPS and (scheme.weight_bits == 4 or not asymmetric):
        return Fit("Marlin")
    if scheme.weight_bits == 4 and shape.rows % 8 == 0 and group_size in (*_TRITON_GROUPS, shape.whole_columns):
        return Fit("Triton")
    sizes = ", ".join(str(size) for size in _MARLIN_GROUPS if size)
    return Fit(None, f"no kernel takes groups of {group_size} (Marlin takes {sizes}, or whole channels)")


def _block(scheme: Scheme, shape: Shape, target: str) -> Fit:
    block = scheme.block or 1
    if shape.columns != shape.whole_columns and shape.columns % block:
        return Fit(None, f"blocks of {block} don't divide {shape.columns} input channels on one GPU")
    if shape.joined and shape.rows % block:
        return Fit(None, f"blocks of {block} don't divide {shape.rows} output channels of a layer that is joined")
    return Fit(scheme.kernels.get(target))
