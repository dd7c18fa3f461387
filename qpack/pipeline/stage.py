"""What a stage is: a module with one of these, and one line in `qpack.pipeline.stages.catalog`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qpack.pipeline.planned import Plan
    from qpack.pipeline.stage_keys import Known, Step
    from qpack.pipeline.state import Build


@dataclass(frozen=True)
class Stage:
    """`run` gives the build with the stage's result; `title` describes in a few words what it does
    in this build, `summary` its result (empty: none).

    `steps` are what the stage keeps in the store, with the inputs of each key; `stored` gives the build with what the
    store has of it, and runs nothing. `code` names for each step the modules and definitions that make it; what they
    import follows. A build of a plan that hasn't `wanted` it leaves the stage out.
    """

    name: str
    title: Callable[[Plan], str]
    run: Callable[[Build], Build]
    summary: Callable[[Build], str] = lambda _: ""
    steps: Callable[[Known, Mapping[str, Step]], Iterable[Step]] = lambda _known, _before: ()
    stored: Callable[[Build], Build] = lambda build: build
    code: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    wanted: Callable[[Plan], bool] = lambda _plan: True
