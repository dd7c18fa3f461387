"""An artifact without a kernel here, judged by a twin in 16 bits: what the twin holds, what is planned, what counts."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from evals.comparison.compare import of_evidence
from evals.gates.gates import UNMEASURED_BY_A_TWIN, judge
from evals.report import html_report, markdown, release_comparison
from evals.report.exports import scores
from qpack.cli.render import figures
from qpack.core.errors import EvaluateError, RecipeError
from qpack.core.problems import Code, Problem
from qpack.core.records import Emulated, Hardware, Release
from qpack.core.store import Store
from qpack.pipeline import emulation, plan, requirements
from qpack.pipeline.planned import Plan
from qpack.recipe import recipe_file
from qpack.runtime import hardware
from quantize.checkpoint import sources
from quantize.doctor import checkpoint, quantization_config, unpacked
from quantize.emulate import dense, twin
from quantize.engines.protocol import Request
from quantize.preflight import defaults, sizes, stored
from quantize.preflight.targets import Served
from registry.release import card
from tests.unit import damage, packed
from tests.unit import registry_examples as examples
from tests.unit.evidence_samples import BOUNDS, make_release
from tests.unit.recipes import RECIPE, workspace

EMULATED = Emulated(on="cpu", how="its weights unpacked to bfloat16", why="vLLM can't serve it on cpu")


def _weights(path: Path) -> dict[str, np.ndarray]:
    return {
        name: (np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view(np.float32).reshape(shape)
        for name, (dtype, shape, raw) in damage.load(path).items()
        if dtype == "BF16"
    }


@given(arrays.arrays(np.float32, 64, elements=st.floats(width=32, allow_nan=False, allow_infinity=False)))
def test_bfloat16_is_the_nearest_with_ties_to_even(values: np.ndarray) -> None:
    bits = dense.bfloat16(values).astype(np.uint32)
    with np.errstate(invalid="ignore", over="ignore"):
        made = (bits << 16).view(np.float32)
        for step in (-1, 1):
            other = ((bits.astype(np.int64) + step).clip(0, 0xFFFF).astype(np.uint32) << 16).view(np.float32)
            nearer = np.abs(other.astype(float) - values) < np.abs(made.astype(float) - values)
            assert not (nearer & np.isfinite(made) & np.isfinite(other)).any()


@pytest.mark.parametrize("form", ["awq", "gptq"])
def test_a_twin_holds_the_unpacked_weights_and_all_else(form: str, tmp_path: Path) -> None:
    artifact = packed.checkpoint(tmp_path / "made", form)
    told = twin.make(artifact, tmp_path / "out")
    found, _ = checkpoint.read(artifact, sample=0)
    claims = quantization_config.read(found)
    assert claims is not None
    assert (told.layers, told.rounded_activations) == (14, 0)
    assert twin.variables(tmp_path / "out") == {}
    made = _weights(tmp_path / "out" / "checkpoint" / "model.safetensors")
    for layer in found.layers.values():
        if layer.quantized:
            got = made[f"{layer.name}.weight"]
            rows, columns = (np.arange(size) for size in got.shape)
            want = unpacked.weights(found, layer, claims.of(layer), rows, columns)
            np.testing.assert_allclose(got, want, rtol=2**-8)
    config = json.loads((tmp_path / "out" / "checkpoint" / "config.json").read_text())
    assert "quantization_config" not in config
    assert config["torch_dtype"] == "bfloat16"


def test_what_is_not_looked_into_is_not_emulated(tmp_path: Path) -> None:
    damage.store(tmp_path / "model.safetensors", {"a.weight": ("I8", [2, 2], bytes(4))})
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": {"quant_method": "another"}}))
    with pytest.raises(EvaluateError):
        twin.make(tmp_path, tmp_path / "out")


def _nvfp4(folder: Path) -> Path:
    """One layer of 2 x 16 weights, all of them 3 / 2: FP4's 6, a scale of 0.5, and a global divisor of 2."""
    tensors: damage.Raw = {
        "model.layers.0.mlp.down_proj.weight_packed": ("U8", [2, 8], b"\x77" * 16),
        "model.layers.0.mlp.down_proj.weight_scale": ("F8_E4M3", [2, 1], b"\x30\x30"),
        "model.layers.0.mlp.down_proj.weight_global_scale": ("F32", [1], struct.pack("<f", 2.0)),
        "model.layers.0.mlp.down_proj.input_global_scale": ("F32", [1], struct.pack("<f", 4.0)),
        "model.norm.weight": ("BF16", [16], bytes(32)),
    }
    damage.store(folder / "model.safetensors", tensors)
    four = {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16, "symmetric": True}
    group = {"targets": ["Linear"], "weights": four, "input_activations": {**four, "dynamic": "local"}}
    said = {"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized", "config_groups": {"g": group}}
    (folder / "config.json").write_text(json.dumps({"dtype": "float16", "quantization_config": said}))
    (folder / "tokenizer.json").write_text("{}")
    return folder


