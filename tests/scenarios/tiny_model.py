"""Writes a real, very small Llama: random weights, SmolLM2's tokenizer. Runs in the transformers environment.

`python tiny_model.py GGUF FOLDER`: the tokenizer and chat template are taken from the GGUF.
"""

import os
import sys

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM


def main(gguf, folder):
    """Save config, weights as safetensors, generation config and tokenizer."""
    torch.manual_seed(0)
    where, name = os.path.split(gguf)
    tokenizer = AutoTokenizer.from_pretrained(where, gguf_file=name, local_files_only=True)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=512,
        # Tied, a random model repeats the blank at the end of its prompt: no answer that a server may give.
        tie_word_embeddings=False,
        initializer_range=0.2,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
