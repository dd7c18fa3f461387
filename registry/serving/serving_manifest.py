"""The serving manifest: how a model is served. Evaluations run against a server that was started from it.

Flags are those of vLLM's OpenAI server (https://docs.vllm.ai/en/stable/cli/serve.html). Releases of `qpack/v1` are read
as `qpack/v2` manifests without the newer fields.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    ConfigDict,
    Field,
    JsonValue,
    NonNegativeInt,
    PositiveInt,
    ValidationError,
    model_validator,
)

from qpack.core.errors import RegistryError
from qpack.core.findings import EffectiveDefaults
from qpack.core.frozen import Frozen
from qpack.core.jsonfile import JsonObject
from qpack.core.problems import Code, Location, Problem
from registry.core.codes import UNREADABLE_MANIFEST
from registry.core.protocol import did_you_mean
from registry.serving import flag_table, plain_text
from registry.serving.manifest_fields import (
    MOST_PROBLEMS,
    Argument,
    Arguments,
    ProfileArguments,
    Seconds,
    Share,
    Variables,
    no_constant,
    problems,
    refuse_duplicates,
)

API_VERSION = "qpack/v2"
DRAFT = "speculative-config"
"""vLLM's flag for speculative decoding."""
GPU_SHARE = "gpu-memory-utilization"
"""vLLM's flag for the share of a GPU that has to be free when a server starts. With a KV cache of a set size it limits
nothing else: what the server takes is its weights, that cache, and what it computes with.
"""
SERVER_MODULE = "vllm.entrypoints.openai.api_server"
DEFAULT_PROFILE = "measured"
"""The profile of the manifest's own settings, which were measured. It has no entry in `profiles`."""

LARGEST = 2**20
"""Bytes of a `serving.json`."""


class ServedModel(Frozen):
    """`digest` is that of the artifact's files; `served_model_name` is the model's name in requests.

    `tokenizer_digest` and `chat_template_digest` are the SHA-256 of the files that turn requests into tokens; None
    without such a file, and in manifests of the first version.
    """

    name: plain_text.ModelName
    digest: plain_text.Digest
    served_model_name: plain_text.ModelName
    tokenizer_digest: plain_text.Digest | None = None
    chat_template_digest: plain_text.Digest | None = None


class ServingEngine(Frozen):
    """The server: the measured version, the allowed range (PEP 440), and a container image.

    `versions` and `image` default to values derived from `version`; see `image_of`.
    """

    name: Literal["vllm"] = "vllm"
    version: plain_text.Version
    versions: plain_text.VersionRange | None = None
    image: plain_text.Image | None = None


class DeviceMemory(Frozen):
    """Bytes that one device needs (for a CPU, host memory), and the basis of the figures.

    `measured`: of the running server. `estimated`: the size of the weight files divided by the devices that share
    them, without activations, the runtime's own memory and a draft model.
    """

    basis: Literal["measured", "estimated"]
    weights_bytes: NonNegativeInt
    kv_cache_bytes: NonNegativeInt
    resident_bytes: NonNegativeInt | None = None


class Benchmark(Frozen):
    """The load of an objective's measurement, and the measured figure.

    `p99_seconds` is the median of the 99th percentiles of `runs` runs; without `runs`, in releases up to 0.2.0, that of
    the worst run.
    """

    tool: plain_text.Description
    server: plain_text.Description
    hardware: plain_text.Description
    concurrency: PositiveInt
    input_tokens: PositiveInt
    output_tokens: PositiveInt
    p99_seconds: Seconds
    runs: PositiveInt | None = None


class Objective(Frozen):
    """A service level objective: a share `target` of observations of vLLM's histogram `vllm:INDICATOR` is at or below
    `threshold_seconds`, which is one of the histogram's own bucket bounds.
    """

    indicator: Literal["time_to_first_token_seconds", "inter_token_latency_seconds", "e2e_request_latency_seconds"]
    threshold_seconds: Seconds
    target: float = Field(gt=0, lt=1)
    benchmark: Benchmark


