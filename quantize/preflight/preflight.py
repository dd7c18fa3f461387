"""What can't work, known before it starts: from headers, the scheme and the hardware alone.

`check` says what would fail, `advise` what works and may not be meant. Both take a moment for a model of any size.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from quantize.checkpoint import layer_names
from quantize.checkpoint.layer_groups import Kind
from quantize.checkpoint.patterns import PatternError, compiled
from quantize.checkpoint.source import Source
from quantize.engines.protocol import Complaint, Request
from quantize.preflight import overrides
from quantize.schemes import kernels
from quantize.schemes.kernels import BLOCK, Shape
from quantize.schemes.schemes import KV_CACHE_FP8, SCHEMES, TARGETS


def check(request: Request, source: Source, target: str, tensor_parallel: int) -> list[Complaint]:
    """Everything that would fail later. A source without headers (an unreachable hub) passes what can't be checked."""
    layers, left = source.split(request.ignore)
    parts = overrides.apart(request, layers)
    complaints = [*_something_left(source, layers), *overrides.check(request, layers)]
    for part in parts:
        complaints += part.at_its_key(_kernel(part.request, target))
        complaints += part.at_its_key(_divides(part.request, part.layers, tensor_parallel))
    complaints += [*_joined(layers, left), *_tied(source, layers), *_shared(source, tensor_parallel)]
    complaints += _cache_kernel(request, source, target)
    if not complaints:
        for part in parts:
            complaints += part.at_its_key(_fits(part.request, source, part.layers, target, tensor_parallel))
    return complaints


def advise(request: Request, source: Source, target: str, tensor_parallel: int) -> list[Complaint]:
    """What works and may not be meant: patterns without effect, layers that are better left alone, slower kernels."""
    layers, _ = source.split(request.ignore)
    return [
        *_unmatched(request, source),
        *(_better_left(layers) if request.method != "none" else ()),
        *(_left_behind(source) if request.method != "none" else ()),
        *(
            complaint
            for part in overrides.apart(request, layers)
            for complaint in part.at_its_key(_other_kernel(part.request, source, part.layers, target, tensor_parallel))
        ),
    ]


def lacking(request: Request, *, avx512: bool) -> Complaint | None:
    """What an x86 without AVX-512 can't serve of the artifact, though vLLM has kernels for it on CPUs, at the key that
    asks for it. None where it can, and where a GPU is to serve it.
    """
    if request.target != "cpu" or avx512:
        return None
    asked: list[tuple[str, tuple[str | int, ...]]] = [(request.scheme, ("quantize", "scheme"))]
    asked += [(other.scheme, ("quantize", "overrides", i, "scheme")) for i, other in enumerate(request.overrides)]
    for name, at in asked:
        if why := kernels.missing_here(name):
            return Complaint(why, at)
    if request.kv_cache is not None:
        return Complaint(kernels.AVX512.format("an FP8 KV cache"), ("quantize", "kv_cache"))
    return None


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


def bad_patterns(request: Request, source: Source | None = None) -> list[Complaint]:
    """Regular expressions that are none, or that take too much work with a layer of the source."""
    names = [name for kind in source.kinds for name in kind.names] if source is not None else []
    complaints = []
    for pattern, at in _patterns(request):
        try:
            matches = compiled(pattern.removeprefix("re:"))
            if pattern.startswith("re:"):
                for name in names:
                    matches(name)
        except PatternError as error:
            complaints.append(Complaint(f"{pattern[:100]}: {error}", at))
    return complaints


def _patterns(request: Request) -> list[tuple[str, tuple[str | int, ...]]]:
    """Every pattern, and its place in the recipe."""
    return [
        *((pattern, ("quantize", "ignore", i)) for i, pattern in enumerate(request.ignore)),
        *((other.layers, ("quantize", "overrides", i, "layers")) for i, other in enumerate(request.overrides)),
    ]


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


def _something_left(source: Source, layers: Sequence[Kind]) -> list[Complaint]:
    if not source.tensors or layers:
        return []
    return [Complaint("leaves every layer alone: there is nothing to quantize", ("quantize", "ignore"))]


