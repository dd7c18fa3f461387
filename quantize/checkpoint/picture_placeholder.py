"""Whether a chat template gives a picture a place in the prompt.

vLLM 0.32 (`renderers/hf.py`) hands the parts of a message to a template that loops over them, and then looks for the
placeholder of its model in what comes back: without one the request fails with "Failed to apply prompt replacement". To
other templates it hands text into which it put the placeholder itself.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from qpack.core import jsonfile
from qpack.core.jsonfile import JsonObject, NotJson
from qpack.core.problems import Code
from quantize.checkpoint.model_config import ModelConfig

UNPLACED = Code("unplaced-pictures", "The model takes pictures, and its chat template gives them no place.")

_LOOPS = re.compile(r"\{%-?\s*for\s+\w+\s+in\s+[^%]*\bcontent\b")
_TOKEN_KEY = re.compile(r"(image|vision|boi|img|media)\w*_token(_id|_index)?$")
# What such tokens look like; a template may write one that neither config nor processor names (Llama 4).
_LITERAL = re.compile(r"[<\[][^<>\[\]{}'\"]*(image|img|vision|picture|media)[^<>\[\]{}'\"]*[>\]]", re.IGNORECASE)
# Variables of transformers' processors that hold such a token.
_VARIABLES = ("image_token", "boi_token", "vision_token", "image_placeholder")
_MAX_TEMPLATE = 2**22


def lacks(folder: Path, config: ModelConfig) -> tuple[str, ...]:
    """The special tokens for pictures that the model's config and processor name, where its template loops over the
    parts of a message and has none of them; empty where a picture has a place, and where that isn't known.
    """
    template = _template(folder)
    if not isinstance(config.get("vision_config"), Mapping) or not _LOOPS.search(template):
        return ()
    tokens = _tokens(folder, config)
    written = (*tokens, *_VARIABLES)
    return () if _LITERAL.search(template) or any(each in template for each in written) else tokens


def _json(path: Path) -> JsonObject:
    try:
        return jsonfile.read_object(path)
    except (OSError, NotJson):
        return {}


def _template(folder: Path) -> str:
    """The chat template; empty without one."""
    try:
        with (folder / "chat_template.jinja").open("rb") as file:
            return file.read(_MAX_TEMPLATE).decode("utf-8", "replace")
    except OSError:
        pass
    for name in ("chat_template.json", "tokenizer_config.json"):
        found = _json(folder / name).get("chat_template")
        if isinstance(found, list):
            named = {each.get("name"): each.get("template") for each in found if isinstance(each, dict)}
            found = named.get("default")
        if isinstance(found, str):
            return found
    return ""


def _tokens(folder: Path, config: ModelConfig) -> tuple[str, ...]:
    """Texts of the special tokens for pictures: by their numbers in the config, and as the processor's files name
    them.
    """
    ids = {value for key, value in config.items() if _TOKEN_KEY.search(key) and isinstance(value, int)}
    added = _json(folder / "tokenizer.json").get("added_tokens")
    listed = [each for each in added if isinstance(each, dict)] if isinstance(added, list) else []
    found = [each.get("content") for each in listed if each.get("id") in ids]
    for name in ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json"):
        file = _json(folder / name)
        found += [value for key, value in file.items() if _TOKEN_KEY.search(key)]
    return tuple(dict.fromkeys(text for text in found if isinstance(text, str) and text))


def described(tokens: tuple[str, ...]) -> str:
    """What is wrong with a template that `lacks` the tokens."""
    return f"the chat template writes none of {', '.join(tokens[:4])}: vLLM fails at a picture"