class Probes(Frozen):
    """The health endpoint, the time limit of a start, and the time that a measured start took."""

    health: plain_text.HealthPath = "/health"
    # Kubernetes counts in 32 bits.
    startup_budget_seconds: Annotated[int, Field(gt=0, le=2 * 10**9)] = 1200
    measured_start_seconds: Seconds | None = None


class Profile(Frozen):
    """Another way to serve the model. Its fields override those of the manifest.

    `arguments` and `environment` are merged by key; an argument of None removes the flag.
    """

    hardware: plain_text.Word | None = None
    dtype: plain_text.Word | None = None
    max_model_len: PositiveInt | None = None
    kv_cache_memory_bytes: PositiveInt | None = None
    arguments: ProfileArguments = Field(default_factory=dict)
    environment: Variables = Field(default_factory=dict)
    acceptance_floor: Share | None = None
    memory: DeviceMemory | None = None


class ServingManifest(Frozen):
    """How to serve a model.

    `arguments` are vLLM flags without the leading dashes: True is a bare flag, False the flag's `--no-` form, a list
    several values, a mapping JSON. `environment` holds variables, never secrets. `hardware` is what it ran on (cpu,
    ampere, ada, hopper, blackwell), `target` the oldest that the recipe is for, where that is another.
    `kv_cache_memory_bytes` None leaves the size to vLLM. `metrics` are the names that the server's /metrics must have:
    alerts and dashboards rest on them. `ran_with` is what the measured server had of vLLM's defaults; it starts none.
    `acceptance_floor` is the least share of drafted tokens that speculative decoding has to get accepted. `reasons` say
    why an argument is set that the recipe doesn't set.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    api_version: Literal["qpack/v2"] = Field("qpack/v2", alias="apiVersion")
    kind: Literal["ServingManifest"] = "ServingManifest"
    model: ServedModel
    engine: ServingEngine
    hardware: plain_text.Word
    target: plain_text.Word | None = None
    dtype: plain_text.Word
    max_model_len: PositiveInt
    kv_cache_memory_bytes: PositiveInt | None
    arguments: Arguments = Field(default_factory=dict)
    environment: Variables = Field(default_factory=dict)
    acceptance_floor: Share | None = None
    reasons: dict[plain_text.Word, plain_text.Description] = Field(default_factory=dict)
    memory: DeviceMemory | None = None
    ran_with: EffectiveDefaults | None = None
    profiles: dict[plain_text.ProfileName, Profile] = Field(default_factory=dict)
    probes: Probes = Probes()
    objectives: tuple[Objective, ...] = ()
    metrics: tuple[plain_text.MetricName, ...] = ()

    @model_validator(mode="after")
    def _is_plain(self) -> ServingManifest:
        """In every field, texts are printable and numbers finite."""
        if found := list(plain_text.refused(self.model_dump())):
            raise ValueError("; ".join(found[:MOST_PROBLEMS]))
        return self

    @property
    def tensor_parallel(self) -> int:
        """Workers that share each layer."""
        return self._count("tensor-parallel-size")

    @property
    def pipeline_parallel(self) -> int:
        """Groups of workers with some of the layers each."""
        return self._count("pipeline-parallel-size")

    @property
    def data_parallel(self) -> int:
        """Copies of the model in the server, which answer different requests. They share the experts, if it has any."""
        return self._count("data-parallel-size")

    @property
    def workers(self) -> int:
        """Processes that compute: one per GPU."""
        return self.tensor_parallel * self.pipeline_parallel * self.data_parallel

    @property
    def devices(self) -> int:
        """GPUs per server; 0 on a CPU."""
        return 0 if self.hardware == "cpu" else self.workers

    def _count(self, flag: str) -> int:
        size = self.arguments.get(flag, 1)
        return int(size) if isinstance(size, int | str) else 1

    @property
    def draft(self) -> str | None:
        """The draft model of speculative decoding, or None (n-gram drafts come from the prompt)."""
        config = self.json_argument(DRAFT)
        model, method = config.get("model"), config.get("method")
        # vLLM also accepts a method's name as the model.
        if not isinstance(model, str) or {model, method} & {"ngram", "[ngram]", "ngram_gpu", "suffix"}:
            return None
        return model

    def json_argument(self, flag: str) -> dict[str, JsonValue]:
        """The value of a flag that takes JSON (speculative-config, structured-outputs-config); empty if not set."""
        value = self.arguments.get(flag)
        if isinstance(value, str):
            try:
                value = json.loads(value, object_pairs_hook=refuse_duplicates, parse_constant=no_constant)
            except (ValueError, RecursionError):
                return {}
        return value if isinstance(value, dict) else {}

    def to_json(self) -> str:
        """The content of `serving.json`."""
        return self.model_dump_json(by_alias=True, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> ServingManifest:
        """`ServingManifest.from_json(manifest.to_json()) == manifest`. Raises RegistryError if it is invalid."""
        if len(text) > LARGEST:
            raise RegistryError(
                UNREADABLE_MANIFEST,
                f"the serving manifest has {len(text):,} bytes; the limit is {LARGEST:,}",
                hint=_HINT,
            )
        try:
            return cls.model_validate_json(_upgraded(text))
        except (ValidationError, UnicodeError, RecursionError) as error:
            found = problems(error, "serving.json") if isinstance(error, ValidationError) else ()
            said = "; ".join(problem.text for problem in found) or "it isn't JSON in UTF-8"
            raise RegistryError(
                UNREADABLE_MANIFEST, f"the serving manifest can't be read: {said}", hint=_HINT
            ) from error


_HINT = "Fix these fields, or use the version of qpack that wrote it."


def schema() -> JsonObject:
    """The JSON Schema of `serving.json`, for other programs."""
    generated = ServingManifest.model_json_schema(by_alias=True)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **generated, "title": "qpack serving manifest"}


def _upgraded(text: str | bytes) -> str | bytes:
    """Read a manifest of the first version as the second: no field was renamed, so only the version changes."""
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        return text
    if isinstance(data, dict) and data.get("apiVersion") == "qpack/v1":
        return json.dumps({**data, "apiVersion": API_VERSION})
    return text


def select(manifest: ServingManifest, name: str | None) -> ServingManifest:
    """The manifest with profile `name` applied, without other profiles. None is the measured one.

    Raises RegistryError for an unknown profile.
    """
    if name is None or name == DEFAULT_PROFILE:
        return manifest.model_copy(update={"profiles": {}})
    if name not in manifest.profiles:
        known = (DEFAULT_PROFILE, *manifest.profiles)
        hint = did_you_mean(name, known) or f"Available: {', '.join(known)}."
        raise RegistryError(_NO_SUCH_PROFILE, f"{manifest.model.name} has no profile {name!r}", hint=hint)
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
            # Measured with other settings.
            "objectives": (),
            "probes": manifest.probes.model_copy(update={"measured_start_seconds": None}),
        }
    )


def version_range(version: str) -> str:
    """The allowed versions (PEP 440): flags and metrics change between minor versions."""
    found = re.match(r"\d+\.\d+", version)
    return f"~={found[0]}.0" if found else f"=={version}"


def image_of(manifest: ServingManifest) -> str:
    """The container image: the manifest's, or vLLM's own for the version and hardware."""
    return manifest.engine.image or published_image(manifest)


def published_image(manifest: ServingManifest) -> str:
    """The image that vLLM publishes for the version and hardware.

    https://docs.vllm.ai/en/stable/deployment/docker.html, and for a CPU
    https://docs.vllm.ai/en/stable/getting_started/installation/cpu.html.
    """
    place = "public.ecr.aws/q9t5s3a7/vllm-cpu-release-repo" if manifest.hardware == "cpu" else "vllm/vllm-openai"
    # Tags can't contain the local part of a version (0.32.0+cpu).
    return f"{place}:v{manifest.engine.version.partition('+')[0]}"


def beside(manifest: ServingManifest, without: tuple[str, ...]) -> ServingManifest:
    """How a server is started beside another one: without these flags, and with what lets it start there."""
    kept = {flag: value for flag, value in manifest.arguments.items() if flag not in without}
    share = {} if manifest.hardware == "cpu" else {GPU_SHARE: 0.05}
    return manifest.model_copy(update={"arguments": kept | share})


def vllm_arguments(manifest: ServingManifest, model_path: Path | str, *, host: str, port: int) -> list[str]:
    """The arguments after `python -m vllm.entrypoints.openai.api_server`; the first is `--model=PATH`.

    Values follow an equals sign, so none can be read as a flag. Never contains `--quantization`: vLLM reads the method
    from the checkpoint's config. Raises RegistryError for a list that the parser would misread.
    """
    found = []
    for flag, value in settings(manifest, model_path, host=host, port=port).items():
        found += _words(flag, value)
    return found


def settings(manifest: ServingManifest, model_path: Path | str, *, host: str, port: int) -> Mapping[str, Argument]:
    """Every flag of the server by name, without leading dashes; those of the manifest's fields first."""
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


