"""Problems found before a build, from headers, the scheme and the hardware alone.

`check` finds what would fail, `advise` what works but may not be intended. Both are fast for a model of any size.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace

from qpack.core import model_shapes
from qpack.core.problems import Code, KeyPath, Location, Problem, named
from quantize.checkpoint import layer_names, layer_problems
from quantize.checkpoint.layer_groups import Kind
from quantize.checkpoint.layer_roles import Role
from quantize.checkpoint.patterns import PatternError, compiled
from quantize.checkpoint.source import Source
from quantize.engines.protocol import Request
from quantize.preflight import overrides, stored
from quantize.schemes import kernels
from quantize.schemes.kernels import Shape
from quantize.schemes.schemes import AS_IT_IS, KV_CACHE_FP8, SCHEMES, TARGETS

_NO_KERNEL = Code("no-kernel", "vLLM has no kernel for the scheme, the shape or the cache on the target.")
_OTHER_KERNEL = Code("other-kernel", "A layer's shape needs another kernel than the scheme's usual one.")
_BAD_PATTERN = Code("bad-pattern", "A pattern is not a regular expression, or takes too long to match.")
_UNMATCHED_PATTERN = Code("unmatched-pattern", "A pattern matches no layer.")
_NOTHING_TO_QUANTIZE = Code("nothing-to-quantize", "Patterns exclude every layer.")


def check(request: Request, source: Source, target: str, tensor_parallel: int) -> list[Problem]:
    """Everything that would fail later. Without headers (an unreachable hub) the checks of layers are skipped."""
    layers, left = source.split(request.ignore)
    parts = stored.parts(request, source)
    left_over = [] if request.method == "none" else _something_left(source, layers)
    problems = [*left_over, *overrides.check(request, layers)]
    for part in parts:
        problems += part.at_its_key(_kernel(part.request, target))
        # A source's own blocks may be cut short at an edge.
        if request.method != "none" or tensor_parallel > 1:
            problems += part.at_its_key(_divides(part.request, part.layers, tensor_parallel))
        problems += part.at_its_key(_reordered(part.request, source, part.layers))
    problems += [*_joined(layers, left), *_tied(source, layers), *_shared(source, tensor_parallel)]
    problems += _cache_kernel(request, source, target)
    if not problems:
        for part in parts:
            problems += part.at_its_key(_fits(part.request, source, part.layers, target, tensor_parallel))
    return problems


def advise(request: Request, source: Source, target: str, tensor_parallel: int) -> list[Problem]:
    """What works but may not be intended: patterns without effect, layers better left unquantized, slower kernels."""
    return [
        *_unmatched(request, source),
        *(
            problem
            for part in stored.parts(request, source)
            for problem in part.at_its_key(_other_kernel(part.request, source, part.layers, target, tensor_parallel))
        ),
    ]


def lacking(request: Request, *, avx512: bool) -> Problem | None:
    """What an x86 without AVX-512 can't serve of the artifact, though vLLM has kernels for it on CPUs, at the key that
    asks for it. None where it can, and where a GPU is to serve it.
    """
    if request.target != "cpu" or avx512:
        return None
    for name, at in _schemes(request):
        if why := kernels.missing_here(name):
            return Problem(_NO_KERNEL, why, Location(key=at))
    if request.kv_cache is not None:
        why = kernels.AVX512.format("an FP8 KV cache")
        return Problem(_NO_KERNEL, why, Location(key=("quantize", "kv_cache")))
    return None


def without_kernel(request: Request, target: str) -> Problem | None:
    """A scheme that vLLM has no kernel for on the target, at the key that asks for it; None where it has all."""
    for name, at in _schemes(request):
        if name in SCHEMES and (problems := _kernel(replace(request, scheme=name), target)):
            return replace(problems[0], where=Location(key=at))
    return None


def _schemes(request: Request) -> list[tuple[str, KeyPath]]:
    """Every scheme that is asked for, with its key in the recipe."""
    others = [(other.scheme, ("quantize", "overrides", i, "scheme")) for i, other in enumerate(request.overrides)]
    choices = [
        (name, ("quantize", "choices", i, "schemes"))
        for i, choice in enumerate(request.choices)
        for name in choice.schemes
    ]
    return [(request.scheme, ("quantize", "scheme")), *others, *choices]


def cache(source: Source, max_model_len: int, cache_bytes: int, tensor_parallel: int) -> list[Problem]:
    """Whether a request of max_model_len fits into the 16-bit KV cache: else vLLM doesn't start."""
    token = model_shapes.cache_bytes_per_token(source.config, tensor_parallel)
    if token is None:
        return []
    where = Location(key=("serve", "kv_cache_gib"))
    return model_shapes.short_cache(max_model_len, token * max_model_len, cache_bytes, where)


