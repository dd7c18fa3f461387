"""YAML with line numbers: plain data, and where each part of it stands.

YAML 1.2 scalars: `yes`, `on` and `1_000` stay text, `1e-3` is a number. A duplicate key is a problem, never a
silent overwrite; there are no tags, so no YAML file can run code. A file has bounds in bytes, values and depth, and an
alias counts as what it stands for: memory is within a multiple of the bounds, whatever is in the file.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from qpack.core.hashing import open_regular
from qpack.core.problems import INVALID_OPTION, NO_SUCH_FILE, UNREADABLE_FILE, Code, KeyPath, Location, Problem

NO_MAPPING = Code("no-mapping", "A file of settings isn't a mapping of `key: value` lines.")
NO_SUCH_KEY = Code("no-such-key", "A file of settings has a key that isn't known.")
INVALID_VALUE = Code("invalid-value", "A key has a value of another type, or one that it doesn't take.")
_TOO_LARGE = Code("file-too-large", "A YAML file has more bytes, values or levels than any that qpack reads.")
_NOT_YAML = Code("not-yaml", "A file isn't YAML.")
_EMPTY_FILE = Code("empty-file", "A file has nothing in it.")
_DUPLICATE_KEY = Code("duplicate-key", "A key stands twice in one mapping.")
_NOT_PLAIN = Code("not-plain-data", "A key or a value is none that plain YAML has: a tag, a control character.")

MAX_BYTES = 2**20
MAX_VALUES = 10_000
MAX_DEPTH = 32


class _Loader(yaml.SafeLoader):
    """SafeLoader with the core schema of YAML 1.2 instead of 1.1's surprises, and bounds on what it composes.

    Its own constructors aren't used: `_build` makes the data.
    """

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012  (PyYAML reads it from the class)

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._nodes = self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """As PyYAML's, for so many nodes and levels: each node takes a kilobyte."""
        self._nodes += 1
        self._depth += 1
        if self._nodes > MAX_VALUES * 2 or self._depth > MAX_DEPTH + 1:
            what = f"has more than {MAX_VALUES:,} values" if self._nodes > MAX_VALUES * 2 else "is nested too deep"
            raise yaml.composer.ComposerError(None, None, what, self.get_mark())
        node: yaml.Node | None = super().compose_node(parent, index)
        self._depth -= 1
        return node


_CORE = "tag:yaml.org,2002:"
_FORMS = {
    "null": re.compile(r"^(?:~|null|Null|NULL|)\Z"),
    "bool": re.compile(r"^(?:true|True|TRUE|false|False|FALSE)\Z"),
    "int": re.compile(r"^[-+]?[0-9]+\Z"),
    "float": re.compile(r"^[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?\Z"),
}
for _kind, _first in (("null", ["~", "n", "N", ""]), ("bool", list("tTfF")), ("int", list("-+0123456789")),
                      ("float", list("-+.0123456789"))):  # fmt: skip
    _Loader.add_implicit_resolver(_CORE + _kind, _FORMS[_kind], _first)

_TAGS: dict[type[yaml.Node], set[str]] = {
    yaml.ScalarNode: {_CORE + kind for kind in (*_FORMS, "str")},
    yaml.SequenceNode: {_CORE + "seq"},
    yaml.MappingNode: {_CORE + "map"},
}
# Digits of a number of 64 bits, its sign, and a few zeros in front.
_LONGEST = 40
_INDEX = re.compile(r"^[0-9]{1,9}\Z")


@dataclass(frozen=True)
class YamlFile:
    """A parsed file: `data`, its `text`, and the line (from 1) of every key and item."""

    path: Path
    text: str
    data: Any
    lines: dict[KeyPath, int] = field(default_factory=dict)
    overridden: frozenset[KeyPath] = frozenset()

    def where(self, at: KeyPath) -> Location:
        """The line of the nearest part that is in the file; `--set` for one that the command line gave."""
        for length in range(len(at), -1, -1):
            if at[:length] in self.overridden:
                return Location(option="--set", key=at)
            if at[:length] in self.lines:
                return Location(str(self.path), self.lines[at[:length]], key=at)
        return Location(str(self.path), key=at)


