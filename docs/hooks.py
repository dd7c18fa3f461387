"""Hooks of mkdocs: the nav's list of decisions, and links to files of the repository that are no page of the site."""

from __future__ import annotations

import posixpath
import re
from typing import Any

_LINK = re.compile(r"\[([^\]]+)\]\(((?:\.\./)+[^)\s#]*)(#[^)\s]*)?\)")
_PATTERN = "decisions/*.md"


def _with_decisions(items: list[Any], found: list[str]) -> list[Any]:
    """The nav with `_PATTERN` replaced by the pages that it matches."""
    result: list[Any] = []
    for item in items:
        if item == _PATTERN:
            result += found
        elif isinstance(item, dict):
            result.append({k: _with_decisions(v, found) if isinstance(v, list) else v for k, v in item.items()})
        else:
            result.append(item)
    return result


def on_files(files: Any, *, config: Any) -> Any:
    """List every decision in the nav, so that a new record needs no line in mkdocs.yml."""
    found = [file.src_uri for file in files if re.fullmatch(r"decisions/\d+-.*\.md", file.src_uri)]
    config.nav = _with_decisions(config.nav, sorted(found))
    return files


def on_page_markdown(markdown: str, *, page: Any, config: Any, **_: Any) -> str:
    """Point a link that leaves docs/ (README, CONTRIBUTING) to the repository; plain text where no address is set."""

    def fix(match: re.Match[str]) -> str:
        text, target, anchor = match[1], match[2], match[3] or ""
        path = posixpath.normpath(posixpath.join(posixpath.dirname(page.file.src_uri), target))
        if not path.startswith("../"):
            return match[0]
        return f"[{text}]({config.repo_url}/blob/main/{path[3:]}{anchor})" if config.repo_url else text

    return _LINK.sub(fix, markdown)
