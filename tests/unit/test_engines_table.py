"""The table of engines: every row is told, what there is no figure of has its reason, and unequal rows are refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from qpack.core.errors import RecipeError
from qpack.core.problems import Code, Problem

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import engines
import engines_table


def row(**changes: Any) -> dict[str, Any]:
    made = {"peak_memory_bytes": 3 << 20, "weights_bytes": 2 << 20, "disk_bytes": 5, "stage_seconds": 8.0}
    loaded = {"vllm": "0.32.0", "kernels": ["CPUWNA16"], "perplexity": 21.5, "source_perplexity": 20.0, "kl": 0.25}
    return {
        "engine": "gram",
        "method": "gptq",
        "scheme": "W4A16",
        "form": "gptq",
        "note": "",
        "check": "",
        "cores": 1,
        "calibration": {"rows": 16, "tokens": 2013},
        "expected": {"peak_memory_bytes": 2 << 20, "weights_bytes": 2 << 20, "disk_bytes": 5, "seconds": None},
        "made": {**made, "processor_seconds": 7.4},
        "loaded": {**loaded, "positions": 3060},
        **changes,
    }


def test_a_row_has_its_figures_and_what_vllm_took() -> None:
    text = "\n".join(engines_table.document([row()], []))
    assert "| gram | gptq | `W4A16` | gptq | 7 | 3 | 2 | 21.50 | 0.2500 | CPUWNA16 |" in text
    assert "16 rows, 2,013 tokens" in text
    assert "the source's perplexity is 20.00" in text


def test_what_was_not_made_or_not_loaded_says_why_by_its_number() -> None:
    refused = row(
        scheme="W8A16", check="1 problem", loaded={"vllm": "0.32.0", "kernels": [], "failed": "ValueError: no"}
    )
    broken = {key: value for key, value in row(scheme="W8A8").items() if key not in ("made", "loaded")}
    text = "\n".join(engines_table.document([row(), refused, {**broken, "not_made": "it | ended"}], []))
    assert "no (1) |" in text
    assert "not made (2) |" in text
    assert '1. vLLM: "ValueError: no" `qpack check` says so before.' in text
    assert '2. gram: "it  ended"' in text


def test_what_has_no_row_yet_is_counted() -> None:
    text = "\n".join(engines_table.document([row()], ["gram:rtn:W8A8"]))
    assert "1 of 2 ways" in text
    assert "Not run yet: 1." in text


def test_an_estimate_is_told_with_its_smallest_and_largest_error() -> None:
    rows = [row(), row(method="awq", made={**row()["made"], "peak_memory_bytes": 8 << 20})]
    assert "| memory to quantize | 2 | 1.50 | 2.75 | 4.00 |" in engines_table.errors(rows)
    assert not any("seconds to quantize" in line for line in engines_table.errors(rows))


def test_rows_of_unequal_calibration_make_no_table() -> None:
    with pytest.raises(SystemExit, match="rows differ"):
        engines_table.document([row(), row(calibration={"rows": 8, "tokens": 900})], [])


def test_the_docs_get_the_table_between_the_marks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    docs = tmp_path / "engines.md"
    begin = engines_table.MARKS[0].format(name="engines")
    docs.write_text(f"before\n{begin}\nold\n{engines_table.MARKS[1]}\nafter\n")
    (tmp_path / "gram:gptq:W4A16:gptq.json").write_text(json.dumps(row()))
    monkeypatch.setattr(sys, "argv", ["engines_table.py", str(tmp_path), "--docs", str(docs)])
    assert engines_table.main() == 0
    text = docs.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "old" not in text
    assert "Not run yet: " in text
    assert "| gram | gptq |" in text


def test_why_a_way_is_refused_is_told_in_one_line() -> None:
    error = RecipeError.of([Problem(Code("no-kernel", "No kernel."), "it can't be served on cpu:\n no kernel")])
    assert "it can't be served on cpu: no kernel" in engines.one_line(error)
