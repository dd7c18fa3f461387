"""The serving manifest: how a model is served, as one file. The evals run against a server that was started from it.

Flags are those of vLLM's OpenAI server (https://docs.vllm.ai/en/stable/cli/serve.html).
"""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, ConfigDict, Field, JsonValue, PositiveInt, ValidationError, field_validator

from qpack.errors import RegistryError
from qpack.frozen import Frozen

Argument = bool | int | float | str | list[str | int | float] | dict[str, JsonValue]

SERVER_MODULE = "vllm.entrypoints.openai.api_server"

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


class ServedModel(Frozen):
    """`digest` is that of the artifact's files; `served_model_name` is what requests call the model."""

    name: str
    digest: str
    served_model_name: str = Field(min_length=1)


class ServingEngine(Frozen):
    """The server, and the version that it was run with."""

    name: Literal["vllm"] = "vllm"
    version: str


class ServingManifest(Frozen):
    """How to serve a model.

    `arguments` are vLLM flags without the leading dashes: True is a bare flag, False the flag's `--no-` form, a list
    several values, a mapping JSON. `environment` holds variables, never secrets. `hardware` is the target that it was
    run on (cpu, ampere, ada, hopper, blackwell). `kv_cache_memory_bytes` None leaves the size to vLLM.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    api_version: Literal["qpack/v1"] = Field("qpack/v1", alias="apiVersion")
    kind: Literal["ServingManifest"] = "ServingManifest"
    model: ServedModel
    engine: ServingEngine
    hardware: str
    dtype: str
    max_model_len: PositiveInt
    kv_cache_memory_bytes: PositiveInt | None
    arguments: Annotated[dict[str, Argument], BeforeValidator(_dashes)] = Field(default_factory=dict)
    environment: dict[str, str] = Field(default_factory=dict)

    @field_validator("arguments")
    @classmethod
    def _check_arguments(cls, arguments: dict[str, Argument]) -> dict[str, Argument]:
        for flag in arguments:
            if not _FLAG.fullmatch(flag):
                raise ValueError(f"{flag!r} is not a flag: write it without leading dashes, such as 'enforce-eager'")
            if flag in _FIELDS:
                raise ValueError(f"{flag!r} has a field of its own: set {flag.replace('-', '_')}")
            if flag in ("quantization", "q"):
                raise ValueError("leave 'quantization' out: vLLM reads it from the checkpoint, and refuses another one")
            if flag in _GIVEN:
                raise ValueError(f"{flag!r} is set when the server is started")
            if flag == "api-key":
                raise ValueError("'api-key' is a secret: set VLLM_API_KEY where the server runs")
        return arguments

    @field_validator("environment")
    @classmethod
    def _check_environment(cls, environment: dict[str, str]) -> dict[str, str]:
        for name in environment:
            if not _VARIABLE.fullmatch(name):
                raise ValueError(f"{name!r} is not the name of an environment variable")
            if _SECRET.search(name):
                raise ValueError(f"{name!r} looks like a secret: set it where the server runs, not in a manifest")
        return environment

    def to_json(self) -> str:
        """The content of `serving.json`."""
        return self.model_dump_json(by_alias=True, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> ServingManifest:
        """`ServingManifest.from_json(manifest.to_json()) == manifest`. Raises RegistryError when it isn't one."""
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            found = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'the file'}: {e['msg']}" for e in error.errors())
            raise RegistryError(
                f"the serving manifest can't be read: {found}",
                hint="Correct the fields named, or use the qpack that wrote it.",
            ) from error


def for_model(manifest: ServingManifest, name: str, digest: str) -> ServingManifest:
    """The same server with another model, which is served under its own name: the baseline's from the artifact's."""
    return manifest.model_copy(update={"model": ServedModel(name=name, digest=digest, served_model_name=name)})


def vllm_arguments(manifest: ServingManifest, model_path: Path | str, *, host: str, port: int) -> list[str]:
    """The arguments after `python -m vllm.entrypoints.openai.api_server`.

    Never `--quantization`: vLLM takes the method from the checkpoint's config.
    """
    arguments = ["--model", str(model_path), "--served-model-name", manifest.model.served_model_name]
    arguments += ["--host", host, "--port", str(port)]
    arguments += ["--dtype", manifest.dtype, "--max-model-len", str(manifest.max_model_len)]
    if manifest.kv_cache_memory_bytes is not None:
        arguments += ["--kv-cache-memory-bytes", str(manifest.kv_cache_memory_bytes)]
    for flag, value in sorted(manifest.arguments.items()):
        arguments += _flag(flag, value)
    return arguments


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