def load(path: Path) -> tuple[YamlFile | None, list[Problem]]:
    """Parse a file. Returns no file when it can't be parsed at all, and every problem found."""
    try:
        with open_regular(path) as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            return None, [Problem(_TOO_LARGE, f"more than {MAX_BYTES:,} bytes", Location(str(path)))]
        text = data.decode("utf-8")
    except FileNotFoundError:
        near = ", ".join(sorted(p.name for p in path.parent.glob("*.yaml"))[:8]) if path.parent.is_dir() else ""
        hint = f"In that folder: {near}." if near else ""
        return None, [Problem(NO_SUCH_FILE, "no such file", Location(str(path)), hint)]
    except (OSError, UnicodeDecodeError, ValueError) as error:
        return None, [Problem(UNREADABLE_FILE, f"can't be read: {error}", Location(str(path)))]
    try:
        found = _parse(text.replace("\r\n", "\n").replace("\r", "\n"))
    except _Broken as broken:
        return None, [Problem(broken.code, broken.what, Location(str(path), broken.line or None))]
    if found is None:
        return None, [Problem(_EMPTY_FILE, "the file is empty", Location(str(path), 1))]
    problems = [replace(fault, where=replace(fault.where, file=str(path))) for fault in found.faults]
    return YamlFile(path, text, found.data, found.lines), problems


def parse(path: Path, text: str) -> YamlFile | None:
    """A text as the file `path` would be read; None for one with a problem."""
    try:
        found = _parse(text)
    except _Broken:
        return None
    return YamlFile(path, text, found.data, found.lines) if found is not None and not found.faults else None


class _Broken(Exception):
    """A text that can't be parsed: what is wrong, and in which line (0: nobody knows)."""

    def __init__(self, what: str, line: int, code: Code = _NOT_YAML) -> None:
        super().__init__(what)
        self.what, self.line, self.code = what, line, code


@dataclass
class _Found:
    """What a text holds. `faults`: what is wrong with single parts, in their lines of a file without a name."""

    data: Any = None
    lines: dict[KeyPath, int] = field(default_factory=dict)
    faults: list[Problem] = field(default_factory=list)
    values: int = 0

    def fault(self, at: KeyPath, what: str, line: int, code: Code = _NOT_PLAIN) -> None:
        """Something is wrong with the part at a place."""
        self.faults.append(Problem(code, what, Location(line=line, key=at)))


def _parse(text: str) -> _Found | None:
    """The data of a text, None for an empty one. Raises _Broken."""
    loader = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        found = _Found()
        found.data = _build(node, (), found)
        return found
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise _Broken(f"not YAML: {error.problem}", mark.line + 1 if mark else 0) from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, int(error.position)) + 1
        raise _Broken(f"not YAML: it has the character {error.character!r}", line) from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        # PyYAML makes a character of any number after a backslash, and a number of any version.
        line = loader.get_mark().line + 1 if loader is not None else 0
        raise _Broken(f"not YAML: {error}", line) from None
    finally:
        if loader is not None:
            loader.dispose()


def _build(node: yaml.Node, at: KeyPath, found: _Found) -> Any:
    """The data of a node. An alias is built again where it stands, so that values are counted as they are read."""
    line = node.start_mark.line + 1
    found.lines.setdefault(at, line)
    found.values += 1
    if found.values > MAX_VALUES:
        what = f"has more than {MAX_VALUES:,} values, aliases counted where they stand"
        raise _Broken(what, found.lines.get(at[:1], line), _TOO_LARGE)
    if len(at) > MAX_DEPTH:
        what = f"is nested deeper than {MAX_DEPTH} levels, or an alias is inside of what it stands for"
        raise _Broken(what, line, _TOO_LARGE)
    kind = next((kind for kind, tags in _TAGS.items() if isinstance(node, kind) and node.tag in tags), None)
    if kind is None:
        found.fault(at, f"a tag ({node.tag[:100]}) has no place in a recipe", line)
        return None
    if isinstance(node, yaml.SequenceNode):
        return [_build(item, (*at, i), found) for i, item in enumerate(node.value)]
    if isinstance(node, yaml.MappingNode):
        return _mapping(node, at, found)
    return _scalar(node, at, found) if isinstance(node, yaml.ScalarNode) else None


