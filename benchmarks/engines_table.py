"""The table of docs/benchmarks/engines.md, from the rows that `benchmarks/engines.py` left.

    python benchmarks/engines_table.py FOLDER [MORE] [--docs docs/benchmarks/engines.md] [--figures NAME]

Prints it, or puts it between the marks in the docs. Nothing is run. MORE is of another machine: it fills what FOLDER
has not, and what is from there is marked.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from quantize.schemes.schemes import SCHEMES

MARKS = ("<!-- figures: {name} -->", "<!-- /figures -->")
_MIB = 2**20
_REASON_CHARACTERS = 300

Row = Mapping[str, Any]


def main() -> int:
    """Print the table, or write it into the docs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("more", type=Path, nargs="?", help="rows of another machine, for what is missing in FOLDER")
    parser.add_argument("--docs", type=Path, help="put it between the marks in this file")
    parser.add_argument("--figures", default="engines", help="the name of the marks: engines, engines-fp4")
    ask = parser.parse_args()
    from engines import ways

    found = rows_in(ask.folder)
    for name, row in (rows_in(ask.more) if ask.more else {}).items():
        if name not in found:
            found[name] = row | {"from": {"made", "loaded"}}
        elif "loaded" not in found[name] and "loaded" in row:
            found[name] |= {"loaded": row["loaded"], "from": {"loaded"}}
    missing = [way.name for way in ways() if way.name not in found] if ask.figures == "engines" else []
    text = "\n".join(document(list(found.values()), missing))
    if ask.docs is None:
        print(text)
        return 0
    whole = ask.docs.read_text()
    begin, end = MARKS[0].format(name=ask.figures), MARKS[1]
    before, rest = whole.split(begin, 1)
    ask.docs.write_text(f"{before}{begin}\n{text}\n{end}{rest.split(end, 1)[1]}")
    return 0


def rows_in(folder: Path) -> dict[str, dict[str, Any]]:
    """Every row that a folder holds, by name."""
    return {file.stem: json.loads(file.read_text()) for file in sorted(folder.glob("*.json"))}


def document(rows: Sequence[Row], missing: Sequence[str]) -> list[str]:
    """Everything between the marks: how it was made, the table, reasons, what has no row yet, and how far the
    estimates were off.
    """
    ordered = sorted(rows, key=_order)
    parts = [
        _wrapped(_basis(ordered, len(missing))),
        table(ordered),
        reasons(ordered),
        _missing(missing),
        errors(ordered),
    ]
    return "\n\n".join("\n".join(part) for part in parts if part).split("\n")


def _missing(names: Sequence[str]) -> list[str]:
    if not names:
        return []
    return [f"Not run yet: {len(names)}. `benchmarks/engines.py --list` names all ways."]


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, 120, break_on_hyphens=False, break_long_words=False)


def _order(row: Row) -> tuple[Any, ...]:
    engines = ("llmcompressor", "gram", "autoround", "gptqmodel", "autogptq", "autoawq", "modelopt")
    schemes = tuple(SCHEMES)
    return (engines.index(row["engine"]), schemes.index(row["scheme"]), row["note"], row["method"], row["form"])


def _basis(rows: Sequence[Row], missing: int) -> str:
    made = [row for row in rows if "made" in row and "made" not in row.get("from", ())]
    loaded = [row for row in made if "perplexity" in row.get("loaded", {}) and "from" not in row]
    texts = _only(made, lambda row: f"{row['calibration']['rows']} rows, {row['calibration']['tokens']:,} tokens")
    cores = _only(made, lambda row: f"{row['cores']} core{'s' if row['cores'] > 1 else ''}")
    of = f" of {len(rows) + missing}" if missing else ""
    told = f"{len(rows)}{of} ways; the same calibration texts for all ({texts}); {cores}"
    if loaded:
        source = _only(loaded, lambda row: f"{row['loaded']['source_perplexity']:.2f}")
        positions = _only(loaded, lambda row: f"{row['loaded']['positions']:,}")
        release = _only(loaded, lambda row: row["loaded"]["vllm"])
        told += f". vLLM {release} scored {positions} positions of held-out text; the source's perplexity is {source}"
    elsewhere = [row for row in rows if "from" in row]
    if elsewhere:
        told += ". What has a star is from another machine"
        scored = [row for row in elsewhere if "perplexity" in row.get("loaded", {})]
        if scored:
            source = _only(scored, lambda row: f"{row['loaded']['source_perplexity']:.2f}")
            told += f"; there it is {source}"
    return f"{told}."


