"""A release can be somebody else's: what its server is started with tunes it, or needs permission."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tests.unit.registry_examples as examples
from qpack.core.errors import RegistryError
from qpack.recipe.recipe_file import load
from qpack.runtime import variables
from qpack.runtime.environments import Environment, Spec
from qpack.serve import served_release as serve
from registry.serving import flag_table, trust
from registry.serving.serving_manifest import ServingManifest
from tests.codes import coded
from tests.unit.hostile_manifests import HOSTILE


def asks(arguments: dict[str, Any] | None = None, environment: dict[str, str] | None = None) -> list[str]:
    """Where the manifest asks for more than tuning."""
    changed = examples.serving().model_dump(by_alias=True) | {
        "arguments": arguments or {},
        "environment": environment or {},
    }
    return [str(found.where) for found in trust.beyond_tuning(ServingManifest.model_validate(changed), ())]


def test_what_recipes_set_is_tuning() -> None:
    assert trust.beyond_tuning(examples.serving(), ["model/model.safetensors", "model/config.json"]) == ()
    arguments = {
        "max-num-seqs": 512,
        "gpu-memory-utilization": "0.9",
        "kv-cache-dtype": "fp8_e4m3",
        "cudagraph-capture-sizes": [1, 2, 4],
        "tool-call-parser": "llama3_json",
        "structured-outputs-config": '{"backend": "xgrammar", "disable_any_whitespace": true}',
        "speculative-config": {"model": "org/draft", "revision": "8a" * 20, "num_speculative_tokens": 4},
        "trust-remote-code": False,
    }
    assert asks(arguments, {"VLLM_CPU_OMP_THREADS_BIND": "0-3|4-7", "HF_HUB_OFFLINE": "1"}) == []


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("trust-remote-code", True),
        # vLLM takes a flag by any unambiguous beginning of its name.
        ("trust-remote", True),
        ("conf", "/tmp/server.yaml"),
        ("middleware", "evil.Middleware"),
        ("worker-cls", "evil.Worker"),
        ("logits-processors", ["evil:Processor"]),
        ("tool-parser-plugin", "/tmp/evil.py"),
        ("allowed-local-media-path", "/"),
        ("chat-template", "/etc/passwd"),
        ("load-format", "pt"),
        ("tokenizer", "evil/tokenizer"),
        ("kv-transfer-config", {"kv_connector_module_path": "evil"}),
        ("distributed-executor-backend", "evil.Executor"),
        ("compilation-config", {"backend": "evil.compile"}),
        ("structured-outputs-config", {"reasoning_parser_plugin": "/tmp/evil.py"}),
        ("speculative-config", {"model": "evil.Proposer"}),
        # Whatever its owner has there by the time the server starts.
        ("speculative-config", {"model": "evil/draft"}),
        ("speculative-config", {"model": "evil/draft", "revision": "main"}),
        ("speculative-config", {"model": "evil/draft", "revision": "8a"}),
        ("speculative-config", {"model": "evil/draft", "revision": "8A" * 20}),
        ("speculative-config", {"model": "/tmp/draft", "method": "draft_model"}),
        ("speculative-config", {"model": "a/b", "method": "custom_class"}),
        ("speculative-config", "not JSON"),
        ("speculative-config", {"model": "a/b", "method": {"x": 1}}),
        ("speculative-config", {"method": "extract_hidden_states"}),
        ("speculative-config", '{"method": "ngram", "method": "custom_class"}'),
        ("speculative-config", {"method": "ngram", "num_speculative_tokens": "4"}),
        ("structured-outputs-config", {"reasoning_parser": "mine"}),
        ("structured-outputs-config", {"backend": True}),
        ("attention-backend", "CUSTOM"),
        ("generation-config", "folder"),
        ("response-role", "system"),
        # What vLLM's parser has no such value for, or takes apart: the second of a list is a model to it.
        ("seed", ["0", "evil/model"]),
        ("seed", [0]),
        ("seed", "0x10"),
        ("seed", True),
        ("seed", 0.5),
        ("enforce-eager", "true"),
        ("enforce-eager", 1),
        ("enforce-eager", ["x"]),
        ("max-num-seqs", 0),
        ("max-num-seqs", "1_000"),
        ("max-num-seqs", " 4"),
        ("max-num-seqs", "@4"),
        ("gpu-memory-utilization", 1.5),
        ("gpu-memory-utilization", "nan"),
        ("tool-call-parser", "hermess"),
        ("reasoning-parser", "qwen33"),
        ("tokenizer-mode", "custom"),
        ("kv-cache-dtype", "fp9"),
        ("compilation-config", 3),
        # A switch that vLLM has on by itself.
        ("enable-log-deltas", False),
        ("no-trust-remote-code", True),
        ("device-memory-utilization", 0.5),
    ],
)
def test_what_can_name_code_or_a_file_or_is_no_value_of_the_flag_needs_permission(flag: str, value: Any) -> None:
    assert asks({flag: value, "stream-interval": 4}) == [f"serving.json: arguments.{flag}"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PYTHONPATH", "evil"),
        ("LD_PRELOAD", "evil"),
        ("PATH", "evil"),
        ("HF_ENDPOINT", "evil"),
        ("CXX", "evil"),
        ("NCCL_NET_PLUGIN", "evil"),
        ("VLLM_NCCL_SO_PATH", "evil"),
        ("VLLM_ALLOW_INSECURE_SERIALIZATION", "1"),
        ("VLLM_SERVER_DEV_MODE", "1"),
        ("VLLM_CPU_OMP_THREADS_BIND", "/tmp/x"),
        ("VLLM_PLUGINS", "evil"),
        ("VLLM_USE_MODELSCOPE", "1"),
        ("VLLM_MODEL_REDIRECT_PATH", "x"),
        ("PYTHONSAFEPATH", "0"),
    ],
)
def test_a_variable_that_can_do_more_than_tune_needs_leave(name: str, value: str) -> None:
    assert asks(environment={name: value}) == [f"serving.json: environment.{name}"]


@given(
    st.from_regex(r"[a-z][a-z0-9]{0,9}(-[a-z0-9]{1,9}){0,3}", fullmatch=True).filter(lambda name: name not in TAKEN),
    st.text(alphabet="ab./:\\", max_size=12),
)
def test_no_text_with_a_dot_or_a_slash_reaches_the_server(flag: str, value: str) -> None:
    found = asks({flag: value})
    assert found or not set(value) & {".", "/", "\\", ":"}


@pytest.mark.parametrize(
    ("image", "hardware", "foreign"),
    [
        (None, "cpu", False),
        ("vllm/vllm-openai:v0.32.0", "hopper", False),
        ("vllm/vllm-openai:v0.32.0", "cpu", True),
        ("vllm/vllm-openai:latest", "hopper", True),
        ("evil.example/vllm-openai:v0.32.0", "hopper", True),
        ("vllm/vllm-openai:v0.32.0@sha256:" + "0" * 64, "hopper", True),
    ],
)
def test_an_image_that_is_not_vllms_own_needs_permission(image: str | None, hardware: str, foreign: bool) -> None:
    changed = examples.serving().model_dump(by_alias=True) | {"hardware": hardware}
    changed["engine"] = {"version": "0.32.0", "image": image}
    found = trust.beyond_tuning(ServingManifest.model_validate(changed), ())
    assert [str(problem.where) for problem in found] == ["serving.json: engine.image"] * foreign


def test_what_may_be_set_without_permission_is_something_that_vllm_has() -> None:
    table = flag_table.flags()
    assert set(table) >= trust.FLAGS
    for flag, keys in trust.KEYS.items():
        assert keys <= set(table[flag].fields), flag
    assert {name for name in trust.VARIABLES if name.startswith("VLLM_")} <= flag_table.variables()


def test_a_flag_of_free_text_is_held_to_names_that_vllm_defines() -> None:
    free = {flag for flag in trust.FLAGS if (known := flag_table.flags()[flag]).type == "text" and not known.choices}
    assert free == set(trust.NAMES)


@pytest.mark.parametrize("flag", sorted(trust.FLAGS - set(trust.KEYS)))
def test_a_hostile_text_is_no_value_of_a_flag_that_tunes(flag: str) -> None:
    known = flag_table.flags()[flag]
    numbers = {"size": {"2k", "010", "-1"}, "int": {"010", "-1"}, "float": {"1e3", "010", "-1", "-1.5"}}
    taken = {*trust.NAMES.get(flag, known.choices or ()), *numbers.get(known.type, ())}
    for value in (*(text for text in HOSTILE if text not in taken), *map(list, pairwise(HOSTILE))):
        manifest = examples.serving().model_copy(update={"arguments": {flag: value}})
        found = [str(problem.where) for problem in trust.beyond_tuning(manifest, ())]
        assert found == [f"serving.json: arguments.{flag}"], value


TAKEN = {
    "max-model-len",
    "kv-cache-memory-bytes",
    "dtype",
    "quantization",
    "q",
    "model",
    "served-model-name",
    "host",
} | {
    *("port", "uds", "config", "headless", "grpc", "api-key"),
}


@pytest.mark.parametrize("name", ["model/pytorch_model.bin", "model/a/weights.PT", "model/optimizer.pkl"])
def test_pickled_weights_in_a_release_need_leave(name: str) -> None:
    found = trust.beyond_tuning(examples.serving(), ["model/model.safetensors", name])
    assert [(one.code.name, one.where.file) for one in found] == [("foreign-code", name)]


def test_leave_is_given_by_name() -> None:
    found = trust.beyond_tuning(examples.serving(), ["model/a.bin"])
    with pytest.raises(RegistryError, check=coded("foreign-code"), match="m:1") as caught:
        trust.check("m:1", found, trusted=False)
    assert "--trust-release" in caught.value.hint
    trust.check("m:1", found, trusted=True)
    trust.check("m:1", (), trusted=False)


def test_the_recipes_that_ship_need_no_leave() -> None:
    for path in sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml")):
        serve = load(path).recipe.serve
        for settings in (serve, *serve.profiles.values()):
            assert asks(dict(settings.arguments), dict(settings.environment)) == [], path


@pytest.mark.parametrize("trusted", [False, True])
def test_a_server_with_a_draft_of_the_hub_gets_the_hubs_token_with_permission_alone(
    trusted: bool, tmp_path: Path
) -> None:
    drafts = {"speculative-config": {"model": "org/draft", "revision": "8a" * 20, "num_speculative_tokens": 4}}
    manifest = examples.serving().model_copy(update={"arguments": drafts})
    assert trust.beyond_tuning(manifest, ()) == ()
    vllm = Environment("vllm", "cpu", "", tmp_path / "python", Spec("vllm", tmp_path, ("vllm",)))
    given = serve.reaching(vllm, manifest, trusted)
    told = {"HF_TOKEN": "secret", "HF_TOKEN_PATH": "/secret", "HF_ENDPOINT": "https://hub", "HTTPS_PROXY": "http://p"}
    got = set(variables.inherited(told, *given.inherits))
    assert got == {"HF_ENDPOINT", "HTTPS_PROXY"} | ({"HF_TOKEN", "HF_TOKEN_PATH"} if trusted else set())
    assert given.variables["HF_HUB_DISABLE_IMPLICIT_TOKEN"] == ("0" if trusted else "1")
    assert serve.reaching(vllm, examples.serving(), trusted) == vllm
