"""`qpack compare`."""

from __future__ import annotations

from evals.report.release_comparison import ReleaseComparison
from qpack.cli.render.ranking import as_data, ranking
from qpack.cli.render.text import emit, table


def compared(found: ReleaseComparison, *, as_json: bool) -> None:
    """Releases side by side."""
    if as_json:
        emit(as_data(found))
        return
    ranking(found)
    if found.inputs:
        print("\nInputs that differ:\n")
        table(("", *(row.name for row in found.rows)), ((name, *values) for name, values in found.inputs.items()))
