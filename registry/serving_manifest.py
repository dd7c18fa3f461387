"""The serving manifest: how a model is served, as one file. The evals run against a server that was started from it.

Flags are those of vLLM's OpenAI server (https://docs.vllm.ai/en/stable/cli/serve.html). Releases of `qpack/v1` are read
as `qpack/v2` manifests that leave out what the first version didn't have.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
)

from qpack.errors import RegistryError
from qpack.findings import RanWith
from qpack.frozen import Frozen
from registry.registry import did_you_mean

Argument = bool | int | float | str | list[str | int | float] | dict[str, JsonValue]

API_VERSION = "qpack/v2"
DRAFT = "speculative-config"
"""vLLM's flag for speculative decoding: with it a server drafts."""
SERVER_MODULE = "vllm.entrypoints.openai.api_server"
DEFAULT_PROFILE = "measured"
"""The profile that has no entry of its own: the manifest's own settings, which the evidence is of."""

# The parts that decide what the server does; the rest describes it.
LAUNCH: dict[str, Any] = {
    "engine": {"name", "version"},
    **dict.fromkeys(("hardware", "dtype", "max_model_len", "kv_cache_memory_bytes", "arguments", "environment"), True),
}

_FLAG = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SECRET = re.compile(r"(^|_)(TOKEN|KEY|SECRET|PASSWORD)$", re.IGNORECASE)
_FIELDS = ("max-model-len", "kv-cache-memory-bytes", "dtype")
_GIVEN = ("model", "served-model-name", "host", "port", "uds", "config", "headless", "grpc")


def _dashes(arguments: object) -> object:
    """`max_num_seqs` and `max-num-seqs` are one flag to vLLM; here it is written with dashes."""
    if not isinstance(arguments, dict):
        return arguments
    renamed = {name.replace("_", "-") if isinstance(name, str) else name: value for name, value in arguments.items()}
    if len(renamed) < len(arguments):
        raise ValueError("a flag is given twice, with dashes and with underscores")
    return renamed


def _check_arguments(arguments: dict[str, Argument]) -> dict[str, Argument]:
    for flag, value in arguments.items():
        if not _FLAG.fullmatch(flag):
            raise ValueError(f"{flag!r} is not a flag: write it without leading dashes, such as 'enforce-eager'")
        if flag in _FIELDS:
            raise ValueError(f"{flag!r} has a field of its own: set {flag.replace('-', '_')}")
        if flag in ("quantization", "q"):
            raise ValueError("leave 'quantization' out: vLLM reads it from the checkpoint, and refuses another one")
        if flag in _GIVEN:
            raise ValueError(f"{flag!r} is set when the server is started")
        number = not isinstance(value, bool) and re.fullmatch(r"[1-9]\d{0,5}", str(value))
        if flag == "tensor-parallel-size" and value is not None and not number:
            raise ValueError(f"{flag!r} is a number of GPUs, and this is {value!r}")
        if flag == "api-key":
            raise ValueError("'api-key' is a secret: set VLLM_API_KEY where the server runs")
    return arguments


def _check_environment(environment: dict[str, str]) -> dict[str, str]:
    for name in environment:
        if not _VARIABLE.fullmatch(name):
            raise ValueError(f"{name!r} is not the name of an environment variable")
        if _SECRET.search(name):
            raise ValueError(f"{name!r} looks like a secret: set it where the server runs, not in a manifest")
    return environment


Arguments = Annotated[dict[str, Argument], BeforeValidator(_dashes), AfterValidator(_check_arguments)]
Share = Annotated[float, Field(ge=0, le=1)]
Variables = Annotated[dict[str, str], AfterValidator(_check_environment)]


class ServedModel(Frozen):
    """`digest` is that of the artifact's files; `served_model_name` is what requests call the model.

    `tokenizer_digest` and `chat_template_digest` are the SHA-256 of the files that turn requests into tokens, None
    where the model has no such file (or in a release of the first version).
    """

    name: str
    digest: str
    served_model_name: str = Field(min_length=1)
    tokenizer_digest: str | None = None
    chat_template_digest: str | None = None


class ServingEngine(Frozen):
    """The server: the version that was measured, the range it may run in (PEP 440), and a container image of it.

    Without `versions` and `image` they follow from `version`; see `image_of`.
    """

    name: Literal["vllm"] = "vllm"
    version: str
    versions: str | None = None
    image: str | None = None


class DeviceMemory(Frozen):
    """Bytes that one device needs (of a CPU: its memory), and where the figures come from.

    `measured` is what the running server was seen to hold. `estimated` is the size of the weight files divided by the
    devices that share them; activations, the runtime's own memory and a draft model come on top.
    """

    basis: Literal["measured", "estimated"]
    weights_bytes: NonNegativeInt
    kv_cache_bytes: NonNegativeInt
    resident_bytes: NonNegativeInt | None = None


class Benchmark(Frozen):
    """The load under which an objective's figure was measured, and that figure."""

    tool: str
    server: str
    hardware: str
    concurrency: PositiveInt
    input_tokens: PositiveInt
    output_tokens: PositiveInt
    p99_seconds: PositiveFloat


