"""Every text of a serving manifest is checked once, when it is read: it can be a stranger's."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given

import tests.unit.registry_examples as examples
from qpack.core.errors import RecipeError, RegistryError
from qpack.pipeline.plan import request_of
from qpack.pipeline.planned_serving import serving as serving_of
from qpack.recipe import recipe_file
from qpack.runtime import hardware
from registry.serving import objectives
from registry.serving.plain_text import as_description, as_name
from registry.serving.serving_manifest import LARGEST, ServingManifest, image_of, vllm_arguments
from tests.unit.export_examples import manifest
from tests.unit.hostile_manifests import UNSEEN, documents

ROOT = Path(__file__).parents[2]


def changed(at: str, value: Any) -> str:
    """A manifest as JSON, with the part at `model.name` or `objectives.0.benchmark.server` replaced."""
    whole = json.loads(manifest().to_json())
    *path, last = at.split(".")
    holder = whole
    for part in path:
        holder = holder[int(part)] if isinstance(holder, list) else holder.setdefault(part, {})
    holder[int(last) if isinstance(holder, list) else last] = value
    return json.dumps(whole)


TEXTS = (
    *("model.name", "model.digest", "model.served_model_name", "model.tokenizer_digest", "engine.version"),
    *("engine.versions", "engine.image", "hardware", "dtype", "probes.health", "metrics.0", "environment.NCCL_DEBUG"),
    *("objectives.0.benchmark.tool", "objectives.0.benchmark.server", "objectives.0.benchmark.hardware"),
    *("arguments.load-format", "arguments.hf-overrides", "profiles.two-gpus.hardware", "profiles.two-gpus.dtype"),
    *("profiles.two-gpus.environment.NCCL_DEBUG", "profiles.two-gpus.arguments.load-format"),
)


@pytest.mark.parametrize("mark", UNSEEN)
@pytest.mark.parametrize("at", TEXTS)
def test_what_can_not_be_seen_is_in_no_text(at: str, mark: str) -> None:
    with pytest.raises(RegistryError) as caught:
        ServingManifest.from_json(changed(at, f"a{mark}"))
    assert caught.value.exit_code == 8
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("mark", UNSEEN)
def test_what_can_not_be_seen_is_in_no_key_either(mark: str) -> None:
    for at, value in (
        (f"profiles.a{mark}", {}),
        (f"environment.A{mark}", "x"),
        (f"arguments.a{mark}", 1),
        ("arguments.hf-overrides", {f"a{mark}": 1}),
        (f"more{mark}", 1),
    ):
        with pytest.raises(RegistryError) as caught:
            ServingManifest.from_json(changed(at, value))
        assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("at", "value"),
    [
        ("model.name", "-x"),
        ("model.served_model_name", "--trust-remote-code"),
        ("model.served_model_name", "a b"),
        ("model.served_model_name", "$(id)"),
        ("model.served_model_name", "{{ .X }}"),
        ("model.digest", "../x"),
        ("engine.version", "0.32.0 && id"),
        ("engine.versions", "~=0.32; id"),
        ("engine.image", "--privileged"),
        ("engine.image", "vllm/vllm-openai:v1 --privileged"),
        ("engine.image", "${IMAGE}"),
        ("hardware", "cpu; id"),
        ("dtype", "--x"),
        ("probes.health", "health"),
        ("probes.health", "/'+__import__('os').system('id')+'"),
        ("probes.health", '/"'),
        ("probes.health", "/a b"),
        ("probes.health", "/$(id)"),
        ("probes.startup_budget_seconds", 2**40),
        ("metrics.0", 'x{a="b"}'),
        ("objectives.0.benchmark.hardware", "{{ $labels }}"),
        ("objectives.0.benchmark.server", "<script>"),
        ("objectives.0.benchmark.tool", "a" * 300),
        ("objectives.0.threshold_seconds", 1e400),
        ("profiles.$(id)", {}),
        ("profiles.-x", {}),
        ("profiles.a b", {}),
        ("environment.A=B", "x"),
        ("environment.NCCL_DEBUG", "x" * 5000),
        ("arguments.seed", ["0", "--trust-remote-code"]),
        ("arguments.cudagraph-capture-sizes", [1, -2]),
        ("arguments.cudagraph-capture-sizes", []),
        ("arguments.seed", 2**63),
        ("arguments.seed", float("nan")),
        ("arguments.hf-overrides", {"x": float("inf")}),
        ("arguments.--seed", 1),
        ("arguments.a=b", 1),
        ("arguments.O3", True),
        ("arguments.help", True),
        ("arguments.model-tag", "x"),
        ("arguments.no-enforce-eager", True),
        ("profiles.two-gpus.arguments.seed", ["-O3"]),
    ],
)
def test_a_text_has_the_characters_that_its_field_needs(at: str, value: Any) -> None:
    with pytest.raises(RegistryError) as caught:
        ServingManifest.from_json(changed(at, value))
    assert caught.value.exit_code == 8
    assert f"serving.json: {at.split('.')[0]}" in str(caught.value)


def test_a_manifest_without_end_is_refused() -> None:
    with pytest.raises(RegistryError):
        ServingManifest.from_json(manifest().to_json() + " " * LARGEST)
    with pytest.raises(RegistryError):
        ServingManifest.from_json('{"arguments":' * 20_000)
    with pytest.raises(RegistryError):
        ServingManifest.from_json(b"\xff\xfe")


@given(documents())
def test_whatever_a_manifest_says_is_refused_with_its_place_or_read(document: dict[str, Any]) -> None:
    try:
        read = ServingManifest.from_json(json.dumps(document))
    except RegistryError as error:
        said = str(error)
    else:
        assert ServingManifest.from_json(read.to_json()) == read
        return
    assert "serving.json" in said
    assert said.isprintable()


@pytest.mark.parametrize(
    ("at", "value"),
    [
        ("engine.version", "unknown"),
        ("engine.version", "0.32.1rc2.dev7+gabc1234.cpu"),
        ("engine.versions", "==unknown"),
        ("engine.versions", ">=0.31, <0.33"),
        ("model.digest", ""),
        ("model.served_model_name", "meta-llama/Meta-Llama-3-8B"),
        ("objectives.0.benchmark.hardware", "Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz"),
        ("objectives.0.benchmark.hardware", "AMD EPYC 7763 64-Core Processor"),
        ("objectives.0.benchmark.hardware", "Intel® Core™ i7, 2 cores, 8 GiB"),
        ("objectives.0.benchmark.hardware", "Procesador genérico nº 3"),
        ("probes.health", "/v1/health"),
        ("environment.NCCL_DEBUG", "WARN $HOME 100% 'x' \"y\""),
        ("arguments.chat-template", "{% for m in messages %}{{ m }}{% endfor %}"),
        ("arguments.allowed-local-media-path", "-odd"),
        ("arguments.max-logprobs", -1),
        ("arguments.hf-overrides", {"rope_parameters": {"factor": 2.0, "x": [None, True]}}),
        ("arguments.middleware", ["a.b", "c.d"]),
    ],
)
def test_what_an_honest_release_says_is_read(at: str, value: Any) -> None:
    read = ServingManifest.from_json(changed(at, value))
    assert ServingManifest.from_json(read.to_json()) == read


def test_a_local_version_names_an_image_that_can_be_pulled() -> None:
    assert image_of(ServingManifest.from_json(changed("engine.version", "0.32.0+cpu"))).endswith(":v0.32.0")


@pytest.mark.parametrize(
    ("flag", "value"),
    [("seed", ["0", "org/model"]), ("flag-of-another-version", ["x", "y"]), ("flag-of-another-version", "org/model x")],
)
def test_what_argparse_would_take_for_the_model_is_no_command_line(flag: str, value: Any) -> None:
    """The second value of a flag that takes one, and the whole word of an unknown flag with a space in its value."""
    read = ServingManifest.from_json(changed(f"arguments.{flag}", value))
    with pytest.raises(RegistryError) as caught:
        vllm_arguments(read, "model", host="h", port=1)
    assert [(problem.code.name, problem.where.key) for problem in caught.value.problems] == [
        ("unsafe-value", ("arguments", flag))
    ]


def test_lists_are_written_as_the_flags_parser_takes_them() -> None:
    arguments = {
        "cudagraph-capture-sizes": [1, 2],
        "middleware": ["a.b", "c.d"],
        "allowed-origins": ["*"],
        "seed": [3],
        "flag-of-another-version": {"a b": [1, "c d"]},
    }
    made = examples.serving().model_copy(update={"arguments": arguments})
    assert vllm_arguments(made, "m", host="h", port=1)[7:] == [
        '--allowed-origins=["*"]',
        *("--cudagraph-capture-sizes", "1", "2"),
        '--flag-of-another-version={"a\\u0020b":[1,"c\\u0020d"]}',
        *("--middleware=a.b", "--middleware=c.d"),
        "--seed=3",
    ]


@pytest.mark.parametrize("values", [["a", "-O3"], ["--x"] * 2, []])
def test_a_manifest_made_in_a_program_has_no_word_that_is_a_flag_either(values: list[str]) -> None:
    made = examples.serving().model_copy(update={"arguments": {"cudagraph-capture-sizes": values}})
    with pytest.raises(RegistryError):
        vllm_arguments(made, "m", host="h", port=1)


def test_names_of_folders_and_machines_become_texts_that_can_be_read_again() -> None:
    for text in ("My Model (v2)", "--x", "", "Intel\x00 {{x}} <b>", "模型", *UNSEEN):
        assert ServingManifest.from_json(changed("model.name", as_name(text)))
        assert ServingManifest.from_json(changed("objectives.0.benchmark.hardware", as_description(text)))
    latency = examples.release().artifact.latency
    assert objectives.from_latency(latency, server="a\nb", hardware="{{ x }}")


def test_a_recipe_with_such_a_flag_is_an_error_of_the_recipe(tmp_path: Path) -> None:
    vllm: Any = SimpleNamespace(record=lambda: SimpleNamespace(packages={"vllm": "0.32.0"}))
    text = (ROOT / "recipes" / "smollm2-135m-gptq.yaml").read_text()
    assert "enforce-eager: true" in text
    path = tmp_path / "recipe.yaml"
    path.write_text(text.replace("enforce-eager: true", 'seed: [0, "--trust-remote-code"]'))
    r = recipe_file.load(path).recipe
    with pytest.raises(RecipeError) as caught:
        serving_of(r, request_of(r, "cpu", None), "cpu", hardware.detect(), vllm)
    assert caught.value.exit_code == 2
    assert [(problem.code.name, problem.where.key) for problem in caught.value.problems] == [
        ("invalid-field", ("serve", "arguments"))
    ]
