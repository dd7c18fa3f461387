"""Commands about this machine and its engine environments."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from qpack.cli import options
from qpack.cli.options import AsJson

Names = Annotated[
    list[str] | None,
    typer.Argument(metavar="[NAME]...", help="Environments; all of them if none is named.", show_default=False),
]
Variant = Annotated[
    str | None, typer.Option("--variant", help="cpu or cuda; the default is what this machine has.", show_default=False)
]


def examine_machine(*, as_json: bool) -> None:
    """Look at this machine: Python, uv, disk, accelerators, environments."""
    from qpack.cli.render import machine as present
    from qpack.doctor import machine

    findings = machine.examine(options.home(), options.registry_folder())
    present.examined(findings, as_json=as_json)
    if any(finding.severity == "error" for finding in findings):
        raise typer.Exit(3)


def envs_list(as_json: AsJson = False) -> None:
    """List the environments and whether they are made."""
    from qpack.cli.render import machine as present
    from qpack.doctor import machine

    present.environments(machine.environments(options.home()), as_json=as_json)


def envs_build(names: Names = None, variant: Variant = None) -> None:
    """Make environments from their locks."""
    from qpack.doctor import machine
    from qpack.runtime import environments

    for environment in machine.selected(options.home(), names, variant):
        environments.ensure(environment, options.home(), lambda message: print(message, file=sys.stderr, flush=True))
        print(f"{environment.name} ({environment.variant}) is ready in {environment.folder}")


def envs_check(names: Names = None, variant: Variant = None) -> None:
    """Import each engine in its environment, and check every file of it."""
    from qpack.doctor import machine
    from qpack.runtime import environments

    made = machine.selected(options.home(), names, variant, made=True)
    if not made:
        print("No environment is made yet. `qpack envs build` makes them.")
    for environment in made:
        environments.unchanged(environment, full=True)
        took = environments.check(environment, options.home() / "logs" / f"check-{environment.name}.log")
        print(f"{environment.name} ({environment.variant}) works; its imports took {took:.1f} s")


def envs_remove(names: Names = None, variant: Variant = None) -> None:
    """Delete environments. They are made again when a build needs them."""
    from qpack.doctor import machine
    from qpack.runtime import environments

    for environment in machine.selected(options.home(), names, variant, made=True):
        environments.remove(environment.folder)
        print(f"removed {environment.folder}")
