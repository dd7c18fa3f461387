"""What every linear layer of a model is for, from the shapes of its tensors and its config; names decide last.

One function for every engine: what is left in the source's precision by default, and why. Publishers leave the same
layers: routers, output layers, encoders of images and audio, gates of linear attention, layers for speculative decoding
(ignore lists of the FP8 and W4A16 releases of DeepSeek-V3, Qwen3-Next, Gemma 3n and Llama 4 on the Hub). What vLLM 0.32
builds without a quantization config can't be served quantized: Mamba-1 (`layers/mamba/mamba_mixer.py`) and routers.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from qpack.core import model_shapes
from quantize.checkpoint import layer_names
from quantize.checkpoint.headers import Tensor
from quantize.checkpoint.layer_groups import Kind, kinds, matcher, split
from quantize.checkpoint.model_config import MAX_LAYERS, ModelConfig


class Role(Enum):
    """What a linear layer is for."""

    LINEAR = "decoder"
    EXPERT = "expert"
    OUTPUT = "output layer"
    ROUTER = "router"
    ENCODER = "encoder"
    GATE = "gate"
    INDEXER = "indexer"
    MAMBA = "Mamba-1"
    DRAFT = "draft"
    SIDE = "side path"
    OUTSIDE = "outside"
    CONV1D = "Conv1D"
    WHOLE = "experts in one tensor"
    ODD = "odd shape"

    @property
    def reason(self) -> str:
        """Why layers of this role are left alone; empty where they are quantized."""
        return _REASONS.get(self, "")

    @property
    def taken(self) -> bool:
        """Whether layers of this role are quantized."""
        return self not in _REASONS


_REASONS = {
    Role.OUTPUT: "output layer: rounding costs quality and saves little",
    Role.ROUTER: "router: small, chooses the experts, and vLLM reads it unquantized",
    Role.ENCODER: "reads images or audio; the text part alone is quantized",
    Role.GATE: "gate of linear attention: small, and sensitive to rounding",
    Role.INDEXER: "indexer of sparse attention: small, chooses what attention reads",
    Role.MAMBA: "Mamba-1: vLLM reads it unquantized",
    Role.DRAFT: "predicts further tokens, for speculative decoding",
    Role.SIDE: "side path of few channels: rounding costs quality and saves little",
    Role.OUTSIDE: "outside of the decoder layers",
    Role.WHOLE: "experts in one tensor: vLLM's class of the model reads them so, unquantized",
    Role.ODD: "no kernel takes its shape in this scheme and group size",
    Role.CONV1D: "stored [in, out] (Conv1D), where quantized kernels read [out, in]",
}


@dataclass(frozen=True)
class LayerRole:
    """Layers of one kind and role."""

    kind: Kind
    role: Role


_FIRST_NUMBER = re.compile(r"^((?:[^.]+\.)*?[^.]+)\.(\d+)\.(.+)$")
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "num_moe_experts")
ACTIVE = ("num_experts_per_tok", "moe_k", "top_k_experts", "moe_topk", "num_selected_experts", "num_experts_per_token")
"""Keys of a config that say how many experts answer a token."""
LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_ENCODERS = re.compile(r"vision|visual|vit|image|audio|speech|sound|video|thinker|encoder")
_HEADS = ("lm_head", "embed_out", "output", "proj_out", "head")
_ROUTER = re.compile(r"(^|\.)(gate|router|shared_expert_gate)(\.(layer|wg|classifier|gate|linear|proj))?$")
_GATE_NAMES = re.compile(r"(^|\.)(f_a_proj|f_b_proj|g_a_proj|g_b_proj|b_proj|in_proj_ba|in_proj_a|in_proj_b|dt_proj)$")
_SIDE = re.compile(r"(^|\.)(altup|laurel|per_layer_[a-z_]+)(\.|$)")
_TWO_IN_ONE = re.compile(r"gate_up|gate_and_up|w13|input_linear|up_gate")
_MANY = 10
# vLLM's `AriaTextMoELayer` has a loader for `experts.fc1` and `experts.fc2` alone.
_READ_WHOLE = ("aria_text",)


@dataclass(frozen=True)
class Layout:
    """Where a checkpoint has its decoder layers: below `stack`, numbered from 0. `layers` are those of the decoder;
    `drafts`, numbered after them, predict further tokens. `experts` are those of one layer, 0 without any, and
    `expert_blocks` the parts of a layer that hold them.
    """

    stack: str
    layers: int
    drafts: int
    experts: int
    expert_blocks: frozenset[str]
    multimodal: bool

    def inside(self, name: str) -> tuple[int, str] | None:
        """The number of a name's decoder layer, and the name inside of it; None outside."""
        found = _FIRST_NUMBER.match(name)
        return (int(found[2]), found[3]) if found and found[1] == self.stack else None


