"""Quantizes a checkpoint with llm-compressor. Runs in its environment; see qpack_worker for the protocol.

Job: checkpoint, tokens (JSON lines of {"input_ids": [...]}, or null), method, scheme, group_size, ignore, damping.
"""

import contextlib
import json
import os
import resource
import shutil
import time

import qpack_worker
import torch
from compressed_tensors.quantization import QuantizationScheme, preset_name_to_scheme
from compressed_tensors.quantization.quant_args import QuantizationStrategy
from datasets import Dataset
from llmcompressor import __version__, oneshot
from llmcompressor.core import EventType
from llmcompressor.modifiers import Modifier
from llmcompressor.modifiers.gptq import GPTQModifier
from llmcompressor.modifiers.quantization import QuantizationModifier
from llmcompressor.modifiers.transform.awq import AWQModifier
from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier
from llmcompressor.pipelines.cache import IntermediatesCache
from transformers import AutoModelForCausalLM


class Progress(Modifier):
    """Takes part in the lifecycle only to tell how many layers are done."""

    layers: int
    done: int = 0

    def on_initialize(self, state, **kwargs):  # noqa: ARG002
        return True

    def on_event(self, state, event, **kwargs):  # noqa: ARG002
        if event.type_ == EventType.SEQUENTIAL_EPOCH_END:
            self.done = min(self.done + 1, self.layers)
            qpack_worker.progress(self.done, self.layers, "layers")


def scheme_of(job):
    """The compressed-tensors scheme: a preset, with the recipe's group size."""
    scheme = preset_name_to_scheme(job["scheme"], targets=["Linear"])
    weights = scheme.weights
    if job["scheme"] in ("W4A16", "W4A16_ASYM", "W8A16"):
        if job["group_size"] is None:
            weights = weights.model_copy(update={"strategy": QuantizationStrategy.CHANNEL, "group_size": None})
        else:
            weights = weights.model_copy(
                update={"strategy": QuantizationStrategy.GROUP, "group_size": job["group_size"]}
            )
    return QuantizationScheme(
        targets=["Linear"], weights=weights, input_activations=scheme.input_activations, format=scheme.format
    )


def modifiers_of(job, layers):
    """The modifiers, in the order in which they act on each layer."""
    groups = {"config_groups": {"group_0": scheme_of(job)}, "ignore": job["ignore"]}
    gptq = GPTQModifier(**groups, dampening_frac=job["damping"])
    plain = QuantizationModifier(**groups)
    made = {
        "gptq": [gptq],
        "rtn": [plain],
        "awq": [AWQModifier(), plain],
        "smoothquant": [SmoothQuantModifier(smoothing_strength=0.8), gptq],
    }[job["method"]]
    return [*made, Progress(layers=layers)] if job["tokens"] else made


class UnpinnedCache:
    """AWQ pins its cache in host memory for the copy to a GPU; without one, pinning is an error in torch."""

    @staticmethod
    def install():
        if not torch.accelerator.is_available():
            IntermediatesCache.pin_memory = lambda self, *args, **kwargs: None  # noqa: ARG005


def dataset_of(path):
    """Rows of token ids, without padding: each batch is one row."""
    with open(path, encoding="utf-8") as file:
        rows = [json.loads(line)["input_ids"] for line in file]
    return Dataset.from_dict({"input_ids": rows, "attention_mask": [[1] * len(row) for row in rows]})


def work(job):
    """Quantize and save; everything but weights and config is copied from the source as it is."""
    started = time.monotonic()
    torch.manual_seed(0)
    UnpinnedCache.install()
    qpack_worker.progress(0, 0, "loading the model")
    model = AutoModelForCausalLM.from_pretrained(
        job["checkpoint"], dtype="auto", local_files_only=True, trust_remote_code=job["trust_remote_code"]
    )
    layers = model.config.get_text_config().num_hidden_layers + 1
    options = {"recipe": modifiers_of(job, layers), "pipeline": "datafree"}
    if job["tokens"]:
        data = dataset_of(job["tokens"])
        longest = max(len(row) for row in data["input_ids"])
        options.update(
            dataset=data,
            pipeline="sequential",
            num_calibration_samples=len(data),
            shuffle_calibration_samples=False,
            max_seq_length=longest,
        )
    qpack_worker.progress(0, layers if job["tokens"] else 0, "layers")
    oneshot(model=model, tokenizer=job["checkpoint"], **options)
    linear = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
    quantized = sum(1 for module in linear if getattr(module, "quantization_scheme", None) is not None)

    qpack_worker.progress(0, 0, "writing the checkpoint")
    target = os.path.join(job["out"], "checkpoint")
    model.save_pretrained(target, save_compressed=True)
    # llm-compressor's own record: Python tags in YAML, which no server reads. The release has qpack's recipe.
    with contextlib.suppress(FileNotFoundError):
        os.remove(os.path.join(target, "recipe.yaml"))
    copy_the_rest(job["checkpoint"], target)
    seconds = time.monotonic() - started
    if torch.cuda.is_available():
        peak = torch.cuda.max_memory_allocated()
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "engine_version": __version__,
        "quantized_layers": quantized,
        "linear_layers": len(linear),
        "seconds": seconds,
        "peak_memory_bytes": peak,
    }


def copy_the_rest(source, target):
    """Copy what a server reads and quantization leaves alone: tokenizer, chat template, generation config, licence."""
    changed = ("config.json", "model.safetensors.index.json")
    for name in sorted(os.listdir(source)):
        if name in changed or name.endswith((".safetensors", ".bin", ".pt", ".pth", ".gguf")):
            continue
        path = os.path.join(source, name)
        if os.path.isfile(path):
            shutil.copyfile(path, os.path.join(target, name))


if __name__ == "__main__":
    qpack_worker.main(work)
