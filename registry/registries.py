"""The kinds of registries, and the grammar of places.

To add a kind: a module that satisfies `Releases` (or `Registry`, for one on this machine), and one line here.
"""

from __future__ import annotations

import ipaddress
import re
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from qpack.core.errors import RegistryError
from qpack.core.problems import Code
from registry.core.bundle import Progress, nothing
from registry.core.codes import INVALID_REFERENCE
from registry.core.protocol import REMOTE_VERSION, Ref, Registry, Remote, did_you_mean
from registry.local.registry import LocalRegistry

if TYPE_CHECKING:
    from registry.hub.registry import HubSettings
    from registry.mlflow.registry import MlflowRegistry
    from registry.oci.http import Http
    from registry.oci.registry import OciRegistry

_LOGIN_IN_ADDRESS = Code("login-in-address", "An address contains a login.")
_UNKNOWN_REGISTRY = Code("unknown-registry", "There is no such kind of registry.")

_HOST = re.compile(r"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9a-fA-F:]+\])(?::[0-9]{1,5})?")
_FOLDER = re.compile(r"(?:/|\./|\.\./|~).*|\.|\.\.")


def _local(location: str) -> LocalRegistry:
    return LocalRegistry(Path(location).expanduser())


# Registries on this machine.
REGISTRIES: dict[str, Callable[[str], Registry]] = {
    "local": _local,
}


def open_registry(kind: str, location: str) -> Registry:
    """The registry of that kind at `location` (a folder). Raises RegistryError for an unknown kind."""
    if kind not in REGISTRIES:
        hint = did_you_mean(kind, REGISTRIES) or f"Available: {', '.join(REGISTRIES)}."
        raise RegistryError(_UNKNOWN_REGISTRY, f"unknown kind of registry {kind!r}", hint=hint)
    return REGISTRIES[kind](location)


def open_oci(
    host: str,
    *,
    prefix: str = "",
    plain_http: bool = False,
    sessions: Path | None = None,
    mount_from: tuple[str, ...] = (),
    progress: Progress = nothing,
) -> OciRegistry:
    """The OCI registry at `host` (`name[:port]`), over https unless `plain_http`.

    On loopback addresses plain http is used if the server doesn't speak TLS. `sessions` is the folder that records
    interrupted uploads.
    """
    # Importing an HTTP client is slow, and most commands don't need it.
    from registry.oci.blobs import Sessions
    from registry.oci.registry import OciRegistry

    return OciRegistry(open_http(host, plain_http=plain_http), prefix, Sessions(sessions), mount_from, progress)


def open_http(host: str, *, plain_http: bool = False) -> Http:
    """A connection to the OCI registry at `host`; see `open_oci`."""
    from registry.oci.http import Http

    return Http.open(host, plain=plain_http or (_is_loopback(host) and not _speaks_tls(host)))


def open_mlflow(host: str, *, plain_http: bool = False, progress: Progress = nothing) -> MlflowRegistry:
    """The MLflow server at `host` (`name[:port]`), over https unless `plain_http`; see `open_oci`."""
    from registry.mlflow.client import Client
    from registry.mlflow.registry import MlflowRegistry

    plain = plain_http or (_is_loopback(host) and not _speaks_tls(host))
    return MlflowRegistry(Client.open(f"{'http' if plain else 'https'}://{host}"), progress)


