"""Escapes untrusted text for Markdown: no markup, no HTML, no links, no extra lines. Pure.

For CommonMark (https://spec.commonmark.org/0.31.2/) with GitHub's tables, strikethrough and autolinks
(https://github.github.com/gfm/), as the Hub renders cards. `text` is applied to every value of a template; `Markdown`
marks text that is safe already.
"""

from __future__ import annotations

import re

# Characters that are markup anywhere; `&` starts a character reference, `$` mathematics.
_SPECIAL = re.compile(r"[\\`*\[\]<>&|~$]|(?<![^\W_])_|_(?![^\W_])")
# Starts of a heading, a list, a quotation or a rule at the start of a line.
_LEADING = re.compile(r"(?:#{1,6}|[-+])(?=\s|$)|[-=](?=[-=\s]*$)|\d{1,9}(?=[.)](?:\s|$))")
# Readers autolink these even behind escapes, but not in code.
_LINKED = re.compile(r"://|www\.|@|mailto:|xmpp:", re.IGNORECASE)
_ODD = "\N{REPLACEMENT CHARACTER}"


class Markdown(str):
    """Text that is Markdown already: written by this package, or a number."""

    __slots__ = ()


def text(value: object) -> Markdown:
    """A value as literal text in a paragraph, heading, list or table cell."""
    if isinstance(value, Markdown):
        return value
    if isinstance(value, int | float):
        return Markdown(value)
    line = one_line(value)
    if _LINKED.search(line):
        return code(line)
    escaped = _SPECIAL.sub(lambda found: "\\" + found[0], line)
    if lead := _LEADING.match(line):
        # After the digits of a numbered list, before anything else.
        at = lead.end() if lead[0].isdigit() else 0
        escaped = f"{escaped[:at]}\\{escaped[at:]}"
    return Markdown(escaped)


def code(value: object) -> Markdown:
    """A value as a code span, empty for an empty value. Escapes bars, so that a table cell stays one."""
    line = one_line(value).replace("|", "\\|")
    if not line:
        return Markdown("")
    fence = "`" * (_longest_run(line) + 1)
    room = " " if line[0] == "`" or line[-1] == "`" else ""
    return Markdown(f"{fence}{room}{line}{room}{fence}")


def block(value: object, language: str) -> Markdown:
    """Lines as a code block. `language` has to be trusted."""
    lines = "".join(c if c in "\n\t" or c.isprintable() else _ODD for c in str(value).replace("\r\n", "\n"))
    fence = "`" * max(3, _longest_run(lines) + 1)
    return Markdown(f"{fence}{language}\n{lines}\n{fence}")


def one_line(value: object) -> str:
    """Text on one line, with a replacement for control and bidirectional characters, which are invisible."""
    return "".join(c if c.isprintable() else _ODD for c in " ".join(str(value).split()))


def _longest_run(line: str) -> int:
    return max((len(run) for run in re.findall("`+", line)), default=0)
