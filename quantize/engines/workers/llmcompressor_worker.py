"""Quantizes a checkpoint with llm-compressor. Runs in its environment; see qpack_worker for the protocol."""

import glob
import json
import os
import re
import time
from pathlib import Path

import llmcompressor_model
import qpack_worker
import source_layout
import torch
from compressed_tensors.compressors.format import infer_module_format
from compressed_tensors.quantization import (
    QuantizationArgs,
    QuantizationConfig,
    QuantizationScheme,
    QuantizationStatus,
    preset_name_to_scheme,
)
from compressed_tensors.quantization.quant_args import QuantizationStrategy
from engine_answer import Answer, peak_memory_bytes
from llmcompressor import __version__, model_free_ptq
from llmcompressor.entrypoints import model_free
from llmcompressor.entrypoints.model_free import converter
from llmcompressor.modifiers.gptq import GPTQModifier
from llmcompressor.modifiers.quantization import QuantizationModifier
from llmcompressor.modifiers.transform.awq import AWQModifier
from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier
from llmcompressor_job import Job
from safetensors import safe_open

ROUNDED_BY_GPTQ = ("gptq", "awq+gptq", "smoothquant")


def scheme_of(ask, targets):
    """The compressed-tensors scheme: a preset, with the recipe's group size."""
    scheme = preset_name_to_scheme(ask.scheme, targets=targets)
    weights = scheme.weights
    if ask.scheme in ("W4A16", "W4A16_ASYM", "W8A16", "W4AFP8", "W4A8"):
        if ask.group_size is None:
            weights = weights.model_copy(update={"strategy": QuantizationStrategy.CHANNEL, "group_size": None})
        else:
            weights = weights.model_copy(update={"strategy": QuantizationStrategy.GROUP, "group_size": ask.group_size})
    # By default the library stores one 4-bit value per byte, but vLLM expects eight per 32 bits.
    form = "pack-quantized" if ask.scheme == "W4AFP8" else scheme.format
    return QuantizationScheme(targets=targets, weights=weights, input_activations=scheme.input_activations, format=form)


def target_of(pattern):
    """An override's pattern for compressed-tensors: a full name, or an expression for it."""
    return pattern if pattern.startswith("re:") else f"re:(.*[.])?{re.escape(pattern)}$"


def ignored(job):
    """Layers not to quantize. In a recipe a name may be the end of one; compressed-tensors needs all of it."""
    return [target_of(pattern) for pattern in job.ignore]


def groups_of(job):
    """(scheme, its targets) of every group, overrides first: readers of the config use the first match."""
    found = [(scheme_of(other, [target_of(other.layers)]), [target_of(other.layers)]) for other in job.overrides]
    found.append((scheme_of(job, ["Linear"]), ["Linear"]))
    for scheme, _ in found:
        # The library takes it from a module's class, and for one that derives from a linear layer finds none.
        scheme.format = scheme.format or infer_module_format(torch.nn.Linear, scheme)
    if job.method in ROUNDED_BY_GPTQ:
        # With the range of a group's largest weight, GPTQ's error is half as large again (docs/decisions/0059).
        for scheme, _ in found:
            if scheme.weights.num_bits == 4:
                scheme.weights.observer = "memoryless_mse"
    return found


def aimed(groups, layers, job):
    """The same schemes at the model's own names of the layers: a recipe's patterns are about the source's."""
    found = []
    for (scheme, targets), other in zip(groups, [*job.overrides, None], strict=True):
        if other is None:
            found.append((scheme, targets))
            continue
        names = [name for name in layers.wanted if llmcompressor_model.matches(other.layers, layers.plain(name))]
        if names:
            found.append((scheme.model_copy(update={"targets": names}), targets))
    return found


def modifiers_of(job, groups, ignore, mappings):
    """The modifiers, in order."""
    given = {"config_groups": {f"group_{i}": scheme for i, (scheme, _) in enumerate(groups)}, "ignore": ignore}
    if job.kv_cache:
        given["kv_cache_scheme"] = QuantizationArgs(num_bits=8, type="float", strategy="tensor", dynamic=False)
    made = []
    if job.method in ("awq", "awq+gptq"):
        made.append(AWQModifier(mappings=mappings))
    elif job.method == "smoothquant":
        made.append(SmoothQuantModifier(smoothing_strength=0.8, mappings=mappings))
    if job.method in ROUNDED_BY_GPTQ:
        made.append(GPTQModifier(**given, dampening_frac=job.damping))
    else:
        made.append(QuantizationModifier(**given))
    return made


