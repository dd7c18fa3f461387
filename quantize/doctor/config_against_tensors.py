"""Whether the config describes the tensors that are there: layers, experts, vocabulary, encoders of images; and what
one layer lacks that all others like it have. Needs no source.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from qpack.core import model_shapes
from qpack.core.checkpoint_files import MISSING_FILE
from qpack.core.problems import Code, Location, Problem, named
from quantize.checkpoint import layer_names, layer_roles, picture_placeholder
from quantize.checkpoint.headers import Tensor
from quantize.checkpoint.layer_roles import Layout
from quantize.doctor import decode
from quantize.doctor.checkpoint import PARTS, Checkpoint

_LAYERS = Code("layer-count", "The config has another number of layers than the tensors, or than a list of its own.")
_DRAFT_LAYERS = Code("draft-layers", "The config promises layers for speculative decoding, and there are none.")
_EXPERTS = Code("expert-count", "The config or a router has another number of experts than a layer.")
_LOST = Code("lost-tensor", "A layer or an expert lacks a tensor that all others like it have.")
_TRANSPOSED = Code("experts-transposed", "A tensor of all experts is stored [in, out] where [out, in] is read, or not.")
_EXPERT_NAMES = Code("expert-names", "Experts have names that vLLM's loader of the model doesn't know.")
_VOCABULARY = Code("vocabulary", "The embedding has another shape than the config says, or a token lies outside of it.")
_TOWER = Code("no-encoder", "The config describes an encoder of images or audio that no tensor belongs to.")
_NOT_FINITE = Code("weight-not-finite", "A norm, a bias or another vector has values that aren't numbers.")
_AGAIN = "Quantize again, or copy it from the source."

# Lists of a config with an entry for each layer. Empty ones stand for a default.
_BY_LAYER = ("layer_types", "layers_block_type", "no_rope_layers", "mlp_layer_types", "activation_sparsity_pattern",
             "hybrid_layer_pattern")  # fmt: skip
# Tokens that stand for what is read in their place, with the part of the config that says that there is an encoder.
_TOKENS = {"image_token_id": "vision_config", "image_token_index": "vision_config", "audio_token_id": "audio_config",
           "audio_token_index": "audio_config"}  # fmt: skip
_SEES = ("vision_config", "visual", "vit_config")
_HEARS = ("audio_config", "speech_config", "sound_config")
_SOUND = ("audio", "speech", "sound")
# transformers' models that keep experts [experts, in, out] (modeling_gpt_oss, modeling_llama4).
_IN_OUT = ("gpt_oss", "llama4", "llama4_text")
# `ckpt_names` of vLLM 0.32's models/phimoe.py, minimax_m2.py and lfm2_moe.py.
_W123 = ("phimoe", "minimax_m2", "lfm2_moe")
_TABLES = ("embed_tokens.weight", ".wte.weight", "word_embeddings.weight")
_STRAY = ("_packed", "_scale", "_shape", "_zero_point", "_g_idx")
_SINKS = ("gpt_oss",)
_LAYERS_PER = ("num_layers_per_stack",)
# DeepSeek, GLM, MiMo and others; Qwen3.5; MiniMax M3.
_DRAFTS = ("num_nextn_predict_layers", "mtp_num_hidden_layers", "num_mtp_modules")
# LongCat's experts that hand on their input; a router chooses among them too, and they need no weights.
_ZERO_EXPERTS = ("zero_expert_num",)
# What has been measured of a vector of this length is all of it; longer ones are sampled.
_VECTOR = 1 << 22
# One layer may be another in this many.
_ALIKE = 4


def check(checkpoint: Checkpoint) -> list[Problem]:
    """All of it. Nothing is said of a checkpoint without config, or whose tensors aren't those of a decoder."""
    if not checkpoint.config or not checkpoint.tensors:
        return []
    tensors = [span.tensor for span in checkpoint.tensors.values()]
    where = layer_roles.layout(tensors, checkpoint.config)
    return [
        *_vectors(checkpoint),
        *_stray_names(tensors),
        *(_decoder(checkpoint, tensors, where) if where.stack else ()),
        *_vocabulary(checkpoint),
        *_encoders(checkpoint, tensors),
    ]


def _decoder(checkpoint: Checkpoint, tensors: list[Tensor], where: Layout) -> list[Problem]:
    stored = _Stored.of(tensors, where)
    return [
        *_layer_count(checkpoint, stored),
        *_experts(checkpoint, stored),
        *_lost(checkpoint, stored),
        *_layout_of_experts(checkpoint, tensors),
    ]


