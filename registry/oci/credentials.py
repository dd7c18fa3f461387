"""Credentials for OCI registries: from the environment, or from the files of `docker login` and `skopeo login`.

They are never printed or stored. Formats: https://docs.docker.com/reference/cli/docker/login/ and
containers-auth.json(5) of https://github.com/containers/image.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from qpack.core.errors import RegistryError
from qpack.core.problems import Code

_UNREADABLE_LOGINS = Code("unreadable-logins", "A file of registry logins can't be read.")
_CREDENTIAL_HELPER = Code("credential-helper", "A login is kept in a credential helper, which qpack doesn't run.")

HOST, USERNAME, PASSWORD = "QPACK_OCI_HOST", "QPACK_OCI_USERNAME", "QPACK_OCI_PASSWORD"
_LARGEST_FILE = 1024 * 1024


@dataclass(frozen=True)
class Credentials:
    """A name and a password, or the identity token of a login. `repr` hides both secrets."""

    username: str
    password: str = field(repr=False)
    identity_token: str = field(default="", repr=False)

    @property
    def basic(self) -> str:
        """The value of an `Authorization` header (RFC 7617)."""
        return "Basic " + base64.b64encode(f"{self.username}:{self.password}".encode()).decode()


def find(host: str, repository: str, environment: Mapping[str, str]) -> Credentials | None:
    """The credentials for a repository (`org/name`) of `host` (`name[:port]`), or None.

    QPACK_OCI_USERNAME and QPACK_OCI_PASSWORD apply only to the host QPACK_OCI_HOST. Raises RegistryError if a file
    can't be read, or names a credential helper for the host: helpers are programs, which qpack doesn't run.
    """
    if environment.get(HOST) == host and environment.get(PASSWORD):
        return Credentials(environment.get(USERNAME, ""), environment[PASSWORD])
    for path in _files(environment):
        if path.is_file():
            found = _in_file(path, host, repository)
            if found is not None:
                return found
    return None


def _files(environment: Mapping[str, str]) -> Iterator[Path]:
    """Files of logins. One that a variable names is the only one."""
    if named := environment.get("REGISTRY_AUTH_FILE"):
        yield Path(named).expanduser()
        return
    if runtime := environment.get("XDG_RUNTIME_DIR"):
        yield Path(runtime) / "containers" / "auth.json"
    folder = environment.get("DOCKER_CONFIG")
    yield (Path(folder) if folder else Path("~/.docker")).expanduser() / "config.json"


def _in_file(path: Path, host: str, repository: str) -> Credentials | None:
    try:
        if path.stat().st_size > _LARGEST_FILE:
            raise ValueError("it is larger than 1 MiB")
        value = json.loads(path.read_bytes())
        auths, helpers = value.get("auths") or {}, value.get("credHelpers") or {}
        for key in (f"{host}/{repository}".rsplit("/", n)[0] for n in range(repository.count("/") + 2)):
            for name in (key, f"https://{key}", f"https://{key}/v1/", f"https://{key}/v2/"):
                if entry := auths.get(name):
                    return _entry(entry)
        helper = helpers.get(host) or (value.get("credsStore") if host in auths else None)
    except (OSError, ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
        # Without the error's text: decoders quote their input.
        raise RegistryError(
            _UNREADABLE_LOGINS,
            f"{path} can't be read as a file of registry logins ({type(error).__name__})",
            hint="Log in again (`docker login`, `skopeo login`), or set REGISTRY_AUTH_FILE to another file.",
        ) from None
    if helper:
        raise RegistryError(
            _CREDENTIAL_HELPER,
            f"{path} keeps the login for {host} in the credential helper {helper!r}, which qpack doesn't run",
            hint=f"Set {HOST}={host}, {USERNAME} and {PASSWORD} instead.",
        )
    return None


def _entry(entry: Mapping[str, str]) -> Credentials:
    if token := entry.get("identitytoken"):
        return Credentials("", "", str(token))
    if "auth" in entry:
        try:
            name, _, password = base64.b64decode(entry["auth"], validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError) as error:
            raise ValueError("auth is not base64") from error
        return Credentials(name, password.rstrip("\0"))
    return Credentials(str(entry["username"]), str(entry["password"]))
