"""Commands about this machine and its engine environments."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from qpack.commands import options
from qpack.commands.options import AsJson

Names = Annotated[
    list[str] | None,
    typer.Argument(metavar="[NAME]...", help="Environments; all of them if none is named.", show_default=False),
]
Variant = Annotated[
    str | None, typer.Option("--variant", help="cpu or cuda; the default is what this machine has.", show_default=False)
]


def examine_machine(*, as_json: bool) -> None:
    """Look at this machine: Python, uv, disk, accelerators, environments."""
    from qpack import machine
    from qpack.present import machine as present

    findings = machine.examine(options.home(), options.registry_folder())
    present.examined(findings, as_json=as_json)
    if any(finding.severity == "error" for finding in findings):
        raise typer.Exit(3)


def envs_list(as_json: AsJson = False) -> None:
    """List the environments and whether they are made."""
    from qpack import machine
    from qpack.present import machine as present

    present.environments(machine.environments(options.home()), as_json=as_json)


def envs_build(names: Names = None, variant: Variant = None) -> None:
    """Make environments from their locks."""
    from qpack import envs, machine

    for environment in machine.selected(options.home(), names, variant):
        envs.ensure(environment, options.home(), lambda message: print(message, file=sys.stderr, flush=True))
        print(f"{environment.name} ({environment.variant}) is ready in {environment.folder}")


def envs_check(names: Names = None, variant: Variant = None) -> None:
    """Import each engine in its environment, and check every file of it."""
    from qpack import envs, machine

    made = machine.selected(options.home(), names, variant, made=True)
    if not made:
        print("No environment is made yet. `qpack envs build` makes them.")
    for environment in made:
        envs.unchanged(environment, full=True)
        took = envs.check(environment, options.home() / "logs" / f"check-{environment.name}.log")
        print(f"{environment.name} ({environment.variant}) works; its imports took {took:.1f} s")


def envs_remove(names: Names = None, variant: Variant = None) -> None:
    """Delete environments. They are made again when a build needs them."""
    from qpack import envs, machine

    for environment in machine.selected(options.home(), names, variant, made=True):
        envs.remove(environment.folder)
        print(f"removed {environment.folder}")
