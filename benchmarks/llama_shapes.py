"""Checkpoints that have the shape of Llama-3-8B and no weights, one for each kind of quantization.

    python benchmarks/llama_shapes.py OUT
    qpack bench OUT/* --random-weights --concurrency 1,16,256 -o performance.json

Speed and memory don't depend on what the weights are, so `vllm serve --load-format dummy` can be measured where no
checkpoint can be fetched. The shape is that of meta-llama/Meta-Llama-3-8B's config.json. The load is random tokens, so
any tokenizer does: `--tokenizer FOLDER`, or one made here, in which every token is a word of its own.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

SHAPE: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
    "rope_theta": 500000.0,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": False,
    "bos_token_id": 128000,
    "eos_token_id": 128001,
    "torch_dtype": "bfloat16",
}

_INT4 = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 128, "dynamic": False}
_FP8 = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "channel", "dynamic": False}
_INT8 = {**_FP8, "type": "int"}
_TOKEN = {"num_bits": 8, "symmetric": True, "strategy": "token", "dynamic": True}


def _compressed(form: str, weights: dict[str, Any], inputs: dict[str, Any] | None) -> dict[str, Any]:
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights, "input_activations": inputs}},
    }


QUANTIZED: dict[str, dict[str, Any] | None] = {
    "bf16": None,
    "fp8-dynamic": _compressed("float-quantized", _FP8, {**_TOKEN, "type": "float"}),
    "int8-w8a8": _compressed("int-quantized", _INT8, {**_TOKEN, "type": "int"}),
    "w4a16": _compressed("pack-quantized", _INT4, None),
    "awq": {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"},
    # Without this list vLLM looks up in the tensors which layers are quantized, and here there are none.
    "gptq": {"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True, "desc_act": False,
             "modules_in_block_to_quantize": [[f"self_attn.{name}_proj" for name in "qkvo"],
                                              ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]]},
}  # fmt: skip


def make(folder: Path, quantization: dict[str, Any] | None, *, shape: dict[str, Any], tokenizer: Path | None) -> None:
    """A checkpoint folder without weights: config.json and a tokenizer, made here when `tokenizer` is None."""
    folder.mkdir(parents=True, exist_ok=True)
    config = shape if quantization is None else {**shape, "quantization_config": quantization}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    if tokenizer is None:
        _words(folder, shape["vocab_size"], (shape["bos_token_id"], shape["eos_token_id"]))
        return
    for file in (*tokenizer.glob("tokenizer*"), *tokenizer.glob("chat_template*")):
        shutil.copy(file, folder)


def _words(folder: Path, size: int, special: tuple[int, int]) -> None:
    """A tokenizer of `size` words: text that is decoded and encoded again gives the same ids, whatever they were."""
    begin, end = special
    names = {begin: "<s>", end: "</s>"}
    words = {names.get(i, f"w{i}"): i for i in range(size)}
    added = [
        {"id": i, "content": name, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
         "special": True}
        for i, name in names.items()
    ]  # fmt: skip
    tokenizer = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": None, "decoder": None,
        "model": {"type": "WordLevel", "vocab": words, "unk_token": "w0"},
    }  # fmt: skip
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "clean_up_tokenization_spaces": False}))


def main() -> None:
    """Write the folders."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--tokenizer", type=Path)
    arguments = parser.parse_args()
    for name, quantization in QUANTIZED.items():
        make(arguments.out / f"llama3-8b-{name}", quantization, shape=SHAPE, tokenizer=arguments.tokenizer)


if __name__ == "__main__":
    main()
