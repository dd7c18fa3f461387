"""Tiny checkpoints with random weights, one for each architecture that transformers has a class for.

    PYTHON tiny_models.py OUT --tokenizer FOLDER [--vocab 2048] [--only NAME,NAME] [--list]

PYTHON is an interpreter with transformers 5 and torch; FOLDER has a byte-level BPE tokenizer.json, which is cut to its
first --vocab tokens. Each checkpoint OUT/NAME is what `save_pretrained` writes: config.json, generation_config.json,
model.safetensors in bfloat16 under the hub's own tensor names, the tokenizer, a chat template, and for models that read
images a preprocessor_config.json. Sizes are multiples of 64, the hidden size is 256, there are 2 to 4 layers.
OUT/made.json says for each name: ok, or the error; the class, the parameters, the seconds.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import time
import traceback
from pathlib import Path

# What a config gets where it knows the key. A family's own settings are laid over it.
BASE = {
    "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 64, "max_position_embeddings": 2048, "tie_word_embeddings": False,
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_k": 2,
    "moe_num_experts": 4, "moe_intermediate_size": 256, "shared_expert_intermediate_size": 256, "sliding_window": 128,
    "pad_token_id": 2, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
# Attention of DeepSeek's kind, which keeps a joint latent vector of keys and values, of a size that kernels take.
LATENT = {"q_lora_rank": 128, "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
          "head_dim": 64, "num_key_value_heads": 4}  # fmt: skip
GROUPED = {"n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, "n_shared_experts": 1}
# Linear attention with a gate, as Qwen3-Next has it.
DELTA = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 64, "linear_value_head_dim": 64}
MAMBA2 = {"mamba_n_heads": 8, "mamba_d_head": 64, "mamba_n_groups": 1, "mamba_d_state": 64, "mamba_chunk_size": 64,
          "mamba_expand": 2}  # fmt: skip
TURNS = {"layer_types": ["linear_attention", "full_attention"] * 2, "num_hidden_layers": 4}
TIED = {"tie_word_embeddings": True}
SLIDES = {"layer_types": ["sliding_attention", "full_attention"]}
QWEN_EYE = {"depth": 2, "hidden_size": 128, "intermediate_size": 256, "num_heads": 4, "out_hidden_size": 256,
            "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2, "window_size": 56,
            "fullatt_block_indexes": [1]}  # fmt: skip
QWEN3_EYE = {"depth": 2, "hidden_size": 128, "intermediate_size": 256, "num_heads": 4, "out_hidden_size": 256,
             "patch_size": 16, "spatial_merge_size": 2, "temporal_patch_size": 2, "num_position_embeddings": 64,
             "deepstack_visual_indexes": [0]}  # fmt: skip
EYE = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 56,
       "patch_size": 14, "head_dim": 32}  # fmt: skip
MROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [8, 12, 12]}}
MROPE_I = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [12, 10, 10],
                               "mrope_interleaved": True}}  # fmt: skip
QWEN_TOKENS = {"vision_start_token_id": "<|vision_start|>", "vision_end_token_id": "<|vision_end|>",
               "image_token_id": "<|image_pad|>", "video_token_id": "<|video_pad|>"}  # fmt: skip
QWEN_PICTURES = {"image_processor_type": "Qwen2VLImageProcessor", "min_pixels": 3136, "max_pixels": 12544,
                 "merge_size": 2, "temporal_patch_size": 2, "image_mean": [0.5] * 3,
                 "image_std": [0.5] * 3}  # fmt: skip


def qwen_reads(patch: int, processor: str) -> dict:
    """`more` (see MODELS) of Qwen's models that read images, in patches of `patch` pixels."""
    pictures = {**QWEN_PICTURES, "patch_size": patch}
    shown = "<|vision_start|><|image_pad|><|vision_end|>"
    return {"tokens": QWEN_TOKENS, "pictures": pictures, "processor": processor, "placeholder": shown}