@dataclass(frozen=True)
class _Stored:
    """What each decoder layer has: modules and parameters without their number, `experts` by block and number."""

    where: Layout
    modules: Mapping[int, frozenset[str]]
    experts: Mapping[tuple[int, str], Mapping[int, frozenset[str]]]

    @classmethod
    def of(cls, tensors: list[Tensor], where: Layout) -> _Stored:
        modules: dict[int, set[str]] = defaultdict(set)
        experts: dict[tuple[int, str], dict[int, set[str]]] = defaultdict(lambda: defaultdict(set))
        for tensor in tensors:
            inside = where.inside(tensor.name)
            if inside is None:
                continue
            number, own = inside
            stem, _, last = own.rpartition(".")
            module = stem if last in PARTS and stem else own
            block, mark, rest = module.partition("experts.")
            expert, _, part = rest.partition(".")
            if mark and expert.isdigit() and len(expert) < 6:
                experts[number, f"{block}experts"][int(expert)].add(part)
            else:
                modules[number].add(module)
        return cls(
            where,
            {number: frozenset(names) for number, names in modules.items()},
            {key: {n: frozenset(parts) for n, parts in found.items()} for key, found in experts.items()},
        )

    @property
    def numbers(self) -> set[int]:
        """The layers that have any tensor."""
        return {*self.modules, *(number for number, _ in self.experts)}


def _layer_count(checkpoint: Checkpoint, stored: _Stored) -> Iterator[Problem]:
    text = model_shapes.language_model(checkpoint.config)
    # A model that runs its layers several times counts every time (HRM's num_hidden_layers).
    told = layer_roles.count(checkpoint.config, (*_LAYERS_PER, *layer_roles.LAYERS))
    promised, drafts = _drafts(text)
    there = stored.numbers
    if told and (gone := sorted(set(range(told)) - there)):
        what = f"the config has {told} layers, and {_many(gone, 'layer')} has no tensor"
        yield Problem(_LAYERS, what, Location(name=f"{stored.where.stack}.{gone[0]}"), _AGAIN)
    if told and (more := sorted(n for n in there if n >= told + max(drafts, 1 if _has_mtp_key(text) else 0))):
        what = f"the config has {told} layers, and the tensors have {max(there) + 1}: servers read the first {told}"
        yield Problem(_LAYERS, what, Location(name=f"{stored.where.stack}.{more[0]}"), "Restore num_hidden_layers.")
    for key in _BY_LAYER:
        found = text.get(key)
        if told and isinstance(found, list) and found and len(found) not in (told, told + drafts):
            what = f"has {len(found)} entries, one for each layer, and there are {told} layers"
            yield Problem(_LAYERS, what, Location("config.json", key=(key,)), "It has to be the source's.")
    if drafts and told and max(there, default=0) < told and not any(map(layer_names.is_mtp, checkpoint.tensors)):
        what = f"promises {drafts} for speculative decoding, and no tensor belongs to it"
        hint = "Serve it without that method of speculative decoding, or keep the source's layers."
        severity = "warning" if checkpoint.quantization else "note"
        where = Location("config.json", key=(promised,))
        yield Problem(_DRAFT_LAYERS, what, where, hint, severity)  # type: ignore[arg-type]


def _drafts(text: Mapping[str, object]) -> tuple[str, int]:
    """The key that says how many layers are for speculative decoding, and how many; 0 without one."""
    found = ((key, text.get(key)) for key in _DRAFTS)
    return next(((key, n) for key, n in found if isinstance(n, int) and n > 0), ("", 0))


def _has_mtp_key(text: Mapping[str, object]) -> bool:
    return any("mtp" in key or "nextn" in key for key in text)


def _many(numbers: list[int], what: str) -> str:
    shown = ", ".join(map(str, numbers[:4]))
    return f"{what} {shown}" if len(numbers) < 5 else f"{what} {shown} and {len(numbers) - 4} more"


