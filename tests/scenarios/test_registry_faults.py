"""A short run of the command that breaks the local registry in every way it can.

docs/explanation/reliability.md has a long one.
"""

from __future__ import annotations

import json
import subprocess
import sys

from tests.scenarios.command import ROOT


def test_nothing_is_lost_or_wrong_whatever_strikes_the_registry() -> None:
    command = [sys.executable, ROOT / "benchmarks" / "registry_faults.py", "--kills", "25", "--reads", "240", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.stdout, done.stderr
    rows = {row["fault"]: row for row in json.loads(done.stdout)}
    assert {fault: row["wrong"] for fault, row in rows.items() if row["wrong"]} == {}
    assert done.returncode == 0, done.stderr
    struck = sum(row["seen"].get("killed", 0) for fault, row in rows.items() if fault.startswith("kill -9"))
    assert struck >= 5, "kills come before the end of what they strike"
    assert rows["a flipped bit in a blob"]["times"] > 8
    assert rows["reads by an alias while it moves"]["times"] == 240
    assert rows["reads by an alias while it moves"]["moved"] > 0
    # Damage that changes nothing is read right; a short run may have none of it.
    assert "refused" in rows["a damaged index.json"]["seen"]
    assert set(rows["a damaged index.json"]["seen"]) <= {"refused", "right"}
    assert set(rows["a path that climbs out, in somebody else's manifest"]["seen"]) == {"refused"}