def _divides(request: Request, layers: Sequence[Kind], tensor_parallel: int) -> list[Complaint]:
    size = BLOCK if request.scheme == "FP8_BLOCK" else request.group_size
    at = ("quantize", "scheme" if request.scheme == "FP8_BLOCK" else "group_size")
    if size is None:
        return []
    odd = [kind for kind in layers if kind.shape[1] % size]
    if odd:
        widths = sorted({kind.shape[1] for kind in layers})
        fitting = [
            str(candidate)
            for candidate in (256, 128, 96, 64, 48, 32, 16)
            if all(width % candidate == 0 for width in widths)
        ]
        hint = f"Every layer is divided by {', '.join(fitting)}." if fitting else "Put those layers on `ignore`."
        return [Complaint(f"{size} doesn't divide the {odd[0].shape[1]} input channels of {_some(odd)}.", at, hint)]
    # Row-parallel layers (o_proj, down_proj) are cut along their input channels.
    cut = [
        kind
        for kind in layers
        if tensor_parallel > 1 and _row_parallel(kind) and kind.shape[1] % (size * tensor_parallel)
    ]
    if cut:
        what = f"groups of {size} don't fit into the shards of {_some(cut)} over {tensor_parallel} GPUs."
        return [Complaint(what, at, "Take a smaller group size or fewer GPUs.")]
    return []


def _row_parallel(kind: Kind) -> bool:
    return layer_names.last(kind.name) in layer_names.ROW_PARALLEL


def _joined(layers: Sequence[Kind], left: Sequence[Kind]) -> list[Complaint]:
    """Patterns that leave one layer alone and not those that servers join it with."""
    parts = frozenset(part for members in layer_names.FUSED for part in members)
    apart = {name for kind in left if layer_names.last(kind.name) in parts for name in kind.names}
    if not apart:
        return []
    taken = {name for kind in layers if layer_names.last(kind.name) in parts for name in kind.names}
    found: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for (_, members), names in layer_names.families([*apart, *taken]).items():
        if not taken.isdisjoint(names):
            found[members] += [name for name in names if name in apart]
    hint = "Ignore all of them, or none."
    return [
        Complaint(
            f"leaves {_more(sorted(names))} alone and not the rest of {', '.join(members)}, "
            "which servers join into one layer.",
            ("quantize", "ignore"),
            hint,
        )
        for members, names in found.items()
        if names
    ]


def _tied(source: Source, layers: Sequence[Kind]) -> list[Complaint]:
    """An output layer that is the embedding: servers read the embedding, and never what was quantized."""
    if not source.config.get("tie_word_embeddings"):
        return []
    heads = [kind.name for kind in layers if layer_names.last(kind.name) == "lm_head"]
    what = f"{heads[0]} is tied to the embedding, and would be quantized." if heads else ""
    return [Complaint(what, ("quantize", "ignore"), "Add lm_head to it.")] if heads else []


def _shared(source: Source, gpus: int) -> list[Complaint]:
    """What GPUs can't share: vLLM divides attention heads, key and value heads, and the MLP's channels without rest
    (`vllm/distributed/utils.py: divide`; fewer key and value heads than GPUs are repeated, if they divide them).
    """
    at = ("serve", "tensor_parallel")
    text = _text(source)
    complaints = []
    heads, pairs = text.get("num_attention_heads"), text.get("num_key_value_heads")
    if isinstance(heads, int) and heads % gpus:
        what = f"{gpus} GPUs can't share the {heads} attention heads."
        complaints.append(Complaint(what, at, f"It works with {_counts(lambda count: heads % count == 0)}."))
    elif isinstance(pairs, int) and pairs > 0 and max(pairs, gpus) % min(pairs, gpus):
        what = f"{gpus} GPUs can't share the {pairs} key and value heads."
        fitting = _counts(lambda count: max(pairs, count) % min(pairs, count) == 0)
        complaints.append(Complaint(what, at, f"It works with {fitting}."))
    if complaints or gpus == 1:
        return complaints
    uneven = [kind for kind in source.kinds if layer_names.last(kind.name) in layer_names.MLP
              and kind.shape[1 if _row_parallel(kind) else 0] % gpus]  # fmt: skip
    if uneven:
        size = uneven[0].shape[1 if _row_parallel(uneven[0]) else 0]
        what = f"{gpus} GPUs can't share the {size} channels of {_some(uneven)}."
        complaints.append(Complaint(what, at, f"It works with {_counts(lambda count: size % count == 0)}."))
    return complaints


def _counts(works: Callable[[int], bool]) -> str:
    return ", ".join(str(count) for count in (1, 2, 4, 8, 16) if works(count))


def _text(source: Source) -> Mapping[str, Any]:
    inner = source.config.get("text_config")
    return inner if isinstance(inner, dict) else source.config


