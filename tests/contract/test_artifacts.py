"""Laws of every engine on every architecture: what calibration sees, what the artifact holds, what it computes.

The models are those of tiny_models.py. The table in docs/benchmarks/architectures.md is made by the same code.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from qpack.core.store import Store
from qpack.runtime import environments
from quantize.checkpoint.headers import read_spans
from quantize.engines import gram, llmcompressor

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import architectures as table  # noqa: E402

pytestmark = pytest.mark.engines

# One of each kind: plain, another mask, offset norms, fused layers, experts, latent attention, a hybrid, images.
FEW = (
    "llama",
    "mistral",
    "gemma3_text",
    "phi3",
    "mixtral",
    "deepseek_v3",
    "granitemoehybrid",
    "qwen3_vl_moe",
    "falcon",
)
FEW_CELLS = ("FP8_DYNAMIC rtn", "W4A16 gptq", "W4A16 awq", "gram W4A16 awq")


# Its config has a kind of layer that the transformers of llm-compressor's environment (5.17) doesn't know.
NEWER = {"deepseek_v32"}


@pytest.fixture(scope="module")
def models(architectures: list[Path]) -> Path:
    """The folder with a tiny checkpoint of every architecture."""
    return architectures[0].parent


def rows_of(
    models: Path, names: tuple[str, ...], cells: tuple[str, ...], home: Path, out: Path
) -> dict[str, dict[str, Any]]:
    os.environ["QPACK_HOME"] = str(home)
    chosen = {cell.name: cell for cell in table.CELLS if cell.name in cells}
    found = {}
    # All cells at once: each engine is started, and imports what it needs, once.
    for row in table.quantized([*chosen.values()], [models / name for name in names], out):
        model, cell = row["name"].split(" / ")
        found[row["name"]] = table.examined(row, chosen[cell], models / model, out)
    return found


def test_a_few_of_each_kind_quantize_and_compute_what_they_should(
    models: Path, engine_home: Path, tmp_path: Path
) -> None:
    rows = rows_of(models, FEW, FEW_CELLS, engine_home, tmp_path)
    wrong = {name: row for name, row in rows.items() if "failed" in row or "refused" in row}
    assert wrong == {}
    assert len(rows) == len(FEW) * len(FEW_CELLS)
    for name in FEW:
        for cell in FEW_CELLS:
            artifact = tmp_path / "artifacts" / cell.replace(" ", "-") / name / "checkpoint"
            assert moved(models / name, artifact, scaled="awq" in cell) == []


@pytest.mark.slow("every engine on all 80 architectures")
def test_what_check_accepts_quantizes_and_computes_what_it_should(
    models: Path, engine_home: Path, tmp_path: Path
) -> None:
    names = tuple(sorted(folder.parent.name for folder in models.glob("*/config.json")))
    rows = rows_of(models, names, tuple(cell.name for cell in table.CELLS), engine_home, tmp_path)
    failed = {name: row["what"] for name, row in rows.items() if "failed" in row}
    assert {name for name in failed if name.split(" / ")[0] not in NEWER} == set(), failed
    assert all(row["refused"].startswith("[") for row in rows.values() if "refused" in row)


def moved(source: Path, artifact: Path, *, scaled: bool) -> list[str]:
    """Tensors of the artifact that are neither the source's, byte for byte, nor parts of a quantized layer."""
    before, after = (
        {span.tensor.name: (file, span) for file in folder.glob("*.safetensors") for span in read_spans(file)[0]}
        for folder in (source, artifact)
    )
    quantized = {name.removesuffix("_scale") for name in after if name.endswith(".weight_scale")}
    experts = {name.rpartition(".experts.")[0] for name in quantized if ".experts." in name}
    found = []
    for name, (file, span) in before.items():
        if name in quantized or (len(span.tensor.shape) == 3 and any(name.startswith(stem) for stem in experts)):
            continue
        if name not in after:
            found.append(f"{name} is lost")
            continue
        # Scales are taken out of norms and added biases.
        absorbs = scaled and len(span.tensor.shape) == 1
        if not absorbs and bytes_of(file, span) != bytes_of(*after[name]):
            found.append(f"{name} has other values")
    return found


def bytes_of(file: Path, span: Any) -> bytes:
    with file.open("rb") as opened:
        opened.seek(span.start)
        return opened.read(span.size)


def test_passes_and_names_keep_their_laws(engine_home: Path, tmp_path: Path) -> None:
    environment = environments.ensure(environments.resolve(gram.ENVIRONMENT, "cpu", engine_home), engine_home, print)
    script = [
        environment.python,
        Path(__file__).parent / "passes_claims.py",
        ROOT / "quantize/engines/workers",
        tmp_path,
    ]
    done = subprocess.run(list(map(str, script)), capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found) > 2
    assert found == dict.fromkeys(found)


GPTQ_8 = table.Cell("W8A16 gptq", "llmcompressor", "gptq", "W8A16", None, "hopper")


def calibrated(models: Path, home: Path, names: Iterable[str], out: Path) -> dict[str, str | None]:
    """What is wrong with calibration, by the names of the models that check accepts."""
    os.environ["QPACK_HOME"] = str(home)
    texts, _ = table.written(out)
    plans = {name: table.checked(GPTQ_8, models / name, out, Store(home), texts)[0] for name in names}
    ignored = out / "ignored.json"
    ignored.write_text(json.dumps({name: plan.request.ignore for name, plan in plans.items() if plan}))
    environment = environments.ensure(environments.resolve(llmcompressor.ENVIRONMENT, "cpu", home), home, print)
    script = [environment.python, Path(__file__).parent / "calibration_claims.py"]
    script += [
        ROOT / "quantize/engines/workers",
        ROOT / "qpack/runtime/workerlib",
        ROOT / "benchmarks",
        models,
        ignored,
    ]
    done = subprocess.run([*map(str, script)], capture_output=True, text=True, check=False, timeout=1800)
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, str | None] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_calibration_feeds_layers_what_the_model_feeds_them(models: Path, engine_home: Path, tmp_path: Path) -> None:
    # Those whose code calls a mask function by a local name, and one of each other kind.
    names = ("mistral", "mixtral", "phi3", "qwen3_moe", "starcoder2", "ministral3", "gemma2", "falcon_h1")
    assert calibrated(models, engine_home, names, tmp_path) == dict.fromkeys(names)


@pytest.mark.slow("calibration on all 80 architectures")
def test_calibration_feeds_layers_of_every_architecture_what_the_model_feeds_them(
    models: Path, engine_home: Path, tmp_path: Path
) -> None:
    names = {folder.parent.name for folder in models.glob("*/config.json")} - NEWER
    found = calibrated(models, engine_home, sorted(names), tmp_path)
    assert len(found) > 60
    assert found == dict.fromkeys(found)