def test_a_twin_of_nvfp4_rounds_what_goes_into_its_layers(tmp_path: Path) -> None:
    folder = tmp_path / "made"
    folder.mkdir()
    told = twin.make(_nvfp4(folder), tmp_path / "out")
    assert (told.layers, told.rounded_activations) == (1, 1)
    made = _weights(tmp_path / "out" / "checkpoint" / "model.safetensors")
    assert set(made) == {"model.layers.0.mlp.down_proj.weight", "model.norm.weight"}
    assert (made["model.layers.0.mlp.down_proj.weight"] == 1.5).all()
    assert (tmp_path / "out" / "checkpoint" / "tokenizer.json").is_symlink()
    plugin = tmp_path / "out" / "plugin"
    rounded = json.loads((plugin / "activations.json").read_text())
    assert rounded == {"nvfp4": {"model.layers.0.mlp.down_proj": 0.25}}
    said = {"PYTHONPATH": str(plugin), "QPACK_EMULATION": str(plugin / "activations.json")}
    assert twin.variables(tmp_path / "out") == said
    assert (
        (plugin / "qpack_emulation-1.dist-info" / "entry_points.txt").read_text().startswith("[vllm.general_plugins]")
    )


KERNELS = (Served("cpu", (), "no kernel"), Served("ampere", ("Marlin",)), Served("hopper", ("Marlin",)))


def test_emulation_follows_the_recipe_and_the_machine() -> None:
    never = emulation.aim("never", "cpu", "cpu", None, KERNELS)
    assert (never.target, never.emulated) == ("cpu", None)
    needed = emulation.aim("when-needed", "cpu", "cpu", None, KERNELS)
    assert needed.target == "ampere"  # the oldest that has a kernel
    assert "no kernel" in (needed.emulated or "")
    assert emulation.aim("when-needed", "hopper", "cpu", None, KERNELS).target == "hopper"
    assert emulation.aim("when-needed", "ampere", "ampere", None, KERNELS).emulated is None
    assert emulation.aim("always", "ampere", "ampere", None, KERNELS).emulated is not None
    served = (Served("cpu", ("CPUWNA16",)), *KERNELS[1:])
    lacks = Problem(Code("no-kernel", "."), "AVX-512")
    assert emulation.aim("when-needed", "cpu", "cpu", lacks, served).emulated == "AVX-512"
    assert emulation.aim("when-needed", "cpu", "cpu", None, served).emulated is None


def test_shapes_that_no_kernel_takes_are_refused_for_the_hardware_that_has_the_scheme(tmp_path: Path) -> None:
    nowhere = (KERNELS[0], Served("ampere", (), "no kernel"), Served("hopper", (), "groups of 128", only_shapes=True))
    assert emulation.aim("when-needed", "cpu", "cpu", None, nowhere).target == "hopper"
    assert emulation.aim("when-needed", "cpu", "cpu", None, nowhere[:2]).target == "cpu"
    with pytest.raises(RecipeError) as refused:
        planned(tmp_path, "quantize.scheme=W4AFP8", "quantize.group_size=32", "evaluate.emulate=when-needed")
    (complaint,) = refused.value.problems
    assert "on hopper" in complaint.message


def planned(folder: Path, *settings: str) -> Plan:
    text = RECIPE.replace("method: gptq", "method: rtn")
    path = folder / "ws" / "tiny.yaml"
    if not path.exists():
        workspace(folder / "ws", text)
    path.write_text(text)
    return plan.make(recipe_file.load(path, list(settings)), Store(folder / "home"), thorough=True)


FP4 = ("quantize.scheme=NVFP4A16", "quantize.group_size=null")


