"""What can't work, known before it starts: from headers, the scheme and the hardware alone.

`check` says what would fail, `advise` what works and may not be meant. Both take a moment for a model of any size.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from quantize import anatomy, kernels
from quantize.engine import Complaint, Request
from quantize.headers import Tensor
from quantize.kernels import BLOCK, Shape
from quantize.schemes import KV_CACHE_FP8, SCHEMES, TARGETS
from quantize.source import Source


def check(request: Request, source: Source, target: str, tensor_parallel: int) -> list[Complaint]:
    """Everything that would fail later. A source without headers (an unreachable hub) passes what can't be checked."""
    layers = [tensor for tensor in source.linears if not ignored(tensor, request.ignore)]
    complaints = [*_something_left(source, layers), *_claimed_twice(request, layers)]
    parts = apart(request, layers)
    for part in parts:
        found = [*_kernel(part.request, target), *_divides(part.request, part.layers, tensor_parallel)]
        complaints += [part.at_its_key(complaint) for complaint in found]
    complaints += [*_joined(request, source), *_tied(source, layers), *_heads(source, tensor_parallel)]
    complaints += _cache_kernel(request, source, target)
    if not complaints:
        for part in parts:
            found = _fits(part.request, source, part.layers, target, tensor_parallel)
            complaints += [part.at_its_key(complaint) for complaint in found]
    return complaints


@dataclass(frozen=True)
class Part:
    """Layers that get one scheme, and a request for that scheme alone. `override` is its place in the recipe's list."""

    request: Request
    layers: list[Tensor]
    override: int | None = None

    def at_its_key(self, complaint: Complaint) -> Complaint:
        """The complaint where the recipe asks for this part."""
        if self.override is None or complaint.at[0] != "quantize":
            return complaint
        return replace(complaint, at=("quantize", "overrides", self.override, *complaint.at[1:]))


def apart(request: Request, layers: Iterable[Tensor]) -> list[Part]:
    """The layers by the scheme that they get: the recipe's own first, if a layer is left to it, then each override."""
    left = list(layers)
    parts = []
    for i, other in enumerate(request.overrides):
        theirs = [tensor for tensor in left if ignored(tensor, (other.layers,))]
        left = [tensor for tensor in left if tensor not in theirs]
        alone = replace(request, scheme=other.scheme, group_size=other.group_size, overrides=())
        parts.append(Part(alone, theirs, i))
    own = Part(replace(request, overrides=()), left)
    return [own, *parts] if left or not parts else parts


def advise(request: Request, source: Source, target: str, tensor_parallel: int) -> list[Complaint]:
    """What works and may not be meant: patterns without effect, layers that are better left alone, slower kernels."""
    layers = [tensor for tensor in source.linears if not ignored(tensor, request.ignore)]
    return [
        *_unmatched(request, source),
        *_better_left(layers),
        *_left_behind(source),
        *(
            part.at_its_key(complaint)
            for part in apart(request, layers)
            for complaint in _other_kernel(part.request, source, part.layers, target, tensor_parallel)
        ),
    ]


def cache(source: Source, max_model_len: int, cache_bytes: int, tensor_parallel: int) -> list[Complaint]:
    """Whether one request of the greatest length fits into a KV cache in 16 bits: else vLLM doesn't start."""
    token = cache_bytes_per_token(source, tensor_parallel)
    if token is None or token * max_model_len <= cache_bytes:
        return []
    what = (
        f"{cache_bytes / 2**30:.2f} GiB hold {cache_bytes // token:,} tokens, and max_model_len is {max_model_len:,}."
    )
    hint = f"It takes {token * max_model_len / 2**30:.2f} GiB on each GPU, or a smaller serve.max_model_len."
    return [Complaint(what, ("serve", "kv_cache_gib"), hint)]


