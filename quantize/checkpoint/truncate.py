"""A truncated checkpoint: the same config with fewer decoder layers, and their real weights.

Keeps the first layers up to the first of the largest ones (a mixture of experts may start with dense layers), at least
two, so that an engine also goes from one layer to the next. Everything outside decoder layers stays. Nothing is loaded:
bytes are copied from file to file.
"""

from __future__ import annotations

import json
import os
import re
import struct
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantize.checkpoint import layer_names
from quantize.checkpoint.headers import Span, read_spans

_COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_LAYER = re.compile(r"^(.*?(?:^|\.)(?:layers|h|blocks))\.(\d+)\.")
# Layers of the same kind may differ by a norm or a bias.
_ALIKE = 0.98
_CHUNK = 64 * 2**20


class CannotTruncate(ValueError):
    """Why a checkpoint can't be truncated."""


@dataclass(frozen=True)
class Truncated:
    """Kept decoder layers, of how many; and the index and bytes of the largest one."""

    layers: int
    of_layers: int
    largest: int
    largest_bytes: int


def truncate(checkpoint: Path, target: Path) -> Truncated:
    """Write the truncated `checkpoint` into the folder `target`. Raises CannotTruncate for unknown layers."""
    config = json.loads((checkpoint / "config.json").read_text())
    # In multimodal models the text model has its own config.
    text = config["text_config"] if isinstance(config.get("text_config"), dict) else config
    key = next((key for key in _COUNTS if isinstance(text.get(key), int)), None)
    if key is None:
        raise CannotTruncate(f"the config has no number of layers ({', '.join(_COUNTS)})")
    count = text[key]
    places = [(file, span) for file in sorted(checkpoint.glob("*.safetensors")) for span in read_spans(file)[0]]
    stem, sizes = _decoder([span for _, span in places], count)
    largest = next(number for number in range(count) if sizes[number] >= _ALIKE * max(sizes.values()))
    keep = min(count, max(2, largest + 1))
    kept = [place for place in places if _number(place[1].tensor.name, stem) < keep]
    target.mkdir(parents=True)
    _write(kept, target / "model.safetensors")
    (target / "config.json").write_text(json.dumps(_shortened(config, text, key, keep), indent=1))
    written = ("config.json", "model.safetensors.index.json")
    for file in checkpoint.iterdir():
        if file.is_file() and file.suffix != ".safetensors" and file.name not in written:
            (target / file.name).symlink_to(file.resolve())
    return Truncated(keep, count, largest, sizes[largest])


def longest(tokens: Path, target: Path, enough: int | None) -> tuple[int, int]:
    """Write the longest rows until they have `enough` tokens (None: all). Returns number and longest length."""
    rows = [json.loads(line) for line in tokens.read_text().splitlines()]
    rows.sort(key=lambda row: len(row["input_ids"]), reverse=True)
    taken: list[dict[str, Any]] = []
    for row in rows:
        if enough is not None and sum(len(each["input_ids"]) for each in taken) >= enough:
            break
        taken.append(row)
    target.write_text("".join(json.dumps(row) + "\n" for row in taken))
    return len(taken), len(taken[0]["input_ids"])


def _decoder(spans: list[Span], count: int) -> tuple[str, dict[int, int]]:
    """The name prefix of the decoder's layers, and the bytes of each layer."""
    found: dict[str, dict[int, int]] = defaultdict(lambda: defaultdict(int))
    for span in spans:
        name = span.tensor.name
        match = _LAYER.match(name)
        if match and not layer_names.is_vision(name) and not layer_names.is_mtp(name):
            found[match[1]][int(match[2])] += span.size
    whole = {stem: sizes for stem, sizes in found.items() if set(range(count)) <= set(sizes)}
    if not whole:
        raise CannotTruncate(f"no tensor names match {count} layers (such as `model.layers.0.`)")
    stem = max(whole, key=lambda stem: sum(whole[stem].values()))
    return stem, {number: whole[stem][number] for number in range(count)}


def _number(name: str, stem: str) -> int:
    """The index of a tensor's decoder layer; -1 outside of them."""
    match = _LAYER.match(name)
    return int(match[2]) if match and match[1] == stem else -1


def _shortened(config: dict[str, Any], text: dict[str, Any], key: str, keep: int) -> dict[str, Any]:
    """The config with `keep` layers; lists with one entry per layer (`layer_types`) are truncated."""
    lists = {k: v[:keep] for k, v in text.items() if isinstance(v, list) and len(v) == text[key]}
    short = {**text, **lists, key: keep}
    return short if text is config else {**config, "text_config": short}


def _write(places: list[tuple[Path, Span]], target: Path) -> None:
    header: dict[str, Any] = {}
    offset = 0
    for _, span in places:
        name, dtype, shape = span.tensor
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + span.size]}
        offset += span.size
    # transformers reads the framework from here.
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    text += b" " * (-len(text) % 8)
    with target.open("wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        for path, span in places:
            with path.open("rb") as file:
                at, left = span.start, span.size
                while left:
                    data = os.pread(file.fileno(), min(left, _CHUNK), at)
                    out.write(data)
                    at, left = at + len(data), left - len(data)
