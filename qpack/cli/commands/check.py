"""`qpack check`."""

from __future__ import annotations

from typing import Annotated

import typer

from qpack.cli import options
from qpack.cli.options import AsJson, Config, RecipeFile, Settings


def check(
    recipe: RecipeFile,
    settings: Settings = None,
    config: Config = None,
    rehearse: Annotated[
        bool,
        typer.Option(
            "--rehearse",
            help="Also run the engine on the largest layer.",
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Check a recipe against its model and this machine.

    Runs nothing without --rehearse.
    """
    from qpack.cli.render import check as present
    from qpack.pipeline import plan as plans
    from qpack.pipeline import requirements, text_counts
    from qpack.recipe.recipe_file import load

    store = options.store()
    planned = plans.make(load(recipe, settings), store, thorough=rehearse, config=options.read_config(config))
    needed = requirements.required(planned, requirements.free_disk(store.home))
    counted = text_counts.count(planned, store)
    if not rehearse:
        present.checked(planned, needed, counted, as_json=as_json)
        return
    from qpack.pipeline.rehearse import rehearse as run
    from qpack.pipeline.state import Build

    store.sweep()
    with options.context(store) as context:
        found = run(Build(planned, context))
    present.checked(planned, needed, counted, found, as_json=as_json)
