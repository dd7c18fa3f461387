"""What a command works with: store, registry and console, in one object."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from qpack.core.console import Console
from qpack.core.store import Store
from qpack.runtime import environments
from qpack.runtime.environments import Environment


@dataclass(frozen=True)
class Context:
    """`registry` is the folder of the local registry; progress goes to `console`."""

    store: Store
    registry: Path
    console: Console

    def environment(self, wanted: Environment) -> Environment:
        """An environment; created if missing. Raises EnvironmentFailed."""
        return environments.ensure(wanted, self.store.home, self.console.report)
