"""Quantizes a checkpoint with AutoAWQ. Runs in its environment; see qpack_worker for the protocol."""

import json
import os
import shutil
import time

import qpack_worker
import torch
from autoawq_job import Job
from awq import AutoAWQForCausalLM, __version__
from awq.modules.linear import WQLinear_GEMM
from awq.quantize import quantizer
from engine_answer import Answer, peak_memory_bytes


class Counted:
    """Replaces AutoAWQ's tqdm, to report finished layers."""

    def __init__(self, items, desc=""):
        self.items = list(items)
        self.what = "layers" if desc == "AWQ" else f"layers ({desc.lower()})"

    def __iter__(self):
        for done, item in enumerate(self.items):
            qpack_worker.progress(done, len(self.items), self.what)
            yield item
        qpack_worker.progress(len(self.items), len(self.items), self.what)


class Quantizer(quantizer.AwqQuantizer):
    """AutoAWQ's quantizer, with the weights restored after each scale that it tries."""

    def _compute_best_scale(self, x, w_mean, x_mean, module2inspect, *more, **named):
        # AutoAWQ saves them with `.cpu()`, which doesn't copy on a CPU, and multiplies in place: later scales were
        # tried on weights already scaled by the first, and those were saved.
        state = module2inspect.state_dict
        module2inspect.state_dict = lambda: {name: tensor.clone() for name, tensor in state().items()}
        try:
            return super()._compute_best_scale(x, w_mean, x_mean, module2inspect, *more, **named)
        finally:
            del module2inspect.state_dict


def prepare(job, out):
    """The checkpoint as transformers 4 reads it: its files by links, its configs translated."""
    folder = os.path.join(out, "prepared")
    os.mkdir(folder)
    for name in os.listdir(job.checkpoint):
        if name not in ("config.json", "tokenizer_config.json"):
            os.symlink(os.path.join(job.checkpoint, name), os.path.join(folder, name))
    for name in ("config", "tokenizer_config"):
        with open(os.path.join(folder, f"{name}.json"), "w", encoding="utf-8") as file:
            json.dump(getattr(job, name), file)
    return folder


def work(job, out):
    """Quantize and save; the config is the source's, with AutoAWQ's section on the quantization."""
    started = time.monotonic()
    torch.manual_seed(0)
    quantizer.tqdm = Counted
    with open(job.tokens, encoding="utf-8") as file:
        rows = [json.loads(line)["input_ids"] for line in file]
    folder = prepare(job, out)
    qpack_worker.progress(0, 0, "loading the model")
    gpu = torch.cuda.is_available()
    model = AutoAWQForCausalLM.from_pretrained(
        folder,
        # On a CPU half precision is many times slower than single.
        torch_dtype=torch.float16 if gpu else torch.float32,
        trust_remote_code=job.trust_remote_code,
        safetensors=True,
    )
    settings = {"zero_point": True, "q_group_size": job.group_size, "w_bit": 4, "version": "GEMM"}
    if job.ignore:
        settings["modules_to_not_convert"] = list(job.ignore)
    qpack_worker.progress(0, 0, "layers")
    # AutoAWQ silently drops rows longer than max_calib_seq_len, so it is the longest row's length. It joins all
    # rows and cuts them into pieces of that length.
    model.quantize(
        None,
        quant_config=settings,
        calib_data=rows,
        max_calib_samples=len(rows),
        max_calib_seq_len=max(map(len, rows)),
        quantizer_cls=Quantizer,
    )
    modules = list(model.model.modules())
    quantized = sum(isinstance(module, WQLinear_GEMM) for module in modules)
    linear = quantized + sum(isinstance(module, torch.nn.Linear) for module in modules)

    qpack_worker.progress(0, 0, "writing the checkpoint")
    target = os.path.join(out, "checkpoint")
    model.model.half()
    model.save_quantized(target, safetensors=True, shard_size="5GB")
    with open(os.path.join(target, "config.json"), encoding="utf-8") as file:
        said = json.load(file)["quantization_config"]
    with open(os.path.join(target, "config.json"), "w", encoding="utf-8") as file:
        json.dump({**job.artifact_config, "quantization_config": said}, file, indent=2)
    qpack_worker.copy_beside(job.checkpoint, target)
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
