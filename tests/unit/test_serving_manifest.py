from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

import tests.unit.registry_examples as examples
from qpack.core.errors import RegistryError
from registry.serving.serving_manifest import (
    Profile,
    ServingManifest,
    command,
    image_of,
    schema,
    select,
    version_range,
    vllm_arguments,
)
from tests.codes import coded

FLAGS = st.from_regex(r"x[a-z0-9]{0,8}(-[a-z0-9]{1,8}){0,2}", fullmatch=True)
TEXT = st.text(st.characters(exclude_categories=["C", "Z"]) | st.just(" "), max_size=40)
NUMBERS = st.integers(-(2**63) + 1, 2**63 - 1) | st.floats(-(2.0**62), 2.0**62, allow_nan=False)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
VALUES = (
    st.booleans()
    | NUMBERS
    | TEXT.map(lambda text: text.replace(" ", "_"))
    | st.lists(st.integers(0, 2**63 - 1) | st.sampled_from(["a", "@b", "c=d", ""]), min_size=1, max_size=1)
    | st.dictionaries(TEXT, JSON, max_size=3)
)


def with_arguments(arguments: dict[str, object], **more: object) -> ServingManifest:
    data = examples.serving().model_dump(by_alias=True)
    return ServingManifest.model_validate({**data, "arguments": arguments, **more})


@given(st.dictionaries(FLAGS, VALUES, max_size=4))
def test_a_manifest_is_the_same_after_a_trip_through_json(arguments: dict[str, object]) -> None:
    manifest = with_arguments(arguments)
    again = ServingManifest.from_json(manifest.to_json())
    assert again == manifest
    assert repr(again.arguments) == repr(manifest.arguments)


@given(st.dictionaries(FLAGS, VALUES, max_size=4))
def test_quantization_is_never_among_the_arguments(arguments: dict[str, object]) -> None:
    found = vllm_arguments(with_arguments(arguments), "/model", host="h", port=1)
    assert not any(argument.startswith("--quantization") for argument in found)


def test_the_arguments_are_those_of_the_server() -> None:
    manifest = with_arguments(
        {
            "enforce-eager": True,
            "enable-prefix-caching": False,
            "max_num_seqs": 16,
            "structured-outputs-config": {"backend": "xgrammar"},
            "allowed-local-media-path": "-odd",
            "middleware": ["a", "b"],
            "cudagraph-capture-sizes": [1, 2],
        }
    )
    assert vllm_arguments(manifest, "/models/small", host="127.0.0.1", port=8123) == [
        *("--model=/models/small", "--served-model-name=small-gptq", "--host=127.0.0.1", "--port=8123"),
        *("--dtype=bfloat16", "--max-model-len=2048", "--kv-cache-memory-bytes=536870912"),
        "--allowed-local-media-path=-odd",
        *("--cudagraph-capture-sizes", "1", "2"),
        "--no-enable-prefix-caching",
        "--enforce-eager",
        "--max-num-seqs=16",
        *("--middleware=a", "--middleware=b"),
        '--structured-outputs-config={"backend": "xgrammar"}',
    ]


def test_without_a_cache_size_vllm_chooses_it() -> None:
    arguments = vllm_arguments(with_arguments({}, kv_cache_memory_bytes=None), "m", host="h", port=1)
    assert not any("kv-cache-memory-bytes" in argument for argument in arguments)