def bad_patterns(request: Request, source: Source | None = None) -> list[Problem]:
    """Patterns that aren't regular expressions, or that take too long on a layer of the source."""
    names = [name for kind in source.kinds for name in kind.names] if source is not None else []
    problems = []
    for pattern, at in _patterns(request):
        try:
            matches = compiled(pattern.removeprefix("re:"))
            if pattern.startswith("re:"):
                for name in names:
                    matches(name)
        except PatternError as error:
            problems.append(Problem(_BAD_PATTERN, f"{pattern[:100]}: {error}", Location(key=at)))
    return problems


def _patterns(request: Request) -> list[tuple[str, KeyPath]]:
    """Every pattern, with its key in the recipe."""
    return [
        *((pattern, ("quantize", "ignore", i)) for i, pattern in enumerate(request.own_ignore)),
        *((other.layers, ("quantize", "overrides", i, "layers")) for i, other in enumerate(request.overrides)),
        *((choice.layers, ("quantize", "choices", i, "layers")) for i, choice in enumerate(request.choices)),
    ]


def _cache_kernel(request: Request, source: Source, target: str) -> list[Problem]:
    """Whether vLLM reads an FP8 KV cache on the target."""
    where, config = Location(key=("quantize", "kv_cache")), model_shapes.language_model(source.config)
    if request.kv_cache is None:
        return []
    if target not in KV_CACHE_FP8:
        hint = f"Supported on: {', '.join(KV_CACHE_FP8)}."
        return [Problem(_NO_KERNEL, f"vLLM {kernels.VLLM} has no FP8 KV cache on {target}.", where, hint)]
    heads, hidden = config.get("num_attention_heads"), config.get("hidden_size")
    size = config.get("head_dim") or (hidden // heads if isinstance(hidden, int) and isinstance(heads, int) else 0)
    if target == "cpu" and size % 32:
        what = f"vLLM's FP8 KV cache on CPUs needs a head size that is a multiple of 32, and this model's is {size}."
        return [Problem(_NO_KERNEL, what, where, "Remove the key, or serve it on a GPU.")]
    return []


def _kernel(request: Request, target: str) -> list[Problem]:
    scheme = SCHEMES[request.scheme]
    if target in scheme.kernels:
        return []
    others = [other for other in TARGETS if other in scheme.kernels]
    why = scheme.missing.get(target, "vLLM has no kernel for it there")
    what, hint = f"{request.scheme} can't be served on {target}: {why}.", f"Kernels exist for: {', '.join(others)}."
    return [Problem(_NO_KERNEL, what, Location(key=("quantize", "scheme")), hint)]


def _something_left(source: Source, layers: Sequence[Kind]) -> list[Problem]:
    if not source.tensors or layers:
        return []
    why = sorted({each.role.reason for each in source.roles if each.role.reason})
    if not any(each.role.taken for each in source.roles) and why:
        what = f"there is nothing to quantize: {'; '.join(why)}"
        hint = "To release it unquantized, set `method: none` and `scheme: BF16`."
        return [Problem(_NOTHING_TO_QUANTIZE, what, Location(key=("quantize", "scheme")), hint)]
    what = "excludes every layer: there is nothing to quantize"
    return [Problem(_NOTHING_TO_QUANTIZE, what, Location(key=("quantize", "ignore")))]


def _divides(request: Request, layers: Sequence[Kind], tensor_parallel: int) -> list[Problem]:
    block = SCHEMES[request.scheme].block
    size = block or request.group_size
    at = ("quantize", "scheme" if block else "group_size")
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
        sizes = " or ".join(filter(None, (", ".join(fitting[:-1]), *fitting[-1:])))
        hint = f"Use {sizes}." if fitting else "Add those layers to `ignore`."
        if block:
            hint = "Put those layers on `ignore`, or take a scheme whose group size can be chosen."
        return model_shapes.uneven_groups(size, odd[0].shape[1], _at(at, odd), hint)
    # Row-parallel layers (o_proj, down_proj) are split along their input channels.
    cut = [
        kind
        for kind in layers
        if tensor_parallel > 1 and _row_parallel(kind) and kind.shape[1] % (size * tensor_parallel)
    ]
    if cut:
        return model_shapes.split_groups(size, cut[0].shape[1], tensor_parallel, _at(at, cut))
    return []


def _row_parallel(kind: Kind) -> bool:
    return layer_names.last(kind.name) in layer_names.ROW_PARALLEL


def _joined(layers: Sequence[Kind], left: Sequence[Kind]) -> list[Problem]:
    """Patterns that exclude a layer but not the layers that servers fuse it with."""
    parts = frozenset(part for members in layer_names.FUSED for part in members)
    apart = {name for kind in left if layer_names.last(kind.name) in parts for name in kind.names}
    if not apart:
        return []
    given = {name: True for kind in layers if layer_names.last(kind.name) in parts for name in kind.names}
    given |= dict.fromkeys(apart, False)
    problems = []
    for members, families in layer_problems.unequal(given).items():
        names = sorted(name for family in families for name in family if name in apart)
        problems.append(layer_problems.joined_unequal(members, replace(named(names), key=("quantize", "ignore"))))
    return problems


def _reordered(request: Request, source: Source, layers: Sequence[Kind]) -> list[Problem]:
    """Fused queries, keys and values that lie head by head. vLLM puts each of their tensors in order by its first
    dimension (`bloom.py`, `_repack_qkv`), and with packed weights, blocks or one scale a tensor that isn't the output.
    """
    if source.config.get("model_type") not in _HEAD_BY_HEAD or request.scheme in _ROW_BY_ROW:
        return []
    fused = [kind for kind in layers if layer_names.last(kind.name) == "query_key_value"]
    if not fused:
        return []
    why = "it reorders query_key_value by heads, which this scheme's tensors can't be"
    hint = "Add `re:.*query_key_value` to `ignore`, or use FP8_DYNAMIC or W8A8."
    return [_unserved("any hardware", why, _at(("quantize", "scheme"), fused), hint)]


# vLLM 0.32.0 runs GPT-NeoX through transformers, which takes them as they are.
_HEAD_BY_HEAD = ("bloom",)
_ROW_BY_ROW = ("FP8_DYNAMIC", "W8A8", "BF16", AS_IT_IS)


def _tied(source: Source, layers: Sequence[Kind]) -> list[Problem]:
    """A tied output layer: servers read the embedding, never the quantized tensor."""
    where = Location(key=("quantize", "ignore"))
    return layer_problems.tied_head(source.config, (kind.name for kind in layers), where, "Add lm_head to it.")


def _shared(source: Source, gpus: int) -> list[Problem]:
    """What can't be split across the GPUs: heads, the vocabulary, channels of feed-forward layers."""
    at = ("serve", "tensor_parallel")
    problems = model_shapes.unshared_heads(model_shapes.language_model(source.config), gpus, Location(key=at))
    uneven: dict[int, list[Kind]] = defaultdict(list)
    for kind in source.kinds:
        if layer_names.last(kind.name) in layer_names.MLP:
            uneven[kind.shape[1 if _row_parallel(kind) else 0]].append(kind)
    for channels, alike in uneven.items():
        problems += model_shapes.unshared_channels(channels, gpus, _at(at, alike))
    return problems


def shapes(source: Source, layers: Iterable[Kind], gpus: int) -> dict[Shape, list[Kind]]:
    """Distinct shapes on one GPU, with the layers of each."""
    layers = list(layers)
    joined = {name for (_, members), family in layer_names.families(kind.name for kind in layers).items()
              for name in family if len(family) > 1 and layer_names.last(name) != members[-1]}  # fmt: skip
    found: dict[Shape, list[Kind]] = defaultdict(list)
    config = model_shapes.language_model(source.config)
    for kind in layers:
        rows, columns = layer_names.shard(kind.name, kind.shape, gpus, config)
        found[Shape(rows, columns, kind.shape[1], kind.name in joined)].append(kind)
    return found


def _fits(request: Request, source: Source, layers: Sequence[Kind], target: str, tensor_parallel: int) -> list[Problem]:
    """Layers without a kernel on the target."""
    at = ("quantize", "group_size" if SCHEMES[request.scheme].grouped else "scheme")
    reasons: dict[str, list[Kind]] = defaultdict(list)
    for shape, alike in shapes(source, layers, tensor_parallel).items():
        found = kernels.fit(request.scheme, request.group_size, shape, target)
        if found.kernel is None:
            reasons[found.why] += alike
    hint = "Use another group size or scheme, fewer GPUs, or add those layers to `ignore`."
    found_problems = [_unserved(target, why, _at(at, alike), hint) for why, alike in reasons.items() if alike]
    experts = [kind for kind in layers if layer_names.is_expert(kind.name)]
    if experts and (why := kernels.for_experts(request.scheme, target)):
        hint = "Leave the experts alone (`ignore: ['re:.*experts.*']`), or serve it on a GPU (`serve.target`)."
        found_problems.append(_unserved(target, why, _at(("quantize", "scheme"), experts), hint))
    return found_problems


def _unserved(target: str, why: str, where: Location, hint: str) -> Problem:
    return Problem(_NO_KERNEL, f"vLLM {kernels.VLLM} can't serve it on {target}: {why}.", where, hint)


def _other_kernel(
    request: Request, source: Source, layers: Sequence[Kind], target: str, tensor_parallel: int
) -> list[Problem]:
    """Layers served by another kernel than the scheme's on the target."""
    usual = SCHEMES[request.scheme].kernels.get(target)
    others: dict[str, list[Kind]] = defaultdict(list)
    for shape, alike in shapes(source, layers, tensor_parallel).items():
        kernel = kernels.fit(request.scheme, request.group_size, shape, target).kernel
        if usual and kernel and kernel != usual:
            others[kernel] += alike
    return [
        Problem(
            _OTHER_KERNEL,
            f"served by {kernel}, not by {usual}, for their shape.",
            _at(("quantize", "group_size" if SCHEMES[request.scheme].grouped else "scheme"), alike),
            severity="note",
        )
        for kernel, alike in others.items()
    ]


def _unmatched(request: Request, source: Source) -> list[Problem]:
    """Patterns that match no layer. lm_head may be ignored where embeddings are tied and there is none."""
    if not source.kinds:
        return []
    return [
        Problem(_UNMATCHED_PATTERN, f"'{pattern}' matches no linear layer.", Location(key=at), severity="note")
        for pattern, at in _patterns(request)
        if (pattern, at[1]) != ("lm_head", "ignore") and not source.split((pattern,))[1]
    ]


def left_behind(source: Source) -> list[Problem]:
    """Layers that transformers doesn't load: an artifact of an engine that saves what it loaded lacks them."""
    found = [each.kind for each in source.roles if each.role is Role.DRAFT]
    return [layer_problems.left_behind(_at(("model", "source"), found))] if found else []


def _at(key: KeyPath, kinds: Sequence[Kind]) -> Location:
    """A key of the recipe, and the layers concerned."""
    return replace(named([name for kind in kinds for name in kind.names]), key=key)