# name: (kind of class, settings, more). `more`: tokens (config key to a special token's text), pictures (the
# preprocessor_config), placeholder (what the chat template writes for a picture), processing (the processor_config),
# processor (its class), named (the tokenizer's names for such tokens), type (the model_type, where the name isn't it).
TEXT, SEES, SPEAKS, ENCODES = "causal", "image-text", "seq2seq", "encoder"
# The dense model and the mixture differ by what BASE gives the latter's config.
QWEN3_5 = (
    SEES,
    {
        "text_config": {
            **DELTA,
            **TURNS,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e6,
                "mrope_section": [3, 3, 2],
                "mrope_interleaved": True,
                "partial_rotary_factor": 0.25,
            },
        },
        "vision_config": QWEN3_EYE,
    },
    qwen_reads(16, "Qwen3VLProcessor"),
)
MODELS: dict[str, tuple] = {
    "llama": (TEXT, {}),
    "llama_tied": (TEXT, {"tie_word_embeddings": True}, {"type": "llama"}),
    "mistral": (TEXT, {}),
    "ministral": (TEXT, SLIDES),
    "ministral3": (TEXT, {}),
    "qwen2": (TEXT, {}),
    "qwen3": (TEXT, {}),
    "gemma": (TEXT, TIED),
    "gemma2": (TEXT, {**SLIDES, **TIED}),
    "gemma3_text": (TEXT, {**SLIDES, **TIED}),
    "gemma4_text": (
        TEXT,
        {
            **SLIDES,
            **TIED,
            "num_experts": None,
            "global_head_dim": 64,
            "hidden_size_per_layer_input": 64,
            "vocab_size_per_layer_input": "vocab",
            "num_kv_shared_layers": 0,
        },
    ),
    "gemma3n_text": (
        TEXT,
        {
            **TIED,
            "num_hidden_layers": 4,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "num_kv_shared_layers": 2,
            "hidden_size_per_layer_input": 64,
            "vocab_size_per_layer_input": "vocab",
            "laurel_rank": 64,
            "intermediate_size": [512] * 4,
            "activation_sparsity_pattern": [0.0] * 4,
            "altup_num_inputs": 2,
        },
    ),
    "phi3": (TEXT, {}),
    "phi": (TEXT, {"num_key_value_heads": 4, "intermediate_size": 1024}),
    "granite": (TEXT, {}),
    "smollm3": (TEXT, {"no_rope_layers": [1, 0]}),
    "olmo2": (TEXT, {}),
    "olmo3": (TEXT, SLIDES),
    "cohere": (TEXT, TIED),
    "cohere2": (TEXT, {**SLIDES, **TIED}),
    "starcoder2": (TEXT, {}),
    "stablelm": (TEXT, {}),
    "glm": (TEXT, {}),
    "glm4": (TEXT, {}),
    "exaone4": (TEXT, SLIDES),
    "seed_oss": (TEXT, {}),
    "apertus": (TEXT, {}),
    "nemotron": (TEXT, {}),
    "hunyuan_v1_dense": (TEXT, {"use_qk_norm": True}),
    "ernie4_5": (TEXT, {}),
    "mixtral": (TEXT, {}),
    "qwen2_moe": (TEXT, {}),
    "qwen3_moe": (TEXT, {}),
    "olmoe": (TEXT, {}),
    "phimoe": (TEXT, {}),
    "gpt_oss": (TEXT, SLIDES),
    "granitemoe": (TEXT, {}),
    "glm4_moe": (TEXT, {**GROUPED, "head_dim": 64}),
    "deepseek_v2": (TEXT, {**LATENT, **GROUPED}),
    "deepseek_v3": (TEXT, {**LATENT, **GROUPED, "topk_method": "noaux_tc"}),
    "deepseek_v32": (
        TEXT,
        {**LATENT, **GROUPED, "topk_method": "noaux_tc", "index_n_heads": 4, "index_head_dim": 128, "index_topk": 64},
    ),
    "glm4_moe_lite": (TEXT, {**LATENT, **GROUPED}),
    "minimax_m2": (TEXT, {"rotary_dim": 64, "scoring_func": "sigmoid", "use_routing_bias": True}),
    "llama4_text": (
        TEXT,
        {
            "num_experts_per_tok": 1,
            "intermediate_size_mlp": 512,
            "intermediate_size": 256,
            "num_hidden_layers": 4,
            "no_rope_layers": [1, 1, 1, 0],
            "attention_chunk_size": 128,
            "moe_layers": [1, 3],
            "interleave_moe_layer_step": 2,
        },
    ),
    "dots1": (TEXT, {**GROUPED, **SLIDES}),
    "lfm2_moe": (TEXT, {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1}),
    "qwen3_next": (TEXT, {**DELTA, **TURNS}),
    "qwen3_5_text": (TEXT, {**DELTA, **TURNS}),
    "qwen3_5_moe_text": (TEXT, {**DELTA, **TURNS}),
    "granitemoehybrid": (TEXT, {**MAMBA2, "layer_types": ["mamba", "attention"], "shared_intermediate_size": 512}),
    "falcon_h1": (TEXT, {**MAMBA2, "mamba_d_ssm": 512}),
    "bamba": (TEXT, {**MAMBA2, "attn_layer_indices": [1]}),
    "nemotron_h": (
        TEXT,
        {
            "layers_block_type": ["mamba", "moe", "attention", "mlp"],
            "num_hidden_layers": 4,
            "mamba_num_heads": 8,
            "mamba_head_dim": 64,
            "n_groups": 1,
            "ssm_state_size": 64,
            "chunk_size": 64,
            "n_group": 1,
            "topk_group": 1,
            "moe_shared_expert_intermediate_size": 256,
            "n_shared_experts": 1,
        },
    ),
    "jamba": (
        TEXT,
        {
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
            "mamba_d_state": 16,
            "mamba_dt_rank": 64,
        },
    ),
    "mamba": (TEXT, {"state_size": 16, "time_step_rank": 64, "intermediate_size": 512}),
    "mamba2": (TEXT, {"num_heads": 8, "head_dim": 64, "n_groups": 1, "state_size": 64, "chunk_size": 64}),
    "falcon_mamba": (TEXT, {"state_size": 16, "time_step_rank": 64, "intermediate_size": 512}),
    "lfm2": (TEXT, {"layer_types": ["conv", "full_attention"], "conv_dim": 256, "block_dim": 256}),
    "gpt2": (TEXT, {"n_embd": 256, "n_layer": 2, "n_head": 4, "n_positions": 2048}),
    "gpt_neox": (TEXT, {}),
    "bloom": (TEXT, {**TIED, "hidden_size": 256, "n_layer": 2, "n_head": 4}),
    "opt": (TEXT, {"ffn_dim": 512, "word_embed_proj_dim": 256}),
    "falcon": (TEXT, {"num_kv_heads": 1, "new_decoder_architecture": False}),
    "gptj": (TEXT, {"n_embd": 256, "n_layer": 2, "n_head": 4, "rotary_dim": 32}),
    "qwen2_vl": (
        SEES,
        {
            "text_config": MROPE,
            "vision_config": {"depth": 2, "embed_dim": 128, "hidden_size": 256, "num_heads": 4, "patch_size": 14},
        },
        qwen_reads(14, "Qwen2VLProcessor"),
    ),
    "qwen2_5_vl": (
        SEES,
        {"text_config": MROPE, "vision_config": QWEN_EYE},
        qwen_reads(14, "Qwen2_5_VLProcessor"),
    ),
    "qwen3_vl": (
        SEES,
        {"text_config": MROPE_I, "vision_config": QWEN3_EYE},
        qwen_reads(16, "Qwen3VLProcessor"),
    ),
    "qwen3_vl_moe": (
        SEES,
        {
            "text_config": {**MROPE_I, "mlp_only_layers": [], "decoder_sparse_step": 1, "norm_topk_prob": True},
            "vision_config": QWEN3_EYE,
        },
        qwen_reads(16, "Qwen3VLProcessor"),
    ),
    "qwen3_5": QWEN3_5,
    "qwen3_5_moe": QWEN3_5,
    "gemma3": (
        SEES,
        {"text_config": SLIDES, "vision_config": EYE, "mm_tokens_per_image": 4},
        {
            "tokens": {
                "image_token_index": "<image_soft_token>",
                "boi_token_index": "<start_of_image>",
                "eoi_token_index": "<end_of_image>",
                **{" " * count: "\n" * count for count in range(1, 5)},  # vLLM looks these up
            },
            "processor": "Gemma3Processor",
            "placeholder": "<start_of_image>",
            "pictures": {
                "image_processor_type": "Gemma3ImageProcessor",
                "size": {"height": 56, "width": 56},
                "image_mean": [0.5] * 3,
                "image_std": [0.5] * 3,
                "image_seq_length": 4,
            },
            "processing": {"image_seq_length": 4},
            "named": {
                "image_token": "<image_soft_token>",
                "boi_token": "<start_of_image>",
                "eoi_token": "<end_of_image>",
            },
        },
    ),
    "gemma4": (
        SEES,
        {
            "text_config": {
                **SLIDES,
                "num_experts": None,
                "global_head_dim": 64,
                "hidden_size_per_layer_input": 64,
                "vocab_size_per_layer_input": "vocab",
                "num_kv_shared_layers": 0,
            },
            "vision_config": {
                **EYE,
                "num_key_value_heads": 4,
                "model_type": "gemma4_vision",
                "default_output_length": 280,
            },
        },
        {
            "tokens": {"image_token_id": "<|image|>", "boi_token_id": "<|image>", "eoi_token_id": "<image|>"},
            "processor": "Gemma4Processor",
            "placeholder": "<|image|>",
            "pictures": {"image_processor_type": "Gemma4ImageProcessor", "patch_size": 14},
            "processing": {"image_seq_length": 4},
            "named": {"image_token": "<|image|>", "boi_token": "<|image>", "eoi_token": "<image|>"},
        },
    ),
    "gemma3n": (SEES, {}),
    "mistral3": (
        SEES,
        {"text_config": {}, "vision_config": EYE, "spatial_merge_size": 2},
        {
            "tokens": {"image_token_index": "[IMG]", "": "[IMG_BREAK]", " ": "[IMG_END]"},
            "processor": "PixtralProcessor",
            "placeholder": "[IMG]",
            "pictures": {
                "image_processor_type": "PixtralImageProcessor",
                "patch_size": 14,
                "size": {"longest_edge": 56},
                "image_mean": [0.5] * 3,
                "image_std": [0.5] * 3,
            },
            "processing": {
                "patch_size": 14,
                "spatial_merge_size": 2,
                "image_token": "[IMG]",
                "image_break_token": "[IMG_BREAK]",
                "image_end_token": "[IMG_END]",
            },
        },
    ),
    "llava": (
        SEES,
        {"text_config": {}, "vision_config": EYE},
        {
            "tokens": {"image_token_index": "<image>"},
            "processor": "LlavaProcessor",
            "placeholder": "<image>",
            "pictures": {
                "image_processor_type": "CLIPImageProcessor",
                "size": {"shortest_edge": 56},
                "crop_size": {"height": 56, "width": 56},
            },
            "processing": {"patch_size": 14, "vision_feature_select_strategy": "default"},
        },
    ),
    "llama4": (
        SEES,
        {
            "text_config": {
                "num_experts_per_tok": 1,
                "intermediate_size_mlp": 512,
                "intermediate_size": 256,
                "num_hidden_layers": 4,
                "no_rope_layers": [1, 1, 1, 0],
                "attention_chunk_size": 128,
                "moe_layers": [1, 3],
                "interleave_moe_layer_step": 2,
            },
            "vision_config": {
                **EYE,
                "intermediate_size": 512,
                "projector_input_dim": 128,
                "projector_output_dim": 128,
                "vision_output_dim": 128,
            },
        },
        {
            "tokens": {
                "image_token_index": "<|patch|>",
                "boi_token_index": "<|image_start|>",
                "eoi_token_index": "<|image_end|>",
                "": "<|image|>",
            },
            "processor": "Llama4Processor",
            "placeholder": "<|image|>",
            "pictures": {
                "image_processor_type": "Llama4ImageProcessorFast",
                "size": {"height": 56, "width": 56},
                "max_patches": 4,
            },
            "processing": {"patch_size": 14, "pixel_shuffle_ratio": 0.5},
        },
    ),
    "phi4_multimodal": (
        TEXT,
        {
            "vision_config": {**EYE, "crop_size": 56},
            "audio_config": {
                "hidden_size": 128,
                "intermediate_size": 256,
                "num_blocks": 2,
                "num_attention_heads": 4,
                "nemo_conv_channels": 128,
                "ext_pw_out_channel": 128,
            },
        },
    ),
    "bert": (ENCODES, {}),
    "whisper": (
        SPEAKS,
        {
            "d_model": 256,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "encoder_ffn_dim": 512,
            "decoder_ffn_dim": 512,
        },
    ),
    "t5": (SPEAKS, {"d_model": 256, "d_kv": 64, "d_ff": 512, "num_layers": 2, "num_heads": 4}),
    "qwen3_embedding": (ENCODES, {}, {"type": "qwen3"}),
}

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% if message['content'] is string %}"
    "{{ message['content'] }}{% else %}{% for part in message['content'] %}{% if part['type'] == 'text' %}"
    "{{ part['text'] }}"
    "{% else %}PLACEHOLDER{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def cut_tokenizer(source: Path, vocab: int, target: Path) -> None:
    """The first `vocab` tokens of a byte-level BPE tokenizer, and the merges that they are made of."""
    told = json.loads((source / "tokenizer.json").read_text())
    model = told["model"]
    kept = {token: number for token, number in model["vocab"].items() if number < vocab}
    pairs = [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in model["merges"]]
    model["merges"] = [list(pair) for pair in pairs if "".join(pair) in kept and all(part in kept for part in pair)]
    model["vocab"] = kept
    told["added_tokens"] = [token for token in told["added_tokens"] if token["id"] < vocab]
    target.mkdir(parents=True, exist_ok=True)
    (target / "tokenizer.json").write_text(json.dumps(told))
    shutil.copyfile(source / "tokenizer_config.json", target / "tokenizer_config.json")


