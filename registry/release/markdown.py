"""Text from anywhere inside Markdown, as text: no markup, no HTML, no link, no line of its own. Pure.

For readers after CommonMark (https://spec.commonmark.org/0.31.2/) with GitHub's tables, strikethrough and autolinks
(https://github.github.com/gfm/), which the Hub's cards are read with. `text` is what a template's every value goes
through; `Markdown` marks what is safe already.
"""

from __future__ import annotations

import re

# Characters that begin or end markup wherever they stand; `&` begins a character reference, `$` mathematics.
_SPECIAL = re.compile(r"[\\`*\[\]<>&|~$]|(?<![^\W_])_|_(?![^\W_])")
# What would begin a heading, a list, a quotation or a rule where it is first on a line.
_LEADING = re.compile(r"(?:#{1,6}|[-+])(?=\s|$)|[-=](?=[-=\s]*$)|\d{1,9}(?=[.)](?:\s|$))")
# Readers make links of these by themselves, and look at the text behind escapes for them: code is left alone.
_LINKED = re.compile(r"://|www\.|@|mailto:|xmpp:", re.IGNORECASE)
_ODD = "\N{REPLACEMENT CHARACTER}"


class Markdown(str):
    """Text that is Markdown already: of this package, or of numbers alone."""

    __slots__ = ()


def text(value: object) -> Markdown:
    """A value as text that reads as it is in a paragraph, a heading, a list or a table's cell."""
    if isinstance(value, Markdown):
        return value
    if isinstance(value, int | float):
        return Markdown(value)
    line = one_line(value)
    if _LINKED.search(line):
        return code(line)
    escaped = _SPECIAL.sub(lambda found: "\\" + found[0], line)
    if lead := _LEADING.match(line):
        # Behind the digits of a numbered list, before anything else.
        at = lead.end() if lead[0].isdigit() else 0
        escaped = f"{escaped[:at]}\\{escaped[at:]}"
    return Markdown(escaped)


def code(value: object) -> Markdown:
    """A value as a code span that holds it as it is; nothing for an empty one. A bar stays inside its table's cell."""
    line = one_line(value).replace("|", "\\|")
    if not line:
        return Markdown("")
    fence = "`" * (_longest_run(line) + 1)
    room = " " if line[0] == "`" or line[-1] == "`" else ""
    return Markdown(f"{fence}{room}{line}{room}{fence}")


def block(value: object, language: str) -> Markdown:
    """Lines as a code block; `language` is ours."""
    lines = "".join(c if c in "\n\t" or c.isprintable() else _ODD for c in str(value).replace("\r\n", "\n"))
    fence = "`" * max(3, _longest_run(lines) + 1)
    return Markdown(f"{fence}{language}\n{lines}\n{fence}")


def one_line(value: object) -> str:
    """Text without ends of lines, with a mark for each control or bidirectional character: no reader would see it."""
    return "".join(c if c.isprintable() else _ODD for c in " ".join(str(value).split()))


def _longest_run(line: str) -> int:
    return max((len(run) for run in re.findall("`+", line)), default=0)
