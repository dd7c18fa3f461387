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

from qpack.core import model_shapes
from quantize.checkpoint import layer_roles
from quantize.checkpoint.headers import Span, read_spans
from quantize.checkpoint.layer_roles import Layout

_SHARED = ("num_kv_shared_layers",)
_INDICES = re.compile(r"(_layers|_indices|_idxs?|layer_ids)$")
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
    if config.get("is_encoder_decoder"):
        raise CannotTruncate("it has an encoder besides the decoder")
    places = [(file, span) for file in sorted(checkpoint.glob("*.safetensors")) for span in read_spans(file)[0]]
    where = layer_roles.layout([span.tensor for _, span in places], config)
    sizes = _sizes([span for _, span in places], where)
    count = layer_roles.count(config, layer_roles.LAYERS) or where.layers
    if not sizes or set(sizes) != set(range(count)):
        raise CannotTruncate(f"no tensor names match {count} layers (such as `model.layers.0.`)")
    largest = next(number for number in range(count) if sizes[number] >= _ALIKE * max(sizes.values()))
    # Embeddings of all layers in one tensor (Gemma 3n and 4): it can't be cut along its rows of bytes.
    whole = bool(model_shapes.language_model(config).get("hidden_size_per_layer_input"))
    keep = count if whole else min(count, max(2, largest + 1))
    kept = [place for place in places if (inside := where.inside(place[1].tensor.name)) is None or inside[0] < keep]
    short = _shortened(config, count, keep)
    target.mkdir(parents=True)
    _write(kept, target / "model.safetensors")
    (target / "config.json").write_text(json.dumps(short, indent=1))
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


def _sizes(spans: list[Span], where: Layout) -> dict[int, int]:
    """The bytes of each decoder layer."""
    found: dict[int, int] = defaultdict(int)
    for span in spans:
        inside = where.inside(span.tensor.name)
        if inside is not None and inside[0] < where.layers:
            found[inside[0]] += span.size
    return dict(found)


def _shortened(config: dict[str, Any], count: int, keep: int) -> dict[str, Any]:
    """The config with `keep` of `count` layers: numbers of layers, lists with one entry per layer (`layer_types`), and
    lists of layers (`moe_layers`). The last ones may share keys and values of earlier ones
    (Gemma 3n): they are cut first.
    """
    text = model_shapes.language_model(config)
    changed: dict[str, Any] = {}
    for key, value in text.items():
        if key in layer_roles.LAYERS and isinstance(value, int):
            changed[key] = keep
        elif key in _SHARED:
            changed[key] = max(0, value - (count - keep))
        elif isinstance(value, list) and len(value) == count:
            changed[key] = value[:keep]
        elif isinstance(value, list) and _INDICES.search(key):
            changed[key] = [each for each in value if not isinstance(each, int) or each < keep]
    if not changed:
        raise CannotTruncate(f"the config has no number of layers ({', '.join(layer_roles.LAYERS)})")
    if text is config:
        return {**config, **changed}
    part = next(key for key, value in config.items() if value is text)
    return {**config, part: {**text, **changed}}


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
