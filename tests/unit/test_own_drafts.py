"""A model that is to draft with layers of its own has to have them, and its artifact too."""

from __future__ import annotations

from typing import Any

import pytest

from quantize.checkpoint.headers import Tensor
from quantize.checkpoint.source import Source
from quantize.engines import catalog
from quantize.preflight import own_drafts

OWN = {own_drafts.FLAG: {"method": "mtp", "num_speculative_tokens": 1}}
DECODER = tuple(Tensor(f"model.layers.{i}.mlp.up_proj.weight", "BF16", (64, 32)) for i in range(2))


def model(*more: str) -> Source:
    tensors = (*DECODER, *(Tensor(name, "BF16", (64, 32)) for name in more))
    return Source("m", "folder", "m", None, None, tensors, {"num_hidden_layers": 2})


DRAFTS = (model("mtp.layers.0.mlp.up_proj.weight"), model("model.layers.2.mlp.up_proj.weight"),
          model("model.mtp_layers.0.mlp.up_proj.weight"))  # fmt: skip


@pytest.mark.parametrize("source", DRAFTS)
def test_a_model_with_such_layers_drafts_with_them_where_the_engine_keeps_them(source: Source) -> None:
    assert own_drafts.check(source, OWN, None) == []
    (dropped,) = own_drafts.check(source, OWN, "autoawq", "serve", "arguments")
    assert (dropped.code.name, dropped.severity) == ("no-draft-layers", "error")
    assert dropped.where.key == ("serve", "arguments", own_drafts.FLAG)


@pytest.mark.parametrize("value", [OWN[own_drafts.FLAG], '{"method": "mtp"}', {"method": "deepseek_mtp"}])
def test_a_model_without_them_is_refused(value: object) -> None:
    (found,) = own_drafts.check(model(), {own_drafts.FLAG: value}, None)
    assert found.code.name == "no-draft-layers"


@pytest.mark.parametrize(
    "value", [None, "{", "[]", {}, {"method": "ngram"}, {"method": 1}, {"method": "mtp", "model": "org/draft"}]
)
def test_other_ways_to_draft_need_no_layers(value: Any) -> None:
    assert own_drafts.check(model(), {own_drafts.FLAG: value}, "autoawq") == []


def test_without_headers_nothing_is_known() -> None:
    assert own_drafts.check(Source("m", "hub", "m", None, None), OWN, None) == []


def test_the_engines_that_the_hint_names_keep_the_layers() -> None:
    (found,) = own_drafts.check(DRAFTS[0], OWN, "autoawq")
    named = [name for name in catalog.ENGINES if f"engine: {name}`" in found.hint]
    assert named
    assert all(catalog.ENGINES[name].KEEPS_UNLOADED for name in named)