class Objective(Frozen):
    """A service level objective: a share `target` of observations of vLLM's histogram `vllm:INDICATOR` is at or below
    `threshold_seconds`, which is one of the histogram's own bucket bounds.
    """

    indicator: Literal["time_to_first_token_seconds", "inter_token_latency_seconds", "e2e_request_latency_seconds"]
    threshold_seconds: PositiveFloat
    target: float = Field(gt=0, lt=1)
    benchmark: Benchmark


class Probes(Frozen):
    """Where the server says that it is well, and how long a start may take; `measured_start_seconds`: what one took."""

    health: str = "/health"
    startup_budget_seconds: PositiveInt = 1200
    measured_start_seconds: PositiveFloat | None = None


class Profile(Frozen):
    """Another way to serve the model: what it names is laid over the manifest's own settings, the rest stays.

    `arguments` and `environment` are laid over key by key; an argument of None takes the flag away.
    """

    hardware: str | None = None
    dtype: str | None = None
    max_model_len: PositiveInt | None = None
    kv_cache_memory_bytes: PositiveInt | None = None
    arguments: Annotated[dict[str, Argument | None], BeforeValidator(_dashes), AfterValidator(_check_arguments)] = (
        Field(default_factory=dict)
    )
    environment: Variables = Field(default_factory=dict)
    acceptance_floor: Share | None = None
    memory: DeviceMemory | None = None


class ServingManifest(Frozen):
    """How to serve a model.

    `arguments` are vLLM flags without the leading dashes: True is a bare flag, False the flag's `--no-` form, a list
    several values, a mapping JSON. `environment` holds variables, never secrets. `hardware` is the target that it was
    run on (cpu, ampere, ada, hopper, blackwell). `kv_cache_memory_bytes` None leaves the size to vLLM. `metrics` are
    the names that the server's /metrics must have: alerts and dashboards rest on them. `ran_with` is what the measured
    server had of vLLM's defaults; it starts nothing. `acceptance_floor` is the least
    share of drafted tokens that speculative decoding has to get accepted.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    api_version: Literal["qpack/v2"] = Field("qpack/v2", alias="apiVersion")
    kind: Literal["ServingManifest"] = "ServingManifest"
    model: ServedModel
    engine: ServingEngine
    hardware: str
    dtype: str
    max_model_len: PositiveInt
    kv_cache_memory_bytes: PositiveInt | None
    arguments: Arguments = Field(default_factory=dict)
    environment: Variables = Field(default_factory=dict)
    acceptance_floor: Share | None = None
    memory: DeviceMemory | None = None
    ran_with: RanWith | None = None
    profiles: dict[str, Profile] = Field(default_factory=dict)
    probes: Probes = Probes()
    objectives: tuple[Objective, ...] = ()
    metrics: tuple[str, ...] = ()

    @property
    def devices(self) -> int:
        """GPUs that one server needs; 0 on a CPU."""
        size = self.arguments.get("tensor-parallel-size", 1)
        return 0 if self.hardware == "cpu" else int(size) if isinstance(size, int | str) else 1

    @property
    def draft(self) -> str | None:
        """The draft model of speculative decoding, None where there is none (n-gram drafts come from the prompt)."""
        config = self.json_argument(DRAFT)
        model, method = config.get("model"), config.get("method")
        # vLLM takes the name of the method in place of a model's too.
        if not isinstance(model, str) or {model, method} & {"ngram", "[ngram]", "ngram_gpu", "suffix"}:
            return None
        return model

    def json_argument(self, flag: str) -> dict[str, JsonValue]:
        """The value of a flag that takes JSON (speculative-config, structured-outputs-config), empty without it."""
        value = self.arguments.get(flag)
        if isinstance(value, str):
            try:
                value = json.loads(value)
            except (ValueError, RecursionError):
                return {}
        return value if isinstance(value, dict) else {}

    def to_json(self) -> str:
        """The content of `serving.json`."""
        return self.model_dump_json(by_alias=True, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> ServingManifest:
        """`ServingManifest.from_json(manifest.to_json()) == manifest`. Raises RegistryError when it isn't one."""
        try:
            return cls.model_validate_json(_upgraded(text))
        except ValidationError as error:
            found = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'the file'}: {e['msg']}" for e in error.errors())
            raise RegistryError(
                f"the serving manifest can't be read: {found}",
                hint="Correct the fields named, or use the qpack that wrote it.",
            ) from error


def schema() -> dict[str, Any]:
    """The JSON Schema of `serving.json`, for whoever reads or writes one without qpack."""
    generated = ServingManifest.model_json_schema(by_alias=True)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **generated, "title": "qpack serving manifest"}


def _upgraded(text: str | bytes) -> str | bytes:
    """A manifest of the first version says the same in the second: nothing was renamed, so only the version moves."""
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        return text
    if isinstance(data, dict) and data.get("apiVersion") == "qpack/v1":
        return json.dumps({**data, "apiVersion": API_VERSION})
    return text