def test_fp4_is_planned_on_a_cpu_only_by_its_twin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "has_avx512", lambda: True)
    with pytest.raises(RecipeError) as caught:
        planned(tmp_path, *FP4)
    assert "no-kernel" in {problem.code.name for problem in caught.value.problems}
    made = planned(tmp_path, *FP4, "evaluate.emulate=when-needed")
    assert made.emulated is not None
    assert (made.target, made.serving.hardware, made.serving.target) == ("cpu", "cpu", "ampere")
    assert "emulated" in {problem.code.name for problem in made.advice}
    assert "emulated" in made.steps["artifact.language"].inputs
    assert "emulated" not in made.steps["baseline.language"].inputs


def test_a_cpu_without_avx512_judges_four_bits_by_their_twin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "has_avx512", lambda: False)
    assert planned(tmp_path, "evaluate.emulate=when-needed").emulated is not None
    monkeypatch.setattr(hardware, "has_avx512", lambda: True)
    real, twin_of = planned(tmp_path, "evaluate.emulate=when-needed"), planned(tmp_path, "evaluate.emulate=always")
    assert real.emulated is None
    assert twin_of.emulated is not None
    assert real.key("quantize") == twin_of.key("quantize")
    assert real.key("baseline.language") == twin_of.key("baseline.language")
    assert real.key("artifact.language") != twin_of.key("artifact.language")


def test_a_recipe_for_cpus_stays_on_the_cpu_of_a_machine_with_gpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = Hardware(target="hopper", name="H100", cores=8, memory_bytes=2**36, accelerators=1)
    monkeypatch.setattr(hardware, "detect", lambda: gpu)
    monkeypatch.setattr(hardware, "has_avx512", lambda: True)
    made = planned(tmp_path, "evaluate.emulate=when-needed", "serve.target=cpu")
    assert (made.target, made.emulated) == ("cpu", None)
    made = planned(tmp_path, "evaluate.emulate=when-needed", "serve.target=blackwell")
    assert (made.target, made.emulated, made.serving.target) == ("hopper", None, "blackwell")


def test_a_quantized_cache_is_not_emulated(tmp_path: Path) -> None:
    asked = (*FP4, "evaluate.emulate=when-needed", "quantize.kv_cache=fp8")
    with pytest.raises(RecipeError) as caught:
        planned(tmp_path, *asked)
    assert "not-emulated" in {problem.code.name for problem in caught.value.problems}


AS_IT_IS = ("quantize.method=none", "quantize.scheme=SOURCE", "quantize.group_size=null")


def _quantized_source(folder: Path) -> None:
    workspace(folder / "ws")
    for file in (folder / "ws" / "model").iterdir():
        file.unlink()
    _nvfp4(folder / "ws" / "model")


def test_a_quantized_source_without_a_kernel_here_is_refused_as_its_own_scheme(tmp_path: Path) -> None:
    _quantized_source(tmp_path)
    with pytest.raises(RecipeError) as caught:
        planned(tmp_path, *AS_IT_IS)
    (problem,) = caught.value.problems
    assert problem.code.name == "no-kernel"
    assert "NVFP4" in problem.message


def test_a_quantized_source_is_emulated_and_so_is_its_baseline_by_the_same_server(tmp_path: Path) -> None:
    _quantized_source(tmp_path)
    made = planned(tmp_path, *AS_IT_IS, "evaluate.emulate=when-needed")
    assert made.emulated is not None
    assert emulation.of_baseline(made)
    assert "emulated" in made.steps["baseline.language"].inputs
    for part in ("performance", "language", "accuracy"):
        assert made.key(f"baseline.{part}") == made.key(f"artifact.{part}")
    # 2 x 16 weights in 16 bits, and a norm; a packed one counts half as many values.
    assert sizes.unpacked_bytes(made.source, made.request) == 2 * 2 * 16 + 2 * 16
    needed = {each.what: each.bytes for each in requirements.required(made)}
    assert needed["memory to serve the baseline"] == needed["memory to serve the artifact"]


def test_a_source_in_16_bits_that_is_released_as_it_is_has_no_twin(tmp_path: Path) -> None:
    made = planned(tmp_path, *AS_IT_IS, "evaluate.emulate=always")
    assert made.emulated is None


