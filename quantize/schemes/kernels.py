"""Which vLLM kernel takes a linear layer, and why none does: the shapes and group sizes that each asks for.

Read in vLLM 0.32.0, `vllm/model_executor/kernels/linear/`: the order is `_POSSIBLE_KERNELS`, the conditions are each
kernel's `can_implement`; and `validate_fp8_block_shape` in `quantization/utils/fp8_utils.py`. Kernels that need a
package which vLLM doesn't bring (Conch, Humming) and those for other makers' hardware are left out.
"""

from __future__ import annotations

from dataclasses import dataclass

from quantize.schemes.schemes import SCHEMES, Scheme

VLLM = "0.32.0"
BLOCK = 128
"""FP8_BLOCK's blocks (DeepSeek-V3's recipe, which compressed-tensors and vLLM follow)."""

AVX512 = f"vLLM {VLLM} reads {{}} on x86 with AVX-512 alone, and this CPU hasn't got it"

_MARLIN_GROUPS = (None, 32, 64, 128)
_MACHETE_GROUPS = (None, 64, 128)
_TRITON_GROUPS = (None, 32, 64, 128, 256)


@dataclass(frozen=True)
class Shape:
    """A linear layer on one GPU: [rows, columns] (out, in); `whole_columns` before sharding; whether it is joined with
    others, and isn't the last of them.
    """

    rows: int
    columns: int
    whole_columns: int
    joined: bool = False


@dataclass(frozen=True)
class Fit:
    """The kernel, or None and why there is none."""

    kernel: str | None
    why: str = ""


def fit(name: str, group_size: int | None, shape: Shape, target: str) -> Fit:
    """The kernel that vLLM takes for a layer of this shape; `SCHEMES` says that the scheme has one on the target."""
    scheme = SCHEMES[name]
    if name == "FP8_BLOCK":
        return _block(scheme, shape, target)
    if not scheme.grouped:
        return Fit(scheme.kernels.get(target))
    if group_size is not None and shape.columns % group_size:
        return Fit(None, f"groups of {group_size} don't divide {shape.columns} input channels on one GPU")
    return _cpu(scheme, group_size, shape) if target == "cpu" else _cuda(scheme, name, group_size, shape, target)


def for_experts(name: str, target: str) -> str:
    """Why no server computes experts of this scheme on the target; empty where one may. Read in vLLM 0.32.0
    (`fused_moe/oracle/int_wna16.py`), and seen: the start ends with "No WNA16 MoE backend".
    """
    return "its 4-bit experts run on Arm CPUs alone" if target == "cpu" and SCHEMES[name].weight_bits == 4 else ""


def missing_here(name: str) -> str:
    """Why an x86 without AVX-512 can't serve a scheme that the table has a kernel for on CPUs; empty where it can. Read
    in vLLM 0.32.0's wheel: of its extensions for x86, the one for AVX2 has no `cpu_gemm_wna16`.
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
    if shape.columns != shape.whole_columns and shape.columns % BLOCK:
        return Fit(None, f"blocks of {BLOCK} don't divide {shape.columns} input channels on one GPU")
    if shape.joined and shape.rows % BLOCK:
        return Fit(None, f"blocks of {BLOCK} don't divide {shape.rows} output channels of a layer that is joined")
    return Fit(scheme.kernels.get(target))
