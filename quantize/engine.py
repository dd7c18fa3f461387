"""What an engine is. Adding one: a module like this Protocol, a worker, an environment, and one line in engines.py."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from qpack.envs import Spec
from qpack.results import Quantized
from quantize.source import Source


@dataclass(frozen=True)
class Override:
    """Another scheme for the layers that a pattern names: a name, the end of one, or `re:` and an expression."""

    layers: str
    scheme: str
    group_size: int | None


@dataclass(frozen=True)
class Request:
    """What is asked of an engine: plain values from the recipe. `group_size` None is one scale a channel; `kv_cache`
    None leaves the KV cache in the model's data type.
    """

    method: str
    scheme: str
    group_size: int | None
    ignore: tuple[str, ...]
    damping: float
    trust_remote_code: bool
    overrides: tuple[Override, ...] = ()
    kv_cache: str | None = None

    def key(self) -> list[Any]:
        """What of it decides the artifact's bytes. Keys that aren't asked for aren't in it: recipes without them keep
        their stages' keys.
        """
        asked = [self.method, self.scheme, self.group_size or 0, self.ignore, self.damping, self.trust_remote_code]
        more = [dataclasses.asdict(other) for other in self.overrides]
        return [*asked, *more, *([self.kv_cache] if self.kv_cache else [])]


@dataclass(frozen=True)
class Complaint:
    """Something that can't work, and the recipe key that asks for it."""

    what: str
    at: tuple[str | int, ...]
    hint: str = ""


class Engine(Protocol):
    """An adapter: pure functions, no torch. The work is done by WORKER in ENVIRONMENT."""

    NAME: str
    ENVIRONMENT: Spec
    WORKER: Path
    FORMAT: str
    """What servers call the format that it saves: compressed-tensors, awq, gptq."""
    WAYS: frozenset[tuple[str, str]]
    """The (method, scheme) pairs that it can make."""

    def check(self, request: Request, source: Source) -> list[Complaint]:
        """What it can't do with this model, from headers alone."""

    def job(self, request: Request, checkpoint: Path, tokens: Path | None) -> dict[str, Any]:
        """The worker's job."""

    def read(self, request: Request, out: Path, answer: dict[str, Any]) -> Quantized:
        """The frozen result, from what the worker answered and left in `out/checkpoint`."""
