"""A vLLM plugin that rounds the inputs of linear layers as quantizing kernels do. Runs in vLLM's environment.

`QPACK_EMULATION` names a JSON file: how inputs are rounded -> layer -> the stored scale, or null. Each function takes
activations [tokens, channels] and gives the same after rounding and back, in the type that they came in.

Sources: vLLM's `ref_nvfp4_quant` (`quantization/utils/nvfp4_emulation_utils.py`), `_mxfp8_e4m3_quantize_torch`
(`mxfp8_utils.py`) and `QuantFP8`; FlashInfer's `float_to_ue8m0_fast` for MXFP4.
"""

import json
import os

import torch

FP4_MAX, FP8_MAX = 6.0, 448.0
_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def nearest_fp4(x):
    """The nearest FP4 value, ties to the even code."""
    grid = torch.tensor(_E2M1, dtype=torch.float32, device=x.device)
    bounds = (grid[1:] + grid[:-1]) / 2
    size = x.abs().clamp(max=FP4_MAX)
    low, high = torch.bucketize(size, bounds), torch.bucketize(size, bounds, right=True)
    # On a bound the two differ, and one of them is even.
    return grid[torch.where(low % 2 == 0, low, high)] * x.sign()


def nearest_fp8(x):
    """The nearest E4M3 value."""
    return x.clamp(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn).float()


def grouped(x, size, rounded):
    """Each group of `size` channels by `rounded(group)`."""
    shape = x.shape
    groups = x.float().reshape(*shape[:-1], shape[-1] // size, size)
    return rounded(groups).reshape(shape).to(x.dtype)


def nvfp4(x, shared):
    """FP4 in groups of 16, their scales in E4M3 times `shared`."""

    def rounded(groups):
        scale = nearest_fp8(groups.abs().amax(-1, keepdim=True) / FP4_MAX / shared) * shared
        inverse = torch.where(scale == 0, 0.0, 1 / scale)
        return nearest_fp4(groups * inverse) * scale

    return grouped(x, 16, rounded)


def _power(largest, limit):
    """The scale of an MX group: the smallest power of two with which its largest value is within the element type's.

    FlashInfer's kernels round the exponent up, too; the OCP specification rounds it down, and cuts values off.
    """
    exponent = torch.ceil(torch.log2(largest.clamp(min=torch.finfo(torch.float32).tiny) / limit))
    return torch.exp2(exponent.clamp(-127, 127))


def mxfp4(x, _):
    """FP4 in groups of 32 with powers of two."""

    def rounded(groups):
        scale = _power(groups.abs().amax(-1, keepdim=True), FP4_MAX)
        return nearest_fp4(groups / scale) * scale

    return grouped(x, 32, rounded)


def mxfp8(x, _):
    """E4M3 in groups of 32 with powers of two."""

    def rounded(groups):
        scale = _power(groups.abs().amax(-1, keepdim=True), FP8_MAX)
        return nearest_fp8(groups / scale) * scale

    return grouped(x, 32, rounded)


def fp8_block(x, _):
    """E4M3 with a scale per 128 channels of a token."""

    def rounded(groups):
        scale = groups.abs().amax(-1, keepdim=True).clamp(min=1e-12) / FP8_MAX
        return nearest_fp8(groups / scale) * scale

    return grouped(x, 128, rounded)


def fp8_token(x, _):
    """E4M3 with a scale per token."""
    scale = x.float().abs().amax(-1, keepdim=True).clamp(min=1e-12) / FP8_MAX
    return (nearest_fp8(x.float() / scale) * scale).to(x.dtype)


def fp8_tensor(x, shared):
    """E4M3 with a stored scale."""
    return (nearest_fp8(x.float() / shared) * shared).to(x.dtype)


def int8_token(x, _):
    """INT8 with a scale per token."""
    scale = x.float().abs().amax(-1, keepdim=True).clamp(min=1e-12) / 127
    return ((x.float() / scale).round().clamp(-128, 127) * scale).to(x.dtype)


def int8_zero_point(x, _):
    """INT8 with a scale and a zero point per token: what PyTorch's product with 4-bit weights does, whatever the config
    says of symmetry (`ref_dyn_quant_matmul_4bit_channelwise_kernel` in ATen/native/cpu/int4mm_kernel.cpp; Arm's
    KleidiAI does the same).
    """
    values = x.float()
    low, high = values.amin(-1, keepdim=True).clamp(max=0), values.amax(-1, keepdim=True).clamp(min=0)
    scale = torch.where(low == high, 1.0, 255 / (high - low))
    bottom, top = low * scale - 128, high * scale + 127
    zero = torch.where(bottom + top > 0, -128 - low * scale, 127 - high * scale).clamp(-128, 127).round()
    scaled = values * scale
    # Half-way values go away from zero, as C's round has it.
    away = torch.trunc(scaled + torch.copysign(torch.tensor(0.5), scaled))
    return (((away + zero).clamp(-128, 127) - zero) / scale).to(x.dtype)


_ALL = (nvfp4, mxfp4, mxfp8, fp8_block, fp8_token, fp8_tensor, int8_token, int8_zero_point)
WAYS = {function.__name__: function for function in _ALL}


class Emulation:
    """How the inputs of each layer are rounded, by the names that vLLM gives layers."""

    # vLLM's names of joined layers, and a member of each: all members are rounded alike.
    JOINED = (("qkv_proj", "q_proj"), ("gate_up_proj", "gate_proj"), ("fused_qkv_a_proj", "q_a_proj"))
    PREFIXES = ("model.", "language_model.")

    def __init__(self, told):
        self.layers = {
            self.plain(name): (WAYS[how], scale) for how, layers in told.items() for name, scale in layers.items()
        }
        self.found = {}

    @classmethod
    def plain(cls, name):
        """A layer's name without what stands before it in some models."""
        while name.startswith(cls.PREFIXES):
            name = name.partition(".")[2]
        return name

    def of(self, name):
        """How a layer's inputs are rounded, and the stored scale; None where they aren't."""
        if name not in self.found:
            plain = self.plain(name)
            stem, _, last = plain.rpartition(".")
            members = [member for joined, member in self.JOINED if joined == last]
            names = [plain, *(f"{stem}.{member}" for member in members)]
            self.found[name] = next((self.layers[each] for each in names if each in self.layers), None)
        return self.found[name]


def register():
    """Patch vLLM's unquantized linear layers, if a twin is served."""
    path = os.environ.get("QPACK_EMULATION")
    if not path:
        return
    from vllm.model_executor.layers.linear import UnquantizedLinearMethod

    with open(path, encoding="utf-8") as file:
        emulation = Emulation(json.load(file))
    apply = UnquantizedLinearMethod.apply

    def rounding(self, layer, x, bias=None):
        found = emulation.of(getattr(layer, "prefix", ""))
        return apply(self, layer, x if found is None else found[0](x, found[1]), bias)

    if not getattr(apply, "rounds_inputs", False):
        rounding.rounds_inputs = True
        UnquantizedLinearMethod.apply = rounding
