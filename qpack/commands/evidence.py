"""Commands that read evidence again: judge it by other gates, hold releases against one another, sweep a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from qpack.commands import options
from qpack.commands.options import AsJson, RecipeFile, Settings, Verbose


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
    from qpack import policy as policies

    # A wrong policy is told before scipy is loaded.
    bounds = policies.load(policy) if policy else None

    from evals.verdicts import verdict
    from qpack import find
    from qpack.present import evidence as present

    release = find.find_release(ref, settings, options.store(), options.registry_folder())
    bounds = bounds or policies.of_release(release)
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
    from evals import rivals
    from qpack import find
    from qpack.errors import RegistryError
    from qpack.present import evidence as present

    if len(set(refs)) < 2:
        raise RegistryError("one release has nothing to be compared with", hint="Name two or more, each of them once.")
    store, registry = options.store(), options.registry_folder()
    releases = {ref: find.find_release(ref, None, store, registry) for ref in dict.fromkeys(refs)}
    present.compared(rivals.compare(releases), as_json=as_json)


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
    from qpack import cluster
    from qpack.console import open_console
    from qpack.present import evidence as present
    from qpack.sweep import sweep as run

    if on == "here" and (ray_address or job_cpus):
        raise typer.BadParameter("it is for --on ray", param_hint="--ray-address" if ray_address else "--job-cpus")
    store, registry = options.store(), options.registry_folder()
    store.sweep()
    given = (recipe, vary or [], settings or [], store, registry)
    with open_console(verbose=verbose) as console:
        if on == "ray":
            points = cluster.sweep(*given, console, cluster.Cluster(ray_address, job_cpus), ended=present.sweeping)
        else:
            points = run(*given, console, present.sweeping)
    present.swept(points, as_json=as_json)
    if (failed := present.unbuilt(points)) is not None:
        raise failed
