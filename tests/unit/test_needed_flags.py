"""Flags that a model needs on a target are set by themselves, with the reason; the recipe can't set them otherwise."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from qpack.core.records import Hardware
from qpack.pipeline import planned_serving
from qpack.pipeline.plan import request_of
from qpack.recipe import recipe_file
from qpack.serve import bench, served_release
from quantize.checkpoint.headers import Tensor
from quantize.checkpoint.source import Source
from quantize.preflight import needed_flags
from registry.serving.serving_manifest import ServingManifest, select
from tests.unit.recipes import checkpoint

ROOT = Path(__file__).parents[2]
FLAG = needed_flags.PREFIX_CACHING


def model(*shapes: tuple[str, tuple[int, ...]], **config: Any) -> Source:
    tensors = tuple(Tensor(f"model.layers.0.{name}", "BF16", shape) for name, shape in shapes)
    return Source("m", "folder", "m", None, None, tensors, config)


MAMBA2 = model(("mamba.A_log", (8,)), ("mamba.D", (8,)), ("mamba.in_proj.weight", (64, 32)))
OTHERS = (
    model(("mamba.A_log", (64, 16)), ("mamba.D", (64,))),  # Mamba-1
    model(("linear_attn.A_log", (8,)), ("linear_attn.dt_bias", (8,))),  # Qwen3-Next
    model(("self_attn.q_proj.weight", (64, 64))),
)


def test_mamba_2_is_found_by_its_shapes_and_by_nothing_else() -> None:
    assert needed_flags.has_mamba2(MAMBA2)
    assert not any(map(needed_flags.has_mamba2, OTHERS))


@pytest.mark.parametrize(
    ("config", "found"),
    [
        ({"model_type": "falcon_h1", "mamba_n_heads": 24}, True),
        ({"model_type": "zamba2", "n_mamba_heads": 8, "layers_block_type": ["mamba", "hybrid"]}, True),
        ({"model_type": "nemotron_h", "mamba_num_heads": 8}, True),
        ({"model_type": "granitemoehybrid", "mamba_n_heads": 8, "layer_types": ["mamba", "attention"]}, True),
        # Granite 4's small models have none, though their config has the sizes.
        ({"model_type": "granitemoehybrid", "mamba_n_heads": 8, "layer_types": ["attention"]}, False),
        ({"text_config": {"mamba_num_heads": 8}}, True),
        ({"model_type": "llama"}, False),
    ],
)
def test_without_headers_the_config_says_it(config: dict[str, Any], found: bool) -> None:
    assert needed_flags.has_mamba2(model(**config)) is found


def test_the_flag_is_needed_on_cpus_alone_and_can_not_be_set_otherwise() -> None:
    assert [flag.name for flag in needed_flags.needed(MAMBA2, "cpu", {})] == [FLAG]
    assert needed_flags.needed(MAMBA2, "hopper", {}) == ()
    (wrong,) = needed_flags.set_wrongly(MAMBA2, "cpu", {FLAG: True}, "serve", "arguments")
    assert wrong.code.name == "needs-flag"
    assert wrong.where.key == ("serve", "arguments", FLAG)
    assert needed_flags.set_wrongly(MAMBA2, "cpu", {FLAG: False}) == []
    assert [note.severity for note in needed_flags.advise(MAMBA2, "cpu", {})] == ["note"]
    assert needed_flags.advise(MAMBA2, "cpu", {FLAG: False}) == []


DELTA, CONV = OTHERS[1], model(("conv.conv.weight", (64, 1, 3)))
DRAFTS = {"speculative-config": {"method": "ngram", "num_speculative_tokens": 2}}


@pytest.mark.parametrize("source", [DELTA, CONV, model(layer_types=["conv", "full_attention"])])
def test_drafts_beside_states_take_the_prefix_cache_from_a_cpu(source: Source) -> None:
    (flag,) = needed_flags.needed(source, "cpu", DRAFTS)
    assert (flag.name, flag.value) == (FLAG, False)
    assert needed_flags.needed(source, "cpu", {}) == needed_flags.needed(source, "hopper", DRAFTS) == ()
    (wrong,) = needed_flags.set_wrongly(source, "cpu", {FLAG: True}, "serve", base=DRAFTS)
    assert wrong.code.name == "needs-flag"


def test_drafts_of_a_model_without_states_keep_it() -> None:
    assert needed_flags.needed(OTHERS[2], "cpu", DRAFTS) == ()


def test_a_profile_without_drafts_has_the_prefix_cache_again() -> None:
    said = "{speculative-config: {method: ngram, num_speculative_tokens: 2}}"
    made = manifest("cpu", DELTA, said)
    assert made.arguments[FLAG] is False
    assert select(made, "big").arguments[FLAG] is True
    assert FLAG not in manifest("cpu", DELTA).arguments


def manifest(target: str, source: Source, arguments: str = "{}") -> ServingManifest:
    profiles = "{small: {target: cpu}, big: {target: hopper}}"
    settings = [f"serve.target={target}", f"serve.profiles={profiles}", f"serve.arguments={arguments}"]
    r = recipe_file.load(ROOT / "recipes" / "smollm2-135m-w8a8.yaml", settings).recipe
    vllm: Any = SimpleNamespace(record=lambda: SimpleNamespace(packages={"vllm": "0.32.0"}))
    machine = Hardware(target=target, name="a machine", cores=2, memory_bytes=2**33)
    return planned_serving.serving(r, request_of(r, target, None), target, machine, vllm, source)


def test_the_manifest_has_the_flag_and_the_reason_and_its_profiles_have_what_their_hardware_needs() -> None:
    made = manifest("cpu", MAMBA2)
    assert made.arguments[FLAG] is False
    assert "Mamba-2" in made.reasons[FLAG]
    assert not planned_serving.promise(made).prefix_caching
    assert select(made, "small").arguments[FLAG] is False
    assert select(made, "big").arguments[FLAG] is True
    assert ServingManifest.from_json(made.to_json()) == made


def test_on_a_gpu_only_the_profile_for_cpus_has_it() -> None:
    made = manifest("hopper", MAMBA2)
    assert FLAG not in made.arguments
    assert not made.reasons
    assert select(made, "small").arguments[FLAG] is False
    assert FLAG not in select(made, "big").arguments


def test_what_the_recipe_sets_has_no_reason_of_ours() -> None:
    made = manifest("cpu", MAMBA2, f"{{{FLAG}: false}}")
    assert made.arguments[FLAG] is False
    assert not made.reasons


def test_other_models_keep_vllms_default() -> None:
    for source in OTHERS:
        assert FLAG not in manifest("cpu", source).arguments


def test_a_checkpoint_that_is_benchmarked_gets_the_flag_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = checkpoint(tmp_path / "hybrid")
    vllm: Any = SimpleNamespace(record=lambda: SimpleNamespace(packages={"vllm": "0.32.0"}))
    here = Hardware(target="cpu", name="a machine", cores=2, memory_bytes=2**33)
    monkeypatch.setattr(bench.hardware, "detect", lambda: here)
    assert FLAG not in bench._manifest(folder, bench.Server(), vllm).arguments
    (folder / "config.json").write_text('{"model_type": "falcon_h1", "mamba_n_heads": 8}')
    (folder / "model.safetensors").unlink()
    made = bench._manifest(folder, bench.Server(random_weights=True), vllm)
    assert made.arguments[FLAG] is False
    assert "Mamba-2" in made.reasons[FLAG]
    asked = bench._manifest(folder, bench.Server(random_weights=True, flags={FLAG: True}), vllm)
    assert asked.arguments[FLAG] is True


@pytest.mark.parametrize("arguments", ["{}", f"{{{FLAG}: true}}"])
def test_a_release_for_a_gpu_that_a_cpu_serves_gets_the_flag_and_says_so(tmp_path: Path, arguments: str) -> None:
    folder = checkpoint(tmp_path / "hybrid")
    made, said = manifest("hopper", OTHERS[-1], arguments), []
    assert served_release.adapted(made, folder, "cpu", said.append) is made
    (folder / "config.json").write_text('{"model_type": "falcon_h1", "mamba_n_heads": 8}')
    (folder / "model.safetensors").unlink()
    assert served_release.adapted(made, folder, "hopper", said.append) is made
    assert said == []
    assert served_release.adapted(made, folder, "cpu", said.append).arguments[FLAG] is False
    assert len(said) == 1
    assert "Mamba-2" in said[0]
    kept = manifest("cpu", MAMBA2)
    assert served_release.adapted(kept, folder, "cpu", said.append) is kept