def settings_for(config, own: dict, numbers: dict, *, text: bool) -> dict:
    """BASE where this config knows the key, and the family's own settings over it."""
    known = config.to_dict() if text else {}
    found = (
        {k: v for k, v in {**BASE, "vocab_size": numbers["vocab"]}.items() if k in known or _mapped(config, k)}
        if text
        else {}
    )
    return {**found, **{k: numbers["vocab"] if v == "vocab" else v for k, v in own.items()}}


def _mapped(config, key: str) -> bool:
    return key in getattr(config, "attribute_map", {})


def config_of(kind: str, own: dict, numbers: dict, tokens: dict):
    """The family's config in small."""
    from transformers import CONFIG_MAPPING

    made = CONFIG_MAPPING[kind]
    parts = getattr(made, "sub_configs", {}) or {}
    default = made()
    outer = {k: v for k, v in own.items() if k not in parts}
    arguments = settings_for(default, outer, numbers, text="text_config" not in parts)
    for name in parts:
        inside = getattr(default, name, None)
        if inside is None and name in own and "model_type" in own[name]:
            inside = CONFIG_MAPPING[own[name]["model_type"]]()
        if inside is None:
            continue
        small = settings_for(inside, dict(own.get(name, {})), numbers, text=name == "text_config")
        arguments[name] = {"model_type": inside.model_type, **small}
    if "text_config" in parts:
        known = default.to_dict()
        arguments |= {
            k: BASE[k] for k in ("pad_token_id", "bos_token_id", "eos_token_id", "tie_word_embeddings") if k in known
        }
    arguments |= {key: number for key, number in tokens.items() if key.strip()}
    return made(**arguments)


