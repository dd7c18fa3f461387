"""How many windows and rows the texts of a recipe give, counted before a build by the worker that makes them in it."""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from qpack.core import hashing
from qpack.core.errors import EnvironmentFailed, QuantizeError, RecipeError
from qpack.core.problems import Code, Problem
from qpack.core.records import Fetched
from qpack.core.store import Store, key_of
from qpack.pipeline import closure, held_out
from qpack.pipeline.plan import TEXT_SOURCE
from qpack.pipeline.planned import Plan
from qpack.pipeline.stages.fetch import FETCHED
from qpack.pipeline.stages.hold_out import TOKENS_WORKER
from qpack.runtime import worker
from quantize.checkpoint.workers.tokens_job import RowsAnswer, RowsJob, WindowsAnswer, WindowsJob

_TOO_FEW = Code("too-little-text", "A text gives fewer windows or rows than the recipe asks for.")

_TOKENIZERS = ("*.json", "*.model", "*.jinja", "*.txt", "*.tiktoken", "*.py")


@dataclass(frozen=True)
class TextCount:
    """`found` of `asked` windows or rows; `found` isn't more than was asked for."""

    what: str
    asked: int
    found: int


@dataclass(frozen=True)
class Counted:
    """The counts, or why there are none."""

    counts: tuple[TextCount, ...] = ()
    unchecked: str = ""


def count(plan: Plan, store: Store) -> Counted:
    """Count with the model's own tokenizer; remembered until texts, tokenizer or recipe change.

    Raises RecipeError, with the place in the recipe, when there are fewer than asked for.
    """
    environment, checkpoint = plan.environments["transformers"], _checkpoint(plan, store)
    number = len(plan.recipe.evaluate.perplexity.each())
    missing = ""
    if len(plan.held_out) < number or (plan.recipe.calibration and plan.calibration is None):
        missing = "they aren't fetched yet"
    elif checkpoint is None:
        missing = "the tokenizer isn't fetched yet"
    elif not environment.ready:
        missing = "the environment `transformers` isn't created yet"
    if checkpoint is None or missing:
        return Counted(unchecked=f"how many windows and rows the texts contain ({missing})")
    note = f"text-counts-{key_of(_inputs(plan, checkpoint))}"
    counts = tuple(TextCount(**one) for one in store.recall(note).get("counts", ()))
    if not counts:
        try:
            counts = tuple(_count(plan, store, checkpoint))
        except EnvironmentFailed as error:
            why = f"the environment `transformers` can't: {error.what.partition('.')[0]}; see {error.log}"
            return Counted(unchecked=f"how many windows and rows the texts contain ({why})")
        store.remember(note, {"counts": [asdict(one) for one in counts]})
    if problems := [_problem(plan, number, one) for number, one in enumerate(counts) if one.found < one.asked]:
        raise RecipeError.of(problems)
    return Counted(counts)


def _checkpoint(plan: Plan, store: Store) -> Path | None:
    """A folder with the model's tokenizer: the source itself, or what an earlier build fetched of it."""
    if plan.source.kind == "folder":
        return plan.source.path
    key = plan.steps[FETCHED.stage].key
    fetched = store.get(FETCHED.stage, key, Fetched) if key else None
    return fetched.folder / "checkpoint" if fetched else None


def _inputs(plan: Plan, checkpoint: Path) -> dict[str, Any]:
    """Everything that decides the counts. Tokenizers are read whole, weights aren't."""
    r = plan.recipe
    small = sorted({file for pattern in _TOKENIZERS for file in checkpoint.glob(pattern) if file.is_file()})
    return {
        "code": closure.digest_of(closure.Reader().closure([TOKENS_WORKER.relative_to(closure.ROOT).as_posix()])),
        "held_out": held_out.asked(r.evaluate.perplexity),
        "calibration": r.calibration.model_dump(exclude={"source"}) if r.calibration else None,
        "texts": [hashing.sha256(file) for file in (*plan.held_out, *([plan.calibration] if plan.calibration else []))],
        "tokenizer": {file.name: hashing.sha256(file) for file in small},
        "environment": plan.environments["transformers"].digest,
    }


def _count(plan: Plan, store: Store, checkpoint: Path) -> list[TextCount]:
    r = plan.recipe
    asked, found = r.evaluate.perplexity, list[TextCount]()
    names = iter(asked.each())

    def call(folder: Path) -> worker.Call:
        log, seconds = store.home / "logs" / "text-counts.log", r.limits.stage_minutes * 60
        environment = plan.environments["transformers"]
        return worker.Call(environment, folder, log, seconds, QuantizeError, unreported=EnvironmentFailed)

    def windows(texts: Path, field: str, folder: Path) -> tuple[str, ...]:
        job = WindowsJob(
            checkpoint=str(checkpoint),
            trust_remote_code=r.model.trust_remote_code,
            texts=str(texts),
            field=field,
            windows=asked.windows,
            window_tokens=asked.window_tokens,
            count=True,
        )
        answer, text = worker.run(TOKENS_WORKER, job, WindowsAnswer, call(folder)), next(names)
        of = f" of {text.name}" if asked.texts else ""
        found.append(TextCount(f"windows of held-out text{of}", asked.windows, answer.windows))
        return answer.row_digests

    with tempfile.TemporaryDirectory(prefix="qpack-texts-") as scratch:
        try:
            aside = held_out.make(asked, plan.held_out, windows, Path(scratch))
        except QuantizeError as error:
            raise RecipeError.of(
                [plan.loaded.problem(TEXT_SOURCE, error.what, "evaluate", "perplexity", hint=error.hint)]
            ) from error
        if (ask := r.calibration) is not None:
            job = RowsJob(
                checkpoint=str(checkpoint),
                trust_remote_code=r.model.trust_remote_code,
                texts=str(plan.calibration),
                held_out=aside.row_digests,
                count=True,
                **ask.model_dump(exclude={"source"}),
            )
            try:
                answer = worker.run(TOKENS_WORKER, job, RowsAnswer, call(Path(scratch)))
            except QuantizeError as error:
                raise RecipeError.of(
                    [plan.loaded.problem(TEXT_SOURCE, error.what, "calibration", hint=error.hint)]
                ) from error
            found.append(TextCount("calibration rows", ask.samples, len(answer.lengths)))
    return found


def _problem(plan: Plan, number: int, short: TextCount) -> Problem:
    perplexity = plan.recipe.evaluate.perplexity
    what = f"{short.asked} {short.what} required, but the texts contain {short.found}."
    if number >= len(perplexity.each()):
        return plan.loaded.problem(
            _TOO_FEW, what, "calibration", "samples", hint="Lower samples or min_length, or name a larger file."
        )
    return plan.loaded.problem(
        _TOO_FEW,
        f"{what} A window has {perplexity.window_tokens} tokens.",
        *("evaluate", "perplexity", "windows"),
        hint="Lower windows or window_tokens, or name a larger file.",
    )
