"""A checkpoint with random weights in the shape of a config.json. Runs where torch and safetensors are.

    python benchmarks/random_weights.py CONFIG TOKENIZER OUT

CONFIG is a JSON file; TOKENIZER a folder with a tokenizer.json, or a GGUF file. Where the tokenizer has fewer tokens
than the model, words that no text has are added, so that every token that the model says can be spelled. Weights are
normal with a standard deviation of 0.02, as transformers initializes them, written in shards of 4 GB.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SHARD_BYTES = 4 * 10**9


def shapes(config: dict[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Every tensor of a Llama or of a Qwen3 with experts (`num_experts`), by name."""
    width, words, experts = config["hidden_size"], config["vocab_size"], config.get("num_experts", 0)
    inner = config["moe_intermediate_size" if experts else "intermediate_size"]
    head = config.get("head_dim") or width // config["num_attention_heads"]
    queries, shared = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    mlp = [
        (f"mlp.{expert}{name}", shape)
        for expert in ([f"experts.{number}." for number in range(experts)] or [""])
        for name, shape in (("gate_proj", (inner, width)), ("up_proj", (inner, width)), ("down_proj", (width, inner)))
    ]
    if experts:
        mlp += [("mlp.gate", (experts, width)), ("self_attn.q_norm", (head,)), ("self_attn.k_norm", (head,))]
    yield "model.embed_tokens.weight", (words, width)
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}"
        for name, shape in (
            ("self_attn.q_proj", (queries, width)),
            ("self_attn.k_proj", (shared, width)),
            ("self_attn.v_proj", (shared, width)),
            ("self_attn.o_proj", (width, queries)),
            *mlp,
            ("input_layernorm", (width,)),
            ("post_attention_layernorm", (width,)),
        ):
            yield f"{at}.{name}.weight", shape
    yield "model.norm.weight", (width,)
    if not config.get("tie_word_embeddings"):
        yield "lm_head.weight", (words, width)


def write_weights(config: dict[str, Any], out: Path) -> None:
    """The shards and their index."""
    import torch
    from safetensors.torch import save_file

    place = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    shards: list[dict[str, Any]] = [{}]
    held = 0
    files: dict[str, list[str]] = {}

    def flush() -> None:
        name = f"model-{len(files) + 1:05}.safetensors"
        save_file(shards[-1], out / name, metadata={"format": "pt"})
        files[name] = list(shards[-1])
        shards[-1] = {}

    for name, shape in shapes(config):
        if len(shape) == 1:
            tensor = torch.ones(shape, dtype=torch.bfloat16)
        else:
            tensor = torch.randn(shape, dtype=torch.bfloat16, device=place).mul_(0.02).cpu()
        shards[-1][name] = tensor
        held += tensor.numel() * 2
        if held >= SHARD_BYTES:
            flush()
            held = 0
    if shards[-1]:
        flush()
    weight_map = {name: file for file, names in files.items() for name in names}
    (out / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def write_tokenizer(source: Path, size: int, out: Path) -> tuple[int | None, int | None]:
    """The tokenizer with `size` tokens; returns the ids of its first and last special token."""
    from transformers import AutoTokenizer

    if source.is_file():
        found = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name, local_files_only=True)
        found.save_pretrained(out)
    else:
        for file in (*source.glob("tokenizer*"), *source.glob("*.jinja"), *source.glob("special_tokens_map.json")):
            shutil.copyfile(file, out / file.name)
    path = out / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    used = {*vocabulary.values(), *(token["id"] for token in tokenizer["added_tokens"])}
    vocabulary.update({f"Ġqpack{i}": i for i in range(size) if i not in used})
    path.write_text(json.dumps(tokenizer, ensure_ascii=False))
    read = AutoTokenizer.from_pretrained(out, local_files_only=True)
    return read.bos_token_id, read.eos_token_id


def main(config_file: str, tokenizer: str, folder: str) -> None:
    """Write it all; config.json last, so that a folder with one is whole."""
    out = Path(folder)
    out.mkdir(parents=True, exist_ok=True)
    config = json.loads(Path(config_file).read_text())
    first, last = write_tokenizer(Path(tokenizer), config["vocab_size"], out)
    config = {**config, "bos_token_id": first, "eos_token_id": last}
    write_weights(config, out)
    (out / "generation_config.json").write_text(json.dumps({"bos_token_id": first, "eos_token_id": last}))
    (out / "config.json.part").write_text(json.dumps(config, indent=2))
    (out / "config.json.part").replace(out / "config.json")


if __name__ == "__main__":
    main(*sys.argv[1:4])
