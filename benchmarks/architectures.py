"""Which architectures `qpack check` accepts, which of them quantize, and whether the artifact is what it should be.

    python benchmarks/architectures.py MODELS --out DIR [--only NAME,NAME] [--cells CELL,CELL] [--table FILE]
        [--served TITLE/CELL/TARGET=ROWS]...

MODELS has a folder per architecture: small checkpoints with random weights. For each and each way to quantize (a cell)
`check` runs, then the engine's own worker, then the unpacked artifact's logits are compared with the source's, and the
doctor reads it beside its source. DIR/rows.jsonl has one row a cell; those that went well aren't made again.
--table writes the rows into a page, between its marks, and a column for each --served: what architectures_serve.py
wrote of the artifacts of one cell. Where one didn't serve, `check` is asked whether it refuses that for the target.

An artifact of random weights shows that the work is done right, not what it costs in quality: its logits may differ
from the source's by little more than those of the same layers rounded to nearest.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import subprocess
import sys
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

from qpack.core.errors import QpackError, RecipeError  # noqa: E402
from qpack.core.store import Store  # noqa: E402
from qpack.pipeline import plan as plans  # noqa: E402
from qpack.recipe.recipe_file import load  # noqa: E402
from qpack.runtime import environments  # noqa: E402
from qpack.runtime.workerlib.qpack_protocol import encode  # noqa: E402
from quantize.doctor import checkup  # noqa: E402
from quantize.engines import catalog  # noqa: E402
from quantize.engines.protocol import Paths  # noqa: E402

OPENS, CLOSES = "<!-- rows -->", "<!-- /rows -->"
SECONDS = 180
WORSE, FLOOR = 1.25, 0.01  # what an artifact may differ more than its weights rounded to nearest
ROWS, LENGTH = 8, 96


@dataclass(frozen=True)
class Cell:
    """A way to quantize, for hardware that has a kernel for all of it."""

    name: str
    engine: str
    method: str
    scheme: str
    group_size: int | None
    target: str


CELLS = (
    Cell("FP8_DYNAMIC rtn", "llmcompressor", "rtn", "FP8_DYNAMIC", None, "hopper"),
    Cell("W8A8 gptq", "llmcompressor", "gptq", "W8A8", None, "hopper"),
    Cell("W4A16 gptq", "llmcompressor", "gptq", "W4A16", 64, "hopper"),
    Cell("W4A16 awq", "llmcompressor", "awq", "W4A16_ASYM", 64, "hopper"),
    Cell("W8A8 smoothquant", "llmcompressor", "smoothquant", "W8A8", None, "hopper"),
    Cell("gram W4A16 gptq", "gram", "gptq", "W4A16", 64, "hopper"),
    Cell("gram W4A16 awq", "gram", "awq", "W4A16_ASYM", 64, "hopper"),
    Cell("gram FP8_DYNAMIC rtn", "gram", "rtn", "FP8_DYNAMIC", None, "hopper"),
)


def recipe(cell: Cell, model: Path, texts: Path) -> dict[str, Any]:
    """A recipe with nothing but what it has to name: the rest are defaults."""
    quantize = {"engine": cell.engine, "method": cell.method, "scheme": cell.scheme}
    if cell.group_size:
        quantize["group_size"] = cell.group_size  # type: ignore[assignment]
    made: dict[str, Any] = {
        "name": "architecture",
        "model": {"source": str(model)},
        "quantize": quantize,
        "evaluate": {
            "tasks": [{"task": "qpack_piqa", "samples": 10}],
            "perplexity": {"source": str(texts), "windows": 2, "window_tokens": 16},
        },
        "gates": {"accuracy_drop": 0.1},
        "serve": {"target": cell.target, "max_model_len": 512, "kv_cache_gib": 1.0},
    }
    if cell.method != "rtn":
        made["calibration"] = {"source": str(texts), "samples": ROWS, "max_length": LENGTH, "min_length": 8}
    return made


def written(out: Path) -> tuple[Path, Path]:
    """(texts, rows of token ids) to calibrate with."""
    texts, tokens, chance = out / "texts.jsonl", out / "tokens.jsonl", random.Random(0)
    texts.write_text("".join(json.dumps({"text": f"row {i} " + "word " * 120}) + "\n" for i in range(16)))
    rows = ([chance.randrange(5, 1900) for _ in range(LENGTH)] for _ in range(ROWS))
    tokens.write_text("".join(json.dumps({"input_ids": row}) + "\n" for row in rows))
    return texts, tokens


def checked(cell: Cell, model: Path, out: Path, store: Store, texts: Path) -> tuple[plans.Plan | None, str]:
    """The plan that `qpack check` makes, or why it refuses."""
    path = out / "recipe.json"
    path.write_text(json.dumps(recipe(cell, model, texts)))
    try:
        return plans.make(load(path, None), store, thorough=False), ""
    except RecipeError as error:
        return None, "; ".join(f"[{problem.code.name}] {problem.message}" for problem in error.problems)
    except QpackError as error:
        return None, f"{type(error).__name__}: {error.what}"


def quantized(cells: list[Cell], models: list[Path], out: Path, done: Collection[str] = ()) -> Iterator[dict[str, Any]]:
    """A row for each cell, without what the doctor says. `check` is asked of every one; those of `done` are made."""
    texts, tokens = written(out)
    store = Store(Path(os.environ["QPACK_HOME"]))
    for engine in dict.fromkeys(cell.engine for cell in cells):
        jobs, refused = [], []
        spec = catalog.ENGINES[engine].ENVIRONMENT
        for cell in (cell for cell in cells if cell.engine == engine):
            for model in models:
                name = f"{model.name} / {cell.name}"
                folder = out / "artifacts" / cell.name.replace(" ", "-") / model.name
                plan, why = checked(cell, model, out, store, texts)
                if plan is None:
                    refused.append({"name": name, "refused": why})
                    continue
                if name in done:
                    continue
                paths = Paths(model, tokens if cell.method != "rtn" else None, folder / "scratch")
                job = encode(plan.engine.job(plan.request, paths))
                jobs.append({"engine": engine, "name": name, "seconds": SECONDS, "out": str(folder), "job": job})
        yield from refused
        if jobs:
            environment = environments.ensure(environments.resolve(spec, "cpu", store.home), store.home, print)
            yield from worked(jobs, environment, out)


def worked(jobs: list[dict[str, Any]], environment: environments.Environment, out: Path) -> list[dict[str, Any]]:
    """The jobs in one process; a job that kills it is left out when it starts anew."""
    listed, rows = out / "jobs.jsonl", out / "worked.jsonl"
    rows.write_text("")
    listed.write_text("".join(json.dumps(job) + "\n" for job in jobs))
    script = [str(environment.python), str(ROOT / "benchmarks" / "architectures_worker.py")]
    script += [str(ROOT / "quantize" / "engines" / "workers"), str(ROOT / "qpack" / "runtime" / "workerlib")]
    for _ in range(len(jobs) + 1):
        with (out / "worker.log").open("ab") as log:
            code = subprocess.run([*script, str(listed), str(rows)], stdout=log, stderr=log, check=False).returncode
        found = [json.loads(line) for line in rows.read_text().splitlines()]
        if len(found) == len(jobs):
            break
        died = {"name": jobs[len(found)]["name"], "failed": "quantize", "what": f"the worker ended with {code}"}
        with rows.open("a") as file:
            file.write(json.dumps(died) + "\n")
    return found


def examined(row: dict[str, Any], cell: Cell, model: Path, out: Path) -> dict[str, Any]:
    """The row with what the doctor finds, and whether the artifact is what it should be."""
    folder = out / "artifacts" / cell.name.replace(" ", "-") / model.name / "checkpoint"
    if "refused" in row or "failed" in row:
        return row
    found = checkup.examine(folder, against=model, whole=True)
    errors = [f"[{one.code.name}] {one.message}" for one in found.findings if one.severity == "error"]
    if errors:
        return {**row, "failed": "doctor", "what": "; ".join(errors)[:400]}
    # `not` as NaN compares with nothing.
    if not row["error"] <= WORSE * row["rounded"] + FLOOR:
        what = f"logits differ by {row['error']:.3f}, and by {row['rounded']:.3f} with weights rounded to nearest"
        return {**row, "failed": "compare", "what": what}
    return row


def table(
    rows: dict[str, dict[str, Any]], cells: list[Cell], models: list[str], served: dict[str, dict[str, dict[str, Any]]]
) -> str:
    """Markdown: an architecture a line, a way to quantize a column, then a column for each of `served`; below, each
    reason once.
    """
    reasons: dict[str, int] = {}

    def words(model: str, cell: Cell) -> str:
        row = rows.get(f"{model} / {cell.name}")
        if row is None:
            return ""
        if "refused" in row:
            number = reasons.setdefault(short(row["refused"]), len(reasons) + 1)
            return f"refused ({number})"
        if "failed" in row:
            number = reasons.setdefault(f"{row['failed']}: {row['what'][:160]}", len(reasons) + 1)
            return f"**failed** ({number})"
        return f"{row['error']:.3f}"

    def service(row: dict[str, Any] | None) -> str:
        if row is None or "untried" in row:
            return ""
        if "served" in row:
            return "yes"
        if "refused" in row:
            return f"refused ({reasons.setdefault(short(row['refused']), len(reasons) + 1)})"
        return f"**no** ({reasons.setdefault(short(row['failed']), len(reasons) + 1)})"

    titles = [*(cell.name for cell in cells), *served]
    lines = ["| Architecture | " + " | ".join(titles) + " |", "| --- |" + " --- |" * len(titles)]
    for model in models:
        found = [words(model, cell) for cell in cells] + [service(there.get(model)) for there in served.values()]
        lines.append(f"| {model} | " + " | ".join(found) + " |")
    lines += ["", *(f"{number}. {reason}" for reason, number in reasons.items())]
    return "\n".join(lines) + "\n"


def served_by(given: str, models: dict[str, Path], out: Path) -> tuple[str, dict[str, dict[str, Any]]]:
    """A column's title, and its rows by model; the last row of a model counts. What `check` refuses for the target
    isn't held against it.
    """
    named, _, file = given.rpartition("=")
    title, name, target = named.split("/")
    (cell,) = (replace(cell, target=target) for cell in CELLS if cell.name == name)
    texts, _ = written(out)
    store, found = Store(Path(os.environ["QPACK_HOME"])), {}
    for row in map(json.loads, Path(file).read_text().splitlines()):
        model = Path(row["folder"]).parent.name
        found[model] = row
        if "failed" in row:
            plan, why = checked(cell, models[model], out, store, texts)
            found[model] = row if plan else {"refused": why}
    return title, found


def short(why: str) -> str:
    """A reason without the names of one architecture's layers."""
    first = why.split("; [")[0].replace("|", "/")
    return re.sub(r"\b[\w.]*\.(experts\.\w+)", r"\1", first)[:200]