@dataclass(frozen=True)
class Place:
    """Source or destination of a release. `kind` is `local`, `oci`, `hf` or `mlflow`.

    `at` is the folder or the host; `ref` the release there, None for a folder.
    """

    kind: str
    at: str
    ref: Ref | None

    @classmethod
    def parse(cls, text: str) -> Place:
        """Read `oci://host[:port]/name[:tag][@digest]`, the same with `mlflow://`, `hf://org/name[@tag]`, or the path
        of a folder.

        A path starts with `/`, `./`, `../` or `~`, or exists. Raises RegistryError for anything else.
        """
        scheme, separator, rest = text.partition("://")
        if not separator:
            if _FOLDER.fullmatch(text) or Path(text).is_dir():
                return cls("local", text, None)
            raise RegistryError(
                INVALID_REFERENCE,
                f"{text!r} is not a registry or a folder",
                hint="Write hf://org/name, oci://host/name:tag, or a folder as ./folder or /folder.",
            )
        if "@" in rest.partition("/")[0]:
            # The message leaves the text out: it holds a password.
            raise RegistryError(
                _LOGIN_IN_ADDRESS,
                f"a {scheme}:// address must not contain a login",
                hint="Log in with `docker login` or `hf auth login`, or set the variables in docs/guides/publish.md.",
            )
        if scheme == "oci":
            host, _, name = rest.partition("/")
            if not _HOST.fullmatch(host) or not name:
                raise RegistryError(INVALID_REFERENCE, f"{text!r} is not of the form oci://host[:port]/name[:tag]")
            return cls("oci", host, Ref.parse(name))
        if scheme == "hf":
            return cls("hf", "", _hub_ref(text, rest))
        if scheme == "mlflow":
            host, _, name = rest.partition("/")
            if not _HOST.fullmatch(host) or not name:
                raise RegistryError(INVALID_REFERENCE, f"{text!r} is not of the form mlflow://host[:port]/name[:tag]")
            return cls("mlflow", host, Ref.parse(name))
        hint = did_you_mean(scheme, ("oci", "hf", "mlflow"))
        hint = hint or "Use hf://org/name, oci://host/name:tag or mlflow://host/name:tag."
        raise RegistryError(_UNKNOWN_REGISTRY, f"{text!r}: unknown kind of registry {scheme!r}", hint=hint)

    @property
    def named(self) -> Ref:
        """The release. Raises RegistryError for a folder."""
        if self.ref is None:
            raise RegistryError(
                INVALID_REFERENCE, f"{self.at!r} names no release", hint="Write oci://host/name:tag or hf://org/name."
            )
        return self.ref

    def version_and_alias(self, version: str, alias: str | None) -> tuple[str, str | None]:
        """The version and alias of a release here. A tag that doesn't look like a version is an alias."""
        if self.ref is not None and self.ref.digest is not None:
            raise RegistryError(
                INVALID_REFERENCE, "a release can't be published to a given digest", hint="Remove `@sha256:...`."
            )
        tag = self.ref.tag if self.ref else None
        if tag is None:
            return version, alias
        if self.kind == "hf" or REMOTE_VERSION.fullmatch(tag):
            return tag, alias
        if alias not in (None, tag):
            raise RegistryError(
                INVALID_REFERENCE, f"two aliases given: {tag!r} and {alias!r}", hint="Give one of them."
            )
        return version, tag


def open_remote(
    place: Place,
    *,
    plain_http: bool = False,
    hub: HubSettings | None = None,
    sessions: Path | None = None,
    mount_from: tuple[str, ...] = (),
    progress: Progress = nothing,
) -> Remote:
    """The registry of a place that is not a folder. `hub` is for one on the Hub."""
    if place.kind == "hf":
        from registry.hub.registry import HubRegistry, HubSettings

        return HubRegistry(hub or HubSettings(), progress)
    if place.kind == "mlflow":
        return open_mlflow(place.at, plain_http=plain_http, progress=progress)
    return open_oci(place.at, plain_http=plain_http, sessions=sessions, mount_from=mount_from, progress=progress)


def _hub_ref(text: str, rest: str) -> Ref:
    """Names on the Hub may have capitals, unlike OCI names; `@` or `:` precedes the tag."""
    name, _, tag = rest.replace(":", "@", 1).partition("@")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name, re.ASCII):
        raise RegistryError(INVALID_REFERENCE, f"{text!r} is not of the form hf://org/name[@tag]")
    return Ref(name, tag or None)


def _is_loopback(host: str) -> bool:
    name = urlsplit(f"//{host}").hostname or ""
    try:
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _speaks_tls(host: str) -> bool:
    """Whether the server answers a TLS handshake. Doesn't check the certificate."""
    parts = urlsplit(f"//{host}")
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with socket.create_connection((parts.hostname or "", parts.port or 443), timeout=5) as plain:
            with context.wrap_socket(plain):
                return True
    except OSError:
        return False
