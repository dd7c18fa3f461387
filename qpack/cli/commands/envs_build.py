"""`qpack envs build`."""

from __future__ import annotations

import sys

from qpack.cli import options
from qpack.cli.options import Names, Variant


def envs_build(names: Names = None, variant: Variant = None) -> None:
    """Create engine environments.

    Without names, those that need another Python than the others are left out.
    """
    from qpack.doctor import machine
    from qpack.runtime import environments

    for environment in machine.selected(options.home(), names, variant):
        if not names and not environment.ready and environment.spec.python() is not None:
            print(f"{environment.name} needs Python {environment.version}: `qpack envs build {environment.name}`")
            continue
        environments.ensure(environment, options.home(), lambda message: print(message, file=sys.stderr, flush=True))
        print(f"{environment.name} ({environment.variant}) is ready in {environment.folder}")