def _experts(checkpoint: Checkpoint, stored: _Stored) -> Iterator[Problem]:
    """Experts by number, in every layer as many as the config says, each with the parts of the others."""
    told = layer_roles.count(checkpoint.config, layer_roles.EXPERTS)
    zero = layer_roles.count(checkpoint.config, _ZERO_EXPERTS)
    wrong: dict[str, list[str]] = defaultdict(list)
    lost: list[str] = []
    for (number, block), numbered in stored.experts.items():
        # transformers writes tensors that nothing reads for such experts.
        experts = {n: parts for n, parts in numbered.items() if not zero or n < told} or numbered
        stem = f"{stored.where.stack}.{number}.{block}"
        count = max(experts) + 1
        usual, _ = Counter(experts.values()).most_common(1)[0]
        if told and count != told:
            wrong[f"has {count} experts, and the config says {told}"].append(stem)
        lost += [f"{stem}.{i}.{part}" for i in range(count) for part in sorted(usual - experts.get(i, frozenset()))]
        rows = _router_rows(checkpoint, stem.removesuffix("experts"))
        if rows is not None and rows != count + zero:
            wrong[f"has {count + zero} experts, and its router chooses among {rows}"].append(stem)
    for tensor in (span.tensor for span in checkpoint.tensors.values()):
        fused = layer_names.is_expert(tensor.name) and stored.where.inside(tensor.name) and len(tensor.shape) == 3
        if fused and told and tensor.shape[0] != told:
            wrong[f"holds {tensor.shape[0]} experts, and the config says {told}"].append(tensor.name)
    for what, names in wrong.items():
        yield Problem(_EXPERTS, what, named(names), "Restore the source's config, or quantize again.")
    if lost:
        what = "missing, and the other experts of the layer have it"
        yield Problem(_LOST, what, named(lost), _AGAIN)


def _router_rows(checkpoint: Checkpoint, block: str) -> int | None:
    """The outputs of a block's router that is stored as it is."""
    for name in ("gate.weight", "router.weight", "router.layer.weight", "router.classifier.weight"):
        if (span := checkpoint.tensors.get(f"{block}{name}")) is not None and len(span.tensor.shape) == 2:
            return span.tensor.shape[0]
    return None


def _lost(checkpoint: Checkpoint, stored: _Stored) -> Iterator[Problem]:
    """What a layer lacks and all layers like it have: those that have the rest of its tensors, and no other."""
    groups = Counter(names for number, names in stored.modules.items() if number < stored.where.layers)
    lost = []
    for number, names in sorted(stored.modules.items()):
        for usual, count in groups.items():
            gone = usual - names
            if groups[names] == 1 and count >= _ALIKE and len(gone) == 1 and not names - usual:
                lost.append(f"{stored.where.stack}.{number}.{next(iter(gone))}")
    if lost:
        yield Problem(_LOST, "missing, and the other layers like it have it", named(lost), _AGAIN)
    kind = model_shapes.language_model(checkpoint.config).get("model_type")
    bare = [n for n, names in stored.modules.items() if not any(name.endswith("sinks") for name in names)]
    if kind in _SINKS and bare:
        sinks = [f"{stored.where.stack}.{n}.self_attn.sinks" for n in sorted(bare)]
        yield Problem(_LOST, f"missing, and {kind}'s attention reads it in every layer", named(sinks), _AGAIN)


def _layout_of_experts(checkpoint: Checkpoint, tensors: list[Tensor]) -> Iterator[Problem]:
    kind = model_shapes.language_model(checkpoint.config).get("model_type")
    fused = layer_roles.fused_experts(tensors, checkpoint.config)
    hidden = model_shapes.language_model(checkpoint.config).get("hidden_size")
    odd = [
        each.tensor.name for each in fused
        if (stored := layer_roles.stored_in_out(each.tensor, hidden)) is not None and stored != (kind in _IN_OUT)
    ]  # fmt: skip
    known = kind in _IN_OUT or len({layer_roles.stored_in_out(each.tensor, hidden) for each in fused} - {None}) > 1
    if odd and known:
        layout = "[experts, in, out]" if kind in _IN_OUT else "the layout of the other tensors of experts"
        what = f"stored transposed: '{kind}' reads {layout}"
        yield Problem(_TRANSPOSED, what, named(odd), "Transpose the last two axes, or convert the source again.")
    if kind in _W123:
        others = [n for n in checkpoint.tensors if layer_names.is_expert(n) and ".gate_proj." in n]
        if others:
            what = f"vLLM reads the experts of '{kind}' as w1, w2 and w3"
            yield Problem(_EXPERT_NAMES, what, named(others), "Rename gate_proj, down_proj and up_proj in that order.")


def _stray_names(tensors: list[Tensor]) -> list[Problem]:
    """Parts of a quantized tensor under a name of their own (`gate_up_proj_packed`), and all experts packed in one."""
    stray = [
        t.name
        for t in tensors
        if "experts" in t.name.split(".")
        and (last := layer_names.last(t.name)) not in PARTS
        and last.endswith(_STRAY)
        and last.partition("_proj")[1]
    ]
    packed = [t.name for t in tensors if layer_names.is_expert(t.name) and len(t.shape) == 3 and _packed(t.name)]
    found = []
    if stray:
        what = "no loader knows the name: experts are packed one by one, as `experts.0.gate_proj.weight_packed`"
        found.append(Problem(_EXPERT_NAMES, what, named(stray), "Quantize again with experts one by one."))
    if packed:
        what = "holds all experts packed in one tensor, and vLLM reads packed experts one by one"
        found.append(Problem(_EXPERT_NAMES, what, named(packed), "Quantize again with experts one by one."))
    return found


