"""AutoAWQ and GPTQModel, for real, on a tiny model: their workers, their formats, and what the doctor says of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qpack import envs, worker
from qpack.errors import QuantizeError
from quantize import autoawq, doctor, gptqmodel
from quantize.engine import Engine, Request

pytestmark = pytest.mark.engines


@pytest.mark.parametrize(
    ("engine", "method", "scheme"),
    [(autoawq, "awq", "W4A16_ASYM"), (gptqmodel, "gptq", "W4A16")],
    ids=["autoawq", "gptqmodel"],
)
def test_what_an_engine_makes_is_in_its_format_and_means_what_the_source_does(
    engine: Engine, method: str, scheme: str, tiny_model: Path, engine_home: Path, tmp_path: Path
) -> None:
    environment = envs.ensure(envs.resolve(engine.ENVIRONMENT, "cpu", engine_home), engine_home, print)
    tokens = tmp_path / "tokens.jsonl"
    rows = ([(37 * i + 11 * j) % 4000 + 10 for j in range(32)] for i in range(4))
    tokens.write_text("".join(json.dumps({"input_ids": row}) + "\n" for row in rows))
    request = Request(method, scheme, 32, ("lm_head",), 0.01, False)
    answer = worker.run(
        environment,
        engine.WORKER,
        engine.job(request, tiny_model, tokens),
        out=tmp_path / "out",
        log=tmp_path / "log",
        progress=lambda *_: None,
        timeout=600,
        error=QuantizeError,
    )
    made = engine.read(request, tmp_path / "out", answer)
    found = doctor.examine(tmp_path / "out" / "checkpoint", against=tiny_model, whole=True)
    assert found.findings == ()
    assert (found.method, found.quantized) == (engine.FORMATS[0], 14)
    assert (made.quantized_layers, made.linear_layers) == (14, 15)
