"""Turns a GGUF file into a transformers checkpoint. Runs in the transformers environment."""

import functools
import os
import shutil

import gguf
import qpack_worker
import torch
from gguf_job import Answer, Job
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

# transformers opens the file for the config, the weights and the tokenizer, and each time an object is made of every
# word of the vocabulary: 2 s of a processor for 49,152 words.
gguf.GGUFReader = functools.cache(gguf.GGUFReader)


def work(job, out):
    """Dequantize to bfloat16 and save weights, config, generation config, tokenizer and chat template."""
    folder, name = os.path.split(job.gguf)
    target = os.path.join(out, "checkpoint")
    qpack_worker.progress(0, 2, "converting weights")
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.bfloat16, local_files_only=True)
    # The weights are dequantized; a remaining GGUF quantizer would be written into the config.
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    # The conversion's display name of the model, not a path that anything could be loaded from.
    model.config._name_or_path = ""
    model.save_pretrained(target)
    qpack_worker.progress(1, 2, "converting the tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name, local_files_only=True)
    for name in ("bos_token", "eos_token", "pad_token"):
        # Some releases of transformers take the wrong id from the file; the model's config has the right one.
        identifier = getattr(model.config, f"{name}_id")
        if isinstance(identifier, int) and getattr(tokenizer, f"{name}_id") != identifier:
            setattr(tokenizer, name, tokenizer.convert_ids_to_tokens(identifier))
    tokenizer.save_pretrained(target)
    if not os.path.exists(os.path.join(target, "generation_config.json")):
        GenerationConfig.from_model_config(model.config).save_pretrained(target)
    if job.licence_file:
        shutil.copyfile(job.licence_file, os.path.join(target, "LICENSE"))
    return Answer(("converted from GGUF: weights dequantized to bfloat16",))


if __name__ == "__main__":
    qpack_worker.main(work, Job)
