"""Check that a tag can be released, and print its section of the changelog.

    python .ci/release.py v0.2.0

Exit code 1, with every reason on stderr, if the tag isn't the version in the code and in CITATION.cff, if the changelog
has no section for it or still has entries under "Unreleased", or if the project's addresses aren't in pyproject.toml.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
ADDRESSES = ("Source", "Documentation", "Changelog", "Issues")


def sections(changelog: str) -> dict[str, str]:
    """The text of each `## VERSION` section, by version; a date behind the version is left out."""
    parts = re.split(r"^## +\[?([^\s\]]+)\]?.*$", changelog, flags=re.MULTILINE)
    return {name: text.strip() for name, text in zip(parts[1::2], parts[2::2], strict=True)}


def problems(tag: str, *, version: str, cited: str, changelog: str, project: str) -> list[str]:
    """Why `tag` can't be released; empty if it can."""
    found = sections(changelog)
    asked = tag.removeprefix("v")
    urls = tomllib.loads(project).get("project", {}).get("urls", {})
    missing = [name for name in ADDRESSES if not urls.get(name, "").startswith("https://")]
    checks = [
        (tag == f"v{version}", f"the tag is {tag} and the code's version {version}"),
        (cited == asked, f"CITATION.cff has version {cited}"),
        (bool(found.get(asked)), f"CHANGELOG.md has no section '## {asked}'"),
        (not found.get("Unreleased"), "CHANGELOG.md has entries under 'Unreleased'"),
        (not missing, f"pyproject.toml has no https address under [project.urls] for {', '.join(missing)}"),
    ]
    return [text for holds, text in checks if not holds]


def _version(path: str, pattern: str) -> str:
    match = re.search(pattern, (ROOT / path).read_text(), re.MULTILINE)
    return match[1] if match else "none"


def main() -> int:
    """Print the notes of the release; the exit code."""
    if len(sys.argv) != 2:
        print("usage: python .ci/release.py TAG", file=sys.stderr)
        return 2
    tag, changelog = sys.argv[1], (ROOT / "CHANGELOG.md").read_text()
    found = problems(
        tag,
        version=_version("qpack/__init__.py", r'^__version__ = "(.+)"$'),
        cited=_version("CITATION.cff", r"^version: (.+)$"),
        changelog=changelog,
        project=(ROOT / "pyproject.toml").read_text(),
    )
    for problem in found:
        print(problem, file=sys.stderr)
    if not found:
        print(sections(changelog)[tag.removeprefix("v")])
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
