"""Writes a real, very small Llama: random weights, SmolLM2's tokenizer. Runs in the transformers environment.

It predicts some words more often than others, which is all it knows: a model that predicts no better than guessing all
tokens alike gets no verdict (`evals.gates.sanity`).

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
    model = LlamaForCausalLM(config)
    words = tokenizer("Line 1 is here to be read. The word of a word and the words in it for word on word.")[
        "input_ids"
    ]
    # No blank, no dot: an answer of one repeated character is none that a server may give.
    known = [token for token in set(words) if len(tokenizer.decode([token]).strip()) > 1]
    with torch.no_grad():
        # One direction that every hidden state has, and that these words like.
        model.model.embed_tokens.weight[:, 0] = 8.0
        model.lm_head.weight[known, 0] += 8.0
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
