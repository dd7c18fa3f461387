"""Which files a release may hold. Pure.

At the top the exact names that `registry.release.release_folder.lay_out` writes, in any of its layouts; below `model/`
files of the kinds that a checkpoint holds. All else is refused: what lies beside a release's card is imported, read or
run by somebody who works there (`torch.py`, `sitecustomize.py`, `.env`).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Iterable, Iterator

from qpack.core.errors import Problem, RegistryError
from qpack.core.hashing import takes_the_place_of_a_module
from registry.release import eval_results, provenance

MODEL = "model/"

TOP = frozenset(
    (
        *("release.json", "serving.json", "recipe.yaml", "README.md", "LICENSE"),
        *(provenance.FILE, "bom.cdx.json", eval_results.FILE),
    )
)
"""The layouts differ in which of them there are, and none has another."""

# Kinds of files that engines and tokenizers write, and that sources bring along
# (`quantize.checkpoint.sources.served_files`).
_KINDS = (".safetensors", ".json", ".jinja", ".txt", ".model", ".tiktoken", ".yaml", ".csv", ".md")
_LICENCE = re.compile(r"(LICENSE|LICENCE|NOTICE|USE_POLICY)([^.]*|.*\.(txt|md|rst|pdf|html|\d+))")
# transformers writes templates other than the first one there.
_FOLDER = re.compile(r"additional_chat_templates/[A-Za-z0-9_][A-Za-z0-9_.-]*\.jinja")
# ASCII: a look-alike of `config.json` is another file, and no checkpoint needs one.
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+()-]*(?: [A-Za-z0-9_.+()-]+)*")
_MODULE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\.py")
_SHOWN = 8


def unexpected(paths: Iterable[str], listed: Collection[str] | None = None) -> tuple[Problem, ...]:
    """What keeps the files at `paths` from being those of a release, a problem for each such file.

    `listed` are the files that the release manifest lists, relative to `model/`; None leaves that open.
    """
    found, seen = [], dict[str, str]()
    for path in sorted(paths):
        if (why := _refused(path)) is None and listed is not None and path not in TOP:
            why = None if path.removeprefix(MODEL) in listed else "the release manifest doesn't list it."
        other = seen.setdefault(unicodedata.normalize("NFKC", path).casefold(), path)
        if why is None and other != path:
            why = f"it is the same file as {other!r} where names are told apart by letters alone."
        if why is not None:
            found.append(Problem(why, _shown(path)))
    return tuple(found)


def check(reference: str, paths: Iterable[str], listed: Collection[str] | None = None) -> None:
    """Raise RegistryError for a release with files that none has; see `unexpected`."""
    if found := unexpected(paths, listed):
        raise RegistryError(
            f"{reference} has {len(found)} file{'s' if len(found) > 1 else ''} that no release of qpack has",
            hint="Nothing of it was taken. Ask whoever published it, or use the qpack that wrote it.",
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
        yield Problem(f"and {count:,} more.")
