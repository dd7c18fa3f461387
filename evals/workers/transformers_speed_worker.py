"""Generates with plain transformers, as a script does, for comparison with a server.

Runs inside the environment of vLLM, which has torch and transformers for the device.

Sequences of a batch have one length, so nothing is padded; decoding is greedy and every answer has the same length.
Quantized checkpoints aren't loaded: transformers would dequantize them or need kernels that it doesn't bring.
"""

import time

import qpack_worker
from transformers_speed_job import Answer, Batch, Job

qpack_worker.progress(0, 0, "loading transformers")

import torch  # noqa: E402  (slow to import: reported first)
import transformers  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def load(job):
    """The model on the device."""
    dtype = "auto" if job.dtype == "auto" else getattr(torch, job.dtype)
    if not job.random_weights:
        return transformers.AutoModelForCausalLM.from_pretrained(job.checkpoint, dtype=dtype).to(DEVICE).eval()
    config = transformers.AutoConfig.from_pretrained(job.checkpoint)
    wanted = config.dtype if dtype == "auto" else dtype
    with torch.device(DEVICE):
        return transformers.AutoModelForCausalLM.from_config(config, dtype=wanted).eval()


def synchronize():
    """Wait for the device, so that times include its work."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def generate(model, batch, job, output_tokens):
    """Seconds of one batch."""
    ids = torch.randint(10, model.config.vocab_size, (batch, job.input_tokens), device=DEVICE)
    synchronize()
    started = time.perf_counter()
    model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=output_tokens,
        min_new_tokens=output_tokens,
        do_sample=False,
        pad_token_id=0,
    )
    synchronize()
    return time.perf_counter() - started


@torch.inference_mode()
def run(job, _out):
    """Each batch size: a warm-up, then the repeats."""
    torch.manual_seed(job.seed)
    qpack_worker.progress(0, 0, "loading the model")
    model = load(job)
    total, done, batches = len(job.batches) * (job.repeats + 1), 0, []
    for batch in job.batches:
        seconds = []
        for repeat in range(job.repeats + 1):
            took = generate(model, batch, job, job.output_tokens if repeat else min(16, job.output_tokens))
            seconds += [took] if repeat else []
            done += 1
            qpack_worker.progress(done, total, "batches")
        batches.append(Batch(batch, tuple(seconds)))
    return Answer(f"transformers {transformers.__version__}, torch {torch.__version__}", tuple(batches))


if __name__ == "__main__":
    qpack_worker.main(run, Job)
