from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

import tests.unit.registry_examples as examples
from qpack.errors import RegistryError
from registry.serving_manifest import ServingManifest, command, for_model, vllm_arguments

FLAGS = st.from_regex(r"x[a-z0-9]{0,8}(-[a-z0-9]{1,8}){0,2}", fullmatch=True)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
VALUES = (
    st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
    | st.lists(st.text() | st.integers())
    | st.dictionaries(st.text(), JSON, max_size=3)
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
        }
    )
    assert vllm_arguments(manifest, "/models/small", host="127.0.0.1", port=8123) == [
        *("--model", "/models/small", "--served-model-name", "small-gptq", "--host", "127.0.0.1", "--port", "8123"),
        *("--dtype", "bfloat16", "--max-model-len", "2048", "--kv-cache-memory-bytes", "536870912"),
        "--allowed-local-media-path=-odd",
        "--no-enable-prefix-caching",
        "--enforce-eager",
        *("--max-num-seqs", "16"),
        *("--middleware", "a", "b"),
        *("--structured-outputs-config", '{"backend": "xgrammar"}'),
    ]


def test_without_a_cache_size_vllm_chooses_it() -> None:
    arguments = vllm_arguments(with_arguments({}, kv_cache_memory_bytes=None), "m", host="h", port=1)
    assert "--kv-cache-memory-bytes" not in arguments


@pytest.mark.parametrize(
    ("flag", "says"),
    [
        ("quantization", "leave 'quantization' out"),
        ("--enforce-eager", "without leading dashes"),
        ("max_model_len", "set max_model_len"),
        ("port", "when the server is started"),
        ("api-key", "secret"),
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


def test_the_baseline_is_served_like_the_artifact() -> None:
    artifact = examples.serving()
    baseline = for_model(artifact, "small", "1" * 64)
    assert (baseline.model.name, baseline.model.digest) == ("small", "1" * 64)
    assert baseline.model_dump(exclude={"model"}) == artifact.model_dump(exclude={"model"})


def test_a_file_that_is_no_manifest_is_an_error_that_names_the_field() -> None:
    with pytest.raises(RegistryError, match="max_model_len"):
        ServingManifest.from_json(examples.serving().to_json().replace('"max_model_len": 2048', '"max_model_len": -1'))


def test_the_command_can_be_pasted_into_a_shell() -> None:
    text = command(with_arguments({"override": {"a b": "it's"}}), "my model", host="h", port=1)
    assert text.startswith("HF_HUB_OFFLINE=1 python -m vllm.entrypoints.openai.api_server \\\n  --model 'my model'")
    assert """--override '{"a b": "it'"'"'s"}'""" in text
