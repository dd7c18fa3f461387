"""`qpack build`."""

from __future__ import annotations

from typing import Annotated

import typer

from qpack.cli import options
from qpack.cli.options import AsJson, RecipeFile, Settings, Verbose


def build(
    recipe: RecipeFile,
    settings: Settings = None,
    allow_failed_gates: Annotated[
        bool, typer.Option("--allow-failed-gates", help="Publish even if gates fail; marks the release.")
    ] = False,
    until: Annotated[
        str | None, typer.Option("--until", metavar="STAGE", help="Stop after this stage. Nothing is published.")
    ] = None,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Build, evaluate and publish a recipe.

    Skips finished stages, and publishes only if the gates pass.
    """
    from qpack.cli.render import build as present
    from qpack.core.errors import GateFailed, GateUndecided
    from qpack.pipeline import plan as plans
    from qpack.pipeline.run import from_store, run
    from qpack.pipeline.stages import artifact
    from qpack.pipeline.stages.catalog import STAGES, named
    from qpack.pipeline.state import Build
    from qpack.recipe.recipe_file import load

    stages = named(until) if until is not None else STAGES
    store = options.store()
    store.sweep()
    loaded = load(recipe, settings)
    with options.context(store, verbose=verbose) as context:
        planned = plans.make(loaded, store, thorough=True, report=context.console.report)
        begun = Build(planned, context, allow_failed_gates)
        if artifact.STAGE in stages:
            artifact.check_cpu(begun)
        try:
            built = run(begun, stages)
        except (GateFailed, GateUndecided) as error:
            if as_json:
                present.refused(error, from_store(begun))
            raise
    if stages == STAGES:
        present.built(built, as_json=as_json)
    else:
        present.stopped(built, stages[-1], as_json=as_json)
