"""The engines that the demo doesn't use, and the copy, on a tiny model: workers, formats, what the doctor finds."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
from pathlib import Path

import pytest

from qpack.core.errors import QuantizeError
from qpack.core.hashing import digest_tree
from qpack.core.records import Quantized
from qpack.runtime import environments, worker
from quantize.doctor import checkup
from quantize.engines import autoawq, autogptq, autoround, gptqmodel, modelopt, source_copy
from quantize.engines import gram as gram_adapter
from quantize.engines.protocol import Engine, Paths, Request
from quantize.engines.workers.engine_answer import Answer
from tests.scenarios.command import Qpack
from tests.scenarios.conftest import MEASURED

pytestmark = [pytest.mark.engines, pytest.mark.slow("the engines that the demo doesn't use")]


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
    found = checkup.examine(tmp_path / "out" / "checkpoint", against=tiny_model, whole=True)
    assert found.findings == ()
    assert (found.method, found.quantized) == (engine.FORMATS[0], 14)
    assert (made.quantized_layers, made.linear_layers) == (14, 15)
    # On the tiny model of random weights: 0.38 to 0.42, and 0.53 where AutoAWQ lost the weights that it began with.
    assert difference(tiny_model, tmp_path / "out" / "checkpoint", 32, "ASYM" not in scheme, engine_home) < 0.47


@pytest.mark.parametrize(
    ("scheme", "group_size"), [("W4A16", 32), ("W8A16", 32), ("NVFP4", None), ("MXFP4", None), ("MXFP8", None)]
)
def test_autorounds_rounding_is_of_the_sources_weights(
    scheme: str, group_size: int | None, tiny_model: Path, engine_home: Path, tmp_path: Path
) -> None:
    tokens = tmp_path / "tokens.jsonl"
    rows = ([(37 * i + 11 * j) % 4000 + 10 for j in range(24 + 4 * i)] for i in range(4))
    tokens.write_text("".join(json.dumps({"input_ids": row}) + "\n" for row in rows))
    asked = Request(
        "autoround", scheme, group_size, ("lm_head", "re:.*[.]0[.]mlp[.]down_proj"), 0.01, False, iterations=3
    )
    made = work(autoround, asked, tiny_model, tokens, engine_home, tmp_path)
    found = checkup.examine(tmp_path / "out" / "checkpoint", against=tiny_model, whole=True)
    assert found.findings == ()
    assert (found.method, found.quantized) == ("compressed-tensors", 13)
    assert (made.quantized_layers, made.linear_layers) == (13, 15)


@pytest.mark.parametrize("scheme", ["FP8", "FP8_DYNAMIC", "NVFP4", "NVFP4A16", "MXFP8"])
def test_what_model_optimizer_makes_is_read_as_its_format(
    scheme: str, tiny_model: Path, engine_home: Path, tmp_path: Path
) -> None:
    tokens = tmp_path / "tokens.jsonl"
    rows = ([(37 * i + 11 * j) % 4000 + 10 for j in range(32)] for i in range(4))
    tokens.write_text("".join(json.dumps({"input_ids": row}) + "\n" for row in rows))
    asked = Request("rtn", scheme, None, ("lm_head", "re:.*[.]0[.]mlp[.]down_proj"), 0.01, False)
    made = work(modelopt, asked, tiny_model, tokens, engine_home, tmp_path)
    found = checkup.examine(tmp_path / "out" / "checkpoint", against=tiny_model, whole=True)
    assert found.findings == ()
    assert (found.method, found.quantized) == ("modelopt", 13)
    assert (made.quantized_layers, made.linear_layers) == (13, 15)
    # Its own file says the same as the config: an old server reads the one, a new one the other.
    (tmp_path / "out" / "checkpoint" / "hf_quant_config.json").unlink()
    assert checkup.examine(tmp_path / "out" / "checkpoint").findings == ()


def difference(source: Path, artifact: Path, group_size: int, symmetric: bool, engine_home: Path) -> float:
    """Of the logits, as a share of the source's."""
    gram = environments.ensure(environments.resolve(gram_adapter.ENVIRONMENT, "cpu", engine_home), engine_home, print)
    script = [gram.python, Path(__file__).parent / "means.py", source, artifact, group_size, int(symmetric)]
    done = subprocess.run(list(map(str, script)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return float(done.stdout.split()[-1])


def test_a_copy_is_the_source_byte_for_byte_and_no_link(tiny_model: Path, engine_home: Path, tmp_path: Path) -> None:
    linked = tmp_path / "linked"
    linked.mkdir()
    for file in tiny_model.iterdir():
        (linked / file.name).symlink_to(file)
    request = Request("none", "BF16", None, ("lm_head",), 0.01, False)
    made = work(source_copy, request, linked, None, engine_home, tmp_path)
    files, digest = digest_tree(tiny_model)
    assert (made.digest, made.files) == (digest, files)
    copied = [tmp_path / "out" / "checkpoint" / record.path for record in files]
    assert not any(path.is_symlink() or path.stat().st_nlink > 1 for path in copied)
    assert (made.quantized_layers, made.linear_layers, made.format) == (0, 15, "safetensors")


def work(
    engine: Engine, request: Request, model: Path, tokens: Path | None, engine_home: Path, tmp_path: Path
) -> Quantized:
    environment = environments.ensure(environments.resolve(engine.ENVIRONMENT, "cpu", engine_home), engine_home, print)
    request = dataclasses.replace(request, format=engine.FORMATS[0])
    call = worker.Call(environment, tmp_path / "out", tmp_path / "log", 600, QuantizeError)
    answer = worker.run(engine.WORKER, engine.job(request, Paths(model, tokens, tmp_path / "scratch")), Answer, call)
    return engine.read(request, tmp_path / "out", answer)


AS_IT_IS = f"""\
name: theirs
model:
  source: theirs
quantize:
  method: none
  scheme: SOURCE
evaluate:
  emulate: when-needed
{MEASURED}"""


def test_a_checkpoint_of_model_optimizer_whose_config_says_nothing_is_read_as_quantized_and_released(
    real: Qpack, tiny_model: Path, engine_home: Path, tmp_path: Path
) -> None:
    tokens = tmp_path / "tokens.jsonl"
    tokens.write_text("".join(json.dumps({"input_ids": list(range(10 + i, 42 + i))}) + "\n" for i in range(4)))
    work(
        modelopt, Request("rtn", "NVFP4A16", None, ("lm_head",), 0.01, False), tiny_model, tokens, engine_home, tmp_path
    )
    theirs = real.cwd / "theirs"
    shutil.copytree(tmp_path / "out" / "checkpoint", theirs)
    config = json.loads((theirs / "config.json").read_text())
    del config["quantization_config"]
    (theirs / "config.json").write_text(json.dumps(config))

    assert real("doctor", theirs).code == 0
    # A recipe of another start unpacks it.
    other = (real.cwd / "recipe.yaml").read_text().replace("source: model", "source: theirs")
    (real.cwd / "other.yaml").write_text(other)
    taken = real("build", "other.yaml", "--until", "quantize", timeout=600)
    assert taken.code == 0, taken.err
    assert "note[unpacked]" in real("check", "other.yaml").out

    (real.cwd / "theirs.yaml").write_text(AS_IT_IS)
    planned = real("plan", "theirs.yaml")
    assert planned.code == 0, planned.err
    assert "NVFP4A16" in planned.out
    built = real("build", "theirs.yaml", timeout=900)
    assert built.code == 0, built.err
    shown = json.loads(real("show", "theirs:1", "--json").out)
    assert "emulated" in json.dumps(shown)
    pulled = real.cwd / "pulled"
    assert real("pull", "theirs:1", pulled).code == 0
    assert not any("quantization_config" in file.read_text() for file in pulled.rglob("config.json"))
    assert next(pulled.rglob("hf_quant_config.json")).read_bytes() == (theirs / "hf_quant_config.json").read_bytes()
