"""A tiny MiMo as XiaomiMiMo/MiMo-7B-RL is written: Qwen2 with code of its own and one layer for multi-token prediction.

`python tiny_mimo.py TINY_QWEN2 OUT`, where torch is. Almost all that the model computes is its last token's embedding,
and the layer computes the same of the token that comes next: so its drafts are right, if its weights are loaded.
"""

import json
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

CONFIG = """\
from transformers.models.qwen2.configuration_qwen2 import Qwen2Config


class MiMoConfig(Qwen2Config):
    model_type = "mimo"
"""
MODEL = """\
from transformers.models.qwen2.modeling_qwen2 import Qwen2ForCausalLM

from .configuration_mimo import MiMoConfig


class MiMoForCausalLM(Qwen2ForCausalLM):
    config_class = MiMoConfig
    _keys_to_ignore_on_load_unexpected = [r"model\\.mtp_layers"]
"""
OWN = "model.mtp_layers.0."


def make(source: Path, out: Path) -> None:
    """Write the checkpoint."""
    weights, draw = load_file(source / "model.safetensors"), torch.Generator().manual_seed(0)
    config = json.loads((source / "config.json").read_text())
    width, words, last = config["hidden_size"], config["vocab_size"], config["num_hidden_layers"] - 1
    for name in weights:
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            weights[name] = weights[name] * 0.01
    stem = f"model.layers.{last}."
    weights |= {OWN + name.removeprefix(stem): weights[name].clone() for name in weights if name.startswith(stem)}
    norms = ("token_layernorm", "hidden_layernorm", "final_layernorm")
    weights |= {f"{OWN}{name}.weight": torch.ones(width) for name in norms}
    # vLLM joins [hidden states, embedding].
    weights[f"{OWN}input_proj.weight"] = torch.cat([torch.zeros(width, width), torch.eye(width)], 1)
    weights["model.embed_tokens.weight"] = torch.randn(words, width, generator=draw)
    weights["lm_head.weight"] = torch.randn(words, width, generator=draw) * 0.2
    out.mkdir()
    save_file({n: t.bfloat16() for n, t in weights.items()}, out / "model.safetensors", {"format": "pt"})
    classes = {"AutoConfig": "configuration_mimo.MiMoConfig", "AutoModelForCausalLM": "modeling_mimo.MiMoForCausalLM"}
    config |= {"model_type": "mimo", "architectures": ["MiMoForCausalLM"], "auto_map": classes}
    config |= {"num_nextn_predict_layers": 1, "tie_word_embeddings": False}
    (out / "config.json").write_text(json.dumps(config, indent=2))
    (out / "configuration_mimo.py").write_text(CONFIG)
    (out / "modeling_mimo.py").write_text(MODEL)
    for file in source.iterdir():
        if file.suffix != ".safetensors" and not (out / file.name).exists():
            shutil.copy(file, out / file.name)


if __name__ == "__main__":
    make(Path(sys.argv[1]), Path(sys.argv[2]))