class JoinedLayers:
    """Layers that a server joins share a global scale (NVFP4). Without the model they are known by their names, and the
    library's names have no experts and no latent attention: a server would then take the scale of one for both.
    """

    FUSED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"), ("q_a_proj", "kv_a_proj_with_mqa"), ("w1", "w3"))

    @classmethod
    def install(cls):
        # Those of one set are read together, whatever file they are in.
        for first, *others in (cls.FUSED[1], cls.FUSED[2]):
            pattern = rf"^(?P<prefix>.+)\.{first}\.weight$"
            converter.DEFAULT_FUSED_MAPPINGS[pattern] = [f"{{prefix}}.{other}.weight" for other in others]
        converter.get_fused_names = cls.sets

    @classmethod
    def sets(cls, names):
        """Each set of which two members or more are there, as name of a member -> tensor, and sets that are in part."""
        found = {}
        for name in names:
            stem, _, last = name.removesuffix(".weight").rpartition(".")
            for members in cls.FUSED:
                if last in members and name.endswith(".weight"):
                    found.setdefault((stem, members), {})[last] = name
        return [joined for joined in found.values() if len(joined) > 1], []


class WholeTensors:
    """Blocks at a layer's edge are views, which safetensors can't write."""

    @staticmethod
    def install():
        write = model_free.save_file
        model_free.save_file = lambda tensors, path: write({k: t.contiguous() for k, t in tensors.items()}, path)


def work(job, out):
    """Quantize and save; everything but weights and config is copied from the source as it is."""
    started = time.monotonic()
    torch.manual_seed(0)
    target = os.path.join(out, "checkpoint")
    quantized, linear = with_model(job, target) if job.tokens or job.fused else file_by_file(job, target)
    qpack_worker.copy_beside(job.checkpoint, target)
    return Answer(
        engine_version=__version__,
        quantized_layers=quantized,
        linear_layers=linear,
        seconds=time.monotonic() - started,
        peak_memory_bytes=peak_memory_bytes(torch.cuda),
    )


def file_by_file(job, target):
    """Round file by file without loading the model: read, round and write one safetensors file after another."""
    qpack_worker.progress(0, 0, "rounding, file by file")
    config = QuantizationConfig(
        config_groups={f"group_{i}": scheme for i, (scheme, _) in enumerate(groups_of(job))},
        # Without the model, embeddings are distinguished from linear layers by name.
        ignore=[*ignored(job), *job.not_linear],
        quantization_status=QuantizationStatus.INITIALIZED,
    )
    WholeTensors.install()
    JoinedLayers.install()
    model_free_ptq(job.checkpoint, target, config=config)
    # A server asks of linear layers alone whether they are ignored.
    named = dict.fromkeys(ignored(job)) | dict.fromkeys(matrices_left(job, target))
    written = json.loads(Path(target, "config.json").read_text(encoding="utf-8"))
    written["quantization_config"]["ignore"] = list(named)
    Path(target, "config.json").write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")
    quantized = sum(
        name.endswith(".weight_scale")
        for file in glob.glob(os.path.join(glob.escape(target), "*.safetensors"))
        for name in safe_open(file, "pt").keys()  # noqa: SIM118
    )
    return quantized, job.linear_layers


def matrices_left(job, target):
    """Linear layers of the artifact that aren't quantized."""
    found = source_layout.Source(target)
    names = {
        name.removesuffix(".weight")
        for name, shape in found.shapes.items()
        if len(shape) == 2 and name.endswith(".weight")
    }
    return sorted(name for name in names if f"{name}.weight_scale" not in found.shapes and name not in job.not_linear)


def with_model(job, target):
    """The model layer by layer, with the calibration rows; everything but weights and config is the source's."""
    rows = llmcompressor_model.rows_of(job.tokens) if job.tokens else []
    run = llmcompressor_model.Quantizing(job)
    layers, mappings = run.layers, None
    if job.method in ("awq", "awq+gptq"):
        mappings = llmcompressor_model.awq_mappings(run.observed(rows), run.model)
    elif job.method == "smoothquant":
        mappings = llmcompressor_model.smoothquant_mappings(run.observed(rows))
    groups = aimed(groups_of(job), layers, job)
    run.run(modifiers_of(job, groups, sorted(layers.left), mappings), rows)
    reached = llmcompressor_model.Calibration.reached
    unreached = [name for name, module in layers.wanted.items() if rows and module not in reached]
    return run.save(target, groups, unreached), len(layers.wanted) + len(layers.left)


if __name__ == "__main__":
    qpack_worker.main(work, Job)