SAFE_PATH = "PYTHONSAFEPATH"
"""Keeps the current folder, which may be an untrusted release, off the import path of the server and of the processes
that vLLM starts with `python -m` (which a command line option wouldn't reach).
"""


def command(manifest: ServingManifest, model_path: str, *, host: str, port: int) -> str:
    """The command for a shell: environment first, one flag per line."""
    variables = {**manifest.environment, SAFE_PATH: "1"}
    given = [f"{name}={shlex.quote(value)}" for name, value in sorted(variables.items())]
    lines = [" ".join([*given, "python", "-m", SERVER_MODULE])]
    lines += flag_lines(vllm_arguments(manifest, model_path, host=host, port=port), shlex.quote)
    return " \\\n  ".join(lines)


def flag_lines(words: Sequence[str], quote: Callable[[str], str]) -> list[str]:
    """Words of a command line, one line per flag with its values. `quote` escapes a word for the format."""
    lines: list[str] = []
    for word in words:
        if word.startswith("--") or not lines:
            lines.append(quote(word))
        else:
            lines[-1] += f" {quote(word)}"
    return lines


def _words(flag: str, value: Argument) -> list[str]:
    known = flag_table.flags().get(flag)
    if isinstance(value, bool):
        return [f"--{flag}" if value else f"--no-{flag}"]
    if isinstance(value, list) and known is not None and known.type != "json":
        return _list_words(flag, known, value)
    if isinstance(value, list) and known is None:
        if len(value) != 1:
            raise _refused(flag, "a list, and it is unknown whether this flag takes one")
        value = value[0]
    text = json.dumps(value, sort_keys=True) if isinstance(value, dict | list) else str(value)
    if known is None and " " in text:
        # argparse reads an unknown flag with a space in its value as the positional argument: the model.
        if not isinstance(value, dict):
            raise _refused(
                flag, "a space in its value, and a server that doesn't know the flag would read it as the model"
            )
        text = json.dumps(value, sort_keys=True, separators=(",", ":")).replace(" ", "\\u0020")
    return [f"--{flag}={text}"]


def _list_words(flag: str, known: flag_table.Flag, values: list[str | int | float]) -> list[str]:
    if known.many == "append":
        return [f"--{flag}={value}" for value in values]
    if len(values) == 1:
        return [f"--{flag}={values[0]}"]
    if known.many is None:
        raise _refused(flag, f"{len(values)} values, and the server would read the second as the model")
    words = list(map(str, values))
    # A parsed manifest has neither; one that a program builds may.
    if not words or any(word.startswith("-") for word in words):
        raise _refused(flag, "a value in its list that would be read as a flag")
    return [f"--{flag}", *words]


_UNSAFE_VALUE = Code("unsafe-value", "A value of a flag would be read as another flag, or as a model.")
_NO_SUCH_PROFILE = Code("no-such-profile", "A serving manifest has no such profile.")


def _refused(flag: str, what: str) -> RegistryError:
    problem = Problem(_UNSAFE_VALUE, f"it has {what}.", Location("serving.json", key=("arguments", flag)))
    return RegistryError(_UNSAFE_VALUE, "the server can't be started with the release's settings", problems=(problem,))