def count(config: ModelConfig, keys: Iterable[str]) -> int:
    """The first of some keys of the language model's config that is a count; 0 without one."""
    text = model_shapes.language_model(config)
    found = (text.get(key) for key in keys)
    return next((n for n in found if isinstance(n, int) and not isinstance(n, bool) and 0 < n <= MAX_LAYERS), 0)


def layout(tensors: Sequence[Tensor], config: ModelConfig) -> Layout:
    """The decoder: the largest numbered stack of layers that has as many as the config says."""
    sizes: dict[str, int] = defaultdict(int)
    numbers: dict[str, set[int]] = defaultdict(set)
    for tensor in tensors:
        if (found := _FIRST_NUMBER.match(tensor.name)) and len(found[2]) < _MANY:
            sizes[found[1]] += tensor.elements
            numbers[found[1]].add(int(found[2]))
    told = count(config, LAYERS)
    able = [stem for stem in sizes if not layer_names.is_vision(f"{stem}.") and not layer_names.is_mtp(f"{stem}.")]
    whole = [stem for stem in able if told and numbers[stem] >= set(range(told))]
    stack = max(whole or able, key=lambda stem: sizes[stem], default="")
    found_layers = max(numbers[stack], default=-1) + 1
    layers = min(told, found_layers) if told else found_layers
    multimodal = any(
        isinstance(value, Mapping) and key.endswith("_config") and _ENCODERS.search(key)
        for key, value in config.items()
    )
    experts = max((_expert_number(tensor, stack, config) for tensor in tensors), default=0)
    return Layout(stack, layers, found_layers - layers, experts, _expert_blocks(tensors, stack, config), multimodal)


def _expert_blocks(tensors: Sequence[Tensor], stack: str, config: ModelConfig) -> frozenset[str]:
    """The parts of a decoder layer that hold experts (`mlp`), by their names inside of it."""
    found: set[str] = set()
    for tensor in tensors:
        inside = _FIRST_NUMBER.match(tensor.name)
        if inside is None or inside[1] != stack:
            continue
        if (mark := _EXPERT.search(inside[3])) is not None:
            found.add(inside[3][: mark.start()])
        elif is_fused_experts(tensor, config):
            block = inside[3].removesuffix(".weight").rpartition(".")[0]
            found.add(block.removesuffix("experts").removesuffix("."))
    return frozenset(found - {""})


_EXPERT = re.compile(r"(?:^|\.)experts\.(\d{1,5})\.")


def _expert_number(tensor: Tensor, stack: str, config: ModelConfig) -> int:
    """How many experts this tensor shows that there are."""
    if not tensor.name.startswith(f"{stack}."):
        return 0
    if (found := _EXPERT.search(tensor.name)) is not None:
        return int(found[1]) + 1
    return tensor.shape[0] if is_fused_experts(tensor, config) else 0


# Exponents of gpt-oss's blocks, [experts, out, in / 32].
_MXFP4_SCALES = "_scales"


