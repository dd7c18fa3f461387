"""`qpack compare`."""

from __future__ import annotations

from collections.abc import Iterator

from evals.report.release_comparison import ReleaseComparison, ReleaseRow
from qpack.cli.render.ranking import as_data, ranking
from qpack.cli.render.text import emit, table


def compared(found: ReleaseComparison, *, as_json: bool) -> None:
    """Releases side by side."""
    if as_json:
        emit(as_data(found))
        return
    ranking(found)
    if any(row.generated for row in found.rows):
        print("\nAnswers over chat, each release's after its baseline's:\n")
        head = ("", "task", "cut at the limit", "endless loops", "tokens per answer")
        table(head, (cells for row in found.rows for cells in _answers(row)))
    if found.inputs:
        print("\nInputs that differ:\n")
        table(("", *(row.name for row in found.rows)), ((name, *values) for name, values in found.inputs.items()))


def _answers(row: ReleaseRow) -> Iterator[tuple[str, ...]]:
    """What became of the answers to each task that was asked over chat."""
    for task in row.generated:
        loops, length = task.loops_baseline + task.loop_rate.value, task.tokens_baseline * task.length_ratio.value
        yield (
            row.name,
            task.task,
            f"{task.truncated_baseline:.1%} -> {task.truncated.value:.1%}",
            f"{task.loops_baseline:.1%} -> {loops:.1%}",
            f"{task.tokens_baseline:.1f} -> {length:.1f}",
        )
