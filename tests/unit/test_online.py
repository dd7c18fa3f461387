"""Weights that vLLM quantizes as it loads them: what is planned, served, measured and refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from qpack.core.errors import RecipeError
from qpack.core.store import Store
from qpack.pipeline import plan, requirements
from qpack.pipeline.planned import Plan
from qpack.recipe import recipe_file
from quantize.preflight import sizes
from quantize.schemes.schemes import ONLINE, SCHEMES
from registry.serving import manifest_fields
from tests.unit.recipes import RECIPE, workspace

TEXT = RECIPE.replace("method: gptq", "method: online").replace("group_size: 32", "group_size: null")
WITHOUT_TEXTS = TEXT[: TEXT.index("calibration:")] + TEXT[TEXT.index("quantize:") :]


def planned(folder: Path, scheme: str, *settings: str) -> Plan:
    path = folder / "ws" / "tiny.yaml"
    if not path.exists():
        workspace(folder / "ws", WITHOUT_TEXTS.replace("W4A16", "FP8_DYNAMIC"))
    asked = [f"quantize.scheme={scheme}", *settings]
    return plan.make(recipe_file.load(path, asked), Store(folder / "home"), thorough=True)


def codes(folder: Path, scheme: str, *settings: str) -> set[str]:
    with pytest.raises(RecipeError) as caught:
        planned(folder, scheme, *settings)
    return {problem.code.name for problem in caught.value.problems}


def test_the_artifact_is_served_quantized_and_the_source_is_not(tmp_path: Path) -> None:
    made = planned(tmp_path, "FP8_DYNAMIC")
    assert made.engine.NAME == "copy"
    assert made.served(quantized=True).arguments["quantization"] == "fp8_per_channel"
    assert "quantization" not in made.served(quantized=False).arguments
    for part in ("performance", "language", "accuracy"):
        assert made.key(f"baseline.{part}") != made.key(f"artifact.{part}"), "each is measured"
    as_it_is = planned(tmp_path, "SOURCE", "quantize.method=none")
    for part in ("performance", "language", "accuracy"):
        assert made.key(f"baseline.{part}") == as_it_is.key(f"baseline.{part}"), "the source is measured once"


def test_what_the_recipe_leaves_alone_the_server_leaves_alone(tmp_path: Path) -> None:
    made = planned(tmp_path, "FP8_DYNAMIC", "quantize.ignore=[lm_head, down_proj, 're:.*o_proj']")
    told = made.served(quantized=True).arguments["quantization-config"]
    assert told == {"ignore": [r"re:(.*[.])?down_proj$", "re:.*o_proj"]}
    assert "quantization-config" not in made.served(quantized=False).arguments
    assert "quantization-config" not in planned(tmp_path, "FP8_DYNAMIC").served(quantized=True).arguments


def test_files_are_the_sources_and_memory_is_of_the_quantized_weights(tmp_path: Path) -> None:
    made = planned(tmp_path, "FP8_DYNAMIC")
    files, held = (size(made.source, made.request) for size in (sizes.weights_bytes, sizes.served_bytes))
    assert files == 2 * made.source.parameters
    assert held == sizes.weights_bytes(made.source, planned(tmp_path, "FP8_DYNAMIC", "quantize.method=rtn").request)
    needed = {each.what: each.bytes for each in requirements.required(made)}
    assert needed["memory to serve the baseline"] - needed["memory to serve the artifact"] == files - held
    assert "memory to quantize" not in needed


@pytest.mark.parametrize("scheme", ["FP8_TENSOR", "FP8_BLOCK", "MXFP8", "MXFP4"])
def test_what_has_no_kernel_here_is_refused_and_is_not_emulated(scheme: str, tmp_path: Path) -> None:
    assert "no-kernel" in codes(tmp_path, scheme)
    assert "not-emulated" in codes(tmp_path, scheme, "evaluate.emulate=when-needed")


@pytest.mark.parametrize("flag", ["quantization=fp8", "quantization-config={ignore: []}"])
def test_flags_that_would_quantize_the_source_too_are_refused(flag: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        planned(tmp_path, "FP8_DYNAMIC", f"serve.arguments.{flag}")
    assert {problem.code.name for problem in caught.value.problems} == {"managed-flag"}


def test_manifests_take_the_names_that_recipes_make() -> None:
    assert set(manifest_fields.ONLINE) == set(ONLINE.values())
    assert set(ONLINE) == {scheme.name for scheme in SCHEMES.values() if "online" in scheme.methods}
