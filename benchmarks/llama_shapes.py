"""Checkpoints that have the shape of Llama-3-8B and no weights, one for each kind of quantization.

    python benchmarks/llama_shapes.py OUT --tokenizer FOLDER
    qpack bench OUT/* --random-weights --concurrency 1,16,256 -o performance.json

Speed and memory don't depend on what the weights are, so `vllm serve --load-format dummy` can be measured where no
checkpoint can be fetched. The shape is that of meta-llama/Meta-Llama-3-8B's config.json. FOLDER is any tokenizer: the
load is random tokens.
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
    "gptq": {"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True, "desc_act": False},
}


def main() -> None:
    """Write the folders."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--tokenizer", type=Path, required=True)
    arguments = parser.parse_args()
    for name, quantization in QUANTIZED.items():
        folder = arguments.out / f"llama3-8b-{name}"
        folder.mkdir(parents=True, exist_ok=True)
        config = SHAPE if quantization is None else {**SHAPE, "quantization_config": quantization}
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        for file in arguments.tokenizer.glob("tokenizer*"):
            shutil.copy(file, folder)


if __name__ == "__main__":
    main()
