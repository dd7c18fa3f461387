"""What a quantization config says of each layer: formats of compressed-tensors, Model-Optimizer, AWQ, GPTQ and FP8.

Sources: compressed-tensors' QuantizationConfig and its compressors, the configs of NVIDIA's Model-Optimizer, AutoAWQ
and AutoGPTQ as vLLM 0.32 reads them (`vllm/model_executor/layers/quantization/`).
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from quantize.checkpoint import layer_names
from quantize.checkpoint.patterns import PatternError, compiled
from quantize.doctor.checkpoint import Checkpoint, Layer

# Prefixes of module names that depend on the release of transformers.
_PREFIXES = ("model.", "language_model.")
_SPELLINGS = ("model.", "language_model.model.", "model.language_model.")
# Ten times the largest known count; each is matched against every layer.
_MAX_EXPRESSIONS, _MAX_PARTS = 500, 2000
_MAX_SIZE = 2**31


@dataclass(frozen=True)
class Claim:
    """How a layer is said to be stored. `form`: pack, int, float, fp4, awq or gptq.

    `strategy`: group, channel, tensor or block; `static_input`: activations have stored scales. `exponents`: a scale is
    a power of two, stored as its exponent in a byte (E8M0, the MX formats). `global_scale` names the tensor that scales
    all scales of a layer, if there is one. `inputs` says how activations are rounded (the functions of
    quantize/emulate/workers/plugin/qpack_emulation.py), empty where they aren't.
    """

    form: str
    bits: int
    symmetric: bool
    strategy: str
    group_size: int | None = None
    block: tuple[int, int] | None = None
    static_input: bool = False
    exponents: bool = False
    global_scale: str = ""
    inputs: str = ""

    @property
    def weight(self) -> str:
        """The tensor that holds the weight."""
        if self.form in ("awq", "gptq"):
            return "qweight"
        return "weight_packed" if self.form == "pack" or self.global_scale == CT_GLOBAL or self._mxfp4 else "weight"

    @property
    def input_scale(self) -> str:
        """The tensor of the activations' scale."""
        return "input_global_scale" if self.global_scale == CT_GLOBAL else "input_scale"

    @property
    def _mxfp4(self) -> bool:
        return self.form == "fp4" and self.exponents

    def __post_init__(self) -> None:
        sizes = [size for size in (self.group_size, *(self.block or ())) if size is not None]
        if not 1 <= self.bits <= 16 or any(not 1 <= size < _MAX_SIZE for size in sizes):
            raise ValueError(f"{self.bits:g} bits, groups or blocks of {sizes or 'none'}")

    def groups(self, columns: int) -> int:
        """Scales per row of `columns` input channels."""
        return -(-columns // self.group_size) if self.group_size else 1


@dataclass(frozen=True)
class Claims:
    """The claims of a whole config. `unread` says why its layers can't be checked; empty if they can."""

    method: str
    groups: tuple[tuple[Names, Claim], ...] = ()
    ignore: Names = field(default_factory=lambda: Names(()))
    substring: bool = False
    """`ignore` holds parts of names (AWQ, Model-Optimizer), not whole names and regular expressions."""
    wildcards: Names | None = None
    """What `ignore` holds besides: patterns of whole names with wildcards (Model-Optimizer)."""
    derived: bool = False
    """Layers that are not listed may be left unquantized: the server looks at the file (AWQ and GPTQ)."""
    head: bool = True
    """Whether lm_head is quantized by default."""
    unread: str = ""
    broken: bool = False
    """Whether the config is invalid."""

    def of(self, layer: Layer) -> Claim | None:
        """The claim for a linear layer; None if it isn't quantized."""
        if self.left_alone(layer.name):
            return None
        by_name = (claim for targets, claim in self.groups if targets.match(layer.name))
        by_class = (claim for targets, claim in self.groups if targets.linear)
        return next(by_name, None) or next(by_class, None)

    def left_alone(self, name: str) -> bool:
        """Whether the config excludes this layer."""
        last = name.rpartition(".")[2]
        if last == "lm_head" and not self.head:
            return True
        if self.wildcards is not None and self.wildcards.match(name):
            return True
        return self.ignore.inside(name) if self.substring else self.ignore.match(name)

    def excused(self, name: str) -> bool:
        """Whether a targeted layer may be unquantized: a router isn't always a Linear."""
        return layer_names.is_router(name)


def read(checkpoint: Checkpoint) -> Claims | None:
    """The claims; None for a checkpoint without a quantization config."""
    quantization = checkpoint.quantization
    if quantization is None:
        return None
    method = str(quantization.get("quant_method", "")).lower()[:40]
    claims = Claims(method, unread=f"the method '{method or 'unnamed'}' is not checked")
    try:
        if method in ("compressed-tensors", "compressed_tensors"):
            claims = _compressed_tensors(quantization)
        if method == "awq":
            claims = _awq(quantization)
        if method == "gptq":
            claims = _gptq(quantization)
        if method == "fp8":
            claims = _fp8(quantization)
        if method.startswith("modelopt"):
            claims = _modelopt(quantization)
        if not claims.unread:
            # A pattern may take too long on some name: that is found here, and the matches are kept.
            for layer in checkpoint.layers.values():
                claims.of(layer)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
        said = f"{type(error).__name__}: {error}"
        what = f"its quantization config is invalid ({said[:300]})"
        return Claims(method, unread=what, broken=True)
    return claims


class Names:
    """What a config names layers by: whole names, whatever stands before them, and `re:` expressions that match from
    the start. The config is a stranger's: how many there are is bounded, and every name is looked at once.

    Raises PatternError for too many of them, or an expression that can't be used, here or for a name.
    """

    def __init__(self, patterns: Sequence[str]) -> None:
        self.parts = tuple(dict.fromkeys(patterns))
        self.linear = "Linear" in self.parts
        self._plain = frozenset(plain_name(pattern) for pattern in self.parts if not pattern.startswith("re:"))
        expressions = [pattern[3:] for pattern in self.parts if pattern.startswith("re:")]
        if len(expressions) > _MAX_EXPRESSIONS:
            raise PatternError(f"has more than {_MAX_EXPRESSIONS} expressions")
        self._expressions = [compiled(expression) for expression in expressions]
        self._known: dict[str, bool] = {}

    def match(self, name: str) -> bool:
        """Whether a pattern matches a layer."""
        if name not in self._known:
            core = plain_name(name)
            spellings = {name, core, *(prefix + core for prefix in _SPELLINGS)}
            self._known[name] = core in self._plain or any(
                matches(spelling) for matches in self._expressions for spelling in spellings
            )
        return self._known[name]

    def inside(self, name: str) -> bool:
        """Whether a layer's name contains one of them."""
        if name not in self._known:
            if len(self.parts) > _MAX_PARTS:
                raise PatternError(f"has more than {_MAX_PARTS:,} parts of names")
            self._known[name] = any(part in name for part in self.parts)
        return self._known[name]


def plain_name(name: str) -> str:
    """A module's or tensor's name without the prefixes that only some releases of transformers use."""
    while name.startswith(_PREFIXES):
        name = name.partition(".")[2]
    return name


def _strings(found: Any) -> Names:
    return Names([name for name in found if isinstance(name, str)] if isinstance(found, list) else [])


_LINEAR = Names(["Linear"])
_INT8_TOKEN = ("int", 8, "token", None)
_INPUTS = {
    ("float", 4, "tensor_group", 16): "nvfp4",
    ("float", 4, "group", 32): "mxfp4",
    ("float", 8, "group", 32): "mxfp8",
    ("float", 8, "group", 128): "fp8_block",
    ("float", 8, "token", None): "fp8_token",
    ("float", 8, "tensor", None): "fp8_tensor",
    _INT8_TOKEN: "int8_token",
}
_FORMS = {
    "pack-quantized": "pack",
    "int-quantized": "int",
    "float-quantized": "float",
    "nvfp4-pack-quantized": "fp4",
    "mxfp4-pack-quantized": "fp4",
    "mxfp8-quantized": "float",
}
CT_GLOBAL, MODELOPT_GLOBAL = "weight_global_scale", "weight_scale_2"
"""The global scale of NVFP4: compressed-tensors divides by it, and Model-Optimizer multiplies."""


def _compressed_tensors(quantization: Mapping[str, Any]) -> Claims:
    groups = []
    whole = str(quantization.get("format", ""))
    for group in quantization["config_groups"].values():
        weights = group["weights"]
        if weights is None:
            continue
        named = str(group.get("format") or whole)
        form = _FORMS.get(named)
        if named == "naive-quantized":
            form = "float" if weights["type"] == "float" else "int"
        if form is None:
            return Claims("compressed-tensors", unread=f"the format '{named}' is not checked")
        strategy = str(weights.get("strategy") or ("group" if weights.get("group_size") else "tensor"))
        # One scale per group, whose own scale is the tensor's.
        strategy = "group" if strategy == "tensor_group" else strategy
        inputs = group.get("input_activations")
        structure = weights.get("block_structure")
        claim = Claim(
            form=form,
            bits=int(weights["num_bits"]),
            symmetric=bool(weights.get("symmetric", True)),
            strategy=strategy,
            group_size=int(weights["group_size"]) if strategy == "group" else None,
            block=(int(structure[0]), int(structure[1])) if strategy == "block" else None,
            # "local": a scale per group at run time, and a global one from calibration.
            static_input=bool(inputs) and inputs.get("dynamic") in (False, "local"),
            exponents=named.startswith("mxfp"),
            global_scale=CT_GLOBAL if named == "nvfp4-pack-quantized" else "",
            inputs=_rounding(inputs, int(weights["num_bits"])) if inputs else "",
        )
        groups.append((_strings(group["targets"]), claim))
    return Claims("compressed-tensors", tuple(groups), _strings(quantization.get("ignore")))


def _rounding(inputs: Mapping[str, Any], bits: int) -> str:
    """How the kernels of compressed-tensors' schemes round activations, for weights of `bits` bits."""
    kind = (str(inputs.get("type")), int(inputs["num_bits"]), str(inputs.get("strategy")), inputs.get("group_size"))
    if kind == _INT8_TOKEN and bits == 4:
        return "int8_zero_point"
    return _INPUTS.get(kind, f"{kind[1]} bits, {kind[0]}, {kind[2]}")


def _grouped(quantization: Mapping[str, Any], form: str, symmetric: bool) -> Claim:
    size = int(quantization.get("group_size", quantization.get("q_group_size", -1)))
    bits = int(quantization["bits"] if "bits" in quantization else quantization["w_bit"])
    return Claim(form, bits, symmetric, "group" if size > 0 else "channel", size if size > 0 else None)


def _awq(quantization: Mapping[str, Any]) -> Claims:
    claim = _grouped(quantization, "awq", symmetric=False)
    left = _strings(quantization.get("modules_to_not_convert"))
    return Claims(
        "awq",
        ((_LINEAR, claim),),
        left,
        substring=True,
        derived=not left.parts,
        head=bool(quantization.get("lm_head", False)),
    )


def _gptq(quantization: Mapping[str, Any]) -> Claims:
    claim = _grouped(quantization, "gptq", symmetric=bool(quantization.get("sym", True)))
    dynamic = quantization.get("dynamic") or {}
    if any(not rule.startswith("-:") for rule in dynamic):
        return Claims("gptq", unread="its settings per layer (`dynamic`) are not checked")
    ignore = Names([f"re:{rule[2:]}" for rule in dynamic])
    return Claims("gptq", ((_LINEAR, claim),), ignore, derived=True, head=bool(quantization.get("lm_head", False)))


def _fp8(quantization: Mapping[str, Any]) -> Claims:
    size = quantization.get("weight_block_size")
    claim = Claim(
        "float",
        8,
        True,
        "block" if size else "tensor",
        block=(int(size[0]), int(size[1])) if size else None,
        static_input=(static := quantization.get("activation_scheme") == "static"),
        inputs="fp8_tensor" if static else "fp8_block" if size else "fp8_token",
    )
    left = _strings(quantization.get("modules_to_not_convert") or quantization.get("ignored_layers"))
    return Claims("fp8", ((_LINEAR, claim),), left, substring=True, derived=True, head=False)


_BLOCK = 128
_MODELOPT = {
    "FP8": Claim("float", 8, True, "tensor", static_input=True, inputs="fp8_tensor"),
    "FP8_PER_CHANNEL_PER_TOKEN": Claim("float", 8, True, "channel", inputs="fp8_token"),
    "FP8_PB_WO": Claim("float", 8, True, "block", block=(_BLOCK, _BLOCK), inputs="fp8_block"),
    "NVFP4": Claim("fp4", 4, True, "group", 16, static_input=True, global_scale=MODELOPT_GLOBAL, inputs="nvfp4"),
    "W4A16_NVFP4": Claim("fp4", 4, True, "group", 16, global_scale=MODELOPT_GLOBAL),
    "MXFP8": Claim("float", 8, True, "group", 32, exponents=True, inputs="mxfp8"),
}
"""Claims by Model-Optimizer's `quant_algo` (`LINEAR_ALGOS` and the key schemes in vLLM's modelopt.py)."""


def _modelopt(quantization: Mapping[str, Any]) -> Claims:
    """Its config in config.json (`ignore`), or hf_quant_config.json's, below `quantization` (`exclude_modules`)."""
    inner = quantization.get("quantization")
    said: Mapping[str, Any] = inner if isinstance(inner, dict) else quantization
    algorithm = str(said.get("quant_algo", "")).upper()
    left = [name for key in ("exclude_modules", "ignore") for name in said.get(key) or [] if isinstance(name, str)]
    wildcards = Names([f"re:{fnmatch.translate(name)}" for name in left if any(mark in name for mark in "*?[")])
    groups: tuple[tuple[Names, Claim], ...]
    if algorithm in _MODELOPT:
        claim = _MODELOPT[algorithm]
        size = said.get("group_size")
        if claim.form == "fp4" and isinstance(size, int) and size > 0:
            claim = replace(claim, group_size=size)
        groups = ((_LINEAR, claim),)
    elif algorithm == "MIXED_PRECISION":
        layers = said.get("quantized_layers") or {}
        by_algorithm: dict[str, list[str]] = {}
        for name, settings in layers.items():
            by_algorithm.setdefault(str(settings.get("quant_algo", "")).upper(), []).append(name)
        unknown = sorted(set(by_algorithm) - set(_MODELOPT))
        if unknown or not by_algorithm:
            what = f"the algorithm '{unknown[0][:40]}'" if unknown else "mixed precision without `quantized_layers`"
            return Claims("modelopt", unread=f"{what} is not checked")
        groups = tuple((Names(names), _MODELOPT[name]) for name, names in by_algorithm.items())
    else:
        what = f"the algorithm '{algorithm[:40] or 'unnamed'}' is not checked"
        return Claims("modelopt", unread=what)
    return Claims("modelopt", groups, Names(left), substring=True, wildcards=wildcards)
