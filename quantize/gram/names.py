"""The checkpoint's name of each of a model's tensors: transformers renames some when it loads, and fuses experts.

The names come from transformers' own rules for loading, applied to names alone. Nothing is read.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

_EXPERT = re.compile(r"\.(\d+)\.(\w+)\.weight$")


class Unsupported(ValueError):
    """A model that can't be streamed. The message says which part."""


@dataclass
class Names:
    """`model` is a tensor's name in the model, by that in the checkpoint; `source` the other way.

    `experts` are the names of an expert's own layers in the checkpoint, by the name of the module that fuses them: gate
    (where there is one), up, down. Their tensors are in `model` as those of modules `{module}.{number}.{own name}`.
    """

    model: dict[str, str] = field(default_factory=dict)
    source: dict[str, str] = field(default_factory=dict)
    experts: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def module(self, name: str) -> str:
        """The checkpoint's name of a module that has a weight."""
        return self.source.get(f"{name}.weight", f"{name}.weight").removesuffix(".weight")

    def add(self, source: str, model: str) -> None:
        """One tensor. A name that is known already stays."""
        self.model.setdefault(source, model)
        self.source.setdefault(model, source)


def names_of(model: PreTrainedModel, checkpoint: Iterable[str]) -> Names:
    """The names of a model's tensors in a checkpoint that has those of `checkpoint`. Raises Unsupported."""
    rules = get_model_conversion_mapping(model)
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    known, found = model.state_dict(), Names()
    parts: dict[str, dict[str, int]] = {}
    for name in checkpoint:
        target, pattern = rename_source_key(name, renamings, converters, model.base_model_prefix, known)
        if pattern is None or name in known:
            found.add(name, target if pattern is None else name)
            continue
        expert = _EXPERT.search(name)
        if expert is None:
            raise Unsupported(
                f"transformers makes {target} of {name} and others; gram takes experts apart, nothing else"
            )
        block, _, fused = target.rpartition(".")
        order = next(rule.source_patterns.index(pattern) for rule in converters if pattern in rule.source_patterns)
        parts.setdefault(block, {})[expert[2]] = order + (10 if fused.startswith("down") else 0)
        found.add(name, f"{block}.{expert[1]}.{expert[2]}.weight")
    found.experts = {block: tuple(sorted(own, key=own.__getitem__)) for block, own in parts.items()}
    return found