def main() -> None:
    """Run what has no row, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", default="")
    parser.add_argument("--cells", default="")
    parser.add_argument("--table", type=Path)
    parser.add_argument("--served", action="append", default=[], metavar="TITLE/CELL/TARGET=ROWS")
    parser.add_argument("--again", action="store_true", help="run cells that have a row, too")
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    models = sorted(folder.parent for folder in asked.models.glob("*/config.json"))
    models = [model for model in models if not asked.only or model.name in asked.only.split(",")]
    cells = [cell for cell in CELLS if not asked.cells or cell.name in asked.cells.split(",")]
    noted = asked.out / "rows.jsonl"
    rows = {row["name"]: row for row in map(json.loads, noted.read_text().splitlines())} if noted.exists() else {}
    for cell in cells:
        good = [name for name, row in rows.items() if not asked.again and "failed" not in row and "refused" not in row]
        by_name = {model.name: model for model in models}
        for row in quantized([cell], models, asked.out, good):
            whole = examined(row, cell, by_name[row["name"].split(" / ")[0]], asked.out)
            rows[whole["name"]] = whole
            print({key: value for key, value in whole.items() if key != "trace"}, flush=True)
        noted.write_text("".join(json.dumps(row) + "\n" for row in rows.values()))
    if asked.table:
        served = dict(served_by(one, {model.name: model for model in models}, asked.out) for one in asked.served)
        before, _, rest = asked.table.read_text().partition(OPENS)
        found = table(rows, [cell for cell in CELLS if any(name.endswith(f" / {cell.name}") for name in rows)],
                      [model.name for model in models], served)  # fmt: skip
        asked.table.write_text(f"{before}{OPENS}\n\n{found}\n{CLOSES}{rest.partition(CLOSES)[2]}")


if __name__ == "__main__":
    main()
