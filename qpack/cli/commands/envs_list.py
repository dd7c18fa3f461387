"""`qpack envs list`."""

from __future__ import annotations

from qpack.cli import options
from qpack.cli.options import AsJson


def envs_list(as_json: AsJson = False) -> None:
    """List engine environments."""
    from qpack.cli.render import envs_list as present
    from qpack.doctor import machine

    present.environments(machine.environments(options.home()), as_json=as_json)
