"""AutoAWQ's worker with Gemma 3, which AutoAWQ 0.2.9 has not: its Gemma 2, with what differs.

Run by gram.py in AutoAWQ's environment, with the same job. Of Gemma 2 differ: the class of norms (which hold
weight - 1, too), and that a layer chooses between two rotary embeddings. On a GPU the model is in bfloat16 rather than
float16, whose range Gemma 3's activations leave; the scales are stored in float16 as ever.
"""

import sys
from pathlib import Path

import qpack_worker
import torch
from awq.models import auto, base, gemma2
from awq.quantize import scale
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "quantize" / "engines" / "workers"))

import autoawq_worker

# Asked with isinstance: norms that hold weight - 1.
scale.Gemma2RMSNorm = (scale.Gemma2RMSNorm, Gemma3RMSNorm)


class Gemma3AWQForCausalLM(gemma2.Gemma2AWQForCausalLM):
    """Gemma 3's text model."""

    layer_type = "Gemma3DecoderLayer"

    @staticmethod
    def move_embed(model, device):
        """Everything that comes before the layers."""
        for part in (model.model.embed_tokens, model.model.rotary_emb, model.model.rotary_emb_local):
            part.to(device)

    @staticmethod
    def get_layers_for_scaling(module, input_feat, module_kwargs):
        """Gemma 2's; its attention is called alone there, and wants the embedding that the layer would choose."""
        chosen = "position_embeddings_local" if module.is_sliding else "position_embeddings_global"
        kwargs = {**module_kwargs, "position_embeddings": module_kwargs[chosen]}
        return gemma2.Gemma2AWQForCausalLM.get_layers_for_scaling(module, input_feat, kwargs)


def main():
    """Teach it, and work."""
    auto.AWQ_CAUSAL_LM_MODEL_MAP["gemma3_text"] = Gemma3AWQForCausalLM
    base.TRANSFORMERS_AUTO_MAPPING_DICT["gemma3_text"] = "AutoModelForCausalLM"
    load = autoawq_worker.AutoAWQForCausalLM.from_pretrained
    if torch.cuda.is_available():
        autoawq_worker.AutoAWQForCausalLM.from_pretrained = lambda *args, **named: load(
            *args, **{**named, "torch_dtype": torch.bfloat16}
        )
    qpack_worker.main(autoawq_worker.work, autoawq_worker.Job)


if __name__ == "__main__":
    main()
