"""gram, qpack's own engine: AWQ scales and GPTQ rounding from Gram matrices, in every format that servers read."""

from __future__ import annotations

import json
import re
from pathlib import Path

from qpack.core.findings import SiteError
from qpack.core.records import Quantized
from qpack.runtime.specs import Spec
from quantize.checkpoint import layer_names
from quantize.checkpoint.headers import Tensor
from quantize.checkpoint.layer_groups import matcher, split
from quantize.checkpoint.source import Source
from quantize.engines import adapters, bit_budget
from quantize.engines.protocol import Complaint, MemoryProfile, Paths, Request
from quantize.engines.workers.engine_answer import Answer
from quantize.engines.workers.gram_job import Grid, Job, Mixed, Option
from quantize.gram.architectures import ARCHITECTURES, SCALELESS
from quantize.schemes.schemes import SCHEMES

_HERE = Path(__file__).parent

_LAYER = re.compile(r"\.\d+\.")

NAME = "gram"
FORMATS: tuple[str, ...] = ("compressed-tensors", "awq", "gptq")
MIXED_PRECISION = True
TUNES = True
ROWS_TOGETHER = False
RESUMABLE = True
LAYERWISE = True
MEMORY = MemoryProfile()
ENVIRONMENT = Spec("gram", _HERE / "envs" / "gram", ("torch", "transformers", "safetensors"))
WORKER = _HERE / "workers" / "gram_worker.py"
_SCHEMES = ("W4A16", "W4A16_ASYM", "W8A16", "W8A16_ASYM", "W8A8", "FP8_DYNAMIC")
SUPPORTED = frozenset((method, name) for name in _SCHEMES for method in SCHEMES[name].methods)


def check(request: Request, source: Source) -> list[Complaint]:
    """It knows architectures by a table, takes other decoders without scales, and quantizes decoder layers alone."""
    complaints = [*adapters.one_scheme("gram", request), *_model(request, source)]
    if complaints:
        return complaints
    outside = [kind for kind in source.kinds if not _LAYER.search(kind.name)]
    left = [kind.name for kind in split(outside, request.ignore)[0]]
    if left:
        what = f"gram quantizes only decoder layers, and {left[0]} is outside of them."
        complaints.append(Complaint(what, ("quantize", "ignore"), f"Add {left[0]} to `ignore`."))
    left_alone = matcher(request.ignore)
    layers = [tensor for tensor in source.linears if not left_alone(tensor.name.removesuffix(".weight"))]
    if request.budget is not None:
        complaints += bit_budget.check(request, layers)
    return complaints + _words(request, layers) + _tuning(request)


def _model(request: Request, source: Source) -> list[Complaint]:
    """What gram can't walk through layer by layer."""
    config, other = source.config, "Use `engine: llmcompressor`."
    kind, at = config.get("model_type"), ("quantize", "engine")
    seeing = next((tensor.name for tensor in source.tensors if layer_names.is_vision(tensor.name)), None)
    if seeing or isinstance(config.get("text_config"), dict):
        what = f"gram supports only text models, and '{kind}' also reads images or audio ({seeing or 'text_config'})."
        return [Complaint(what, at, other)]
    if config.get("is_encoder_decoder"):
        return [Complaint(f"gram supports only decoders, and '{kind}' has an encoder.", at, other)]
    fused = next((tensor.name for tensor in source.tensors if len(tensor.shape) == 3 and "expert" in tensor.name), None)
    if fused:
        what = f"{fused} holds all experts of a layer in one tensor, and gram reads them one by one."
        return [Complaint(what, at, "Save the checkpoint with an expert's own name for each matrix.")]
    if kind is None or kind in ARCHITECTURES or request.method in SCALELESS:
        return []
    what = f"gram doesn't know where the norms of '{kind}' sit, and {request.method} scales them."
    known = ", ".join(ARCHITECTURES)
    return [Complaint(what, ("quantize", "method"), f"Use {' or '.join(SCALELESS)}; all methods work for {known}.")]


def _tuning(request: Request) -> list[Complaint]:
    """Tuning takes calibration rows, and rounds weights alone."""
    at, hint = ("quantize", "iterations"), "Set it to 0."
    if not request.iterations:
        return []
    if request.method == "rtn":
        return [Complaint("rtn reads no calibration rows, and tuning needs them.", at, hint)]
    if SCHEMES[request.scheme].activation_bits < 16:
        return [Complaint(f"{request.scheme} rounds activations too, which tuning doesn't know of.", at, hint)]
    return []


def _words(request: Request, layers: list[Tensor]) -> list[Complaint]:
    """AWQ and GPTQ keep several values in a word, across channels that have to fill it."""
    at = ("quantize", "format")
    if request.format not in ("awq", "gptq"):
        return []
    if request.format == "awq" and request.group_size is None:
        return [Complaint("awq needs a group size.", ("quantize", "group_size"), "128 is usual; 64 and 32 are finer.")]
    each = 32 // SCHEMES[request.scheme].weight_bits
    odd = [layer for layer in layers if any(size % each for size in layer.shape)]
    if not odd:
        return []
    what = (
        f"{request.format} keeps {each} channels in a word, and {odd[0].name} is {' x '.join(map(str, odd[0].shape))}."
    )
    return [Complaint(what, at, "Use compressed-tensors, or add that layer to `ignore`.")]


def job(request: Request, paths: Paths) -> Job:
    """Everything that the worker needs."""
    return Job(
        checkpoint=str(paths.checkpoint),
        tokens=str(paths.tokens) if paths.tokens else None,
        method=request.method,
        grid=Grid(
            bits=SCHEMES[request.scheme].weight_bits,
            symmetric=not request.scheme.endswith("_ASYM"),
            group_size=request.group_size,
            float8=request.scheme.startswith("FP8"),
            activations=SCHEMES[request.scheme].activation_bits < 16,
        ),
        format=request.format or FORMATS[0],
        mixed=_mixed(request),
        ignore=request.ignore,
        damping=request.damping,
        iterations=request.iterations,
        scratch=str(paths.scratch),
    )


def _mixed(request: Request) -> Mixed | None:
    if request.budget is None:
        return None
    grids = tuple(Option(one.bits, one.symmetric, one.group_size) for one in bit_budget.options(request))
    return Mixed(request.budget, grids, request.tensor_parallel)


def read(request: Request, out: Path, answer: Answer) -> Quantized:
    """The artifact's record, with what each site's quantization cost."""
    made = adapters.record(NAME, request, out, answer)
    sites = json.loads((out / "checkpoint" / "gram_report.json").read_text(encoding="utf-8"))["sites"]
    known = set(SiteError.model_fields)
    records = tuple(SiteError(**{key: value for key, value in site.items() if key in known}) for site in sites)
    weights = sum(site["weights"] for site in sites)
    bits = sum(site["stored_bits"] for site in sites) / weights
    return made.model_copy(update={"sites": records, "bits_per_weight": bits})
