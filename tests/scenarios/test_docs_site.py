"""The docs as a site: `mkdocs build --strict` takes every page, and refuses one that leads nowhere."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def build(folder: Path, site: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--config-file", folder / "mkdocs.yml", "-d", site],
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The site's sources, to damage."""
    shutil.copy(ROOT / "mkdocs.yml", tmp_path)
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    return tmp_path


def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    done = build(ROOT, tmp_path / "site")
    assert done.returncode == 0, done.stderr[-4000:]
    pages = {path.relative_to(ROOT / "docs").with_suffix("") for path in (ROOT / "docs").rglob("*.md")}
    made = {path.parent.relative_to(tmp_path / "site") for path in (tmp_path / "site").rglob("index.html")}
    assert len(pages) > 80
    assert {page.parent if page.name == "index" else page for page in pages} <= made
    everything = "".join(path.read_text() for path in (tmp_path / "site").rglob("index.html"))
    assert 'src="https://' not in everything, "a page loads something from another host"
    assert "fonts.googleapis" not in everything
    assert not list((tmp_path / "site").rglob("*.py"))


@pytest.mark.parametrize(
    "damage",
    ["\n[gone](gone.md)\n", "\n[gone](concepts.md#gone)\n", "\n![gone](images/gone.png)\n"],
    ids=["page", "anchor", "picture"],
)
def test_a_link_that_leads_nowhere_is_refused(copy: Path, damage: str) -> None:
    page = copy / "docs" / "tutorial.md"
    page.write_text(page.read_text() + damage)
    done = build(copy, copy / "site")
    assert done.returncode == 1
    assert "gone" in done.stderr


def test_a_page_that_the_menu_lacks_is_refused(copy: Path) -> None:
    (copy / "docs" / "guides" / "lost.md").write_text("# Lost\n")
    done = build(copy, copy / "site")
    assert done.returncode == 1
    assert "guides/lost.md" in done.stderr