def _named_as_on_the_hub(weights: Path, vision) -> None:
    """Published checkpoints with a tower of SigLIP or CLIP have `vision_model` in its names, as vLLM reads them;
    transformers 5 saves it without.
    """
    from safetensors import safe_open
    from safetensors.torch import save_file

    if getattr(vision, "model_type", "") not in ("siglip_vision_model", "clip_vision_model"):
        return
    with safe_open(weights, "pt") as file:
        found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it isn't a mapping
    whole = {
        re.sub(r"^vision_tower\.(?!vision_model\.)", "vision_tower.vision_model.", name): found[name] for name in found
    }
    save_file(whole, weights, metadata={"format": "pt"})


def make(name: str, out: Path, tokenizer: Path) -> dict:
    """One checkpoint."""
    import torch
    import transformers
    from transformers import AutoTokenizer, GenerationConfig

    way, own, *rest = MODELS[name]
    more = rest[0] if rest else {}
    classes = {TEXT: "AutoModelForCausalLM", SEES: "AutoModelForImageTextToText", SPEAKS: "AutoModelForSpeechSeq2Seq",
               ENCODES: "AutoModel"}  # fmt: skip
    auto = getattr(transformers, "AutoModelForSeq2SeqLM" if name == "t5" else classes[way])
    named = more.get("named", {})
    words = AutoTokenizer.from_pretrained(tokenizer, **({"extra_special_tokens": named} if named else {}))
    wanted = list(more.get("tokens", {}).values())
    if wanted:
        words.add_tokens([text for text in wanted if text not in words.get_vocab()], special_tokens=True)
    vocab = -(-len(words) // 64) * 64
    tokens = {key: words.convert_tokens_to_ids(text) for key, text in more.get("tokens", {}).items()}
    config = config_of(more.get("type", name), own, {"vocab": vocab}, tokens)
    torch.manual_seed(0)
    model = auto.from_config(config, dtype=torch.bfloat16).eval()
    for parameter in model.parameters():
        parameter.data = parameter.data.to(torch.bfloat16) if parameter.is_floating_point() else parameter.data
    folder = out / name
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder)
    _named_as_on_the_hub(folder / "model.safetensors", getattr(config, "vision_config", None))
    words.chat_template = TEMPLATE.replace("PLACEHOLDER", more.get("placeholder", ""))
    words.save_pretrained(folder)
    if way != ENCODES:
        GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=2).save_pretrained(folder)
    if "pictures" in more:
        seen = {**more["pictures"], "processor_class": more["processor"]}
        (folder / "preprocessor_config.json").write_text(json.dumps(seen, indent=1))
        told = {**more.get("processing", {}), "processor_class": more["processor"]}
        (folder / "processor_config.json").write_text(json.dumps(told, indent=1))
        if "Qwen" in more["processor"]:
            film = {
                **seen,
                "video_processor_type": "Qwen3VLVideoProcessor"
                if "Qwen3" in more["processor"]
                else "Qwen2VLVideoProcessor",
            }
            film.pop("image_processor_type")
            (folder / "video_preprocessor_config.json").write_text(json.dumps(film, indent=1))
    return {"class": type(model).__name__, "parameters": sum(p.numel() for p in model.parameters())}


