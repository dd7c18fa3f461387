"""Damages a compressed-tensors checkpoint in one known way; runs in an engine's environment (torch, safetensors).

    PYTHON damage_checkpoint.py SOURCE TARGET KIND[:SIZE] [SEED]

`scales`: the weight scales of one layer in the middle, times SIZE (1.1). `down`: those of its down projection alone.
`zeros`: SIZE (1.0, the share of its groups) zero points of that layer one step too high. `rope`: rope theta divided by
SIZE (10). `template`: a tokenizer without its chat template. `flips`: one bit flipped in SIZE (0.02) of all packed
4-bit weights. `norm`: the input norm of that layer times SIZE (0.5). `swapped`: that layer and the one SIZE (1) after
it in each other's place. `lost`: the last SIZE (0.125) of the rows of that layer's output projection are 0.
"""

import json
import shutil
import sys
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file


def tensors(folder, change):
    """Rewrite every tensor that `change(name, tensor, held)` gives a new value for; returns how many."""
    changed = 0
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            metadata = opened.metadata()
            held = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        written = {}
        for name, tensor in held.items():
            new = change(name, tensor, held)
            written[name] = tensor if new is None else new.contiguous()
            changed += new is not None
        save_file(written, file, metadata=metadata)
    return changed


def middle(folder):
    """The layer that is damaged."""
    return json.loads((folder / "config.json").read_text())["num_hidden_layers"] // 2


def scales(folder, _generator, size=1.1, of="."):
    """One layer's scales, times a factor."""
    layer = f".layers.{middle(folder)}."
    return tensors(folder, lambda n, t, _: t * size if layer in n and of in n and n.endswith("weight_scale") else None)


def down(folder, generator, size=1.1):
    """The scales of one linear."""
    return scales(folder, generator, size, "down_proj.")


def zeros(folder, generator, size=1.0):
    """Zero points one step too high, where there is a step left; eight 4-bit values of rows per int32."""
    layer = f".layers.{middle(folder)}."

    def change(name, tensor, _):
        if layer not in name or not name.endswith("weight_zero_point"):
            return None
        added = torch.zeros(tensor.shape, dtype=torch.int64)
        for nibble in range(8):
            value = torch.bitwise_right_shift(tensor.to(torch.int64), 4 * nibble) & 15
            moved = (torch.rand(tensor.shape, generator=generator) < size) & (value < 15)
            added += moved.to(torch.int64) << (4 * nibble)
        return signed((tensor.to(torch.int64) & 0xFFFFFFFF) + added)

    return tensors(folder, change)


def rope(folder, _generator, size=10.0):
    """Rope theta, divided, in both forms that configs have."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    changed = 0
    for place in (config, config.get("rope_parameters") or {}, config.get("rope_scaling") or {}):
        if "rope_theta" in place:
            place["rope_theta"] /= size
            changed += 1
    path.write_text(json.dumps(config, indent=2))
    return changed


def template(folder, _generator, _size=0.0):
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


def flips(folder, generator, size=0.02):
    """One random bit of some of the 4-bit values, eight of which are packed in an int32."""

    def flip(name, tensor, _):
        if not name.endswith("weight_packed"):
            return None
        mask = torch.zeros(tensor.shape, dtype=torch.int64)
        for nibble in range(8):
            chosen = torch.rand(tensor.shape, generator=generator) < size
            bit = torch.randint(0, 4, tensor.shape, generator=generator)
            mask |= torch.where(chosen, torch.bitwise_left_shift(torch.ones_like(bit), bit + 4 * nibble), 0)
        return tensor ^ signed(mask)

    return tensors(folder, flip)


def norm(folder, _generator, size=0.5):
    """One layer's input norm, times a factor."""
    wanted = f".layers.{middle(folder)}.input_layernorm.weight"
    return tensors(folder, lambda n, t, _: t * size if n.endswith(wanted) else None)


def swapped(folder, _generator, size=1.0):
    """Two layers in each other's place."""
    here, there = f".layers.{middle(folder)}.", f".layers.{middle(folder) + int(size)}."

    def change(name, _tensor, held):
        for a, b in ((here, there), (there, here)):
            if a in name:
                return held[name.replace(a, b)].clone()
        return None

    return tensors(folder, change)


def lost(folder, _generator, size=0.125):
    """The last rows of one output projection are 0: their scales are."""
    wanted = f".layers.{middle(folder)}.self_attn.o_proj.weight_scale"

    def change(name, tensor, _):
        if not name.endswith(wanted):
            return None
        new = tensor.clone()
        new[-max(1, round(size * len(new))) :] = 0
        return new

    return tensors(folder, change)


def signed(words):
    """The low 32 bits as int32: two's complement, so that the top bit fits."""
    return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)


KINDS = {
    "scales": scales,
    "down": down,
    "zeros": zeros,
    "rope": rope,
    "template": template,
    "flips": flips,
    "norm": norm,
    "swapped": swapped,
    "lost": lost,
}


def main(source, target, kind, seed="0"):
    """Copy SOURCE to TARGET and damage it. A damage that found nothing to change is an error."""
    shutil.copytree(source, target)
    name, _, size = kind.partition(":")
    sizes = [float(size)] if size else []
    changed = KINDS[name](Path(target), torch.Generator().manual_seed(int(seed)), *sizes)
    if not changed:
        shutil.rmtree(target)
        sys.exit(f"{kind}: found nothing to change in {source}")
    print(f"{kind}: {changed} places changed")


if __name__ == "__main__":
    main(*sys.argv[1:])
