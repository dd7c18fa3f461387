"""Quantizes a checkpoint with AutoRound. Runs in its environment; see qpack_worker for the protocol."""

import itertools
import json
import os
import re
import resource
import shutil
import time

import qpack_worker
import torch
from auto_round import AutoRound
from auto_round.algorithms.quantization.sign_round.quantizer import SignRoundQuantizer
from auto_round.version import __version__
from autoround_job import Job
from engine_answer import Answer
from transformers import AutoModelForCausalLM, AutoTokenizer

# What it leaves beside the checkpoint, of this run and not of the model.
TRACES = ("quantization_config.json", "recipe.yaml")


class Progress:
    """Reports how many blocks are tuned."""

    quantize_block = SignRoundQuantizer.quantize_block

    @classmethod
    def install(cls, blocks):
        done = itertools.count(1)

        def reported(*args, **kwargs):
            ended = cls.quantize_block(*args, **kwargs)
            qpack_worker.progress(min(next(done), blocks), blocks, "layers")
            return ended

        SignRoundQuantizer.quantize_block = reported


def windows_of(path):
    """The calibration rows joined, and cut into windows of one length: AutoRound takes no others."""
    with open(path, encoding="utf-8") as file:
        rows = [json.loads(line)["input_ids"] for line in file]
    length = max(map(len, rows))
    joined = list(itertools.chain.from_iterable(rows))
    count = max(1, len(joined) // length)
    return [torch.tensor([joined[i * length : (i + 1) * length]]) for i in range(count)], length


def is_ignored(name, patterns):
    """Whether a layer is to be left alone: a name, the end of one, or an expression."""
    return any(
        re.match(pattern[3:], name) if pattern.startswith("re:") else name == pattern or name.endswith("." + pattern)
        for pattern in patterns
    )


def work(job, out):
    """Quantize and save; everything but weights and config is copied from the source as it is."""
    started = time.monotonic()
    torch.manual_seed(0)
    qpack_worker.progress(0, 0, "loading the model")
    options = {"local_files_only": True, "trust_remote_code": job.trust_remote_code}
    model = AutoModelForCausalLM.from_pretrained(job.checkpoint, dtype="auto", **options)
    tokenizer = AutoTokenizer.from_pretrained(job.checkpoint, **options)
    layers = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    left = [name for name in layers if is_ignored(name, job.ignore)]
    windows, length = windows_of(job.tokens)
    blocks = model.config.get_text_config().num_hidden_layers
    Progress.install(blocks)
    asked = {} if job.group_size is None else {"group_size": job.group_size, "sym": job.symmetric}
    rounding = AutoRound(
        model,
        tokenizer=tokenizer,
        scheme=job.scheme,
        layer_config={name: {"bits": 16, "act_bits": 16} for name in left if name != "lm_head"},
        dataset=windows,
        iters=job.iterations,
        seqlen=length,
        nsamples=len(windows),
        batch_size=min(8, len(windows)),
        seed=0,
        low_cpu_mem_usage=False,
        enable_torch_compile=False,
        device_map=0 if torch.cuda.is_available() else "cpu",
        **asked,
    )
    qpack_worker.progress(0, blocks, "layers")
    made = os.path.join(out, "made")
    rounding.quantize_and_save(made, format=job.format)
    qpack_worker.progress(0, 0, "writing the checkpoint")
    target = os.path.join(out, "checkpoint")
    os.rename(where(made), target)
    shutil.rmtree(made, ignore_errors=True)
    for name in TRACES:
        if os.path.exists(os.path.join(target, name)):
            os.remove(os.path.join(target, name))
    qpack_worker.copy_beside(job.checkpoint, target)
    gpu = torch.cuda.is_available()
    peak = torch.cuda.max_memory_allocated() if gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return Answer(
        engine_version=__version__,
        quantized_layers=len([name for name in layers if name not in left and name != "lm_head"]),
        linear_layers=len(layers),
        seconds=time.monotonic() - started,
        peak_memory_bytes=peak,
    )


def where(made):
    """The folder that has the config: some formats are saved in one below."""
    return next(folder for folder, _, files in os.walk(made) if "config.json" in files)


if __name__ == "__main__":
    qpack_worker.main(work, Job)
