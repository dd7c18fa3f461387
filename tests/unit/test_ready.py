"""What a build refuses before anything is run."""

from __future__ import annotations

from pathlib import Path

import pytest

from qpack import hardware, needs, plan, recipe, serve
from qpack.console import open_console
from qpack.errors import EnvironmentFailed
from qpack.store import Store
from qpack.work import Build
from registry.registry import Resolved
from tests.unit import registry_examples
from tests.unit.recipes import RECIPE, workspace

INT8 = RECIPE.replace("W4A16\n  group_size: 32", "W8A8")


def begun(folder: Path, text: str = RECIPE) -> Build:
    store = Store(folder / "home")
    with open_console() as console:
        return Build(plan.make(recipe.load(workspace(folder, text)), store, thorough=True), store, console, folder)


def test_four_bits_on_a_cpu_that_cannot_serve_them_are_refused_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "has_avx512", lambda: False)
    four = begun(tmp_path / "four")
    assert four.missing("artifact")
    with pytest.raises(EnvironmentFailed, match=r"can't be served here: vLLM .* with AVX-512 alone"):
        needs.check_cpu(four.plan)
    (note,) = (advice for advice in four.plan.advice if "AVX-512" in advice.what)
    assert note.where == f"{four.plan.loaded.file.path}:11"
    eight = begun(tmp_path / "eight", INT8)
    needs.check_cpu(eight.plan)
    assert not any("AVX-512" in advice.what for advice in eight.plan.advice)


def test_an_override_in_four_bits_is_refused_at_its_own_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "has_avx512", lambda: False)
    others = INT8.replace(
        "  scheme: W8A8", "  scheme: W8A8\n  overrides: [{layers: down_proj, scheme: W4A16, group_size: 32}]"
    )
    mixed = begun(tmp_path, others)
    with pytest.raises(EnvironmentFailed, match=r"can't be served here: vLLM .* W4A16 on x86 with AVX-512 alone"):
        needs.check_cpu(mixed.plan)
    (note,) = (advice for advice in mixed.plan.advice if "AVX-512" in advice.what)
    assert note.where == f"{mixed.plan.loaded.file.path}:12"


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
    found = serve.Served(resolved, made, manifest, manifest, "default", made.quantized.files)
    monkeypatch.setattr(hardware, "has_avx512", lambda: True)
    serve.check_hardware(found)
    monkeypatch.setattr(hardware, "has_avx512", lambda: False)
    if refused:
        with pytest.raises(EnvironmentFailed, match=r"small-gptq:1 can't be served here: .* AVX-512 alone"):
            serve.check_hardware(found)
    else:
        serve.check_hardware(found)


def test_four_bits_are_built_where_the_cpu_serves_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "has_avx512", lambda: True)
    four = begun(tmp_path)
    needs.check_cpu(four.plan)
    assert not any("AVX-512" in advice.what for advice in four.plan.advice)
