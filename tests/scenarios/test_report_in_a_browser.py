"""The report in a real browser: Chromium without a window, where there is one."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from evals.report.html_report import render
from qpack.core.speed import Interleaved
from tests.patience import PATIENCE
from tests.unit.evidence_samples import make_release, sites
from tests.unit.test_interleave import turns

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.slow("what a browser makes of the report"),
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here (apt-get install chromium)"),
]


def browse(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Open the page with a profile of its own and no network."""
    assert CHROMIUM is not None
    return subprocess.run(
        [
            CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--log-level=0",
            f"--user-data-dir={folder / 'profile'}", "--host-resolver-rules=MAP * ~NOTFOUND", *options,
            (folder / "report.html").as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=True,
    )  # fmt: skip


def test_the_report_is_drawn_without_an_error_and_can_be_printed(tmp_path: Path) -> None:
    both = Interleaved(tool="t", levels=(turns([100, 110, 90], [80, 89, 71]),))
    made = make_release(tmp_path)
    quantized = made.quantized.model_copy(update={"sites": sites()})
    made = made.model_copy(update={"interleaved": both, "quantized": quantized})
    (tmp_path / "report.html").write_text(render(made))
    seen = browse(tmp_path, "--dump-dom")
    assert "CONSOLE" not in seen.stderr
    drawings = re.findall(r'<svg role="img".*?</svg>', seen.stdout, flags=re.DOTALL)
    assert len(drawings) == 7
    assert all(re.search(r"<path[^>]* d=\"M", drawing) for drawing in drawings), "a plot without a line in it"
    browse(tmp_path, f"--print-to-pdf={tmp_path / 'report.pdf'}")
    assert (tmp_path / "report.pdf").read_bytes().startswith(b"%PDF")
