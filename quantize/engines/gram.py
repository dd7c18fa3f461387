"""gram, qpack's own engine: AWQ scales and GPTQ rounding from Gram matrices, in every format that servers read."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from qpack.core import model_shapes
from qpack.core.errors import QuantizeError
from qpack.core.findings import LayerError
from qpack.core.jsonfile import JsonObject, NotJson, read_object
from qpack.core.problems import Code, Location, Problem
from qpack.core.records import Quantized
from qpack.runtime.specs import Spec
from quantize.checkpoint.headers import Tensor
from quantize.checkpoint.layer_groups import matcher, split
from quantize.checkpoint.source import Source
from quantize.engines import adapters, bit_budget
from quantize.engines.adapters import NO_GROUP_SIZE, UNKNOWN_MODEL
from quantize.engines.protocol import MemoryProfile, Paths, Request
from quantize.engines.workers.engine_answer import Answer
from quantize.engines.workers.gram_job import Choice, Grid, Job, Mixed
from quantize.schemes.schemes import SCHEMES, UNQUANTIZED

_HERE = Path(__file__).parent

_LAYER = re.compile(r"\.\d+\.")

NAME = "gram"
FORMATS: tuple[str, ...] = ("compressed-tensors", "awq", "gptq")
MIXED_PRECISION = True
TUNES = True
ROWS_TOGETHER = False
RESUMABLE = True
LAYERWISE = True
KEEPS_UNLOADED = True
MEMORY = MemoryProfile()
ENVIRONMENT = Spec("gram", _HERE / "envs" / "gram", ("torch", "transformers", "safetensors"))
WORKER = _HERE / "workers" / "gram_worker.py"
_SCHEMES = ("W4A16", "W4A16_ASYM", "W8A16", "W8A16_ASYM", "W8A8", "FP8_DYNAMIC", "NVFP4", "NVFP4A16", "MXFP4",
            "MXFP4A16", "W4AFP8")  # fmt: skip
_METHODS = ("awq", "gptq", "awq+gptq", "rtn", "smoothquant")
SUPPORTED = frozenset((method, name) for name in _SCHEMES for method in SCHEMES[name].methods if method in _METHODS)

_FP4: dict[str, Literal["nv", "mx"]] = {"NVFP4": "nv", "NVFP4A16": "nv", "MXFP4": "mx", "MXFP4A16": "mx"}

_OUTSIDE = Code("outside-decoder", "The engine quantizes decoder layers alone, and a layer isn't in one.")
_NO_SCHEME = Code("engine-scheme", "The engine doesn't make a scheme.")
_MADE = f"It makes {', '.join(_SCHEMES)}; {UNQUANTIZED} leaves a layer alone."
_PARTIAL_WORD = Code("partial-word", "The channels of a layer don't fill the words that its format keeps them in.")


def check(request: Request, source: Source) -> list[Problem]:
    """It quantizes decoder layers alone, of every decoder that transformers has."""
    problems = [*adapters.one_scheme("gram", request), *_model(source)]
    if problems := problems or adapters.fused_biases(request, source):
        return problems
    outside = [kind for kind in source.kinds if not _LAYER.search(kind.name)]
    left = [kind.name for kind in split(outside, request.ignore)[0]]
    if left:
        what = "gram quantizes only decoder layers, and this is outside of them."
        where = Location(key=("quantize", "ignore"), name=left[0])
        problems.append(Problem(_OUTSIDE, what, where, f"Add {left[0]} to `ignore`."))
    left_alone = matcher(request.ignore)
    layers = [tensor for tensor in source.linears if not left_alone(tensor.name.removesuffix(".weight"))]
    if request.budget is not None:
        problems += bit_budget.check(request, layers, source.config)
    return problems + _choices(request) + _words(request, layers) + _tuning(request)


def _choices(request: Request) -> list[Problem]:
    """Schemes that gram doesn't make."""
    return [
        Problem(_NO_SCHEME, f"gram doesn't make {name}.", Location(key=("quantize", "choices", i, "schemes")), _MADE)
        for i, choice in enumerate(request.choices)
        for name in choice.schemes
        if name not in (*_SCHEMES, UNQUANTIZED)
    ]


def _model(source: Source) -> list[Problem]:
    """What gram can't walk through layer by layer."""
    kind, where = source.config.get("model_type"), Location(key=("quantize", "engine"))
    if source.config.get("is_encoder_decoder"):
        what = f"gram supports only decoders, and '{kind}' has an encoder."
        return [Problem(UNKNOWN_MODEL, what, where, "Use `engine: llmcompressor`.")]
    if model_shapes.language_model(source.config).get("hidden_size_per_layer_input"):
        what = f"the layers of '{kind}' read an embedding of their own for each token, which gram doesn't keep."
        return [Problem(UNKNOWN_MODEL, what, where, "Use `engine: llmcompressor`.")]
    hidden = model_shapes.language_model(source.config).get("hidden_size")
    turned = [
        tensor.name
        for tensor in source.tensors
        if tensor.name.endswith("experts.gate_up_proj")
        and len(tensor.shape) == 3
        and hidden not in (None, tensor.shape[2])
    ]
    if turned:
        what = f"{turned[0]} holds experts transposed, in a way that gram can't take apart."
        return [Problem(UNKNOWN_MODEL, what, where, "Use `engine: llmcompressor`.")]
    return []