def cache_bytes_per_token(source: Source, tensor_parallel: int) -> int | None:
    """Bytes of KV cache of one token on one GPU, in 16 bits; None for attention that isn't the usual kind."""
    config = source.config
    layers, heads, hidden = (config.get(key) for key in ("num_hidden_layers", "num_attention_heads", "hidden_size"))
    if not (isinstance(layers, int) and isinstance(heads, int) and isinstance(hidden, int)):
        return None
    unusual = ("kv_lora_rank", "layer_types", "sliding_window", "layers_block_type", "text_config")
    if any(config.get(key) for key in unusual):
        return None
    kv_heads = int(config.get("num_key_value_heads") or heads)
    size = int(config.get("head_dim") or hidden // heads)
    return 2 * 2 * layers * max(1, kv_heads // tensor_parallel) * size


def ignored(tensor: Tensor, patterns: Sequence[str]) -> bool:
    """Whether a pattern leaves this layer alone: a name, the end of one, or `re:` and a regular expression."""
    name = tensor.name.removesuffix(".weight")
    return any(
        re.match(pattern[3:], name) is not None
        if pattern.startswith("re:")
        else name == pattern or name.endswith("." + pattern)
        for pattern in patterns
    )


def bad_patterns(request: Request) -> list[Complaint]:
    """Regular expressions that don't compile."""
    complaints = []
    for pattern, at in _patterns(request):
        try:
            re.compile(pattern.removeprefix("re:"))
        except re.error as error:
            complaints.append(Complaint(f"{pattern}: not a regular expression: {error}", at))
    return complaints


def _patterns(request: Request) -> list[tuple[str, tuple[str | int, ...]]]:
    """Every pattern, and its place in the recipe."""
    return [
        *((pattern, ("quantize", "ignore", i)) for i, pattern in enumerate(request.ignore)),
        *((other.layers, ("quantize", "overrides", i, "layers")) for i, other in enumerate(request.overrides)),
    ]


def _kernel(request: Request, target: str) -> list[Complaint]:
    scheme = SCHEMES[request.scheme]
    if target in scheme.kernels:
        return []
    others = [other for other in TARGETS if other in scheme.kernels]
    why = scheme.missing.get(target, "vLLM has no kernel for it there")
    return [
        Complaint(
            f"{request.scheme} can't be served on {target}: {why}.",
            ("quantize", "scheme"),
            f"Kernels exist for: {', '.join(others)}.",
        )
    ]


def _something_left(source: Source, layers: list[Tensor]) -> list[Complaint]:
    if not source.tensors or layers:
        return []
    return [Complaint("leaves every layer alone: there is nothing to quantize", ("quantize", "ignore"))]


def _divides(request: Request, layers: list[Tensor], tensor_parallel: int) -> list[Complaint]:
    size = BLOCK if request.scheme == "FP8_BLOCK" else request.group_size
    at = ("quantize", "scheme" if request.scheme == "FP8_BLOCK" else "group_size")
    if size is None:
        return []
    odd = [layer for layer in layers if layer.shape[1] % size]
    if odd:
        widths = sorted({layer.shape[1] for layer in layers})
        fitting = [
            str(candidate)
            for candidate in (256, 128, 96, 64, 48, 32, 16)
            if all(width % candidate == 0 for width in widths)
        ]
        hint = f"Every layer is divided by {', '.join(fitting)}." if fitting else "Put those layers on `ignore`."
        return [Complaint(f"{size} doesn't divide the {odd[0].shape[1]} input channels of {_some(odd)}.", at, hint)]
    # Row-parallel layers (o_proj, down_proj) are cut along their input channels.
    split = [
        layer
        for layer in layers
        if tensor_parallel > 1 and _row_parallel(layer) and layer.shape[1] % (size * tensor_parallel)
    ]
    if split:
        what = f"groups of {size} don't fit into the shards of {_some(split)} over {tensor_parallel} GPUs."
        return [Complaint(what, at, "Take a smaller group size or fewer GPUs.")]
    return []


def _row_parallel(layer: Tensor) -> bool:
    return anatomy.last(_name(layer)) in anatomy.ROW_PARALLEL


def _claimed_twice(request: Request, layers: list[Tensor]) -> list[Complaint]:
    """Layers that two overrides name: which one is meant can't be told."""
    complaints = []
    for i, other in enumerate(request.overrides):
        theirs = [layer for layer in layers if ignored(layer, (other.layers,))]
        for j, earlier in enumerate(request.overrides[:i]):
            if both := [layer for layer in theirs if ignored(layer, (earlier.layers,))]:
                what = f"{_some(both)}: '{other.layers}' and '{earlier.layers}' (overrides {i} and {j}) both name it."
                at = ("quantize", "overrides", i, "layers")
                complaints.append(Complaint(what, at, "Make the patterns exclude one another."))
    return complaints


def _cache_kernel(request: Request, source: Source, target: str) -> list[Complaint]:
    """Whether vLLM reads an FP8 KV cache on the target."""
    at, config = ("quantize", "kv_cache"), _text(source)
    if request.kv_cache is None:
        return []
    if target not in KV_CACHE_FP8:
        hint = f"It does on {', '.join(KV_CACHE_FP8)}."
        return [Complaint(f"vLLM {kernels.VLLM} reads no FP8 KV cache on {target}.", at, hint)]
    heads, hidden = config.get("num_attention_heads"), config.get("hidden_size")
    size = config.get("head_dim") or (hidden // heads if isinstance(hidden, int) and isinstance(heads, int) else 0)
    if target == "cpu" and size % 32:
        what = f"vLLM's FP8 KV cache on CPUs takes heads in multiples of 32, and these have {size} channels."
        return [Complaint(what, at, "Remove the key, or serve it on a GPU.")]
    return []


def _joined(request: Request, source: Source) -> list[Complaint]:
    """Patterns that treat one layer otherwise than those that servers join it with."""
    return [*_unequal(request, source), *_left_apart(request, source)]


def _unequal(request: Request, source: Source) -> list[Complaint]:
    """Overrides that name one layer and not those that servers join it with."""
    kept = [tensor for tensor in source.linears if not ignored(tensor, request.ignore)]
    given = {_name(layer): part for part in apart(request, kept) for layer in part.layers}
    complaints = {}
    for (_, members), names in anatomy.families(given).items():
        schemes = {(given[name].request.scheme, given[name].request.group_size) for name in names}
        odd = next((given[name].override for name in names if given[name].override is not None), None)
        if len(schemes) > 1 and (members, odd) not in complaints:
            what = f"servers join {', '.join(members)} into one layer, and they would get unequal schemes ({names[0]})."
            at = ("quantize", "overrides", odd or 0, "layers")
            complaints[members, odd] = Complaint(what, at, "Name all of them, or none.")
    return list(complaints.values())


def _left_apart(request: Request, source: Source) -> list[Complaint]:
    """Patterns that leave one layer alone and not those that servers join it with."""
    found: dict[tuple[str, ...], list[str]] = defaultdict(list)
    left = {_name(tensor): ignored(tensor, request.ignore) for tensor in source.linears}
    for (_, members), names in anatomy.families(left).items():
        if len({left[name] for name in names}) > 1:
            found[members] += [name for name in names if left[name]]
    hint = "Ignore all of them, or none."
    return [
        Complaint(
            f"leaves {_more(names)} alone and not the rest of {', '.join(members)}, which servers join into one layer.",
            ("quantize", "ignore"),
            hint,
        )
        for members, names in found.items()
    ]


def _tied(source: Source, layers: list[Tensor]) -> list[Complaint]:
    """An output layer that is the embedding: servers read the embedding, and never what was quantized."""
    if not source.config.get("tie_word_embeddings"):
        return []
    heads = [_name(layer) for layer in layers if anatomy.last(_name(layer)) == "lm_head"]
    what = f"{heads[0]} is tied to the embedding, and would be quantized." if heads else ""
    return [Complaint(what, ("quantize", "ignore"), "Add lm_head to it.")] if heads else []


def _heads(source: Source, tensor_parallel: int) -> list[Complaint]:
    heads = _text(source).get("num_attention_heads")
    if not isinstance(heads, int) or heads % tensor_parallel == 0:
        return []
    fitting = [str(count) for count in (1, 2, 4, 8, 16) if heads % count == 0]
    what = f"{tensor_parallel} GPUs can't share the {heads} attention heads."
    return [Complaint(what, ("serve", "tensor_parallel"), f"It works with {', '.join(fitting)}.")]


def _text(source: Source) -> Mapping[str, Any]:
    inner = source.config.get("text_config")
    return inner if isinstance(inner, dict) else source.config


def _shapes(source: Source, layers: Iterable[Tensor], gpus: int) -> dict[Shape, list[str]]:
    """The different shapes on one GPU, with the layers that have each."""
    names = [_name(layer) for layer in layers]
    joined = {name for (_, members), family in anatomy.families(names).items() for name in family
              if len(family) > 1 and anatomy.last(name) != members[-1]}  # fmt: skip
    shapes: dict[Shape, list[str]] = defaultdict(list)
    config = _text(source)
    for layer, name in zip(layers, names, strict=True):
        rows, columns = anatomy.shard(name, layer.shape, gpus, config)
        shapes[Shape(rows, columns, layer.shape[1], name in joined)].append(name)
    return shapes


def _fits(request: Request, source: Source, layers: list[Tensor], target: str, tensor_parallel: int) -> list[Complaint]:
    """Layers that no kernel takes on the target."""
    at = ("quantize", "group_size" if SCHEMES[request.scheme].grouped else "scheme")
    reasons: dict[str, list[str]] = defaultdict(list)
    for shape, names in _shapes(source, layers, tensor_parallel).items():
        found = kernels.fit(request.scheme, request.group_size, shape, target)
        if found.kernel is None:
            reasons[found.why] += names
    hint = "Take another group size or scheme, fewer GPUs, or put those layers on `ignore`."
    return [
        Complaint(f"{_more(names)}: vLLM {kernels.VLLM} can't serve it on {target}: {why}.", at, hint)
        for why, names in reasons.items()
    ]


def _other_kernel(
    request: Request, source: Source, layers: list[Tensor], target: str, tensor_parallel: int
) -> list[Complaint]:
    """Layers that get another kernel than the scheme's on the target."""
    usual = SCHEMES[request.scheme].kernels.get(target)
    others: dict[str, list[str]] = defaultdict(list)
    for shape, names in _shapes(source, layers, tensor_parallel).items():
        kernel = kernels.fit(request.scheme, request.group_size, shape, target).kernel
        if usual and kernel and kernel != usual:
            others[kernel] += names
    return [
        Complaint(f"{_more(names)}: served by {kernel}, not by {usual}, for their shape.", ("quantize", "group_size"))
        for kernel, names in others.items()
    ]


def _unmatched(request: Request, source: Source) -> list[Complaint]:
    """Patterns that match no layer. lm_head may be named where embeddings are tied: then there is none."""
    if not source.linears:
        return []
    return [
        Complaint(f"'{pattern}' matches no linear layer.", at)
        for pattern, at in _patterns(request)
        if pattern != "lm_head" and not any(ignored(tensor, (pattern,)) for tensor in source.linears)
    ]


def _better_left(layers: list[Tensor]) -> list[Complaint]:
    names = [_name(layer) for layer in layers]
    kinds = (
        ("the router that chooses experts", [n for n in names if anatomy.is_router(n)], "re:.*(gate|router)$"),
        ("the part that reads images or audio", [n for n in names if anatomy.is_vision(n)], ""),
        ("the output layer", [n for n in names if anatomy.last(n) == "lm_head"], "lm_head"),
    )
    at = ("quantize", "ignore")
    return [
        Complaint(
            f"{_more(found)}: {what} would be quantized, which costs quality and saves little.",
            at,
            f"Add '{pattern}' to it." if pattern else "Add a pattern for it.",
        )
        for what, found, pattern in kinds
        if found
    ]


def _left_behind(source: Source) -> list[Complaint]:
    """Layers that transformers doesn't load, so that the artifact lacks them."""
    names = [_name(tensor) for tensor in source.linears if anatomy.is_mtp(tensor.name)]
    if not names:
        return []
    what = f"{_more(names)}: layers for speculative decoding, which transformers doesn't load: the artifact lacks them."
    return [Complaint(what, ("model", "source"))]


def _name(layer: Tensor) -> str:
    return layer.name.removesuffix(".weight")


def _more(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def _some(layers: list[Tensor]) -> str:
    return _more([_name(layer) for layer in layers])