def _packed(name: str) -> bool:
    return layer_names.last(name) in ("weight_packed", "qweight")


def _vocabulary(checkpoint: Checkpoint) -> Iterator[Problem]:
    text = model_shapes.language_model(checkpoint.config)
    size, hidden = text.get("vocab_size"), text.get("hidden_size")
    table = next((s.tensor for name, s in checkpoint.tensors.items() if name.endswith(_TABLES)), None)
    if table is None or len(table.shape) != 2:
        return
    rows, columns = table.shape
    where = Location(name=table.name)
    if isinstance(size, int) and rows != size:
        what = f"has {rows} rows, and the config's vocab_size is {size}"
        hint = "Set vocab_size to the rows, and copy the source's tokenizer."
        # Some models keep rows beyond it (Llama 3.2 Vision: 8 for the image token).
        yield Problem(_VOCABULARY, what, where, hint, "error" if rows < size else "warning")
    if isinstance(hidden, int) and columns != hidden and text.get("word_embed_proj_dim") != columns:
        what = f"has {columns} columns, and the config's hidden_size is {hidden}"
        yield Problem(_VOCABULARY, what, where, "Restore the source's config.")
    for key, part in _TOKENS.items():
        if isinstance(checkpoint.config.get(part), Mapping):
            yield from _token(checkpoint.config.get(key), rows, (key,))
    yield from _token(text.get("eos_token_id"), rows, ("eos_token_id",))


def _token(found: object, rows: int, at: tuple[str, ...]) -> Iterator[Problem]:
    tokens = found if isinstance(found, list) else [found]
    if outside := [t for t in tokens if isinstance(t, int) and not isinstance(t, bool) and t >= rows]:
        what = f"is {outside[0]}, and the embedding has {rows} rows"
        yield Problem(_VOCABULARY, what, Location("config.json", key=at), "It has to be the source's.")


def _encoders(checkpoint: Checkpoint, tensors: list[Tensor]) -> Iterator[Problem]:
    """An encoder that the config describes, its tensors, and the file that says how images are prepared for it."""
    config = checkpoint.config
    whole = any(str(name).endswith("ForConditionalGeneration") for name in config.get("architectures") or [])
    sees = next((key for key in _SEES if isinstance(config.get(key), Mapping)), None)
    hears = next((key for key in _HEARS if isinstance(config.get(key), Mapping)), None)
    if not whole or not (sees or hears):
        return
    roles = layer_roles.roles(tensors, config)
    encoders = [each for each in roles if each.role is layer_roles.Role.ENCODER]
    silent = hears and not any(word in name for name in checkpoint.tensors for word in _SOUND)
    for key, gone in ((sees, sees and not encoders), (hears, silent)):
        if gone and key:
            what = "describes an encoder, and no tensor belongs to one: the text part alone was saved"
            hint = "Save the whole model, with the class that the config's `architectures` names."
            yield Problem(_TOWER, what, Location("config.json", key=(key,)), hint)
    prepared = {"preprocessor_config.json", "processor_config.json"} & checkpoint.files
    if encoders and not prepared:
        what = "there is none, and the model reads images or audio: vLLM doesn't start"
        yield Problem(MISSING_FILE, what, Location("preprocessor_config.json"), "Copy it from the source.")
    if tokens := picture_placeholder.lacks(checkpoint.folder, config):
        what = picture_placeholder.described(tokens)
        hint = "Add the placeholder, as the source has it."
        yield Problem(picture_placeholder.UNPLACED, what, Location("chat_template.jinja"), hint, "warning")


def _vectors(checkpoint: Checkpoint) -> list[Problem]:
    """Norms, biases and other vectors with NaN or infinities: one makes every answer NaN."""
    wrong = []
    for name, span in checkpoint.tensors.items():
        tensor = span.tensor
        if len(tensor.shape) != 1 or not decode.is_float(tensor.dtype) or not 0 < span.size <= _VECTOR:
            continue
        if layer_names.last(name) not in PARTS[1:] and not np.isfinite(checkpoint.floats(name)).all():
            wrong.append(name)
    return [Problem(_NOT_FINITE, "has values that aren't numbers", named(wrong), _AGAIN)] if wrong else []
