"""The recipe as it took effect, as text: what is published with a release, and builds the same again."""

from __future__ import annotations

import textwrap

import yaml

from qpack.core import yamlfile
from qpack.recipe.recipe_file import Loaded

MARK = "  # set over the recipe's file"


def text(loaded: Loaded) -> str:
    """The file as written; with `--set`, the file's keys with those settings in them, each marked at its line.

    `load(text(loaded)).recipe == loaded.recipe`. Comments of the file are in it only where nothing was set.
    """
    if not loaded.settings:
        return loaded.file.text
    plain = yaml.safe_dump(loaded.file.data, sort_keys=False, allow_unicode=True, width=116)
    head = [f"# {loaded.file.path.name}, with what was set over it:"]
    for setting in loaded.settings:
        # On one line: what follows a line break in a value would be no comment.
        shown = " ".join(setting.split())
        head += textwrap.wrap(
            f"--set {shown}", 116, initial_indent="#   ", subsequent_indent="#     ", break_on_hyphens=False
        )
    whole = "\n".join([*head, plain])
    read = yamlfile.parse(loaded.file.path, whole)
    if read is None or read.data != loaded.file.data:
        raise AssertionError("a recipe's data can be written as YAML and read again")
    lines = whole.split("\n")
    for line in sorted({read.lines[at] for at in loaded.file.overridden if at in read.lines}):
        lines[line - 1] += MARK
    marked = "\n".join(lines)
    again = yamlfile.parse(loaded.file.path, marked)
    # Behind the first line of a text of several lines the mark would be a part of it.
    return marked if again is not None and again.data == loaded.file.data else whole