def is_fused_experts(tensor: Tensor, config: ModelConfig) -> bool:
    """Whether one tensor holds a matrix of every expert of a layer, [experts, ...]."""
    if len(tensor.shape) != 3 or not 1 < tensor.shape[0] <= MAX_LAYERS or layer_names.is_vision(tensor.name):
        return False
    if tensor.dtype == "U8" and tensor.name.endswith(_MXFP4_SCALES):
        return False
    told = count(config, EXPERTS)
    named = "experts" in tensor.name or "moe" in tensor.name
    return named and (tensor.shape[0] == told or not told) and min(tensor.shape[1:]) > 1


@dataclass(frozen=True)
class Fused:
    """A tensor of all experts: `parts` are the matrices that it holds of each, [out, in]. `transposed`: stored as
    [experts, in, out].
    """

    tensor: Tensor
    stem: str
    parts: tuple[tuple[str, tuple[int, int]], ...]
    transposed: bool

    def matrices(self) -> list[Tensor]:
        """Every expert's matrices, named as a checkpoint names them that keeps them one by one."""
        return [
            Tensor(f"{self.stem}.{number}.{name}.weight", self.tensor.dtype, shape)
            for number in range(self.tensor.shape[0])
            for name, shape in self.parts
        ]


def fused_experts(tensors: Sequence[Tensor], config: ModelConfig) -> list[Fused]:
    """The tensors that hold all experts of a layer, as the matrices that they are made of."""
    hidden = model_shapes.language_model(config).get("hidden_size")
    blocks: dict[str, list[Tensor]] = defaultdict(list)
    for tensor in tensors:
        if is_fused_experts(tensor, config):
            blocks[_own(tensor).rpartition(".")[0]].append(tensor)
    found = []
    for block, members in blocks.items():
        stem = block if layer_names.last(block) == "experts" else f"{block}.experts"
        for tensor in members:
            own = layer_names.last(_own(tensor))
            double = _TWO_IN_ONE.search(own) is not None or _twice(tensor, members, hidden)
            transposed = _transposed(members, hidden)
            _, first, second = tensor.shape
            rows, columns = (second, first) if transposed else (first, second)
            shape = (rows // 2 if double else rows, columns)
            names = ("gate_proj", "up_proj") if double else ("down_proj",) if _into(own) else ("up_proj",)
            found.append(Fused(tensor, stem, tuple((name, shape) for name in names), transposed))
    return found


def _own(tensor: Tensor) -> str:
    return tensor.name.removesuffix(".weight")


def _into(own: str) -> bool:
    """Whether a layer leads back to the hidden size, by its name."""
    return "down" in own or "output" in own or own in ("w2", "fc2")


def _twice(tensor: Tensor, members: Sequence[Tensor], hidden: object) -> bool:
    """Whether it is two matrices in one by its shape: what it leads to is twice what leads back (Aria's `fc1`)."""
    if not isinstance(hidden, int) or len(members) != 2 or _into(layer_names.last(_own(tensor))):
        return False
    (back,) = (other for other in members if other is not tensor)
    return hidden in tensor.shape[1:] and math.prod(tensor.shape[1:]) == 2 * math.prod(back.shape[1:])


def _transposed(members: Sequence[Tensor], hidden: object) -> bool:
    """Whether matrices of experts are stored [in, out]: the hidden size is the input of what leads into an expert, and
    the output of what leads out of it. Undecided shapes (both sizes are the hidden size) leave it to the others.
    """
    votes = [stored_in_out(tensor, hidden) for tensor in members]
    return votes.count(True) > votes.count(False)


def stored_in_out(tensor: Tensor, hidden: object) -> bool | None:
    """Whether one tensor of all experts is stored [experts, in, out]; None where its shape doesn't tell."""
    _, first, second = tensor.shape
    if first == second or hidden not in (first, second):
        return None
    return (first == hidden) != _into(layer_names.last(_own(tensor)))


def linears(tensors: Sequence[Tensor], config: ModelConfig) -> tuple[Tensor, ...]:
    """Weights of linear layers, [out, in]; experts of one tensor one by one."""
    fused = [matrix for each in fused_experts(tensors, config) for matrix in each.matrices()]
    return (*(tensor for tensor in tensors if tensor.is_linear), *fused)


def roles(tensors: Sequence[Tensor], config: ModelConfig) -> tuple[LayerRole, ...]:
    """Every linear layer's role, by kind; layers of one kind may have two (the decoder's, and those after it)."""
    where = layout(tensors, config)
    facts = _Facts.of(tensors, config, where)
    found: list[LayerRole] = []
    for kind in kinds(linears(tensors, config)):
        names: dict[Role, list[str]] = defaultdict(list)
        for name in kind.names:
            names[facts.role(name, kind.shape)].append(name)
        found += [LayerRole(Kind(kind.shape, tuple(each)), role) for role, each in names.items()]
    return tuple(found)


@dataclass(frozen=True)
class _Facts:
    """What decides a layer's role: `decays` is, by the block that has it, the shape of linear attention's decay;
    `whole` says that experts are read as the one tensor that holds them.
    """

    where: Layout
    vocabulary: int
    decays: Mapping[str, tuple[int, ...]]
    transposed: bool
    whole: bool

    @classmethod
    def of(cls, tensors: Sequence[Tensor], config: ModelConfig, where: Layout) -> _Facts:
        decays = {t.name.removesuffix(".A_log"): t.shape for t in tensors if t.name.endswith(".A_log")}
        whole = model_shapes.language_model(config).get("model_type") in _READ_WHOLE
        return cls(where, _vocabulary(config), decays, _conv1d(tensors, where), whole)

    def role(self, name: str, shape: tuple[int, ...]) -> Role:
        inside = self.where.inside(name)
        if layer_names.is_mtp(name) or (inside is not None and inside[0] >= self.where.layers):
            return Role.DRAFT
        if layer_names.is_vision(name):
            return Role.ENCODER
        if inside is None:
            return self._outside(name, shape)
        own, block = inside[1], name.rpartition(".")[0]
        if layer_names.is_expert(name):
            return Role.WHOLE if self.whole else Role.EXPERT
        if "indexer" in own.split("."):
            return Role.INDEXER
        if block in self.decays and (role := self._recurrent(own, block, shape)):
            return role
        if self._is_router(own, shape):
            return Role.ROUTER
        if _SIDE.search(own):
            return Role.SIDE
        return Role.CONV1D if self.transposed else Role.LINEAR

    def _is_router(self, own: str, shape: tuple[int, ...]) -> bool:
        """Whether it has an output for each expert and sits beside them, or has a router's name."""
        if _ROUTER.search(own):
            return True
        if (
            shape[0] != self.where.experts
            or shape[0] < 2
            or "expert" in own
            or layer_names.last(own) in layer_names.MLP
        ):
            return False
        return any(block and own.startswith(f"{block}.") for block in self.where.expert_blocks)

    def _outside(self, name: str, shape: tuple[int, ...]) -> Role:
        if layer_names.last(name) in _HEADS or (self.vocabulary and shape[0] == self.vocabulary):
            return Role.OUTPUT
        if not self.where.stack:
            return Role.LINEAR
        return Role.ENCODER if self.where.multimodal and not _SIDE.search(name) else Role.OUTSIDE

    def _recurrent(self, own: str, block: str, shape: tuple[int, ...]) -> Role | None:
        """A state space's or linear attention's layer: Mamba-1 has a decay for each channel and state, the others one
        for each head.
        """
        sizes = [size for size in self.decays[block] if size > 1]
        if len(sizes) == 2:
            return Role.MAMBA
        heads = sizes[0] if sizes else 1
        return Role.GATE if shape[0] in (heads, 2 * heads) or _GATE_NAMES.search(own) else None


def _vocabulary(config: ModelConfig) -> int:
    size = model_shapes.language_model(config).get("vocab_size")
    return size if isinstance(size, int) else 0


def _conv1d(tensors: Sequence[Tensor], where: Layout) -> bool:
    """Whether the decoder's layers are stored [in, out]: their biases are as long as the second size."""
    biases = {t.name.removesuffix(".bias"): t.shape for t in tensors if t.name.endswith(".bias") and len(t.shape) == 1}
    votes = 0
    for tensor in tensors:
        if tensor.is_linear and where.inside(tensor.name) and tensor.shape[0] != tensor.shape[1]:
            bias = biases.get(_own(tensor))
            votes += 0 if bias is None else 1 if bias[0] == tensor.shape[1] else -1 if bias[0] == tensor.shape[0] else 0
    return votes > 0


def kept_patterns(found: Sequence[LayerRole], ignore: Sequence[str] = ()) -> tuple[str, ...]:
    """Patterns of `ignore` for the layers that are left alone by default, beside the recipe's own: the ends of their
    names, so that they hold whatever a release of transformers puts before them, and match nothing that is quantized.
    """
    taken = [each.kind for each in found if each.role.taken]
    patterns: list[str] = []
    for each in found:
        if each.role.taken:
            continue
        for name in each.kind.names:
            if not matcher((*ignore, *patterns))(name):
                patterns.append(_pattern(name, each.role, taken))
    return tuple(patterns)


def draft_patterns(tensors: Sequence[Tensor], config: ModelConfig) -> tuple[str, ...]:
    """Patterns of `ignore` for layers for multi-token prediction by the names that vLLM 0.32 gives them where these
    aren't the checkpoint's: MiMo's `model.mtp_layers.0` and ERNIE's `model.mtp_block.0` are `model.layers.N`, after the
    decoder's N. Not ignored by that name, they are made for quantized weights, and nothing is loaded into them.
    """
    own = (layer_names.mtp_number(tensor.name) for tensor in tensors if ".mtp" in tensor.name)
    numbers = sorted({number for number in own if number is not None})
    layers = layout(tensors, config).layers if numbers else 0
    return tuple(rf"re:(.*\.)?layers\.{layers + number}\..*" for number in numbers)


_PLAIN = ("model", "language_model", "layers", "h", "blocks", "transformer", "backbone", "self_attn", "decoder")
_VAGUE = ("layer", "proj", "linear", "weight", "dense", "fc1", "fc2")
_ANY = r"re:(.*\.)?"


def _pattern(name: str, role: Role, taken: Sequence[Kind]) -> str:
    """The shortest end of a name, or the part of the model that it belongs to, that nothing to quantize matches."""
    if role is Role.OUTPUT:
        return layer_names.last(name)
    for candidate in _candidates(name, role):
        if matcher((candidate,))(name) and not split(taken, (candidate,))[1]:
            return candidate
    return name


def _candidates(name: str, role: Role) -> Iterator[str]:
    if role is Role.ROUTER:
        # transformers has one name for it in the model and another in the checkpoint (Mixtral, Phi-MoE).
        yield rf"{_ANY}(gate|router|shared_expert_gate)(\.\w+)?$"
    parts = name.split(".")
    if role in (Role.ENCODER, Role.INDEXER, Role.MAMBA, Role.SIDE, Role.DRAFT, Role.OUTSIDE, Role.WHOLE):
        yield from (rf"{_ANY}{re.escape(part)}\..*" for part in parts[:-1] if part not in _PLAIN and not part.isdigit())
    if role is Role.DRAFT and (found := _FIRST_NUMBER.match(name)):
        yield rf"{_ANY}{re.escape(layer_names.last(found[1]))}\.{found[2]}\..*"
    for length in range(1, len(parts) + 1):
        if not parts[-length].isdigit() and not (length == 1 and parts[-1] in _VAGUE):
            end = r"\.".join(r"\d+" if part.isdigit() else re.escape(part) for part in parts[-length:])
            yield f"{_ANY}{end}$"
    yield f"{_ANY}{re.escape(name)}$"
