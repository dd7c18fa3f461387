"""Commands that take a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qpack.cli import options
from qpack.cli.options import AsJson, Config, RecipeFile, Settings, Verbose


def build(
    recipe: RecipeFile,
    settings: Settings = None,
    allow_failed_gates: Annotated[
        bool, typer.Option("--allow-failed-gates", help="Publish all the same, and mark the release so.")
    ] = False,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Run every stage of RECIPE that isn't finished, and publish the release if its gates pass."""
    from qpack.cli.render import recipes as present
    from qpack.core.console import open_console
    from qpack.pipeline import cpu_support, requirements
    from qpack.pipeline import plan as plans
    from qpack.pipeline.run import run
    from qpack.pipeline.state import Build
    from qpack.recipe.recipe_file import load

    store = options.store()
    store.sweep()
    planned = plans.make(load(recipe, settings), store, thorough=True)
    with open_console(verbose=verbose) as console:
        begun = Build(planned, store, console, options.registry_folder(), allow_failed_gates)
        if cpu_support.lacking(planned.request) and begun.missing("artifact"):
            requirements.check_cpu(planned)
        built = run(begun)
    present.built(built, as_json=as_json)


def check(
    recipe: RecipeFile,
    settings: Settings = None,
    config: Config = None,
    rehearse: Annotated[
        bool,
        typer.Option(
            "--rehearse",
            help="Also put the largest layer and the longest rows through the engine, to see what memory it takes.",
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Check RECIPE against its model and this machine. Nothing is run, unless --rehearse asks for it."""
    from qpack.cli.render import recipes as present
    from qpack.pipeline import plan as plans
    from qpack.pipeline import requirements
    from qpack.recipe.recipe_file import load

    store = options.store()
    planned = plans.make(load(recipe, settings), store, thorough=rehearse, config=options.read_config(config))
    needed = requirements.needs(planned, requirements.free_disk(store.home))
    if not rehearse:
        present.checked(planned, needed, as_json=as_json)
        return
    from qpack.core.console import open_console
    from qpack.pipeline.rehearse import rehearse as run
    from qpack.pipeline.state import Build

    store.sweep()
    with open_console() as console:
        found = run(Build(planned, store, console, options.registry_folder()))
    present.checked(planned, needed, found, as_json=as_json)


def plan(
    recipe: RecipeFile,
    settings: Settings = None,
    config: Config = None,
    why: Annotated[
        str | None,
        typer.Option("--why", metavar="STAGE", help="Show what a stage's key is made of, and what changed."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show what a build of RECIPE would run, what is done already, and what it may take."""
    from qpack.cli.render import recipes as present
    from qpack.pipeline import baselines, estimate, requirements
    from qpack.pipeline import plan as plans
    from qpack.pipeline import why as reasons
    from qpack.recipe.recipe_file import load

    store = options.store()
    planned = plans.make(load(recipe, settings), store, thorough=False, config=options.read_config(config))
    if why is not None:
        present.explained(reasons.why(planned, store, why), as_json=as_json)
        return
    needed = requirements.needs(planned, requirements.free_disk(store.home))
    anew = baselines.refused(planned, store)
    present.planned(planned, estimate.steps(planned, store), needed, anew, as_json=as_json)


def report(
    ref: Annotated[
        str,
        typer.Argument(
            metavar="REF|RECIPE", help="A release, or a recipe whose build has been judged.", show_default=False
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="The file to write; the default is NAME-report.html here.", show_default=False
        ),
    ] = None,
    settings: Settings = None,
    as_json: AsJson = False,
) -> None:
    """Write a one-file HTML report with tables and plots, of a release or of a build that was not published."""
    from qpack.cli.render import releases as present
    from qpack.pipeline import find

    release = find.find_release(ref, settings, options.store(), options.registry_folder())
    present.reported(release, output, as_json=as_json)


def schema() -> None:
    """Print the JSON Schema of recipes, for editors."""
    import json

    from qpack.recipe.recipe_file import schema as generate

    print(json.dumps(generate(), indent=2))
