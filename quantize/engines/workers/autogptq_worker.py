"""Quantizes a checkpoint with AutoGPTQ. Runs in its environment; see qpack_worker for the protocol."""

import json
import os
import shutil
import time

import qpack_worker
import torch
from auto_gptq import BaseQuantizeConfig, __version__
from auto_gptq.modeling import _base
from auto_gptq.modeling.auto import GPTQ_CAUSAL_LM_MODEL_MAP
from auto_gptq.nn_modules.qlinear import GeneralQuantLinear
from auto_gptq.nn_modules.qlinear.qlinear_cuda_old import QuantLinear
from autogptq_job import Job
from engine_answer import Answer, peak_memory_bytes
from transformers import AutoModelForCausalLM


class WithoutCuda:
    """AutoGPTQ moves every layer to the first GPU and synchronizes; without a GPU this keeps both on the CPU. The
    arithmetic is the same. Its `from_pretrained` needs a GPU, so `load` replaces it.
    """

    @staticmethod
    def install():
        if not torch.cuda.is_available():
            _base.CUDA_0 = _base.CPU
            torch.cuda.synchronize = lambda: None


class Counted:
    """Replaces AutoGPTQ's search for a block's linear layers, which runs once per block, to report progress."""

    def __init__(self, blocks):
        self.blocks = blocks
        self.done = 0
        self.find = _base.find_layers

    def __call__(self, block):
        qpack_worker.progress(self.done, self.blocks, "layers")
        self.done += 1
        return self.find(block)


def prepare(job, out):
    """The checkpoint as transformers 4 reads it: its files by links, its config translated."""
    folder = os.path.join(out, "prepared")
    os.mkdir(folder)
    for name in os.listdir(job.checkpoint):
        if name != "config.json":
            os.symlink(os.path.join(job.checkpoint, name), os.path.join(folder, name))
    with open(os.path.join(folder, "config.json"), "w", encoding="utf-8") as file:
        json.dump(job.config, file)
    return folder


def load(job, folder, gpu):
    """The model for AutoGPTQ."""
    model = AutoModelForCausalLM.from_pretrained(
        folder,
        # On a CPU half precision is many times slower than single.
        torch_dtype=torch.float16 if gpu else torch.float32,
        trust_remote_code=job.trust_remote_code,
        # Other implementations get no mask if all tokens count, and AutoGPTQ needs one.
        attn_implementation="eager",
        local_files_only=True,
    )
    model.seqlen = model.config.max_position_embeddings
    model.eval()
    settings = BaseQuantizeConfig(
        bits=job.bits,
        group_size=job.group_size,
        damp_percent=job.damping,
        sym=True,
        desc_act=False,
        model_file_base_name="model",
    )
    return GPTQ_CAUSAL_LM_MODEL_MAP[model.config.model_type](model, False, settings)


def save(job, model, target):
    """Write the checkpoint; the config is the source's, with AutoGPTQ's section on the quantization."""
    model.model.half()
    if model.config.tie_word_embeddings:
        # AutoGPTQ writes every tensor, a shared one twice.
        del model.model.lm_head
    model.save_quantized(target)
    with open(os.path.join(target, "config.json"), encoding="utf-8") as file:
        said = json.load(file)["quantization_config"]
    with open(os.path.join(target, "config.json"), "w", encoding="utf-8") as file:
        json.dump({**job.artifact_config, "quantization_config": said}, file, indent=2)
    qpack_worker.copy_beside(job.checkpoint, target)


def work(job, out):
    """Quantize and save; everything but weights and config is copied from the source as it is."""
    started = time.monotonic()
    torch.manual_seed(0)
    WithoutCuda.install()
    with open(job.tokens, encoding="utf-8") as file:
        rows = [json.loads(line)["input_ids"] for line in file]
    folder = prepare(job, out)
    gpu = torch.cuda.is_available()
    qpack_worker.progress(0, 0, "loading the model")
    model = load(job, folder, gpu)
    _base.find_layers = Counted(model.config.num_hidden_layers)
    model.quantize([{"input_ids": row, "attention_mask": [1] * len(row)} for row in rows], batch_size=1)
    modules = list(model.model.modules())
    quantized = sum(isinstance(module, (GeneralQuantLinear, QuantLinear)) for module in modules)
    linear = quantized + sum(isinstance(module, torch.nn.Linear) for module in modules)

    qpack_worker.progress(0, 0, "writing the checkpoint")
    save(job, model, os.path.join(out, "checkpoint"))
    shutil.rmtree(folder)
    return Answer(
        engine_version=__version__,
        quantized_layers=quantized,
        linear_layers=linear,
        seconds=time.monotonic() - started,
        peak_memory_bytes=peak_memory_bytes(torch.cuda),
    )


if __name__ == "__main__":
    qpack_worker.main(work, Job)
