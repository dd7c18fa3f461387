"""Scores windows of text with plain transformers on the CPU in float32: the weights without a server's kernels.

Runs inside the environment of vLLM, which has torch, transformers and compressed-tensors. Quantized weights are
unpacked to floating point; activations that a scheme quantizes are rounded as the checkpoint says.
"""

import json
import os
from pathlib import Path

import qpack_worker
from cross_check_job import Answer, Job

qpack_worker.progress(0, 0, "loading transformers")
os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1")

import torch  # noqa: E402  (slow to import: reported first)
import transformers  # noqa: E402


def load(checkpoint):
    """The model, its quantized weights unpacked where compressed-tensors wrote them."""
    config = json.loads(Path(checkpoint, "config.json").read_text(encoding="utf-8"))
    method = (config.get("quantization_config") or {}).get("quant_method")
    more = {}
    if method == "compressed-tensors":
        from transformers import CompressedTensorsConfig

        more["quantization_config"] = CompressedTensorsConfig(run_compressed=False)
    elif method is not None:
        qpack_worker.fail(
            f"transformers here reads no weights of the format {method}",
            "Remove evaluate.cross_check, or write the artifact in the format compressed-tensors.",
        )
    return transformers.AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32, **more).eval()


@torch.inference_mode()
def run(job, _out):
    """Each window by itself."""
    qpack_worker.progress(0, 0, "loading the model")
    model, found = load(job.checkpoint), []
    for number, window in enumerate(job.windows, 1):
        ids = torch.tensor([window])
        logits = model(ids).logits[0, :-1].float()
        nll = torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum")
        found.append(float(nll))
        qpack_worker.progress(number, len(job.windows), "windows")
    return Answer(f"transformers {transformers.__version__}, torch {torch.__version__}", tuple(found))


if __name__ == "__main__":
    qpack_worker.main(run, Job)
