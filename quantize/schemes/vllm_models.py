"""Which architectures vLLM doesn't serve, or not for text generation or not on CPUs. Read in vLLM 0.32.0's registry
(`model_executor/models/registry.py`) and the classes of transformers 5.19 beside it; a test compares both with the
locked releases.
"""

from __future__ import annotations

DROPPED: dict[str, str] = {
    "MotifForCausalLM": "0.10.2", "Phi3SmallForCausalLM": "0.9.2", "Phi4FlashForCausalLM": "0.10.2",
    "Phi4MultimodalForCausalLM": "0.12.0", "JAISLMHeadModel": "0.22.0", "ErnieModel": "0.23.0",
    "ErnieForSequenceClassification": "0.23.0", "ErnieForTokenClassification": "0.23.0",
    "InternLM2VEForCausalLM": "0.23.0", "QWenLMHeadModel": "0.23.0", "QwenVLForConditionalGeneration": "0.23.0",
    "InternLMForCausalLM": "0.23.0", "DonutForConditionalGeneration": "0.10.2",
    "MllamaForConditionalGeneration": "0.10.2", "XverseForCausalLM": "0.23.0", "Dots1ForCausalLM": "0.23.0",
    "BambaForCausalLM": "0.23.0", "MiniMaxForCausalLM": "0.23.0", "MiniMaxText01ForCausalLM": "0.23.0",
    "MiniMaxM1ForCausalLM": "0.23.0", "MiniMaxVL01ForConditionalGeneration": "0.23.0",
    "BaiChuanForCausalLM": "0.23.0", "BaichuanForCausalLM": "0.23.0", "AquilaModel": "0.24.0",
    "AquilaForCausalLM": "0.24.0", "Grok1ModelForCausalLM": "0.24.0", "Grok1ForCausalLM": "0.24.0",
    "TarsierForConditionalGeneration": "0.24.0", "Tarsier2ForConditionalGeneration": "0.23.0",
    "MantisForConditionalGeneration": "0.24.0", "MusicFlamingoForConditionalGeneration": "0.24.0",
    "AyaVisionForConditionalGeneration": "0.24.0", "TeleChatForCausalLM": "0.25.0", "PersimmonForCausalLM": "0.25.0",
    "FuyuForCausalLM": "0.25.0", "Plamo2ForCausalLM": "0.26.0", "OuroForCausalLM": "0.26.0",
    "ArcticForCausalLM": "0.28.0", "ChameleonForConditionalGeneration": "0.28.0", "Cheers": "0.28.0",
    "CheersForConditionalGeneration": "0.28.0", "Fairseq2LlamaForCausalLM": "0.28.0",
    "FireRedLIDForConditionalGeneration": "0.28.0", "GritLM": "0.28.0", "HCXVisionForCausalLM": "0.28.0",
    "MPTForCausalLM": "0.28.0", "MptForCausalLM": "0.28.0", "RWForCausalLM": "0.28.0",
    "StableLMEpochForCausalLM": "0.28.0", "PrithviGeoSpatialMAE": "0.28.0",
}  # fmt: skip
"""Architectures that the last release given here served, and 0.32.0 refuses."""

NO_BACKEND = frozenset(
    ("BigBirdForCausalLM", "BlipForConditionalGeneration", "BlipTextLMHeadModel", "ClvpForCausalLM",
     "ClvpModelForConditionalGeneration", "CodeGenForCausalLM", "CpmAntForCausalLM",
     "DeepseekVLForConditionalGeneration", "DeepseekVLHybridForConditionalGeneration",
     "FSMTForConditionalGeneration", "FlaubertWithLMHeadModel", "GPTNeoForCausalLM",
     "GPTNeoXJapaneseForCausalLM", "LEDForConditionalGeneration", "MegatronBertForCausalLM", "MptForCausalLM",
     "MvpForCausalLM", "MvpForConditionalGeneration", "OpenAIGPTLMHeadModel", "ProphetNetForCausalLM",
     "ProphetNetForConditionalGeneration", "RemBertForCausalLM", "RoFormerForCausalLM", "RwkvForCausalLM",
     "TrOCRForCausalLM", "XGLMForCausalLM", "XLMWithLMHeadModel", "XLNetLMHeadModel", "xLSTMForCausalLM",)
)  # fmt: skip
"""Architectures of transformers that vLLM has no class for, and whose attention its Transformers backend can't replace
(`_supports_attention_backend` and `_can_set_attn_implementation` are false)."""

OTHER_NAMES: dict[str, str] = {"PhimoeForCausalLM": "PhiMoEForCausalLM"}
"""Architectures that transformers 5 saves under a name that vLLM doesn't know, and vLLM's own. Under the other name the
Transformers backend takes them and fails."""

READ_KEYS: dict[str, dict[str, str]] = {
    "Lfm2ForCausalLM": {"block_dim": "hidden_size"},
    "MiniMaxM2ForCausalLM": {"rotary_dim": "head_dim times partial_rotary_factor", "scoring_func": '"sigmoid"'},
}
"""Keys that vLLM's class reads without a default and transformers 5 doesn't write, and what to set them to."""

BIASED: dict[str, tuple[str, ...]] = dict.fromkeys(
    ("PhimoeForCausalLM", "PhiMoEForCausalLM"), ("self_attn.q_proj.bias", "self_attn.o_proj.bias", "lm_head.bias")
)
"""Biases that vLLM's class has whatever the config says (`models/phimoe.py`): without them in the checkpoint they are
memory that nothing wrote, and answers are NaN."""

MLA_TYPES = frozenset(
    ("axk1", "deepseek_v2", "deepseek_v3", "deepseek_v32", "glm4_moe_lite", "glm_moe_dsa", "kimi_k2", "kimi_linear",
     "longcat_flash", "pangu_ultra_moe", "bailing_hybrid", "hy_v4")
)  # fmt: skip
"""Model types whose cache is one joint vector of keys and values (`is_deepseek_mla`, where `kv_lora_rank` is set)."""

MLA_WIDTHS = {"cpu": (576,)}
"""Widths of that vector (kv_lora_rank and qk_rope_head_dim) with a kernel; GPUs have `MLA_WIDTHS_GPU`."""

MLA_WIDTHS_GPU = (320, 512, 576)

NEED_TORCHVISION = frozenset(
    ("Glm5NextForCausalLM", "HCXVisionV2ForCausalLM", "Qwen3_5ForCausalLM", "Qwen3_5MoeForCausalLM")
)
"""Text models whose module in vLLM imports one that reads images."""

GENERATES = frozenset(
    ("AquilaModel", "ChatGLMModel", "GPT2LMHeadModel", "H2OVLChatModel", "InternVLChatModel", "MiDashengLMModel",
     "MossAudioModel", "Qwen2_5OmniModel", "QWenLMHeadModel", "JAISLMHeadModel", "SkyworkR1VChatModel",
     "UltravoxModel")
)  # fmt: skip
"""Architectures named `...Model` that generate text."""

_POOLS = ("Model", "ForMaskedLM", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering",
          "ForPreTraining", "ForImageClassification", "ForRewardModel", "ForRetrieval")  # fmt: skip


def pools(architecture: str) -> bool:
    """Whether it gives embeddings or classes, and no text, by transformers' names."""
    return architecture.endswith(_POOLS) and architecture not in GENERATES
