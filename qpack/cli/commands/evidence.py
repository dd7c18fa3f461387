"""Commands that read evidence again: judge it by other gates, hold releases against one another, sweep a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from qpack.cli import options
from qpack.cli.options import AsJson, RecipeFile, Settings, Verbose


def gate(
    ref: Annotated[
        str,
        typer.Argument(
            metavar="REF|RECIPE", help="A release, or a recipe whose build has been judged.", show_default=False
        ),
    ],
    policy: Annotated[
        Path | None,
        typer.Option(
            "--policy", metavar="FILE", help="Gates to judge by, in place of the recipe's.", show_default=False
        ),
    ] = None,
    junit: Annotated[
        Path | None, typer.Option("--junit", metavar="FILE", help="Write JUnit XML too.", show_default=False)
    ] = None,
    markdown: Annotated[
        Path | None,
        typer.Option("--markdown", metavar="FILE", help="Write Markdown for a pull request too.", show_default=False),
    ] = None,
    settings: Settings = None,
    as_json: AsJson = False,
) -> None:
    """Judge stored evidence again, by its recipe's gates or a policy's. Exit code 0 pass, 6 fail, 7 undecided."""
    from qpack.recipe import gate_policy

    # A wrong policy is told before scipy is loaded.
    bounds = gate_policy.load(policy) if policy else None

    from evals.comparison.verdicts import verdict
    from qpack.cli.render import evidence as present
    from qpack.pipeline import find

    release = find.find_release(ref, settings, options.store(), options.registry_folder())
    bounds = bounds or gate_policy.of_release(release)
    found = verdict(release.comparison, release.baseline, release.artifact, bounds.values)
    present.written(release, found, ref, junit=junit, markdown=markdown)
    present.judged(found, ref, as_json=as_json)
    if (refused := present.refusal(found, bounds)) is not None:
        raise refused


def compare(
    refs: Annotated[
        list[str],
        typer.Argument(
            metavar="REF|RECIPE...",
            help="Two releases or more, or recipes whose builds have been judged.",
            show_default=False,
        ),
    ],
    as_json: AsJson = False,
) -> None:
    """Hold releases against one another: their figures, the Pareto front, and what differs in their inputs."""
    from evals.report import release_comparison
    from qpack.cli.render import evidence as present
    from qpack.core.errors import RegistryError
    from qpack.pipeline import find

    if len(set(refs)) < 2:
        raise RegistryError("one release has nothing to be compared with", hint="Name two or more, each of them once.")
    store, registry = options.store(), options.registry_folder()
    releases = {ref: find.find_release(ref, None, store, registry) for ref in dict.fromkeys(refs)}
    present.compared(release_comparison.compare(releases), as_json=as_json)


def sweep(
    recipe: RecipeFile,
    vary: Annotated[
        list[str] | None,
        typer.Option("--vary", metavar="KEY=VALUE,VALUE", help="Values to try; may be given again for a grid."),
    ] = None,
    settings: Settings = None,
    on: Annotated[
        Literal["here", "ray"], typer.Option(help="One after the other here, or as jobs of a Ray cluster.")
    ] = "here",
    ray_address: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="Of a running cluster; else one on this machine.", show_default=False),
    ] = None,
    job_cpus: Annotated[
        int | None,
        typer.Option(min=1, help="Cores of one job; on a CPU all by default, beside a GPU one.", show_default=False),
    ] = None,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Build RECIPE up to its verdict for every combination of values, and print the Pareto front. Publishes nothing."""
    from qpack.cli.render import evidence as present
    from qpack.core.console import open_console
    from qpack.pipeline import ray_sweep
    from qpack.pipeline.sweep import sweep as run

    if on == "here" and (ray_address or job_cpus):
        raise typer.BadParameter("it is for --on ray", param_hint="--ray-address" if ray_address else "--job-cpus")
    store, registry = options.store(), options.registry_folder()
    store.sweep()
    given = (recipe, vary or [], settings or [], store, registry)
    with open_console(verbose=verbose) as console:
        if on == "ray":
            points = ray_sweep.sweep(*given, console, ray_sweep.Cluster(ray_address, job_cpus), ended=present.sweeping)
        else:
            points = run(*given, console, present.sweeping)
    present.swept(points, as_json=as_json)
    if (failed := present.unbuilt(points)) is not None:
        raise failed