def shapes(source: Source, layers: Iterable[Kind], gpus: int) -> dict[Shape, list[Kind]]:
    """The different shapes on one GPU, with the layers that have each."""
    layers = list(layers)
    joined = {name for (_, members), family in layer_names.families(kind.name for kind in layers).items()
              for name in family if len(family) > 1 and layer_names.last(name) != members[-1]}  # fmt: skip
    found: dict[Shape, list[Kind]] = defaultdict(list)
    config = _text(source)
    for kind in layers:
        rows, columns = layer_names.shard(kind.name, kind.shape, gpus, config)
        found[Shape(rows, columns, kind.shape[1], kind.name in joined)].append(kind)
    return found


def _fits(
    request: Request, source: Source, layers: Sequence[Kind], target: str, tensor_parallel: int
) -> list[Complaint]:
    """Layers that no kernel takes on the target."""
    at = ("quantize", "group_size" if SCHEMES[request.scheme].grouped else "scheme")
    reasons: dict[str, list[Kind]] = defaultdict(list)
    for shape, alike in shapes(source, layers, tensor_parallel).items():
        found = kernels.fit(request.scheme, request.group_size, shape, target)
        if found.kernel is None:
            reasons[found.why] += alike
    if why := kernels.for_experts(request.scheme, target):
        reasons[why] += [kind for kind in layers if layer_names.is_expert(kind.name)]
    hint = "Take another group size or scheme, fewer GPUs, or put those layers on `ignore`."
    return [
        Complaint(f"{_some(alike)}: vLLM {kernels.VLLM} can't serve it on {target}: {why}.", at, hint)
        for why, alike in reasons.items()
        if alike
    ]


def _other_kernel(
    request: Request, source: Source, layers: Sequence[Kind], target: str, tensor_parallel: int
) -> list[Complaint]:
    """Layers that get another kernel than the scheme's on the target."""
    usual = SCHEMES[request.scheme].kernels.get(target)
    others: dict[str, list[Kind]] = defaultdict(list)
    for shape, alike in shapes(source, layers, tensor_parallel).items():
        kernel = kernels.fit(request.scheme, request.group_size, shape, target).kernel
        if usual and kernel and kernel != usual:
            others[kernel] += alike
    return [
        Complaint(f"{_some(alike)}: served by {kernel}, not by {usual}, for their shape.", ("quantize", "group_size"))
        for kernel, alike in others.items()
    ]


def _unmatched(request: Request, source: Source) -> list[Complaint]:
    """Patterns that match no layer. lm_head may be named where embeddings are tied: then there is none."""
    if not source.kinds:
        return []
    return [
        Complaint(f"'{pattern}' matches no linear layer.", at)
        for pattern, at in _patterns(request)
        if pattern != "lm_head" and not source.split((pattern,))[1]
    ]


def _better_left(layers: Sequence[Kind]) -> list[Complaint]:
    kinds = (
        (
            "the router that chooses experts",
            [k for k in layers if layer_names.is_router(k.name)],
            "re:.*(gate|router)$",
        ),
        ("the part that reads images or audio", [k for k in layers if layer_names.is_vision(k.name)], ""),
        ("the output layer", [k for k in layers if layer_names.last(k.name) == "lm_head"], "lm_head"),
    )
    at = ("quantize", "ignore")
    return [
        Complaint(
            f"{_some(found)}: {what} would be quantized, which costs quality and saves little.",
            at,
            f"Add '{pattern}' to it." if pattern else "Add a pattern for it.",
        )
        for what, found, pattern in kinds
        if found
    ]


def _left_behind(source: Source) -> list[Complaint]:
    """Layers that transformers doesn't load, so that the artifact lacks them."""
    found = [kind for kind in source.kinds if layer_names.is_mtp(kind.name)]
    # DeepSeek and GLM number them after the decoder's layers.
    layers = _text(source).get("num_hidden_layers")
    extra = _text(source).get("num_nextn_predict_layers")
    if isinstance(layers, int) and extra:
        later = [_after(kind, layers) for kind in source.kinds]
        found += [kind for kind in later if kind is not None]
    if not found:
        return []
    what = f"{_some(found)}: layers for speculative decoding, which transformers doesn't load: the artifact lacks them."
    return [Complaint(what, ("model", "source"))]


def _after(kind: Kind, layers: int) -> Kind | None:
    """Those of its layers that stand behind the decoder's last one."""
    names = tuple(name for name in kind.names if (number := layer_names.layer_number(name)) is not None
                  and number >= layers)  # fmt: skip
    return Kind(kind.shape, names) if names else None


def _more(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def _some(kinds: Sequence[Kind]) -> str:
    return _more([name for kind in kinds for name in kind.names])
