"""Authentication with OCI registries: basic (RFC 7617), or bearer tokens from a realm (RFC 6750).

https://distribution.github.io/distribution/spec/auth/token/ and .../auth/oauth/.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import httpx

from qpack.core.errors import RegistryError
from registry.core.codes import LOGIN_REFUSED, NO_LOGIN, NOT_HTTPS, UNREACHABLE
from registry.oci.credentials import HOST, PASSWORD, USERNAME, Credentials

_PARAMETER = re.compile(r'(\w+)=(?:"((?:[^"\\]|\\.)*)"|([^\s,]+))')
_LONGEST_TOKEN = 1024 * 1024
LOOPBACK = ("localhost", "127.0.0.1", "::1", "[::1]")


@dataclass(frozen=True)
class Challenge:
    """A `WWW-Authenticate` header: `scheme` in lower case, and its parameters."""

    scheme: str
    parameters: dict[str, str]

    @classmethod
    def parse(cls, header: str) -> Challenge:
        """Parse a header. An invalid one gives the scheme ``."""
        scheme, _, rest = header.strip().partition(" ")
        found = {
            m[1].lower(): re.sub(r"\\(.)", r"\1", m[2]) if m[2] is not None else m[3] for m in _PARAMETER.finditer(rest)
        }
        return cls(scheme.lower(), found)


@dataclass
class Authority:
    """The `Authorization` header per repository and access (pull or push). Thread-safe.

    `credentials` looks up those of a repository. `secrets` are all that were used, to redact messages.
    """

    host: str
    plain: bool
    client: httpx.Client
    credentials: Callable[[str], Credentials | None]
    secrets: set[str] = field(default_factory=set, repr=False)
    _known: dict[tuple[str, bool], str] = field(default_factory=dict, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def header(self, repository: str, *, push: bool) -> str | None:
        """The last answer to a challenge, or None."""
        return self._known.get((repository, push))

    def answer(self, response: httpx.Response, repository: str, *, push: bool, also: tuple[str, ...] = ()) -> bool:
        """Answer the challenge of a 401 response. False if there is no better answer than the last.

        `also` are repositories to mount blobs from, which the token has to cover.
        """
        refused = response.request.headers.get("authorization")
        with self._lock:
            if self._known.get((repository, push)) not in (None, refused):
                return True  # another thread has answered it
            challenge = Challenge.parse(response.headers.get("www-authenticate", ""))
            credentials = self.credentials(repository)
            if credentials is not None:
                self._hide(credentials.password, credentials.identity_token, credentials.basic.partition(" ")[2])
            if challenge.scheme == "basic":
                found = credentials.basic if credentials is not None else None
            elif challenge.scheme == "bearer":
                wanted = [f"repository:{repository}:{'pull,push' if push else 'pull'}"]
                wanted += [f"repository:{other}:pull" for other in also]
                scopes = wanted if repository else challenge.parameters.get("scope", "").split()
                found = self._token(challenge, scopes, credentials)
            else:
                found = None
            if found is None or found == refused:
                return False
            self._known[repository, push] = found
            return True

    def refusal(self, repository: str, words: str) -> RegistryError:
        """The error for a 401 response after the challenge was answered."""
        name = f"{self.host}/{repository}".rstrip("/")
        if self.credentials(repository) is None:
            return RegistryError(
                NO_LOGIN,
                f"{name} requires a login, and none is stored for {self.host}{words}",
                hint=f"Log in with `docker login {self.host}` or `skopeo login {self.host}`, or set {HOST}={self.host},"
                f" {USERNAME} and {PASSWORD}.",
            )
        return RegistryError(
            LOGIN_REFUSED,
            f"{name} refuses the login{words}",
            hint="Check that the password or token is correct, not expired, and has permission for this.",
        )

    def redacted(self, text: str) -> str:
        """`text` with all secrets replaced, in case the server repeats one."""
        for secret in sorted(self.secrets, key=len, reverse=True):
            text = text.replace(secret, "***")
        return text

    def _token(self, challenge: Challenge, scopes: list[str], credentials: Credentials | None) -> str | None:
        realm, service = challenge.parameters.get("realm", ""), challenge.parameters.get("service", "")
        parts = urlsplit(realm)
        # Over plain http only if the registry is used that way, and on the same host.
        same = self.plain and parts.hostname == urlsplit(f"//{self.host}").hostname
        if parts.scheme != "https" and not (parts.scheme == "http" and (same or parts.hostname in LOOPBACK)):
            raise RegistryError(
                NOT_HTTPS,
                f"the token service of {self.host} does not use https ({parts.scheme}://{parts.hostname})",
                hint="Ask the operator of the registry to enable TLS for its token service.",
            )
        try:
            if credentials is not None and credentials.identity_token:
                form = {"grant_type": "refresh_token", "service": service, "scope": " ".join(scopes)}
                form |= {"client_id": "qpack", "refresh_token": credentials.identity_token}
                response = self.client.post(realm, data=form)
            else:
                headers = {"Authorization": credentials.basic} if credentials is not None else {}
                asked = httpx.URL(realm).copy_merge_params({"service": service, "scope": scopes})
                response = self.client.get(asked, headers=headers)
        except httpx.HTTPError as error:
            raise RegistryError(
                UNREACHABLE,
                f"the token service of {self.host} at {parts.netloc} can't be reached ({type(error).__name__})",
                hint="Check the network, then run the command again.",
            ) from None
        if response.status_code != 200 or len(response.content) > _LONGEST_TOKEN:
            return None
        try:
            value = response.json()
            token = value.get("token") or value.get("access_token")
        except (ValueError, AttributeError):
            return None
        if not isinstance(token, str) or not token:
            return None
        self._hide(token)
        return f"Bearer {token}"

    def _hide(self, *secrets: str) -> None:
        self.secrets.update(secret for secret in secrets if len(secret) > 3)