def _only(rows: Iterable[Row], value: Callable[[Row], str]) -> str:
    """The one value that all rows have; a table of unequal rows would compare what can't be compared."""
    found = dict.fromkeys(map(value, rows))
    if len(found) > 1:
        raise SystemExit(f"rows differ: {', '.join(found)}")
    return next(iter(found), "none")


def table(rows: Sequence[Row]) -> list[str]:
    """A row for each way; what has no figure is in `reasons`, by its number."""
    lines = [
        "| Engine | Method | Scheme | Format | CPU s | Peak MiB | Weights MiB | Perplexity | KL, nats | vLLM kernel |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    numbers = {reason: number for number, reason in enumerate(_reasons(rows), 1)}
    for row in rows:
        made, loaded = row.get("made"), row.get("loaded", {})
        far, star = ("*" if part in row.get("from", ()) else "" for part in ("made", "loaded"))
        seconds = made and made.get("processor_seconds")
        said = "not made" if made is None else "no" if "failed" in loaded else ", ".join(loaded.get("kernels", []))
        if reason := _reason(row):
            said += f" ({numbers[reason]})"
        cells = [
            row["engine"],
            row["method"],
            ", ".join(filter(None, [f"`{row['scheme']}`", row["note"]])),
            row["form"],
            f"{seconds:,.0f}{far}" if seconds else "",
            f"{made['peak_memory_bytes'] / _MIB:,.0f}{far}" if made and made["peak_memory_bytes"] else "",
            f"{made['weights_bytes'] / _MIB:,.0f}" if made else "",
            f"{loaded['perplexity']:.2f}{star}" if "perplexity" in loaded else "",
            f"{loaded['kl']:.4f}{star}" if "kl" in loaded else "",
            said or ("yes" if "perplexity" in loaded else "not asked"),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _reason(row: Row) -> str:
    """Why there is no figure, or only one of the twin, in the words of the engine or of vLLM, cut to a length."""
    loaded = row.get("loaded", {})
    said = row.get("not_made") or loaded.get("refused") or loaded.get("failed", "")
    if not said:
        return ""
    words = re.sub(r"[|`]", "", str(said))
    words = words if len(words) <= _REASON_CHARACTERS else words[:_REASON_CHARACTERS].rsplit(" ", 1)[0] + " ..."
    foretold = " `qpack check` says so before." if row["check"] else ""
    return f'{row["engine"] if "not_made" in row else "vLLM"}: "{words}"{foretold}'


def _reasons(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(filter(None, map(_reason, rows))))


def reasons(rows: Sequence[Row]) -> list[str]:
    """Each reason once, numbered as the table has it."""
    return [f"{number}. {reason}" for number, reason in enumerate(_reasons(rows), 1)]


def errors(rows: Sequence[Row]) -> list[str]:
    """What was measured, as a multiple of what `qpack plan` had said: smallest, median, largest of all rows."""
    lines = [
        "| Measured / expected | Rows | Smallest | Median | Largest |",
        "| --- | --- | --- | --- | --- |",
    ]
    names = {
        "peak_memory_bytes": "memory to quantize",
        "weights_bytes": "weights of the artifact",
        "disk_bytes": "disk",
        "stage_seconds": "seconds to quantize",
    }
    for key, name in names.items():
        expected = "seconds" if key == "stage_seconds" else key
        ratios = sorted(
            row["made"][key] / row["expected"][expected]
            for row in rows
            if "made" not in row.get("from", ()) and row.get("made", {}).get(key) and row["expected"].get(expected)
        )
        if len(ratios) > 1:
            cells = (name, len(ratios), *(f"{x:.2f}" for x in (ratios[0], statistics.median(ratios), ratios[-1])))
            lines.append(f"| {' | '.join(map(str, cells))} |")
    return lines


if __name__ == "__main__":
    raise SystemExit(main())
