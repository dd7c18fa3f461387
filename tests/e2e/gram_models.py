"""Very small models of random weights, of architectures that no package brings. Runs in gram's environment.

`python gram_models.py FOLDER [TIMES]` saves FOLDER/gemma3_text, FOLDER/llama, FOLDER/mixtral and FOLDER/qwen3_moe,
TIMES as wide: kernels of GPUs take no narrow layers.
"""

import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, Gemma3TextConfig, LlamaConfig, MixtralConfig, Qwen3MoeConfig


def configs(times):
    """By name."""
    shape = {
        "vocab_size": 4096, "hidden_size": 64 * times, "intermediate_size": 128 * times, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 32 * times, "max_position_embeddings": 512,
        "initializer_range": 0.2 / times**0.5, "tie_word_embeddings": False, "dtype": "bfloat16",
    }  # fmt: skip
    kinds = ["sliding_attention", "full_attention"]
    return {
        "gemma3_text": Gemma3TextConfig(
            **shape, sliding_window=16, query_pre_attn_scalar=32 * times, layer_types=kinds
        ),
        "llama": LlamaConfig(**shape),
        "mixtral": MixtralConfig(**shape, num_local_experts=4, num_experts_per_tok=2),
        "qwen3_moe": Qwen3MoeConfig(
            **shape, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=64 * times
        ),
    }  # fmt: skip


def main(folder, times=1):
    """Save them all; norms and routers are told apart by their weights, too."""
    for kind, config in configs(int(times)).items():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).to(torch.bfloat16)
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.data += 0.3 * torch.randn_like(parameter)
        model.save_pretrained(folder / kind)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
