"""The input of exporters, and shared helpers. Exporters are pure: an Export in, files out."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import yaml

from qpack.core.errors import invalid_option
from registry.core.documents import Document
from registry.core.protocol import is_name
from registry.serving.exporters import quoting
from registry.serving.plain_text import place
from registry.serving.serving_manifest import ServingManifest, image_of, vllm_arguments

Files = Mapping[str, str]
"""File name -> content."""

API_KEY = "VLLM_API_KEY"
"""The server's one secret. Exports name it and never contain it."""

UID = 2000
"""The server's user in a container: not root, and unknown to the image."""

# The server runs as a user that the image doesn't know, with a read-only root: everything that it and torch write goes
# to /tmp, and getpass needs a user name.
CONTAINER_ENVIRONMENT = {
    "HOME": "/tmp",
    "USER": "vllm",
    "XDG_CACHE_HOME": "/tmp/cache",
    "TORCHINDUCTOR_CACHE_DIR": "/tmp/torchinductor",
    "TRITON_CACHE_DIR": "/tmp/triton",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
}


@dataclass(frozen=True)
class Host:
    """What a server needs of the machine that it runs on, beside GPUs; None where it isn't known.

    `cores` and `resident_bytes` (the peak of all its processes) are of the measured server, `weights_bytes` the size of
    the files of weights. `avx512`: on an x86, its kernels need AVX-512.
    """

    cores: int | None = None
    resident_bytes: int | None = None
    weights_bytes: int | None = None
    avx512: bool = False


@dataclass(frozen=True)
class Facts:
    """What a catalogue says of the model: its size, how it was quantized, and where it was measured.

    `precision` is in the words of vLLM's recipes; `created` a date (YYYY-MM-DD); `base` the source on the Hub, if any.
    `active_parameters` are those that answer one token; `multimodal`: it reads more than text.
    """

    parameters: int
    active_parameters: int
    weights_bytes: int
    experts: bool
    multimodal: bool
    method: str
    scheme: str
    precision: str
    hardware: str
    created: str
    base: str | None = None


@dataclass(frozen=True)
class Export:
    """One profile of a release, and where it will run.

    `manifest` has only that profile. `digest` is the `sha256:...` of the release's OCI manifest. `repository` is the
    OCI repository that holds it, without tag or digest (`registry.example.com/models/small`), where one is needed.
    `model` is the path of the model's folder without containers. `mount` is how a pod gets the model: an init container
    that pulls it, or an image volume. `image` is the digest of the release's OCI image in `repository`, which every
    kubelet with image volumes mounts (`qpack publish --as image`); without it the volume is the release itself, and the
    runtime has to mount OCI artifacts. `hub` is `org/name` on the Hub, with `@` and a commit if it is pinned. `nodes`
    share a server's GPUs. `pins` are container images with their digests, by the names without. `host` is for
    schedulers, `facts` for catalogues.
    """

    manifest: ServingManifest
    reference: str
    digest: str
    profile: str
    port: int = 8000
    repository: str | None = None
    model: str = "model"
    mount: Literal["pull", "image"] = "pull"
    host: Host = Host()
    image: str | None = None
    hub: str | None = None
    nodes: int = 1
    pins: Mapping[str, str] = field(default_factory=dict)
    facts: Facts | None = None

    def __post_init__(self) -> None:
        """Raise RegistryError for texts and names that no format can represent. Parsed manifests have none. Raise
        RecipeError for a repository that isn't one.
        """
        if self.repository is not None:
            host, _, name = self.repository.partition("/")
            if not _HOST.fullmatch(host) or not is_name(name):
                what = f"{self.repository!r} is not the name of an OCI repository"
                raise invalid_option("--repository", what, "Write HOST[:PORT]/NAME, without scheme, tag or digest.")
        for at, text in _texts(self.manifest.model_dump()):
            if "\0" in text or not _encodes(text):
                raise quoting.unwritable("any program", at, "a character that isn't text")
        for name in self.manifest.environment:
            if not _VARIABLE.fullmatch(name):
                raise quoting.unwritable("any program", "environment", f"the name {name!r}")
        for flag in self.manifest.arguments:
            if not _FLAG.fullmatch(flag):
                raise quoting.unwritable("any program", "arguments", f"the flag {flag!r}")


_HOST = re.compile(r"(?:[A-Za-z0-9][A-Za-z0-9.-]*|\[[0-9A-Fa-f:]+\])(?::[0-9]{1,5})?")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_FLAG = re.compile(r"[a-z][a-z0-9-]*")


def _texts(value: Any, at: tuple[int | str, ...] = ()) -> Iterator[tuple[str, str]]:
    """Every string in plain data, including keys, and its location."""
    if isinstance(value, str):
        yield place(at), value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _texts(key, (*at, "a key"))
            yield from _texts(inner, (*at, str(key)))
    elif isinstance(value, list | tuple):
        for number, inner in enumerate(value):
            yield from _texts(inner, (*at, number))


