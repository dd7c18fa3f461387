"""The types of layers that `check` refuses are those that the transformers in the engines' environments refuse."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from evals.server.eval_environments import VLLM
from qpack.runtime import environments
from qpack.runtime.specs import Spec
from quantize.checkpoint import config_compat
from quantize.engines import gram, llmcompressor

pytestmark = pytest.mark.engines

ALLOWED = re.compile(r"^ALLOWED_\w*LAYER_TYPES = \((.*?)^\)", re.MULTILINE | re.DOTALL)
NEW = ("indexed_attention", "reference_sliding_attention")


@pytest.mark.parametrize("spec", [llmcompressor.ENVIRONMENT, VLLM, gram.ENVIRONMENT], ids=lambda spec: spec.name)
def test_a_release_refuses_the_types_of_layers_that_are_newer_than_it(spec: Spec, engine_home: Path) -> None:
    environment = environments.ensure(environments.resolve(spec, "cpu", engine_home), engine_home, print)
    (folder,) = environment.python.parent.parent.glob("lib/python*/site-packages/transformers")
    text = (folder / "configuration_utils.py").read_text()
    known = {name for listed in ALLOWED.findall(text) for name in re.findall(r'"(\w+)"', listed)}
    assert "full_attention" in known
    major, minor = environment.record().packages["transformers"].split(".")[:2]
    refused = config_compat.new_layer_types({"layer_types": list(NEW)}, (int(major), int(minor)))
    assert set(refused) == set(NEW) - known
    assert all(other in known or not other for other in refused.values())