@pytest.mark.parametrize(
    ("flag", "says"),
    [
        ("quantization", "remove 'quantization'"),
        ("--enforce-eager", "without leading dashes"),
        ("max_model_len", "set max_model_len"),
        ("port", "when the server is started"),
        ("api-key", "secret"),
        ("tensor-parallel-size", "a number of GPUs, not 'x'"),
    ],
)
def test_a_flag_that_cannot_be_set_is_refused_with_the_reason(flag: str, says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        with_arguments({flag: "x"})


def test_a_flag_given_twice_is_refused() -> None:
    with pytest.raises(ValidationError, match="given twice"):
        with_arguments({"max-num-seqs": 1, "max_num_seqs": 2})


def test_secrets_stay_out_of_the_environment() -> None:
    with pytest.raises(ValidationError, match="looks like a secret"):
        with_arguments({}, environment={"HF_TOKEN": "x"})
    assert with_arguments({}, environment={"TOKENIZERS_PARALLELISM": "0"}).environment


def test_a_file_that_is_no_manifest_is_an_error_that_names_the_field() -> None:
    with pytest.raises(RegistryError, check=coded("unreadable-manifest"), match="max_model_len"):
        ServingManifest.from_json(examples.serving().to_json().replace('"max_model_len": 2048', '"max_model_len": -1'))


def test_the_command_can_be_pasted_into_a_shell() -> None:
    text = command(with_arguments({"override": {"a b": "it's"}}), "my model", host="h", port=1)
    start = "HF_HUB_OFFLINE=1 PYTHONSAFEPATH=1 python -m vllm.entrypoints.openai.api_server \\\n  "
    assert text.startswith(start + "'--model=my model'")
    assert """'--override={"a\\u0020b":"it'"'"'s"}'""" in text


V1 = {
    "apiVersion": "qpack/v1",
    "kind": "ServingManifest",
    "model": {"name": "small", "digest": "4" * 64, "served_model_name": "small"},
    "engine": {"name": "vllm", "version": "0.32.0"},
    "hardware": "cpu",
    "dtype": "bfloat16",
    "max_model_len": 2048,
    "kv_cache_memory_bytes": 1073741824,
    "arguments": {"enforce-eager": True},
    "environment": {"VLLM_CPU_NUM_OF_RESERVED_CPU": "0"},
}


def test_a_manifest_of_the_first_version_is_read_and_starts_the_same_server() -> None:
    manifest = ServingManifest.from_json(json.dumps(V1))
    assert manifest.api_version == "qpack/v2"
    assert vllm_arguments(manifest, "m", host="h", port=1)[-2:] == [
        "--kv-cache-memory-bytes=1073741824",
        "--enforce-eager",
    ]
    assert image_of(manifest).endswith(":v0.32.0")


def test_a_manifest_of_a_version_to_come_is_refused() -> None:
    with pytest.raises(RegistryError, check=coded("unreadable-manifest"), match="apiVersion"):
        ServingManifest.from_json(json.dumps({**V1, "apiVersion": "qpack/v3"}))


def test_the_published_schema_is_that_of_the_code_and_takes_manifests() -> None:
    published = json.loads((Path(__file__).parents[2] / "registry" / "serving" / "serving.schema.json").read_text())
    assert published == schema(), "run `qpack manifest schema > registry/serving/serving.schema.json`"
    jsonschema.validate(json.loads(examples.serving().to_json()), published)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**json.loads(examples.serving().to_json()), "more": 1}, published)


def profiled() -> ServingManifest:
    profile = Profile.model_validate(
        {
            "hardware": "hopper",
            "arguments": {"tensor_parallel_size": 2, "enforce-eager": None},
            "environment": {"VLLM_LOGGING_LEVEL": "WARNING"},
        }
    )
    return examples.serving().model_copy(update={"profiles": {"two-gpus": profile}})


def test_a_profile_is_laid_over_the_manifest_key_by_key() -> None:
    served = select(profiled(), "two-gpus")
    assert served.devices == 2
    assert served.dtype == "bfloat16"
    assert served.arguments == {
        "structured-outputs-config": {"backend": "xgrammar"},
        "max-num-seqs": 16,
        "tensor-parallel-size": 2,
    }
    assert served.environment == {"HF_HUB_OFFLINE": "1", "VLLM_LOGGING_LEVEL": "WARNING"}
    assert not image_of(served).startswith("public.ecr.aws"), "another hardware, another image"


def test_without_a_name_the_profile_is_the_measured_one() -> None:
    assert select(profiled(), None) == select(profiled(), "measured") == examples.serving()


def test_an_unknown_profile_is_an_error_with_the_nearest_name() -> None:
    with pytest.raises(RegistryError, check=coded("no-such-profile")) as caught:
        select(profiled(), "two-gpu")
    assert "'two-gpus'" in caught.value.hint


def test_a_profile_is_as_strict_as_the_manifest() -> None:
    with pytest.raises(ValidationError, match="remove 'quantization'"):
        Profile(arguments={"quantization": "awq"})
    with pytest.raises(ValidationError, match="looks like a secret"):
        Profile(environment={"HF_TOKEN": "x"})


@pytest.mark.parametrize(("version", "expected"), [("0.32.0", "~=0.32.0"), ("0.32.1rc2", "~=0.32.0"), ("odd", "==odd")])
def test_the_version_range_is_one_minor_version(version: str, expected: str) -> None:
    assert version_range(version) == expected
