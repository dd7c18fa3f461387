"""`qpack sweep`."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from qpack.cli import options
from qpack.cli.options import AsJson, RecipeFile, Settings, Verbose
from qpack.core.errors import invalid_option


def sweep(
    recipe: RecipeFile,
    vary: Annotated[
        list[str] | None,
        typer.Option("--vary", metavar="KEY=VALUE,VALUE", help="Values to try. Repeatable."),
    ] = None,
    settings: Settings = None,
    on: Annotated[Literal["here", "ray"], typer.Option(help="Run here in sequence, or on Ray.")] = "here",
    ray_address: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS", help="Address of a running cluster (default: start one here).", show_default=False
        ),
    ] = None,
    job_cpus: Annotated[
        int | None,
        typer.Option(min=1, help="Cores per Ray job (default: all; 1 beside a GPU).", show_default=False),
    ] = None,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Build every combination of values, up to the verdict.

    Prints the Pareto front. Publishes nothing.
    """
    from qpack.cli.render import sweep as present
    from qpack.pipeline import ray_sweep
    from qpack.pipeline.sweep import Grid
    from qpack.pipeline.sweep import sweep as run

    if on == "here" and (ray_address or job_cpus):
        raise invalid_option("--ray-address" if ray_address else "--job-cpus", "this option needs --on ray")
    store = options.store()
    store.sweep()
    grid = Grid(recipe, vary or [], settings or [])
    with options.context(store, verbose=verbose) as context:
        if on == "ray":
            points = ray_sweep.sweep(grid, context, ray_sweep.Cluster(ray_address, job_cpus), present.sweeping)
        else:
            points = run(grid, context, present.sweeping)
    present.swept(points, as_json=as_json)
    if (failed := present.unbuilt(points)) is not None:
        raise failed
