"""What the installed transformers makes of checkpoints: RoPE, dtype, and a conversation as text and as tokens.

`python meaning.py FOLDER...` prints a JSON object for each folder. Config and tokenizer are read as any program reads
them; the model has no weights.
"""

import json
import sys

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

CONVERSATION = [
    {"role": "system", "content": "You answer in one line."},
    {"role": "user", "content": "What is 2 + 2?  \n(Ünïcödé, too: 你好)"},
    {"role": "assistant", "content": "4"},
    {"role": "user", "content": "And 3 + 3?"},
]


def meaning(folder):
    """One folder's."""
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    rotary = next(m for m in AutoModelForCausalLM.from_config(config).modules() if hasattr(m, "inv_freq"))
    found = {
        "transformers": transformers.__version__,
        "inverse_frequencies": rotary.inv_freq.tolist(),
        "attention_scaling": float(rotary.attention_scaling),
        "dtype": str(config.torch_dtype if transformers.__version__ < "5" else config.dtype).removeprefix("torch."),
    }
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (ValueError, OSError) as error:
        return {**found, "tokenizer": str(error)}
    text = tokenizer.apply_chat_template(CONVERSATION, tokenize=False, add_generation_prompt=True)
    tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
    ends = [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id]
    return {**found, "text": text, "tokens": tokens, "ends": ends}


if __name__ == "__main__":
    torch.manual_seed(0)
    print(json.dumps({folder: meaning(folder) for folder in sys.argv[1:]}))
