"""How far an artifact's logits are from the source's, its weights unpacked. Runs in gram's environment.

`python means.py SOURCE ARTIFACT GROUP_SIZE SYMMETRIC` (0 or 1) reads artifacts in the formats awq and gptq and prints
the norm of the difference over that of the source's logits.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from transformers import AutoModelForCausalLM

from quantize.gram.checkpoint import Folder
from quantize.gram.formats import FORMATS
from quantize.gram.grid import Grid


@torch.no_grad()
def main(source, artifact, group_size, symmetric):
    """Unpack, and ask both."""
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, local_files_only=True)
    ids = torch.tensor([[(37 * i + 11 * j) % 4000 + 10 for j in range(32)] for i in range(4)])
    expected = model(ids).logits
    folder = Folder(Path(artifact))
    tensors = folder.read(folder.names(), "cpu")
    form = "gptq" if any(name.endswith(".g_idx") for name in tensors) else "awq"
    grid = Grid(4, symmetric == "1", int(group_size), portable=FORMATS[form].portable)
    for name in [name.removesuffix(".qweight") for name in tensors if name.endswith(".qweight")]:
        parts = {key.rpartition(".")[2]: tensors.pop(key) for key in list(tensors) if key.startswith(f"{name}.")}
        tensors[f"{name}.weight"] = FORMATS[form].read(parts, grid).weights(grid)
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    assert not unexpected, unexpected
    assert set(missing) <= {"lm_head.weight"}, missing
    print(float((model(ids).logits - expected).norm() / expected.norm()))


if __name__ == "__main__":
    main(*sys.argv[1:])
