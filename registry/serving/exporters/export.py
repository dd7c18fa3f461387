"""What every exporter starts from, and what they share. An exporter is pure: an Export in, files out."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import yaml

from registry.core.documents import Document
from registry.serving.exporters import quoting
from registry.serving.plain_text import place
from registry.serving.serving_manifest import ServingManifest, vllm_arguments

Files = Mapping[str, str]
"""File name to content."""

API_KEY = "VLLM_API_KEY"
"""The one secret that the server takes; every export names it and none holds it."""

UID = 2000
"""Who the server runs as in a container: nobody in particular, and not root."""

# The server runs as a user that the image doesn't know, on a root that can't be written: everything that it or torch
# would write goes to /tmp, and getpass needs a name for the user.
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
class Export:
    """One profile of a release, and where it will run.

    `manifest` is of that profile alone. `digest` is the `sha256:...` of the release's OCI manifest. `repository` is the
    OCI repository that holds it, without tag or digest (`registry.example.com/models/small`), where one is needed.
    `model` is the path of the model's folder on a machine without containers. `mount` is how a pod gets the model: an
    init container that pulls it, or an image volume, which needs a runtime that mounts OCI artifacts.
    """

    manifest: ServingManifest
    reference: str
    digest: str
    profile: str
    port: int = 8000
    repository: str | None = None
    model: str = "model"
    mount: Literal["pull", "image"] = "pull"

    def __post_init__(self) -> None:
        """Raise RegistryError for what no format can hold, and for names that no format can quote. A manifest that
        was read has none of it.
        """
        for at, text in _texts(self.manifest.model_dump()):
            if "\0" in text or not _encodes(text):
                raise quoting.unwritable("any program", at, "a character that is no text")
        for name in self.manifest.environment:
            if not _VARIABLE.fullmatch(name):
                raise quoting.unwritable("any program", "environment", f"the name {name!r}")
        for flag in self.manifest.arguments:
            if not _FLAG.fullmatch(flag):
                raise quoting.unwritable("any program", "arguments", f"the flag {flag!r}")


_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_FLAG = re.compile(r"[a-z][a-z0-9-]*")


def _texts(value: Any, at: tuple[int | str, ...] = ()) -> Iterator[tuple[str, str]]:
    """Every text of plain data, keys among them, and where it is."""
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
    """A module that writes one format."""

    ABOUT: str
    NEEDS_REPOSITORY: bool

    def files(self, export: Export) -> Files:
        """The files, by name."""


def name_of(export: Export) -> str:
    """The release's name as a DNS label (RFC 1123), which Kubernetes, compose and systemd all take."""
    name = re.sub(r"[^a-z0-9]+", "-", export.manifest.model.name.lower()).strip("-")[:52].strip("-")
    return name if name[:1].isalpha() else f"m-{name}".strip("-")


def model_path(export: Export) -> str:
    """Where the model lies inside a container."""
    return f"/models/{name_of(export)}"


def serve(export: Export, path: str, *, host: str = "0.0.0.0") -> list[str]:
    """The command `vllm serve PATH ...` of a container image."""
    model, *others = vllm_arguments(export.manifest, path, host=host, port=export.port)
    assert model == f"--model={path}"
    return ["vllm", "serve", path, *others]


def container_environment(export: Export) -> dict[str, str]:
    """Variables of the server in a container: the manifest's, over those that a read-only container needs."""
    # A draft model is fetched from the hub when the server starts.
    offline = {} if export.manifest.draft else {"HF_HUB_OFFLINE": "1"}
    return {**CONTAINER_ENVIRONMENT, **offline, **export.manifest.environment}


def secrets(export: Export) -> dict[str, str]:
    """Secrets that the server takes from where it runs: variable and key. None has to be there."""
    return {API_KEY: "api-key", **({"HF_TOKEN": "hf-token"} if export.manifest.draft else {})}


def heading(export: Export, *more: str) -> str:
    """The comment at the top of a file: what it was made from, and how it is used."""
    made = f"Made by qpack from the serving manifest of {export.reference}, profile {export.profile}."
    return "".join(f"# {quoting.comment(line)}".rstrip() + "\n" for line in (made, export.digest, *more))


def to_yaml(*documents: Document) -> str:
    """YAML as a person would write it: keys in the order given, no aliases, long text in blocks."""
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
    # Readers differ in what ends a line: U+0085 does in YAML 1.1 alone. Between double quotes it is escaped.
    plain = all(line.isprintable() for line in value.split("\n"))
    style = '"' if not plain else "|" if "\n" in value else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Dumper.add_representer(str, _text)


def quantity(count: int) -> str:
    """Bytes as a Kubernetes quantity, rounded up to 64 MiB."""
    step = 64 * 2**20
    return f"{-(-count // step) * 64}Mi"
