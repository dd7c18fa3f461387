"""`qpack envs check`."""

from __future__ import annotations

from qpack.cli import options
from qpack.cli.options import Names, Variant


def envs_check(names: Names = None, variant: Variant = None) -> None:
    """Check engine environments.

    Imports each engine and checks every file.
    """
    from qpack.doctor import machine
    from qpack.runtime import environments

    made = machine.selected(options.home(), names, variant, made=True)
    if not made:
        print("No environment yet. `qpack envs build` creates them.")
    for environment in made:
        environments.unchanged(environment, full=True)
        took = environments.check(environment, options.home() / "logs" / f"check-{environment.name}.log")
        print(f"{environment.name} ({environment.variant}) works; its imports took {took:.1f} s")
