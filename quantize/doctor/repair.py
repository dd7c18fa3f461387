"""Repairs JSON files and missing files of the source, in a copy. No weight is changed.

Weights are hard links to the originals where the file system allows it, else copies.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from packaging.version import Version

from qpack.core import jsonfile
from qpack.core.problems import Problem
from quantize.checkpoint import config_compat
from quantize.checkpoint.shards import INDEX
from quantize.doctor import checkpoint as checkpoints
from quantize.doctor import files
from quantize.doctor.checkpoint import Checkpoint
from quantize.doctor.vllm_releases import NEW_KEYS, ROPE_SINCE


def fix(
    checkpoint: Checkpoint, findings: tuple[Problem, ...], output: Path, against: Path | None, vllm: Version | None
) -> list[str]:
    """Write a repaired copy to `output`, which must not exist; the repairs. The original is not changed.

    Raises OSError when it can't be written; nothing is left then.
    """
    part = output.with_name(f".{output.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        for path in sorted(checkpoint.folder.iterdir()):
            if path.is_file():
                _take(path, part / path.name)
        source = checkpoints.read(against, 0)[0] if against else None
        fixable = {(found.code.name, found.where.file) for found in findings if found.fixable}
        done = [
            *_files(checkpoint, source, part, fixable),
            *_config(checkpoint, source, part, fixable, vllm),
            *_tokenizer(part, fixable),
            *_index(checkpoint, part, fixable),
        ]
        part.rename(output)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    return done


Fixable = set[tuple[str, str]]


def _take(path: Path, target: Path) -> None:
    if path.suffix == ".safetensors":
        try:
            os.link(path.resolve(), target)
        except OSError:
            shutil.copyfile(path, target)
    else:
        shutil.copyfile(path, target)


def _files(checkpoint: Checkpoint, source: Checkpoint | None, part: Path, fixable: Fixable) -> list[str]:
    if source is None:
        return []
    done = []
    for name in files.missing(checkpoint, source):
        if ("missing-file", name) not in fixable:
            continue
        if name in source.files:
            shutil.copyfile(source.folder / name, part / name)
        else:
            _, template = config_compat.tokenizer_to_5(source.json("tokenizer_config.json"))
            (part / name).write_text(template or "")
        done.append(f"{name}: copied from the source")
    if ("end-token", "generation_config.json") in fixable:
        shutil.copyfile(source.folder / "generation_config.json", part / "generation_config.json")
        done.append("generation_config.json: the source's")
    return done


def _config(
    checkpoint: Checkpoint, source: Checkpoint | None, part: Path, fixable: Fixable, vllm: Version | None
) -> list[str]:
    kinds = {kind for kind, _ in fixable}
    # Unreadable: the problem is reported, the file stays.
    config = original = checkpoint.json("config.json")
    done = []
    if "rope" in kinds and source is not None:
        config = _with_rope(config, source.config)
        done.append("config.json: RoPE of the source, in the keys of transformers 4 and 5")
    elif "unknown-key" in kinds and vllm is not None and vllm < ROPE_SINCE:
        config = config_compat.both(config)
        done.append("config.json: RoPE and dtype also in the keys of transformers 4")
    if "unknown-key" in kinds and isinstance(config.get("quantization_config"), Mapping):
        config = {**config, "quantization_config": _without(config["quantization_config"], NEW_KEYS)}
        done.append(f"config.json: {', '.join(NEW_KEYS)} removed")
    change: Callable[[dict[str, Any]], None]
    for kind, change, what in (
        ("gptq-format", lambda q: q.update(checkpoint_format="gptq_v2"), "checkpoint_format is gptq_v2"),
        ("group-index", lambda q: q.update(desc_act=True), "desc_act is true"),
    ):
        quantization = config.get("quantization_config")
        if kind in kinds and isinstance(quantization, dict):
            changed = dict(quantization)
            change(changed)
            config = {**config, "quantization_config": changed}
            done.append(f"config.json: {what}")
    if config is not original and config != original:
        (part / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    return done


def _with_rope(config: Mapping[str, Any], source: Mapping[str, Any]) -> dict[str, Any]:
    """The config with the source's RoPE in the keys of transformers 4 and 5; in `text_config` if multimodal."""
    if isinstance(config.get("text_config"), Mapping) and isinstance(source.get("text_config"), Mapping):
        return {**config, "text_config": _with_rope(config["text_config"], source["text_config"])}
    keys = ("rope_parameters", "rope_theta", "rope_scaling", "partial_rotary_factor")
    kept = {key: value for key, value in config.items() if key not in keys}
    said = {key: value for key, value in source.items() if key in keys}
    return {**kept, **config_compat.both(said)}


def _without(found: Any, keys: tuple[str, ...]) -> Any:
    if isinstance(found, Mapping):
        return {key: _without(value, keys) for key, value in found.items() if key not in keys}
    return found


def _tokenizer(part: Path, fixable: Fixable) -> list[str]:
    if "tokenizer-class" not in {kind for kind, _ in fixable}:
        return []
    path = part / "tokenizer_config.json"
    path.write_text(json.dumps(config_compat.tokenizer_to_4(jsonfile.read_object(path), None), indent=2) + "\n")
    return [f"tokenizer_config.json: tokenizer_class is {config_compat.OLD_TOKENIZER}"]


def _index(checkpoint: Checkpoint, part: Path, fixable: Fixable) -> list[str]:
    if ("stale-index", INDEX) not in fixable:
        return []
    total = sum(span.size for span in checkpoint.tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(checkpoint.holders.items()))}
    (part / INDEX).write_text(json.dumps(index, indent=2) + "\n")
    return [f"{INDEX}: written anew from the files"]
