"""AutoAWQ, GPTQModel, AutoGPTQ and the copy on a tiny model: workers, formats, and what the doctor says of them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from qpack import envs, worker
from qpack.errors import QuantizeError
from qpack.files import digest_tree
from qpack.results import Quantized
from quantize import autoawq, autogptq, copying, doctor, gptqmodel
from quantize.engine import Engine, Request

pytestmark = pytest.mark.engines


@pytest.mark.parametrize(
    ("engine", "method", "scheme"),
    [(autoawq, "awq", "W4A16_ASYM"), (gptqmodel, "gptq", "W4A16"), (autogptq, "gptq", "W4A16")],
    ids=["autoawq", "gptqmodel", "autogptq"],
)
def test_what_an_engine_makes_is_in_its_format_and_means_what_the_source_does(
    engine: Engine, method: str, scheme: str, tiny_model: Path, engine_home: Path, tmp_path: Path
) -> None:
    tokens = tmp_path / "tokens.jsonl"
    rows = ([(37 * i + 11 * j) % 4000 + 10 for j in range(32)] for i in range(4))
    tokens.write_text("".join(json.dumps({"input_ids": row}) + "\n" for row in rows))
    made = work(
        engine, Request(method, scheme, 32, ("lm_head",), 0.01, False), tiny_model, tokens, engine_home, tmp_path
    )
    found = doctor.examine(tmp_path / "out" / "checkpoint", against=tiny_model, whole=True)
    assert found.findings == ()
    assert (found.method, found.quantized) == (engine.FORMATS[0], 14)
    assert (made.quantized_layers, made.linear_layers) == (14, 15)


def test_a_copy_is_the_source_byte_for_byte_and_no_link(tiny_model: Path, engine_home: Path, tmp_path: Path) -> None:
    linked = tmp_path / "linked"
    linked.mkdir()
    for file in tiny_model.iterdir():
        (linked / file.name).symlink_to(file)
    request = Request("none", "BF16", None, ("lm_head",), 0.01, False)
    made = work(copying, request, linked, None, engine_home, tmp_path)
    files, digest = digest_tree(tiny_model)
    assert (made.digest, made.files) == (digest, files)
    copied = [tmp_path / "out" / "checkpoint" / record.path for record in files]
    assert not any(path.is_symlink() or path.stat().st_nlink > 1 for path in copied)
    assert (made.quantized_layers, made.linear_layers, made.format) == (0, 15, "safetensors")


def work(
    engine: Engine, request: Request, model: Path, tokens: Path | None, engine_home: Path, tmp_path: Path
) -> Quantized:
    environment = envs.ensure(envs.resolve(engine.ENVIRONMENT, "cpu", engine_home), engine_home, print)
    request = dataclasses.replace(request, format=engine.FORMATS[0])
    answer = worker.run(
        environment,
        engine.WORKER,
        engine.job(request, model, tokens),
        out=tmp_path / "out",
        log=tmp_path / "log",
        progress=lambda *_: None,
        timeout=600,
        error=QuantizeError,
    )
    return engine.read(request, tmp_path / "out", answer)