_TUNING = Code(
    "tuning", "Tuning takes calibration rows, and weights of 4 bits or integers of 8 beside 16-bit activations."
)
_GRAM_REPORT = Code("gram-report", "gram's report can't be read.")


def _tuning(request: Request) -> list[Problem]:
    """What tuning can't do."""
    where, hint = Location(key=("quantize", "iterations")), "Set it to 0."
    if not request.iterations:
        return []
    if request.method == "rtn":
        return [Problem(_TUNING, "rtn reads no calibration rows, and tuning needs them.", where, hint)]
    schemes = (request.scheme, *(name for choice in request.choices for name in choice.schemes))
    for name in schemes:
        if SCHEMES[name].weight_bits == SCHEMES[name].activation_bits == 8:
            what = f"gram tunes weights of 4 bits, or of 8 bits that are integers; {name} has neither."
            return [Problem(_TUNING, what, where, hint)]
    return []


def _words(request: Request, layers: list[Tensor]) -> list[Problem]:
    """AWQ and GPTQ keep several values in a word, across channels that have to fill it."""
    if request.format not in ("awq", "gptq"):
        return []
    if request.format == "awq" and request.group_size is None:
        where = Location(key=("quantize", "group_size"))
        return [Problem(NO_GROUP_SIZE, "awq needs a group size.", where, "128 is usual; 64 and 32 are finer.")]
    each = 32 // SCHEMES[request.scheme].weight_bits
    odd = [layer for layer in layers if any(size % each for size in layer.shape)]
    if not odd:
        return []
    what = f"{request.format} keeps {each} channels in a word, and this layer is {' x '.join(map(str, odd[0].shape))}."
    where = Location(key=("quantize", "format"), name=odd[0].name)
    return [Problem(_PARTIAL_WORD, what, where, "Use compressed-tensors, or add that layer to `ignore`.")]


def job(request: Request, paths: Paths) -> Job:
    """Everything that the worker needs."""
    return Job(
        checkpoint=str(paths.checkpoint),
        tokens=str(paths.tokens) if paths.tokens else None,
        method=request.method,
        grid=_grid(request.scheme, request.group_size),
        format=request.format or FORMATS[0],
        mixed=_mixed(request),
        ignore=request.ignore,
        damping=request.damping,
        iterations=request.iterations,
        trust_remote_code=request.trust_remote_code,
        scratch=str(paths.scratch),
    )


def _grid(scheme: str, group_size: int | None) -> Grid:
    return Grid(
        bits=SCHEMES[scheme].weight_bits,
        symmetric=not scheme.endswith("_ASYM"),
        group_size=SCHEMES[scheme].block or group_size,
        float8=scheme.startswith("FP8"),
        activations=SCHEMES[scheme].activation_bits < 16,
        fp4=_FP4.get(scheme, ""),
    )


def _mixed(request: Request) -> Mixed | None:
    if request.budget is None:
        return None
    every = bit_budget.options(request)
    grids = tuple(None if one.scheme == UNQUANTIZED else _grid(one.scheme, one.group_size) for one in every)
    choices = tuple(
        Choice(pattern, tuple(map(every.index, options))) for pattern, options in bit_budget.allowed(request)
    )
    return Mixed(request.budget, grids, choices, request.tensor_parallel, request.per_token)


def read(request: Request, out: Path, answer: Answer) -> Quantized:
    """The artifact's record, with each layer's error. Raises QuantizeError, see `read_report`."""
    made = adapters.record(NAME, request, out, answer)
    sites, bits = read_report(out / "checkpoint" / "gram_report.json", mixed=bool(request.choices))
    return made.model_copy(update={"sites": sites, "bits_per_weight": bits})


def _scheme_of(site: JsonObject) -> str | None:
    """The scheme of a site's grid."""
    kind = (site["bits"], site["symmetric"], site["float8"], site["activations"], site["fp4"])
    for name in _SCHEMES:
        grid = _grid(name, None)
        if kind == (grid.bits, grid.symmetric, grid.float8, grid.activations, grid.fp4):
            return name
    return None


def read_report(path: Path, *, mixed: bool = False) -> tuple[tuple[LayerError, ...], float]:
    """Each layer's error, with its scheme where those are `mixed`, and the stored bits per weight.

    Raises:
        QuantizeError: the file isn't what gram writes.
    """
    known = set(LayerError.model_fields)
    try:
        sites = read_object(path)["sites"]
        records = tuple(
            LayerError(
                **{key: value for key, value in site.items() if key in known},
                scheme=_scheme_of(site) if mixed else None,
            )
            for site in sites
        )
        weights = sum(site["weights"] for site in sites)
        return records, sum(site["stored_bits"] for site in sites) / weights
    except (OSError, NotJson, LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise QuantizeError(
            _GRAM_REPORT,
            f"{path}: is not the report that gram writes: {error}",
            hint="Run the build again; gram starts anew.",
        ) from error