def _mapping(node: yaml.MappingNode, at: KeyPath, found: _Found) -> dict[str, Any]:
    mapping: dict[str, Any] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode):
            found.fault(at, "a key has to be a word", line)
            continue
        key = str(key_node.value)
        if (wrong := _unprintable(key)) is not None:
            found.fault(at, f"a key has {wrong}", line)
            continue
        if key in mapping:
            first = found.lines[(*at, key)]
            found.fault((*at, key), f"duplicate key (first in line {first})", line, _DUPLICATE_KEY)
        found.lines[(*at, key)] = line
        mapping[key] = _build(value_node, (*at, key), found)
    return mapping


def _scalar(node: yaml.ScalarNode, at: KeyPath, found: _Found) -> Any:
    text, kind = str(node.value), node.tag.removeprefix(_CORE)
    wrong = None
    if kind == "str":
        if (wrong := _unprintable(text)) is None:
            return text
        wrong = f"has {wrong}"
    elif not _FORMS[kind].match(text):
        wrong = f"is no {kind}"  # a tag said that it is one
    elif kind == "null":
        return None
    elif kind == "bool":
        return text.lower() == "true"
    elif kind == "int":
        if len(text) < _LONGEST and -(2**63) <= (number := int(text)) < 2**63:
            return number
        wrong = "is a number of more than 64 bits"
    elif math.isfinite(real := float(text)):
        return real
    else:
        wrong = "is a number that is too large"
    found.fault(at, wrong, node.start_mark.line + 1)
    return None


def _unprintable(text: str) -> str | None:
    """A character that may not stand in YAML as it is, and came by an escape: a zero byte, half of a surrogate pair."""
    hit = yaml.reader.Reader.NON_PRINTABLE.search(text)
    return f"the character {hit[0]!r}, which is no text" if hit else None


def override(file: YamlFile, settings: list[str]) -> tuple[YamlFile, list[Problem]]:
    """Lay `key.path=value` settings over the file; the value is YAML. `tasks[0]` is written `tasks.0`."""
    import copy

    data = copy.deepcopy(file.data)
    problems: list[Problem] = []
    overridden: set[KeyPath] = set()
    for setting in settings:
        name, equals, value = setting.partition("=")
        given = Location(option=f"--set {setting if len(setting) <= 200 else setting[:200] + '...'}")
        if not equals or not name or _unprintable(name):
            problems.append(Problem(INVALID_OPTION, "not of the form key=value", given))
            continue
        at: KeyPath = tuple(int(part) if _INDEX.match(part) else part for part in name.split("."))
        try:
            found = _parse(value)
        except _Broken as broken:
            problems.append(Problem(INVALID_OPTION, f"the value is {broken.what}", given))
            continue
        if found is not None and found.faults:
            problems += [replace(fault, where=replace(given, key=fault.where.key)) for fault in found.faults]
        elif len(at) <= MAX_DEPTH and _put(data, at, found.data if found else None):
            overridden.add(at)
        else:
            problems.append(Problem(INVALID_OPTION, "there is no such place in the recipe", given))
    return YamlFile(file.path, file.text, data, file.lines, frozenset(overridden)), problems


def _put(data: Any, at: KeyPath, value: Any) -> bool:
    for part in at[:-1]:
        if isinstance(data, dict):
            data = data.setdefault(part, {})
        elif isinstance(data, list) and isinstance(part, int) and part < len(data):
            data = data[part]
        else:
            return False
    last = at[-1]
    if isinstance(data, dict):
        data[str(last)] = value
    elif isinstance(data, list) and isinstance(last, int) and last < len(data):
        data[last] = value
    else:
        return False
    return True
