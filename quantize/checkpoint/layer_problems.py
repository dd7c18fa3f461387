"""What can be wrong with layers, planned or stored: joined ones that differ, a tied output layer, some left behind."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping

from qpack.core.jsonfile import JsonObject
from qpack.core.problems import Code, Location, Problem
from quantize.checkpoint import layer_names

_JOINED_UNEQUAL = Code("joined-unequal", "Servers join q, k and v (or gate and up), which aren't all quantized alike.")
_TIED_HEAD = Code("tied-head", "lm_head is quantized, and servers don't read it because embeddings are tied.")
_LEFT_BEHIND = Code("left-behind", "The artifact lacks the source's layers for speculative decoding.")

Members = tuple[str, ...]


def unequal(given: Mapping[str, Hashable]) -> dict[Members, list[list[str]]]:
    """Families of layers that a server joins into one, whose members aren't all given the same scheme: by the names
    that are joined, the layers of each family.
    """
    found: dict[Members, list[list[str]]] = defaultdict(list)
    for (_, members), names in layer_names.families(given).items():
        if len({given[name] for name in names}) > 1:
            found[members].append(names)
    return found


def joined_unequal(members: Members, where: Location) -> Problem:
    """The problem of one kind of family; `where` names its layers."""
    what = f"servers join {', '.join(members)} into one layer, and they aren't all quantized alike"
    return Problem(_JOINED_UNEQUAL, what, where, "Quantize all of them alike, or none.")


def tied_head(config: JsonObject, quantized: Iterable[str], where: Location, hint: str) -> list[Problem]:
    """An output layer among the quantized ones that is the embedding: servers read the embedding in its place."""
    heads = [name for name in quantized if layer_names.last(name) == "lm_head"]
    if not heads or not is_tied(config):
        return []
    what = f"{heads[0]} is quantized, and tied to the embedding, which servers read in its place"
    return [Problem(_TIED_HEAD, what, where, hint)]


def is_tied(config: JsonObject) -> bool | None:
    """Whether the output layer is the embedding; None where the config doesn't tell."""
    inner = config.get("text_config")
    tied = config.get("tie_word_embeddings", inner.get("tie_word_embeddings") if isinstance(inner, Mapping) else None)
    return tied if isinstance(tied, bool) else None


def left_behind(where: Location) -> Problem:
    """Layers that predict more than the next token, which transformers doesn't load; `where` names them."""
    what = "layers for speculative decoding, which transformers doesn't load and the artifact lacks"
    return Problem(_LEFT_BEHIND, what, where, "The model works, without that decoding.", "warning")
