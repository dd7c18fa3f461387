"""YAML with line numbers: plain data, and where each part of it stands.

YAML 1.2 scalars: `yes`, `on` and `1_000` stay text, `1e-3` is a number. A key that stands twice is a problem, never a
silent overwrite; there are no tags, so no YAML file can run code.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from qpack.errors import Problem

Path_ = tuple[str | int, ...]


class _Loader(yaml.SafeLoader):
    """SafeLoader with the core schema of YAML 1.2 instead of 1.1's surprises."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012  (PyYAML reads it from the class)


for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+", list("-+0123456789")),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", list("-+.0123456789")),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _first)


_TAGS = {f"tag:yaml.org,2002:{kind}" for kind in ("null", "bool", "int", "float", "str", "seq", "map")}


@dataclass(frozen=True)
class YamlFile:
    """A parsed file: `data`, its `text`, and the line (from 1) of every key and item."""

    path: Path
    text: str
    data: Any
    lines: dict[Path_, int] = field(default_factory=dict)
    overridden: frozenset[Path_] = frozenset()

    def where(self, at: Path_) -> str:
        """`file:line` of the nearest part that is in the file; `--set KEY` for one that the command line gave."""
        for length in range(len(at), -1, -1):
            if at[:length] in self.overridden:
                return "--set " + dotted(at)
            if at[:length] in self.lines:
                return f"{self.path}:{self.lines[at[:length]]}"
        return str(self.path)


def dotted(at: Path_) -> str:
    """`('evaluate', 'tasks', 0, 'task')` as `evaluate.tasks[0].task`."""
    text = ""
    for part in at:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def load(path: Path) -> tuple[YamlFile | None, list[Problem]]:
    """Parse a file. Returns no file when it can't be parsed at all, and every problem found."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        near = ", ".join(sorted(p.name for p in path.parent.glob("*.yaml"))[:8]) if path.parent.is_dir() else ""
        return None, [Problem("no such recipe.", str(path), f"In that folder: {near}." if near else "")]
    except (OSError, UnicodeDecodeError) as error:
        return None, [Problem(f"can't be read: {error}", str(path))]
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None, [Problem("the file is empty", f"{path}:1")]
        problems: list[Problem] = []
        lines: dict[Path_, int] = {}
        data = _build(loader, node, (), path, lines, problems)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        return None, [Problem(f"not YAML: {error.problem}", where)]
    except yaml.YAMLError as error:
        return None, [Problem(f"not YAML: {error}", str(path))]
    finally:
        loader.dispose()
    return YamlFile(path, text, data, lines), problems


def _build(
    loader: _Loader, node: yaml.Node, at: Path_, path: Path, lines: dict[Path_, int], problems: list[Problem]
) -> Any:
    lines.setdefault(at, node.start_mark.line + 1)
    if node.tag not in _TAGS:
        what = f"{dotted(at)}: a tag ({node.tag}) has no place in a recipe"
        problems.append(Problem(what, f"{path}:{node.start_mark.line + 1}"))
        return None
    if isinstance(node, yaml.MappingNode):
        mapping: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = str(loader.construct_object(key_node))
            line = key_node.start_mark.line + 1
            if key in mapping:
                first = lines[(*at, key)]
                problems.append(
                    Problem(f"{dotted((*at, key))}: the key stands twice (first in line {first})", f"{path}:{line}")
                )
            lines[(*at, key)] = line
            mapping[key] = _build(loader, value_node, (*at, key), path, lines, problems)
        return mapping
    if isinstance(node, yaml.SequenceNode):
        return [_build(loader, item, (*at, i), path, lines, problems) for i, item in enumerate(node.value)]
    return loader.construct_object(node)


def override(file: YamlFile, settings: list[str]) -> tuple[YamlFile, list[Problem]]:
    """Lay `key.path=value` settings over the file; the value is YAML. `tasks[0]` is written `tasks.0`."""
    import copy

    data = copy.deepcopy(file.data)
    problems: list[Problem] = []
    overridden: set[Path_] = set()
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals or not name:
            problems.append(Problem(f"--set {setting}: not of the form key=value"))
            continue
        at: Path_ = tuple(int(part) if part.isdigit() else part for part in name.split("."))
        try:
            parsed = yaml.load(value, Loader=_Loader)
        except yaml.YAMLError:
            problems.append(Problem(f"--set {setting}: the value is not YAML"))
            continue
        if _put(data, at, parsed):
            overridden.add(at)
        else:
            problems.append(Problem(f"--set {setting}: there is no such place in the recipe"))
    return YamlFile(file.path, file.text, data, file.lines, frozenset(overridden)), problems


def _put(data: Any, at: Path_, value: Any) -> bool:
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
