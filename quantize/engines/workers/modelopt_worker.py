"""Quantizes a checkpoint with NVIDIA's Model-Optimizer. Runs in its environment; see qpack_worker for the protocol."""

import copy
import json
import os
import re
import resource
import time

import modelopt
import modelopt.torch.quantization as mtq
import qpack_worker
import torch
from engine_answer import Answer
from modelopt.torch.export import export_hf_checkpoint
from modelopt_job import Job
from transformers import AutoModelForCausalLM


def is_ignored(name, patterns):
    """Whether a layer is to be left alone: a name, the end of one, or an expression."""
    return any(
        re.match(pattern[3:], name) if pattern.startswith("re:") else name == pattern or name.endswith("." + pattern)
        for pattern in patterns
    )


def rows_of(path):
    """Rows of token ids."""
    with open(path, encoding="utf-8") as file:
        return [json.loads(line)["input_ids"] for line in file]


def work(job, out):
    """Quantize and save; everything but weights and config is copied from the source as it is."""
    started = time.monotonic()
    torch.manual_seed(0)
    qpack_worker.progress(0, 0, "loading the model")
    model = AutoModelForCausalLM.from_pretrained(
        job.checkpoint, dtype="auto", local_files_only=True, trust_remote_code=job.trust_remote_code
    )
    if torch.cuda.is_available():
        model.cuda()
    layers = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    left = {name for name in layers if is_ignored(name, job.ignore)}
    rows = rows_of(job.tokens) if job.tokens else []

    def calibrate(module):
        for number, row in enumerate(rows):
            qpack_worker.progress(number, len(rows), "calibration rows")
            with torch.no_grad():
                module(input_ids=torch.tensor([row], device=model.device))

    qpack_worker.progress(0, 0, "quantizing")
    config = copy.deepcopy(getattr(mtq, job.config))
    # Of the layers to leave alone no ranges are taken either.
    config["quant_cfg"] = [*config["quant_cfg"], *({"quantizer_name": f"{n}.*", "enable": False} for n in sorted(left))]
    mtq.quantize(model, config, calibrate if rows else None)

    qpack_worker.progress(0, 0, "writing the checkpoint")
    target = os.path.join(out, "checkpoint")
    export_hf_checkpoint(model, export_dir=target)
    qpack_worker.copy_beside(job.checkpoint, target)
    gpu = torch.cuda.is_available()
    peak = torch.cuda.max_memory_allocated() if gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return Answer(
        engine_version=modelopt.__version__,
        quantized_layers=len(layers) - len(left),
        linear_layers=len(layers),
        seconds=time.monotonic() - started,
        peak_memory_bytes=peak,
    )


if __name__ == "__main__":
    qpack_worker.main(work, Job)