@pytest.mark.parametrize(("form", "scheme"), [("awq", "W4A16_ASYM"), ("gptq", "W4A16")])
def test_a_quantized_source_is_read_with_its_shapes_before_packing(form: str, scheme: str, tmp_path: Path) -> None:
    folder = packed.checkpoint(tmp_path / "made", form)
    source, problems = sources.find(str(folder), tmp_path, None)
    assert source is not None, problems
    (part,) = stored.own(Request("none", "SOURCE", None, (), 0.01, False), source)
    assert (part.request.scheme, part.request.group_size) == (scheme, packed.GROUP)
    found = {kind.name.rpartition("0.")[2]: kind.shape for kind in part.layers}
    assert found == packed.SHAPES


def test_memory_and_disk_of_an_emulated_artifact_are_its_twins(tmp_path: Path) -> None:
    needed = {
        mode: {each.what: each.bytes for each in requirements.required(planned(tmp_path, f"evaluate.emulate={mode}"))}
        for mode in ("never", "always")
    }
    weights = planned(tmp_path).source.parameters * 2
    both = [needed["always"][f"memory to serve the {side}"] for side in ("artifact", "baseline")]
    assert both[0] == both[1] > needed["never"]["memory to serve the artifact"]
    assert needed["always"]["disk"] == needed["never"]["disk"] + weights


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Release:
    return make_release(tmp_path_factory.mktemp("logprobs"))


def test_speed_and_memory_of_a_twin_do_not_count(release: Release) -> None:
    artifact = release.artifact.model_copy(update={"emulated": EMULATED})
    bounds = {**BOUNDS, "throughput_ratio": 0.01, "memory_ratio": 100.0}
    c = release.comparison
    found = of_evidence(release.baseline, artifact, (c.kl_divergence, c.flip_rate), interleaved=release.interleaved)
    assert found.speed == ()
    outcomes = {gate.gate.partition("[")[0]: gate for gate in judge(found, artifact, bounds).gates}
    for name in UNMEASURED_BY_A_TWIN & set(bounds):
        assert outcomes[name].outcome == "undecided"
        assert outcomes[name].why == str(EMULATED)
    alone = {gate.gate: gate.outcome for gate in judge(c, release.artifact, BOUNDS).gates}
    assert all(outcomes[name].outcome == alone[name] for name in ("kl_divergence", "accuracy_drop") if name in alone)


def test_every_page_of_an_emulated_artifact_says_so_and_has_no_speed_or_memory_of_its_twin(
    release: Release, capsys: pytest.CaptureFixture[str]
) -> None:
    said = release.model_copy(
        update={
            "artifact": release.artifact.model_copy(update={"emulated": EMULATED}),
            "comparison": release.comparison.model_copy(update={"speed": ()}),
        }
    )
    html, text = html_report.render(said), card.render(said, examples.serving())
    assert html.index("Emulated on cpu") < html.index('id="verdict"')
    assert text.index("Emulated on cpu") < text.index("## Serve")
    figures.figures(said)
    pages = {"html": html, "card": text, "markdown": markdown.render(said, said.verdict, "report"),
             "console": capsys.readouterr().out}  # fmt: skip
    own = {"html": html_report.render(release), "card": card.render(release, examples.serving())}
    twins = (
        "under load",
        "Server start",
        "| Server memory",
        "server memory, MiB",
        "Memory of the server",
        "tokens/s |",
    )
    for name, page in pages.items():
        assert "Emulated on cpu" in page, name
        assert not [words for words in twins if words in page], name
    assert all("under load" in page and "Server start" in page for page in own.values())
    assert "memory_ratio" in scores.figures(release)
    assert "memory_ratio" not in scores.figures(said)
    both = release_comparison.compare({"own": release, "twin": said})
    assert all(row.memory_bytes is None and row.tokens_per_second is None for row in both.rows)
    assert any("twin" in why for why in both.left_out)


def test_the_plan_of_a_quantized_source_says_what_each_layer_is_stored_in(tmp_path: Path) -> None:
    folder = tmp_path / "made"
    folder.mkdir()
    source, _ = sources.find(str(_nvfp4(folder)), tmp_path, None)
    assert source is not None
    rows = defaults.table(Request("none", "SOURCE", None, (), 0.01, False), source)
    assert [(row.name, row.scheme) for row in rows if row.scheme] == [("model.layers.*.mlp.down_proj", "NVFP4")]
