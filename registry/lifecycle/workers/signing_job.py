"""Jobs and answers of the signing worker; qpack and the worker both import them (see qpack_protocol)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Optional, Union


@dataclass(frozen=True)
class SignJob:
    """`signature` is the file to write; `key` a private key's PEM file, None for the identity that this machine's CI
    vouches for.
    """

    folder: str
    signature: str
    key: Optional[str]
    action: Literal["sign"] = "sign"


@dataclass(frozen=True)
class Key:
    """The holder of a key pair, by the public key's PEM file."""

    path: str
    kind: Literal["key"] = "key"


@dataclass(frozen=True)
class Signer:
    """A keyless identity, and who vouches for it."""

    identity: str
    issuer: str
    kind: Literal["identity"] = "identity"


@dataclass(frozen=True)
class VerifyJob:
    """Files of signatures, each checked for each trusted signer."""

    folder: str
    signatures: tuple[str, ...]
    trusted: tuple[Union[Key, Signer], ...]
    action: Literal["verify"] = "verify"


@dataclass(frozen=True)
class Signed:
    """The signature is written."""


@dataclass(frozen=True)
class Verified:
    """For each signature and each trusted signer: None when it is theirs and holds, else why not."""

    answers: tuple[tuple[Optional[str], ...], ...]