def main() -> None:
    """Make them, and say how it went."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, nargs="?")
    parser.add_argument("--tokenizer", type=Path)
    parser.add_argument("--vocab", type=int, default=2048)
    parser.add_argument("--only", default="")
    parser.add_argument("--list", action="store_true")
    asked = parser.parse_args()
    if asked.list:
        print("\n".join(MODELS))
        return
    asked.out.mkdir(parents=True, exist_ok=True)
    cut = asked.out / ".tokenizer"
    cut_tokenizer(asked.tokenizer, asked.vocab, cut)
    note = asked.out / "made.json"
    made = json.loads(note.read_text()) if note.exists() else {}
    for name in asked.only.split(",") if asked.only else MODELS:
        started = time.monotonic()
        try:
            made[name] = {"ok": True, **make(name, asked.out, cut)}
        except Exception as error:  # one family that can't be made doesn't stop the others
            place = traceback.extract_tb(error.__traceback__)[-1]
            made[name] = {
                "ok": False,
                "error": f"{type(error).__name__}: {error}"[:400],
                "at": f"{place.filename}:{place.lineno}",
            }
        made[name]["seconds"] = round(time.monotonic() - started, 1)
        print(name, json.dumps(made[name]), flush=True)
        note.write_text(json.dumps(made, indent=1))


if __name__ == "__main__":
    main()