def _encodes(text: str) -> bool:
    return not any(0xD800 <= ord(mark) <= 0xDFFF for mark in text)


class Exporter(Protocol):
    """A module that writes one format. `FILES` says what it writes and `MODEL` where the server finds the model (empty
    for a format without a server), for the docs. `IMAGES` are the container images that its files name beside the
    server's.
    """

    FILES: str
    MODEL: str
    NEEDS_REPOSITORY: bool
    IMAGES: tuple[str, ...]

    def files(self, export: Export) -> Files:
        """The files, by name."""


LONGEST_NAME = 52
"""Characters of a name to which controllers append theirs, within the 63 of a label."""


def name_of(export: Export, longest: int = LONGEST_NAME) -> str:
    """The release's name as a DNS label (RFC 1123), valid in Kubernetes, compose and systemd. One that is too long
    ends in a digest of the whole name, so that names that begin alike stay apart.
    """
    whole = export.manifest.model.name
    name = re.sub(r"[^a-z0-9]+", "-", whole.lower()).strip("-")
    name = name if name[:1].isalpha() else f"m-{name}".strip("-")
    if len(name) <= longest:
        return name
    return f"{name[: longest - 9].strip('-')}-{hashlib.sha256(whole.encode()).hexdigest()[:8]}"


def model_path(export: Export) -> str:
    """The path of the model in a container."""
    return f"/models/{name_of(export)}"


def repository_of(export: Export, form: str) -> str:
    """The OCI repository that holds the release. Raises RecipeError without one."""
    if export.repository is None:
        raise invalid_option(
            "--repository",
            f"{form} pulls the release from an OCI registry, and none is named",
            f"For example: --repository registry.example.com/models/{name_of(export)}",
        )
    return export.repository


def server_image(export: Export) -> str:
    """The server's container image, with its digest if it is known."""
    return pinned(export, image_of(export.manifest))


def pinned(export: Export, image: str) -> str:
    """A container image, with its digest if it is known."""
    return export.pins.get(image, image)


def flags_without(export: Export, *names: str) -> list[str]:
    """The server's words of the command line without the model and without the flags that a platform sets itself."""
    found: list[str] = []
    skip = False
    for word in serve(export, "model")[3:]:
        if word.startswith("--"):
            skip = word.partition("=")[0].removeprefix("--") in names
        if not skip:
            found.append(word)
    return found


def serve(export: Export, path: str, *, host: str = "0.0.0.0") -> list[str]:
    """The command `vllm serve PATH ...` of a container image."""
    model, *others = vllm_arguments(export.manifest, path, host=host, port=export.port)
    assert model == f"--model={path}"
    return ["vllm", "serve", path, *others]


def container_environment(export: Export, *, fetches: bool = False) -> dict[str, str]:
    """The server's variables in a container: those that a read-only root needs, then the manifest's. `fetches`: the
    server gets its model from the Hub itself.
    """
    # A draft model is downloaded from the Hub when the server starts.
    offline = {} if export.manifest.draft or fetches else {"HF_HUB_OFFLINE": "1"}
    return {**CONTAINER_ENVIRONMENT, **offline, **export.manifest.environment}


def secrets(export: Export, *, fetches: bool = False) -> dict[str, str]:
    """Optional secrets of the server: variable -> key. `fetches` as in `container_environment`."""
    return {API_KEY: "api-key", **({"HF_TOKEN": "hf-token"} if export.manifest.draft or fetches else {})}


def heading(export: Export, *more: str) -> str:
    """The comment at the top of a file: its source, and how to use it."""
    made = f"Written by qpack from the serving manifest of {export.reference}, profile {export.profile}."
    return "".join(f"# {quoting.comment(line)}".rstrip() + "\n" for line in (made, export.digest, *more))


def to_yaml(*documents: Document) -> str:
    """Readable YAML: keys in the given order, no aliases, long text in blocks."""
    texts = [
        yaml.dump(dict(document), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)
        for document in documents
    ]
    return "---\n".join(texts)


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002
        return True

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:  # noqa: ARG002
        super().increase_indent(flow, False)


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    # Parsers differ in line ends: U+0085 is one only in YAML 1.1. Double quotes escape it.
    plain = all(line.isprintable() for line in value.split("\n"))
    style = '"' if not plain else "|" if "\n" in value else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Dumper.add_representer(str, _text)


def quantity(count: int) -> str:
    """Bytes as a Kubernetes quantity, rounded up to 64 MiB."""
    step = 64 * 2**20
    return f"{-(-count // step) * 64}Mi"
