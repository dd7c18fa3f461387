"""`qpack plan`."""

from __future__ import annotations

from typing import Annotated

import typer

from qpack.cli import options
from qpack.cli.options import AsJson, Config, RecipeFile, Settings


def plan(
    recipe: RecipeFile,
    settings: Settings = None,
    config: Config = None,
    why: Annotated[
        str | None,
        typer.Option("--why", metavar="STAGE", help="Show a stage's inputs and what changed."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show what a build would run.

    With finished stages, times, memory and disk.
    """
    from qpack.cli.render import plan as present
    from qpack.pipeline import estimate, planned_items, requirements, text_counts
    from qpack.pipeline import plan as plans
    from qpack.pipeline import why as reasons
    from qpack.pipeline.stages import baseline
    from qpack.recipe.recipe_file import load

    store = options.store()
    planned = plans.make(load(recipe, settings), store, thorough=False, config=options.read_config(config))
    if why is not None:
        present.explained(reasons.why(planned, store, why), as_json=as_json)
        return
    counted = text_counts.count(planned, store)
    needed = requirements.required(planned, requirements.free_disk(store.home))
    not_reused = baseline.refused(planned, store)
    items = planned_items.planned(planned, store)
    steps = estimate.steps(planned, store)
    present.planned(planned, steps, needed, counted, not_reused, items=items, as_json=as_json)
