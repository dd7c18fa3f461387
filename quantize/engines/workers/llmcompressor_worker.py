"""Quantizes a checkpoint with llm-compressor. Runs in its environment; see qpack_worker for the protocol."""

import contextlib
import glob
import itertools
import json
import os
import re
import time

import qpack_worker
import torch
from compressed_tensors.quantization import (
    QuantizationArgs,
    QuantizationConfig,
    QuantizationScheme,
    QuantizationStatus,
    preset_name_to_scheme,
)
from compressed_tensors.quantization.quant_args import QuantizationStrategy
from datasets import Dataset
from engine_answer import Answer, peak_memory_bytes
from llmcompressor import __version__, model_free_ptq, oneshot
from llmcompressor.core import LifecycleCallbacks
from llmcompressor.entrypoints import model_free
from llmcompressor.modifiers.gptq import GPTQModifier
from llmcompressor.modifiers.quantization import QuantizationModifier
from llmcompressor.modifiers.transform.awq import AWQModifier
from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier
from llmcompressor.pipelines.cache import IntermediatesCache
from llmcompressor_job import Job
from safetensors import safe_open
from transformers import AutoModelForCausalLM

ROUNDED_BY_GPTQ = ("gptq", "awq+gptq", "smoothquant")


class Progress:
    """Reports how many layers are done, over all passes."""

    layer_ended = LifecycleCallbacks.sequential_epoch_end

    @classmethod
    def install(cls, steps):
        done = itertools.count(1)

        def reported(*args, **kwargs):
            ended = cls.layer_ended(*args, **kwargs)
            qpack_worker.progress(min(next(done), steps), steps, "layers")
            return ended

        LifecycleCallbacks.sequential_epoch_end = reported


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
    return [pattern if pattern == "lm_head" else target_of(pattern) for pattern in job.ignore]


def groups_of(job):
    """Every scheme with its layers, overrides first: readers of the config use the first match."""
    others = [scheme_of(other, [target_of(other.layers)]) for other in job.overrides]
    schemes = [*others, scheme_of(job, ["Linear"])]
    if job.method in ROUNDED_BY_GPTQ:
        # With the range of a group's largest weight, GPTQ's error is half as large again (docs/decisions/0059).
        for scheme in schemes:
            if scheme.weights.num_bits == 4:
                scheme.weights.observer = "memoryless_mse"
    return {f"group_{i}": scheme for i, scheme in enumerate(schemes)}


def modifiers_of(job):
    """The modifiers, in order."""
    groups = {"config_groups": groups_of(job), "ignore": ignored(job)}
    if job.kv_cache:
        groups["kv_cache_scheme"] = QuantizationArgs(num_bits=8, type="float", strategy="tensor", dynamic=False)
    method = job.method
    made = []
    if method in ("awq", "awq+gptq"):
        made.append(AWQModifier())
    elif method == "smoothquant":
        made.append(SmoothQuantModifier(smoothing_strength=0.8))
    if method in ROUNDED_BY_GPTQ:
        made.append(GPTQModifier(**groups, dampening_frac=job.damping))
    else:
        made.append(QuantizationModifier(**groups))
    return made


class UnpinnedCache:
    """AWQ pins its cache in host memory to copy it to a GPU; without a GPU, pinning is an error in torch."""

    @staticmethod
    def install():
        if not torch.accelerator.is_available():
            IntermediatesCache.pin_memory = lambda self, *args, **kwargs: None  # noqa: ARG005


class WholeTensors:
    """Blocks at a layer's edge are views, which safetensors can't write."""

    @staticmethod
    def install():
        write = model_free.save_file
        model_free.save_file = lambda tensors, path: write({k: t.contiguous() for k, t in tensors.items()}, path)


def dataset_of(path):
    """Rows of token ids, without padding: each batch is one row."""
    with open(path, encoding="utf-8") as file:
        rows = [json.loads(line)["input_ids"] for line in file]
    return Dataset.from_dict({"input_ids": rows, "attention_mask": [[1] * len(row) for row in rows]})


def work(job, out):
    """Quantize and save; everything but weights and config is copied from the source as it is."""
    started = time.monotonic()
    torch.manual_seed(0)
    UnpinnedCache.install()
    target = os.path.join(out, "checkpoint")
    quantized, linear = with_texts(job, target) if job.tokens else without_texts(job, target)
    qpack_worker.copy_beside(job.checkpoint, target)
    return Answer(
        engine_version=__version__,
        quantized_layers=quantized,
        linear_layers=linear,
        seconds=time.monotonic() - started,
        peak_memory_bytes=peak_memory_bytes(torch.cuda),
    )


def without_texts(job, target):
    """Round file by file without loading the model: read, round and write one safetensors file after another."""
    qpack_worker.progress(0, 0, "rounding, file by file")
    config = QuantizationConfig(
        config_groups=groups_of(job),
        # Without the model, embeddings are distinguished from linear layers by name.
        ignore=[*ignored(job), *job.not_linear],
        quantization_status=QuantizationStatus.INITIALIZED,
    )
    WholeTensors.install()
    model_free_ptq(job.checkpoint, target, config=config)
    quantized = sum(
        name.endswith(".weight_scale")
        for file in glob.glob(os.path.join(glob.escape(target), "*.safetensors"))
        for name in safe_open(file, "pt").keys()  # noqa: SIM118
    )
    return quantized, job.linear_layers


def with_texts(job, target):
    """The model layer by layer, with the calibration rows; everything but weights and config is the source's."""
    qpack_worker.progress(0, 0, "loading the model")
    model = AutoModelForCausalLM.from_pretrained(
        job.checkpoint, dtype="auto", local_files_only=True, trust_remote_code=job.trust_remote_code
    )
    data, modifiers = dataset_of(job.tokens), modifiers_of(job)
    # In one pass GPTQ would compute Hessians of inputs that are scaled only afterwards.
    apart = isinstance(modifiers[-1], GPTQModifier) and len(modifiers) > 1
    layers = (model.config.get_text_config().num_hidden_layers + 1) * (2 if apart else 1)
    Progress.install(layers)
    qpack_worker.progress(0, layers, "layers")
    oneshot(
        model=model,
        tokenizer=job.checkpoint,
        recipe=modifiers,
        dataset=data,
        pipeline="independent" if apart else "sequential",
        num_calibration_samples=len(data),
        shuffle_calibration_samples=False,
        max_seq_length=max(len(row) for row in data["input_ids"]),
    )
    linear = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
    quantized = sum(1 for module in linear if getattr(module, "quantization_scheme", None) is not None)

    qpack_worker.progress(0, 0, "writing the checkpoint")
    model.save_pretrained(target, save_compressed=True)
    # llm-compressor's own record has Python tags in YAML and is read by no server. The release has qpack's recipe.
    with contextlib.suppress(FileNotFoundError):
        os.remove(os.path.join(target, "recipe.yaml"))
    return quantized, len(linear)


if __name__ == "__main__":
    qpack_worker.main(work, Job)
