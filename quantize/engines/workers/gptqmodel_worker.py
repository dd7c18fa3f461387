"""Quantizes a checkpoint with GPTQModel. Runs in its environment; see qpack_worker for the protocol."""

import json
import os
import time

import qpack_worker
import torch
from engine_answer import Answer, peak_memory_bytes
from gptqmodel import GPTQModel, QuantizeConfig, __version__
from gptqmodel.nn_modules.qlinear import BaseQuantLinear
from gptqmodel_job import Job


def without_traces(folder):
    """Remove what belongs to this run: times, and a path of this machine."""
    os.remove(os.path.join(folder, "quant_log.csv"))
    for name in ("config.json", "quantize_config.json"):
        path = os.path.join(folder, name)
        with open(path, encoding="utf-8") as file:
            config = json.load(file)
        config.get("quantization_config", config).get("meta", {}).pop("offload_to_disk_path", None)
        with open(path, "w", encoding="utf-8") as file:
            json.dump(config, file, indent=2)


def work(job, out):
    """Quantize and save; everything but weights and config is copied from the source as it is."""
    started = time.monotonic()
    torch.manual_seed(0)
    with open(job.tokens, encoding="utf-8") as file:
        rows = [json.loads(line)["input_ids"] for line in file]
    qpack_worker.progress(0, 0, "loading the model")
    settings = QuantizeConfig(
        bits=job.bits,
        group_size=job.group_size,
        sym=True,
        desc_act=False,
        damp_percent=job.damping,
        dynamic={f"-:{pattern}": {} for pattern in job.skip} or None,
    )
    model = GPTQModel.load(job.checkpoint, settings, trust_remote_code=job.trust_remote_code)
    qpack_worker.progress(0, 0, "layers")
    model.quantize([{"input_ids": row, "attention_mask": [1] * len(row)} for row in rows], batch_size=1)
    modules = list(model.model.modules())
    quantized = sum(isinstance(module, BaseQuantLinear) for module in modules)
    linear = quantized + sum(isinstance(module, torch.nn.Linear) for module in modules)

    qpack_worker.progress(0, 0, "writing the checkpoint")
    target = os.path.join(out, "checkpoint")
    model.save(target)
    without_traces(target)
    qpack_worker.copy_beside(job.checkpoint, target)
    return Answer(
        engine_version=__version__,
        quantized_layers=quantized,
        linear_layers=linear,
        seconds=time.monotonic() - started,
        peak_memory_bytes=peak_memory_bytes(torch.cuda),
    )


if __name__ == "__main__":
    qpack_worker.main(work, Job)
