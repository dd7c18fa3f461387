"""Whether the folder is complete: the shards in its index, and the source's files beside the weights."""

from __future__ import annotations

from dataclasses import replace

from qpack.core import checkpoint_files
from qpack.core.checkpoint_files import MISSING_FILE
from qpack.core.problems import Code, Location, Problem, Severity, named
from quantize.checkpoint.shards import INDEX
from quantize.doctor.checkpoint import Checkpoint

_STALE_INDEX = Code("stale-index", "The index lists wrong files for its tensors.", fixable=True)

# Files that servers read and engines forget to copy, and what happens without them.
BESIDE: dict[str, tuple[Severity, str]] = {
    "generation_config.json": ("error", "answers don't stop: the file has the end tokens"),
    "chat_template.jinja": ("error", "chat requests are refused or rendered differently"),
    "chat_template.json": ("error", "chat requests are refused or rendered differently"),
    "tokenizer_config.json": ("error", "special tokens and the chat template are lost"),
    "tokenizer.json": ("error", "the tokenizer can't be loaded, or another one is"),
    "tokenizer.model": ("error", "the tokenizer can't be loaded, or another one is"),
    "tekken.json": ("error", "the tokenizer can't be loaded, or another one is"),
    "vocab.json": ("error", "the tokenizer can't be loaded, or another one is"),
    "merges.txt": ("error", "the tokenizer can't be loaded, or another one is"),
    "special_tokens_map.json": ("note", "newer releases have the same in tokenizer_config.json"),
    "added_tokens.json": ("note", "tokenizer.json has the same"),
    "preprocessor_config.json": ("error", "images and audio can't be processed; vLLM doesn't start"),
    "processor_config.json": ("error", "images and audio can't be processed; vLLM doesn't start"),
    "video_preprocessor_config.json": ("error", "videos can't be processed"),
}
# Either of these is enough.
_EITHER = {
    "tokenizer.json": ("tokenizer.model", "vocab.json", "tekken.json"),
    "tokenizer.model": ("tokenizer.json",),
    "vocab.json": ("tokenizer.json",),
    "merges.txt": ("tokenizer.json",),
    "special_tokens_map.json": ("tokenizer_config.json",),
    "added_tokens.json": ("tokenizer.json",),
    "chat_template.json": ("chat_template.jinja",),
    "preprocessor_config.json": ("processor_config.json",),
    "video_preprocessor_config.json": ("processor_config.json",),
}


def check(checkpoint: Checkpoint, source: Checkpoint | None) -> list[Problem]:
    """Check shards and the tokenizer; with a source, also the files that only the source has."""
    findings = _shards(checkpoint) + checkpoint_files.no_tokenizer(checkpoint.files, Location(), tekken=True)
    return findings + _beside(checkpoint, source) if source else findings


def _shards(checkpoint: Checkpoint) -> list[Problem]:
    index = Location(INDEX)
    findings = checkpoint_files.missing_shards(checkpoint.index, checkpoint.files, index, checkpoint.tensors)
    unlisted = sorted(name for name in checkpoint.tensors if checkpoint.index and name not in checkpoint.index)
    moved = [n for n, file in checkpoint.index.items() if n in checkpoint.holders and checkpoint.holders[n] != file]
    if (unlisted or moved) and not findings:
        where = replace(named(sorted([*unlisted, *moved])), file=INDEX)
        what = "is missing from the index, which belongs to other files"
        hint = "Write the index anew from the files, or delete it."
        findings.append(Problem(_STALE_INDEX, what, where, hint, fixable=True))
    return findings


def missing(checkpoint: Checkpoint, source: Checkpoint) -> list[str]:
    """The files of `BESIDE` that the source has and the checkpoint lacks."""
    lacking = []
    for name in BESIDE:
        if name not in source.files or name in checkpoint.files:
            continue
        instead = [other for other in _EITHER.get(name, ()) if other in checkpoint.files]
        inside = name.startswith("chat_template.") and checkpoint.json("tokenizer_config.json").get("chat_template")
        if not instead and not inside:
            lacking.append(name)
    template = source.json("tokenizer_config.json").get("chat_template")
    has = checkpoint.json("tokenizer_config.json").get("chat_template") or any(
        name in checkpoint.files for name in ("chat_template.jinja", "chat_template.json")
    )
    if template and not has and "chat_template.jinja" not in lacking:
        lacking.append("chat_template.jinja")
    return lacking


def _beside(checkpoint: Checkpoint, source: Checkpoint) -> list[Problem]:
    findings = []
    for name in missing(checkpoint, source):
        severity, why = BESIDE[name]
        what = f"the source has this file, the checkpoint doesn't: {why}"
        findings.append(Problem(MISSING_FILE, what, Location(name), "Copy it from the source.", severity, fixable=True))
    return findings
