"""Damages a compressed-tensors checkpoint in one known way; runs in an engine's environment (torch, safetensors).

    PYTHON damage_checkpoint.py SOURCE TARGET KIND [SEED]

`scales`: the weight scales of one layer in the middle, times 1.1. `rope`: rope theta a tenth of what it was.
`template`: a tokenizer without its chat template. `flips`: one bit flipped in 2 % of all packed 4-bit weights.
"""

import json
import shutil
import sys
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

SHARE = 0.02


def tensors(folder, change):
    """Rewrite every tensor that `change(name, tensor)` gives a new value for; returns how many."""
    changed = 0
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            metadata = opened.metadata()
            held = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        for name in list(held):
            new = change(name, held[name])
            if new is not None:
                held[name] = new.contiguous()
                changed += 1
        save_file(held, file, metadata=metadata)
    return changed


def scales(folder, _generator):
    """One layer's scales x 1.1."""
    layers = json.loads((folder / "config.json").read_text())["num_hidden_layers"]
    layer = f".layers.{layers // 2}."
    return tensors(folder, lambda n, t: t * 1.1 if layer in n and n.endswith("weight_scale") else None)


def rope(folder, _generator):
    """Rope theta / 10, in both forms that configs have."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    changed = 0
    for place in (config, config.get("rope_parameters") or {}, config.get("rope_scaling") or {}):
        if "rope_theta" in place:
            place["rope_theta"] /= 10
            changed += 1
    path.write_text(json.dumps(config, indent=2))
    return changed


def template(folder, _generator):
    """No chat template, wherever it stands."""
    changed = 0
    for name in ("chat_template.jinja", "chat_template.json"):
        if (folder / name).exists():
            (folder / name).unlink()
            changed += 1
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text())
    if config.pop("chat_template", None) is not None:
        path.write_text(json.dumps(config, indent=2))
        changed += 1
    return changed


def flips(folder, generator):
    """One random bit of 2 % of the 4-bit values, eight of which are packed in an int32."""

    def flip(name, tensor):
        if not name.endswith("weight_packed"):
            return None
        mask = torch.zeros(tensor.shape, dtype=torch.int64)
        for nibble in range(8):
            chosen = torch.rand(tensor.shape, generator=generator) < SHARE
            bit = torch.randint(0, 4, tensor.shape, generator=generator)
            mask |= torch.where(chosen, torch.bitwise_left_shift(torch.ones_like(bit), bit + 4 * nibble), 0)
        # As two's complement, so that the top bit fits into an int32.
        return tensor ^ torch.where(mask >= 2**31, mask - 2**32, mask).to(torch.int32)

    return tensors(folder, flip)


KINDS = {"scales": scales, "rope": rope, "template": template, "flips": flips}


def main(source, target, kind, seed="0"):
    """Copy SOURCE to TARGET and damage it. A damage that found nothing to change is an error."""
    shutil.copytree(source, target)
    changed = KINDS[kind](Path(target), torch.Generator().manual_seed(int(seed)))
    if not changed:
        shutil.rmtree(target)
        sys.exit(f"{kind}: found nothing to change in {source}")
    print(f"{kind}: {changed} places changed")


if __name__ == "__main__":
    main(*sys.argv[1:])
