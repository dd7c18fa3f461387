"""What a build does with an artifact that the doctor finds damaged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from qpack.core.errors import QuantizeError
from qpack.pipeline.stages import catalog, quantize
from quantize.doctor import checkup
from tests.codes import coded
from tests.unit import packed


def test_a_damaged_artifact_stops_the_build_and_names_other_ways(tmp_path: Path) -> None:
    source = packed.checkpoint(tmp_path / "source", None)
    made = packed.checkpoint(tmp_path / "made", "gptq")
    quantize.refuse_damaged(checkup.examine(made, against=source).findings, made, [])
    bad = packed.checkpoint(tmp_path / "bad", "gptq", lambda t: t["model.layers.0.input_layernorm"].fill(np.nan))
    with pytest.raises(QuantizeError) as raised:
        quantize.refuse_damaged(checkup.examine(bad, against=source).findings, bad, ["`method: rtn` with `engine: x`"])
    assert raised.value.exit_code == 4
    assert "weight-not-finite" in {problem.code.name for problem in raised.value.problems}
    assert {problem.severity for problem in raised.value.problems} == {"error"}
    assert "`method: rtn` with `engine: x`" in raised.value.hint
    assert str(bad) in raised.value.hint
    with pytest.raises(QuantizeError) as rehearsed:
        quantize.refuse_damaged(checkup.examine(bad, against=source).findings, None, [])
    assert "qpack doctor" not in rehearsed.value.hint


def test_every_stage_can_be_the_last_one_and_others_are_refused() -> None:
    for number, stage in enumerate(catalog.STAGES, 1):
        assert catalog.named(stage.name) == catalog.STAGES[:number]
    with pytest.raises(Exception, check=coded("invalid-option")) as raised:
        catalog.named("quantise")
    assert raised.value.exit_code == 2  # type: ignore[attr-defined]
