"""Whether compressed-tensors reads an artifact as gram meant it. Runs in llm-compressor's environment.

`python gram_reads.py CHECKPOINT` prints how many layers were compared and the largest difference of their weights.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from transformers import AutoModelForCausalLM

from quantize.gram.checkpoint import Folder
from quantize.gram.pack import unpack, unpack_zeros


def main(folder):
    """Unpack every quantized layer here, and compare with what transformers and compressed-tensors loaded."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, local_files_only=True)
    model(torch.tensor([[1, 2, 3]]))
    bits = json.loads((folder / "config.json").read_text())["quantization_config"]["config_groups"]["group_0"]
    bits = bits["weights"]["num_bits"]
    source = Folder(folder)
    tensors = source.read(source.names(), "cpu")
    differences = []
    for name, words in tensors.items():
        if not name.endswith(".weight_packed"):
            continue
        stem = name.removesuffix("_packed")
        scale = tensors[f"{stem}_scale"].float()
        rows, columns = tensors[f"{stem}_shape"].tolist()
        zero = unpack_zeros(tensors[f"{stem}_zero_point"], bits, rows).float()
        whole = unpack(words, bits, columns).float().unflatten(1, (scale.shape[1], -1))
        mine = ((whole - zero.unsqueeze(-1)) * scale.unsqueeze(-1)).flatten(1).bfloat16()
        loaded = model.get_submodule(stem.rpartition(".")[0]).weight
        differences.append(float((mine.float() - loaded.float()).abs().max()))
    print(json.dumps([len(differences), max(differences)]))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
