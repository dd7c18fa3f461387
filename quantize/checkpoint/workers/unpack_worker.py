"""Unpacks FP8 blocks to bfloat16, file by file, with compressed-tensors. Runs in llm-compressor's environment."""

import glob
import json
import os

import qpack_worker
from compressed_tensors.entrypoints.convert import convert_checkpoint
from compressed_tensors.entrypoints.convert.converters import FP8BlockDequantizer
from safetensors import safe_open
from unpack_job import Answer, Job

SCALE = "_scale_inv"


class Blocks(FP8BlockDequantizer):
    """The library's arithmetic for every weight that has scales; its own goes through all names for each tensor."""

    def __init__(self, scaled, block):
        super().__init__(weight_block_size=block)
        self.scaled = scaled

    def validate(self, tensors):
        return self.process(tensors)

    def process(self, tensors):
        for name in [name for name in tensors if name in self.scaled]:
            tensors[name] = self._create_dequantized_weight(tensors[name], tensors.pop(name + SCALE))
        return tensors

    def get_dependencies(self, weight_name):
        return {weight_name + SCALE} if weight_name in self.scaled else set()


def work(job, out):
    """Write the unpacked checkpoint; everything but weights, index and config is copied."""
    qpack_worker.progress(0, 0, "unpacking FP8 blocks")
    target = os.path.join(out, "checkpoint")
    with open(os.path.join(job.checkpoint, "config.json"), encoding="utf-8") as file:
        block = json.load(file)["quantization_config"]["weight_block_size"]
    names = set()
    for path in glob.glob(os.path.join(glob.escape(job.checkpoint), "*.safetensors")):
        with safe_open(path, "pt") as file:
            names.update(file.keys())
    scaled = {name[: -len(SCALE)] for name in names if name.endswith(SCALE)}
    convert_checkpoint(job.checkpoint, target, Blocks(scaled, tuple(block)))
    place = os.path.join(target, "config.json")
    with open(place, encoding="utf-8") as file:
        config = json.load(file)
    config.pop("quantization_config", None)
    with open(place, "w", encoding="utf-8") as file:
        json.dump(config, file, indent=2)
    return Answer(len(scaled))


if __name__ == "__main__":
    qpack_worker.main(work, Job)
