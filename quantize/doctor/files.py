"""Whether the folder is complete: the shards in its index, and the source's files beside the weights."""

from __future__ import annotations

from dataclasses import replace

from qpack.core import checkpoint_files
from qpack.core.checkpoint_files import MISSING_FILE
from qpack.core.problems import Code, Location, Problem, Severity, named
from quantize.checkpoint.shards import INDEX
from quantize.doctor.checkpoint import Checkpoint

_STALE_INDEX = Code("stale-index", "The index lists wrong files for its tensors.", fixable=True)

_TEMPLATES = Code("template-differs", "The chat template differs between the places that have it.")
_SPECIAL_TOKENS = Code("special-tokens", "Special tokens are of a form that readers refuse, or have no text.")

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
    findings += [*_templates(checkpoint), *_special_tokens(checkpoint)]
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


def _chat_templates(checkpoint: Checkpoint) -> dict[str, str]:
    """The chat template by the file that has it."""
    found: dict[str, str] = {}
    if "chat_template.jinja" in checkpoint.files:
        found["chat_template.jinja"] = checkpoint.text("chat_template.jinja")
    for name in ("tokenizer_config.json", "chat_template.json"):
        template = checkpoint.json(name).get("chat_template")
        if isinstance(template, list):
            named_so = {t.get("name"): t.get("template") for t in template if isinstance(t, dict)}
            template = named_so.get("default")
        if isinstance(template, str):
            found[name] = template
    return found


def _templates(checkpoint: Checkpoint) -> list[Problem]:
    """Whether every place says the same of how a conversation is rendered."""
    found = _chat_templates(checkpoint)
    if len({" ".join(template.split()) for template in found.values()}) < 2:
        return []
    first, *others = found
    what = f"differs from the one in {' and '.join(others)}: which one renders a conversation depends on the server"
    hint = "Keep the source's, in one place."
    return [Problem(_TEMPLATES, what, Location(first, key=("chat_template",)), hint, "warning")]


def _special_tokens(checkpoint: Checkpoint) -> list[Problem]:
    """Special tokens as transformers 5 writes them (a list), which 4 refuses: saved again on the way, a tokenizer loses
    its chat template; and tokens without a text.
    """
    config, where = checkpoint.json("tokenizer_config.json"), "tokenizer_config.json"
    found = []
    for key in ("extra_special_tokens", "additional_special_tokens"):
        tokens = config.get(key)
        listed = list(tokens.values()) if isinstance(tokens, dict) else tokens if isinstance(tokens, list) else []
        texts = [token.get("content") if isinstance(token, dict) else token for token in listed]
        if any(not isinstance(text, str) or not text for text in texts):
            what = "has a token without a text"
            found.append(Problem(_SPECIAL_TOKENS, what, Location(where, key=(key,)), "Copy the source's file."))
    if isinstance(config.get("extra_special_tokens"), list) and not _chat_templates(checkpoint):
        what = "is a list, which transformers 4 refuses, and there is no chat template: chat requests are refused"
        hint = "Copy the source's tokenizer files and template; a model without a template needs none."
        place = Location(where, key=("extra_special_tokens",))
        found.append(Problem(_SPECIAL_TOKENS, what, place, hint, "warning"))
    return found


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
