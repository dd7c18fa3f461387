"""Held-out text: one text, or one of each domain, as windows of tokens.

A .jsonl or .txt file has a text per row or line. Where too few of them are as long as a window, the shorter ones are
joined. Any other file (source code, documentation) is one long text: it is cut
into pieces where it has blank lines, each long enough for a window.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qpack.core import hashing
from qpack.core.errors import QuantizeError
from qpack.core.findings import TextDomain
from qpack.core.problems import Code
from qpack.core.records import HeldOut

if TYPE_CHECKING:
    from qpack.recipe.models import HeldOutText, Perplexity

_SHARED_TEXT = Code("shared-text", "A held-out text has passages of another text.")

_ROWS = (".jsonl", ".json", ".txt")
# Characters of a piece for each token of a window. English has four or five a token; a piece that is short all the same
# is passed over by the one who counts tokens.
_CHARACTERS = 6

Windows = Callable[[Path, str, Path], tuple[str, ...]]
"""Called with (file of texts, key of a row's text, folder): writes `tokens.jsonl` into the folder, and returns the
digests of all texts in its windows.
"""


def asked(perplexity: Perplexity) -> dict[str, Any]:
    """What of the recipe's section decides which windows there are, besides the content of the files."""
    if not perplexity.texts:
        return perplexity.model_dump(include={"field", "windows", "window_tokens"})
    named = [text.model_dump(exclude={"source"}) for text in perplexity.texts]
    return {**perplexity.model_dump(include={"windows", "window_tokens"}), "texts": named, "pieces": _CHARACTERS}


def make(perplexity: Perplexity, texts: Sequence[Path], windows: Windows, out: Path) -> HeldOut:
    """Write `tokens.jsonl` into `out`: the windows of every text, in the recipe's order.

    Raises QuantizeError when a text has too few windows, or two have a passage in common.
    """
    digests: list[str] = []
    for text, file in zip(perplexity.each(), texts, strict=True):
        folder = out / text.name if perplexity.texts else out
        folder.mkdir(exist_ok=True)
        path, field = rows_of(text, file, out)
        if path != file:
            rows = pieces(file.read_text(encoding="utf-8", errors="replace"), _CHARACTERS * perplexity.window_tokens)
            path.write_text("".join(json.dumps({field: piece}) + "\n" for piece in rows), encoding="utf-8")
        try:
            found = windows(path, field, folder)
        except QuantizeError as error:
            error.what = f"{text.name}: {error.what}" if perplexity.texts else error.what
            raise
        if shared := set(found) & set(digests):
            raise QuantizeError(
                _SHARED_TEXT,
                f"held-out text {text.name}: {len(shared)} of its {len(found)} passages are in another text too",
                hint="Name other files under evaluate.perplexity.texts: each passage may count once.",
            )
        digests += found
    if perplexity.texts:
        parts = [(out / text.name / "tokens.jsonl").read_text() for text in perplexity.texts]
        (out / "tokens.jsonl").write_text("".join(parts))
    return HeldOut(
        digest=hashing.sha256(out / "tokens.jsonl"),
        windows=perplexity.windows * len(texts),
        window_tokens=perplexity.window_tokens,
        row_digests=tuple(digests),
        domains=tuple(TextDomain(name=text.name, windows=perplexity.windows) for text in perplexity.texts),
    )


def rows_of(text: HeldOutText, file: Path, folder: Path) -> tuple[Path, str]:
    """Where the rows of a text are, and under which key: in its own file, or in pieces in the stage's folder."""
    return (file, text.field) if file.suffix in _ROWS else (folder / f"{text.name}.pieces.jsonl", "text")


def pieces(text: str, characters: int) -> list[str]:
    """A long text cut at blank lines, each piece `characters` long or more; a shorter rest is dropped.

    Joined by blank lines, the pieces are the beginning of the text but for how many blank lines stood between them.
    """
    found, held, length = [], [], 0
    for paragraph in text.replace("\r\n", "\n").split("\n\n"):
        if not paragraph.strip():
            continue
        held.append(paragraph.strip("\n"))
        length += len(held[-1]) + 2
        if length >= characters:
            found.append("\n\n".join(held))
            held, length = [], 0
    return found