def select(manifest: ServingManifest, name: str | None) -> ServingManifest:
    """The manifest as profile `name` serves it, without profiles of its own. None is the one that was measured.

    Raises RegistryError when there is no such profile.
    """
    if name is None or name == DEFAULT_PROFILE:
        return manifest.model_copy(update={"profiles": {}})
    if name not in manifest.profiles:
        known = (DEFAULT_PROFILE, *manifest.profiles)
        hint = did_you_mean(name, known) or f"There are: {', '.join(known)}."
        raise RegistryError(f"{manifest.model.name} has no profile {name!r}", hint=hint)
    profile = manifest.profiles[name]
    given = {
        field: value
        for field in ("hardware", "dtype", "max_model_len", "kv_cache_memory_bytes", "acceptance_floor")
        if (value := getattr(profile, field)) is not None
    }
    laid = {**manifest.arguments, **profile.arguments}
    return manifest.model_copy(
        update={
            **given,
            "arguments": {flag: value for flag, value in laid.items() if value is not None},
            "environment": {**manifest.environment, **profile.environment},
            "memory": profile.memory,
            "ran_with": None,
            "profiles": {},
            # What was measured elsewhere is no promise here.
            "objectives": (),
            "probes": manifest.probes.model_copy(update={"measured_start_seconds": None}),
        }
    )


def version_range(version: str) -> str:
    """Versions that a manifest is for, as PEP 440 has it: flags and metrics change between minor versions."""
    found = re.match(r"\d+\.\d+", version)
    return f"~={found[0]}.0" if found else f"=={version}"


def image_of(manifest: ServingManifest) -> str:
    """The container image: the manifest's, or the one that vLLM publishes for the version and the hardware.

    https://docs.vllm.ai/en/stable/deployment/docker.html, and for a CPU
    https://docs.vllm.ai/en/stable/getting_started/installation/cpu.html.
    """
    if manifest.engine.image:
        return manifest.engine.image
    place = "public.ecr.aws/q9t5s3a7/vllm-cpu-release-repo" if manifest.hardware == "cpu" else "vllm/vllm-openai"
    return f"{place}:v{manifest.engine.version}"


def for_model(manifest: ServingManifest, name: str, digest: str) -> ServingManifest:
    """The same server with another model, which is served under its own name: the baseline's from the artifact's."""
    return manifest.model_copy(update={"model": ServedModel(name=name, digest=digest, served_model_name=name)})


def beside(manifest: ServingManifest, without: tuple[str, ...]) -> ServingManifest:
    """How a server is started beside another one: without these flags, and with what lets it start there."""
    kept = {flag: value for flag, value in manifest.arguments.items() if flag not in without}
    # vLLM asks for this share to be free when it starts, and takes no more than its weights and the KV cache's budget
    # when it has one.
    share = {} if manifest.hardware == "cpu" else {"gpu-memory-utilization": 0.05}
    return manifest.model_copy(update={"arguments": kept | share})


def vllm_arguments(manifest: ServingManifest, model_path: Path | str, *, host: str, port: int) -> list[str]:
    """The arguments after `python -m vllm.entrypoints.openai.api_server`.

    Never `--quantization`: vLLM takes the method from the checkpoint's config.
    """
    found = []
    for flag, value in settings(manifest, model_path, host=host, port=port).items():
        found += _flag(flag, value)
    return found


def settings(manifest: ServingManifest, model_path: Path | str, *, host: str, port: int) -> Mapping[str, Argument]:
    """Every flag that the server is started with, by name without dashes: those of the manifest's fields first."""
    found: dict[str, Argument] = {
        "model": str(model_path),
        "served-model-name": manifest.model.served_model_name,
        "host": host,
        "port": port,
        "dtype": manifest.dtype,
        "max-model-len": manifest.max_model_len,
    }
    if manifest.kv_cache_memory_bytes is not None:
        found["kv-cache-memory-bytes"] = manifest.kv_cache_memory_bytes
    return {**found, **dict(sorted(manifest.arguments.items()))}


def command(manifest: ServingManifest, model_path: str, *, host: str, port: int) -> str:
    """The command as a shell takes it, one flag a line, environment first."""
    variables = [f"{name}={shlex.quote(value)}" for name, value in sorted(manifest.environment.items())]
    lines = [" ".join([*variables, "python", "-m", SERVER_MODULE])]
    for argument in vllm_arguments(manifest, model_path, host=host, port=port):
        if argument.startswith("--"):
            lines.append(shlex.quote(argument))
        else:
            lines[-1] += f" {shlex.quote(argument)}"
    return " \\\n  ".join(lines)


def _flag(flag: str, value: Argument) -> list[str]:
    if isinstance(value, bool):
        return [f"--{flag}" if value else f"--no-{flag}"]
    if isinstance(value, dict):
        return [f"--{flag}", json.dumps(value, sort_keys=True)]
    if isinstance(value, list):
        return [f"--{flag}", *map(str, value)]
    # A value that starts with a dash would be read as a flag.
    return [f"--{flag}={value}"] if str(value).startswith("-") else [f"--{flag}", str(value)]
