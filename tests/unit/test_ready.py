"""What a build refuses before anything is run."""

from __future__ import annotations

from pathlib import Path

import pytest

from qpack.core.console import open_console
from qpack.core.errors import EnvironmentFailed
from qpack.core.store import Store
from qpack.pipeline import plan, requirements
from qpack.pipeline.context import Context
from qpack.pipeline.state import Build
from qpack.recipe import recipe_file
from qpack.runtime import hardware
from qpack.serve import served_release
from registry.core.protocol import Resolved
from tests.codes import coded
from tests.unit import registry_examples
from tests.unit.recipes import RECIPE, workspace

INT8 = RECIPE.replace("W4A16\n  group_size: 32", "W8A8")


def begun(folder: Path, text: str = RECIPE) -> Build:
    store = Store(folder / "home")
    with open_console() as console:
        planned = plan.make(recipe_file.load(workspace(folder, text)), store, thorough=True)
        return Build(planned, Context(store, folder, console))


def test_four_bits_on_a_cpu_that_cannot_serve_them_are_refused_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "has_avx512", lambda: False)
    four = begun(tmp_path / "four")
    assert four.missing("artifact")
    with pytest.raises(EnvironmentFailed, check=coded("no-kernel"), match="AVX-512"):
        requirements.check_cpu(four.plan)
    (note,) = (advice for advice in four.plan.advice if advice.code.name == "no-kernel")
    assert (note.where.line, note.severity) == (11, "warning")
    eight = begun(tmp_path / "eight", INT8)
    requirements.check_cpu(eight.plan)
    assert not any(advice.code.name == "no-kernel" for advice in eight.plan.advice)


def test_an_override_in_four_bits_is_refused_at_its_own_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "has_avx512", lambda: False)
    others = INT8.replace(
        "  scheme: W8A8", "  scheme: W8A8\n  overrides: [{layers: down_proj, scheme: W4A16, group_size: 32}]"
    )
    mixed = begun(tmp_path, others)
    with pytest.raises(EnvironmentFailed, check=coded("no-kernel"), match=r"W4A16.*AVX-512"):
        requirements.check_cpu(mixed.plan)
    (note,) = (advice for advice in mixed.plan.advice if advice.code.name == "no-kernel")
    assert (note.where.line, note.severity) == (12, "warning")


@pytest.mark.parametrize(("quantize", "refused"), [
    ({}, False),
    ({"overrides": [{"layers": "down_proj", "scheme": "W8A8"}]}, False),
    ({"overrides": [{"layers": "down_proj", "scheme": "W4A16", "group_size": 32}]}, True),
    ({"kv_cache": "fp8"}, True),
    ({"overrides": ["of a version to come"], "kv_cache": ["odd"]}, False),
])  # fmt: skip
def test_a_release_with_four_bits_somewhere_is_not_served_on_such_a_cpu(
    quantize: dict[str, object], refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = registry_examples.serving()
    made = registry_examples.release()
    eight = made.quantized.model_copy(update={"scheme": "W8A8"})
    made = made.model_copy(update={"recipe": {**made.recipe, "quantize": quantize}, "quantized": eight})
    resolved = Resolved(name="small-gptq", version="1", digest="4" * 64, aliases=(), annotations={}, created="")
    found = served_release.Served(resolved, made, manifest, manifest, "default", made.quantized.files)
    monkeypatch.setattr(hardware, "has_avx512", lambda: True)
    served_release.check_hardware(found)
    monkeypatch.setattr(hardware, "has_avx512", lambda: False)
    if refused:
        with pytest.raises(EnvironmentFailed, check=coded("no-kernel"), match=r"small-gptq:1.*AVX-512"):
            served_release.check_hardware(found)
    else:
        served_release.check_hardware(found)


@pytest.mark.parametrize(("scheme", "overrides", "refused"), [
    ("NVFP4A16", [], True),
    ("W8A8", [{"layers": "down_proj", "scheme": "MXFP4A16"}], True),
    ("of a version to come", [], False),
    ("W8A8", [], False),
])  # fmt: skip
def test_a_release_that_was_judged_by_its_twin_is_not_served_where_it_has_no_kernel(
    scheme: str, overrides: list[object], refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "has_avx512", lambda: True)
    made, manifest = registry_examples.release(), registry_examples.serving()
    quantized = made.quantized.model_copy(update={"scheme": scheme})
    made = made.model_copy(
        update={"recipe": {**made.recipe, "quantize": {"overrides": overrides}}, "quantized": quantized}
    )
    resolved = Resolved(name="small", version="1", digest="4" * 64, aliases=(), annotations={}, created="")
    found = served_release.Served(resolved, made, manifest, manifest, "default", made.quantized.files)
    if refused:
        with pytest.raises(EnvironmentFailed, check=coded("no-kernel"), match="small:1 can't be served here"):
            served_release.check_hardware(found)
    else:
        served_release.check_hardware(found)


def test_four_bits_are_built_where_the_cpu_serves_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "has_avx512", lambda: True)
    four = begun(tmp_path)
    requirements.check_cpu(four.plan)
    assert not any(advice.code.name == "no-kernel" for advice in four.plan.advice)
