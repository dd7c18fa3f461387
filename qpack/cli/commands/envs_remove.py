"""`qpack envs remove`."""

from __future__ import annotations

from qpack.cli import options
from qpack.cli.options import Names, Variant


def envs_remove(names: Names = None, variant: Variant = None) -> None:
    """Delete engine environments.

    A build recreates those that it needs.
    """
    from qpack.doctor import machine
    from qpack.runtime import environments

    for environment in machine.selected(options.home(), names, variant, made=True):
        environments.remove(environment.folder)
        print(f"removed {environment.folder}")
