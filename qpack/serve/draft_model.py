"""The draft model of speculative decoding, read without loading it: its config and the size of its weights."""

from __future__ import annotations

from pathlib import Path

from qpack.core import jsonfile
from quantize.checkpoint import hub
from quantize.checkpoint.headers import Tensor, bytes_of, read_safetensors
from registry.serving.lint import Draft
from registry.serving.serving_manifest import DRAFT, ServingManifest

_WIDE = ("F64", "F32", "F16", "BF16")


def read(manifest: ServingManifest) -> Draft | None:
    """The manifest's draft model, None if it has none: a folder's files, else the hub's headers.

    An unreachable model isn't an error: the result has the reason.
    """
    if manifest.draft is None:
        return None
    folder = Path(manifest.draft)
    if folder.is_dir():
        config, tensors, why = _folder(folder)
    else:
        revision = manifest.json_argument(DRAFT).get("revision")
        try:
            source, problems = hub.find(f"hf://{manifest.draft}@{revision or 'main'}")
        except ValueError as error:  # huggingface_hub's word for a name that no repository can have
            return Draft(why=str(error).partition("\n")[0])
        if source is None:
            return Draft(why="; ".join(problem.text for problem in problems))
        config, tensors, why = source.config, source.tensors, "; ".join(source.unchecked)
    return Draft(config, loaded_bytes(tensors, manifest.dtype) if tensors else None, why)


def loaded_bytes(tensors: tuple[Tensor, ...], dtype: str) -> int:
    """Bytes of weights as vLLM holds them with `dtype`: it loads a draft model in the type of the model.

    With `auto` that is one of two bytes; vLLM loads files of 32 bits so too.
    """
    width = 4 if dtype == "float32" else 2
    return sum(tensor.elements * width if tensor.dtype in _WIDE else bytes_of(tensor) for tensor in tensors)


def _folder(folder: Path) -> tuple[jsonfile.JsonObject, tuple[Tensor, ...], str]:
    try:
        config = jsonfile.read_object(folder / "config.json")
    except (OSError, jsonfile.NotJson) as error:
        return {}, (), f"{folder / 'config.json'} can't be read: {type(error).__name__}"
    tensors: list[Tensor] = []
    for file in sorted(folder.glob("*.safetensors")):
        found, wrong = read_safetensors(file)
        if wrong:
            return config, (), str(wrong[0])
        tensors += found
    return config, tuple(tensors), "" if tensors else f"{folder} has no safetensors weights"
