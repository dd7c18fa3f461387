"""The files that a release may have. Pure.

At the top: the names that `registry.release.release_folder.lay_out` writes, in any of its layouts. In `model/`: the
kinds of files of checkpoints. Everything else is refused, because programs may import or run files from the current
folder (`torch.py`, `sitecustomize.py`, `.env`).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Iterable, Iterator

from qpack.core.errors import RegistryError
from qpack.core.hashing import takes_the_place_of_a_module
from qpack.core.problems import Code, Location, Problem
from registry.release import eval_results, provenance

FOREIGN_FILE = Code("foreign-file", "A release has a file that no release of qpack has.")

MODEL = "model/"

TOP = frozenset(
    (
        *("release.json", "serving.json", "recipe.yaml", "README.md", "LICENSE"),
        *(provenance.FILE, "bom.cdx.json", eval_results.FILE),
    )
)
"""The names in any of the layouts."""

# Suffixes of files that engines and tokenizers write, and that come with sources
# (`quantize.checkpoint.sources.served_files`).
_KINDS = (".safetensors", ".json", ".jinja", ".txt", ".model", ".tiktoken", ".yaml", ".csv", ".md")
_LICENCE = re.compile(r"(LICENSE|LICENCE|NOTICE|USE_POLICY)([^.]*|.*\.(txt|md|rst|pdf|html|\d+))")
# transformers writes additional templates there.
_FOLDER = re.compile(r"additional_chat_templates/[A-Za-z0-9_][A-Za-z0-9_.-]*\.jinja")
# ASCII only: no look-alikes of `config.json`.
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+()-]*(?: [A-Za-z0-9_.+()-]+)*")
_MODULE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\.py")
_SHOWN = 8


def unexpected(paths: Iterable[str], listed: Collection[str] | None = None) -> tuple[Problem, ...]:
    """A problem for each file that a release may not have.

    `listed` are the files that the release manifest lists, relative to `model/`; None skips that check.
    """
    found, seen = [], dict[str, str]()
    for path in sorted(paths):
        if (why := _refused(path)) is None and listed is not None and path not in TOP:
            why = None if path.removeprefix(MODEL) in listed else "the release manifest doesn't list it."
        other = seen.setdefault(unicodedata.normalize("NFKC", path).casefold(), path)
        if why is None and other != path:
            why = f"it is the same file as {other!r} on systems that ignore case."
        if why is not None:
            found.append(Problem(FOREIGN_FILE, why, Location(_shown(path))))
    return tuple(found)


def check(reference: str, paths: Iterable[str], listed: Collection[str] | None = None) -> None:
    """Raise RegistryError for a release with unexpected files; see `unexpected`."""
    if found := unexpected(paths, listed):
        raise RegistryError(
            FOREIGN_FILE,
            f"{reference} has {len(found)} file{'s' if len(found) > 1 else ''} that a release may not have",
            hint="Nothing was imported. Ask its publisher, or use the version of qpack that wrote it.",
            problems=(*found[:_SHOWN], *_more(len(found) - _SHOWN)),
        )


def _refused(path: str) -> str | None:
    if path in TOP:
        return None
    name = path.removeprefix(MODEL)
    if name == path:
        return "no release has such a file at its top."
    if name.endswith(".py"):
        if not _MODULE.fullmatch(name):
            return "it is no Python module that a checkpoint can bring."
        return "Python would import it in another module's place." if takes_the_place_of_a_module(name) else None
    if _FOLDER.fullmatch(name):
        return None
    if not _NAME.fullmatch(name):
        return "no checkpoint has a file of such a name."
    if name.endswith(_KINDS) or _LICENCE.fullmatch(name):
        return None
    return "it is of no kind that a checkpoint is served from (safetensors, JSON, tokenizer, templates, licence)."


def _shown(path: str) -> str:
    return path if path.isprintable() and len(path) <= 120 else repr(path)[:120]


def _more(count: int) -> Iterator[Problem]:
    if count > 0:
        yield Problem(FOREIGN_FILE, f"and {count:,} more.")
