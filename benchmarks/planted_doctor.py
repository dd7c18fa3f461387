"""Which damages `qpack doctor --against SOURCE --whole` names (docs/benchmarks/planted-defects.md).

    python benchmarks/planted_doctor.py SOURCE ARTIFACT PYTHON -o FOLDER [--only DAMAGE,...] [--table]

SOURCE and ARTIFACT are checkpoint folders, the artifact in the format compressed-tensors; PYTHON has torch and
safetensors (the environment `transformers`). Each damage of planted_gates.py takes about a minute. What the doctor said
is kept in FOLDER, so a stopped run resumes; --table prints what is there.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from planted_gates import DEFECTS

from evals.report.markdown import table

DAMAGE = Path(__file__).with_name("damage_checkpoint.py")
UNDAMAGED = "undamaged"


def main() -> int:
    """Damage, ask, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("python", type=Path)
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--only", help="damages, with commas (default: all)")
    parser.add_argument("--table", action="store_true", help="ask nothing")
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    names = asked.only.split(",") if asked.only else [UNDAMAGED, *DEFECTS]
    for name in [] if asked.table else names:
        kept = asked.out / f"{name.replace(':', '-')}.json"
        if not kept.exists():
            kept.write_text(json.dumps(findings(name, asked)))
            print(name, row(name, json.loads(kept.read_text()))[1], flush=True)
    print("\n".join(table(("Damage", "The doctor's findings"), list(rows(names, asked.out)))))
    return 0


def findings(name: str, asked: argparse.Namespace) -> list[dict[str, str]]:
    """What the doctor finds in a damaged copy of the artifact."""
    checkpoint = asked.artifact
    if name != UNDAMAGED:
        checkpoint = asked.out / "damaged"
        shutil.rmtree(checkpoint, ignore_errors=True)
        subprocess.run([asked.python, DAMAGE, asked.artifact, checkpoint, name], check=True, capture_output=True)
    doctor = ["doctor", checkpoint, "--against", asked.source, "--whole", "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "qpack.cli.start", *doctor], capture_output=True, text=True, check=False
    )
    found: list[dict[str, str]] = json.loads(done.stdout)["findings"]
    return found


def rows(names: list[str], folder: Path) -> Iterator[tuple[str, str]]:
    """A row for each damage that was asked about."""
    for name in names:
        kept = folder / f"{name.replace(':', '-')}.json"
        if kept.exists():
            yield row(name, json.loads(kept.read_text()))


def row(name: str, found: list[dict[str, str]]) -> tuple[str, str]:
    """A damage, and the codes of the findings with the first one's words."""
    said = ", ".join(f"`{code}`" for code in dict.fromkeys(one["code"] for one in found))
    return f"`{name}`", f"{said}: {found[0]['what']}" if found else "nothing"


if __name__ == "__main__":
    sys.exit(main())
