"""How a release came to be: what ran, by which code, in which environments."""

from __future__ import annotations

from pydantic import Field

from qpack.core.frozen import Frozen


class StageRecord(Frozen):
    """How a stage came to its result. `key` is the digest of all its inputs; `reused` means that nothing was run.

    `code` is the digest of the modules that made it (`qpack.pipeline.closure`), `qpack_version` the qpack that they
    were part of, `environments` what its workers ran in: all as they were when it was made, not when it was packaged.
    """

    stage: str
    key: str
    seconds: float
    reused: bool
    code: str | None = None
    qpack_version: str | None = None
    environments: dict[str, str] = Field(default_factory=dict)


class EnvironmentRecord(Frozen):
    """An engine's environment: the digest of its lock, or the interpreter that the user named."""

    name: str
    variant: str
    lock_sha256: str
    python: str
    packages: dict[str, str]
