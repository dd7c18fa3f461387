"""What is wrong with an input: one class for every command that looks for it, with a code and a typed place.

A module that looks for problems declares their codes as constants (`_EMPTY_FILE = Code("empty-file", "...")`). No list
of them is kept: `docs/generate.py` collects the constants of every module for docs/reference/problems.md, and a test
refuses a code that is declared twice.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

Severity = Literal["error", "warning", "note"]
"""`error`: it can't work, or answers wrongly. `warning`: it may. `note`: worth knowing, nothing is wrong."""

KeyPath = tuple[str | int, ...]
"""A place in nested data: `("evaluate", "tasks", 0, "task")`."""

_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_SEVERITIES = get_args(Severity)


@dataclass(frozen=True)
class Code:
    """The stable name of a problem, in kebab case, and a title of one line. `fixable`: `qpack doctor --fix` can repair
    it, where the problem says so too. Raises ValueError for a name that isn't kebab case.
    """

    name: str
    title: str
    fixable: bool = False

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ValueError(f"{self.name!r} is not kebab case")

    def __str__(self) -> str:
        return self.name


INVALID_OPTION = Code("invalid-option", "An option of the command line has a value that can't be used.")
NO_SUCH_FILE = Code("no-such-file", "There is no file of that name.")
BAD_RECIPE = Code("bad-recipe", "A recipe, or what it asks for, has problems.")
UNREADABLE_FILE = Code("unreadable-file", "A file can't be read, or isn't text in UTF-8.")
DISK_FULL = Code("disk-full", "A disk has no space left.")
FILE_SYSTEM = Code("file-system", "The operating system refuses to read or write a file or a stream.")
NO_LOCKS = Code("no-locks", "A file system has no locks.")
CHANGED_WHILE_READ = Code("changed-while-read", "A file was changed while it was read.")
ALREADY_EXISTS = Code("already-exists", "What would be written is there already.")
NOT_A_FILE = Code("not-a-file", "A link, a broken one or a special file is where a file is needed.")
NOT_A_FOLDER = Code("not-a-folder", "There is no folder of that name.")
INTERRUPTED = Code("interrupted", "Ctrl-C or SIGTERM stopped the command.")
OUT_OF_MEMORY = Code("out-of-memory", "A process ran out of memory.")
BAD_PLACE = Code("bad-place", "The current folder is gone, or a path that qpack is given isn't UTF-8.")


@dataclass(frozen=True)
class Location:
    """Where a problem is; what isn't known is empty.

    `file` as the user named it, with a `line` from 1; an `option` of the command line as it was given; the `key` of a
    recipe, a manifest or a config; the `name` of a layer, a tensor or a part of a release, and of how many `more` the
    same is true.
    """

    file: str = ""
    line: int | None = None
    option: str = ""
    key: KeyPath = ()
    name: str = ""
    more: int = 0

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        # `--set quantize.group_size`, `recipe.yaml:3: quantize.group_size`
        option = f"{self.option} {dotted(self.key)}".strip() if self.option else dotted(self.key)
        name = f"{self.name} and {self.more} more" if self.more else self.name
        return ": ".join(filter(None, (place, option, name)))


def dotted(at: KeyPath) -> str:
    """`('evaluate', 'tasks', 0, 'task')` as `evaluate.tasks[0].task`."""
    text = ""
    for part in at:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def named(names: Sequence[str], part: str = "") -> Location:
    """The first of some layers or tensors, with the part of it that is wrong, and how many more there are."""
    return Location(name=f"{names[0]}.{part}" if part else names[0], more=len(names) - 1)


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong, or worth knowing. `fixable`: `qpack doctor --fix` repairs this one."""

    code: Code
    message: str
    where: Location = Location()
    hint: str = ""
    severity: Severity = "error"
    fixable: bool = False

    def __str__(self) -> str:
        """As every command prints it.

        `error[group-size] recipe.yaml:3: quantize.group_size: groups of 128 don't divide 576 input channels. Use 64.`
        """
        return f"{self.severity}[{self.code}] {self.text}"

    @property
    def text(self) -> str:
        """Place, message and hint, as a sentence of a longer text has them."""
        end = "." if self.hint and self.message[-1:] not in tuple(".?!:") else ""
        message = " ".join(filter(None, (f"{self.message}{end}", self.hint)))
        return f"{place}: {message}" if (place := str(self.where)) else message

    def as_json(self) -> dict[str, Any]:
        """The same for programs: `location` has the parts of the place. `where` is its text: the line of a file, where
        there is one.
        """
        where = replace(self.where, key=(), name="") if self.where.line else self.where
        return {
            "severity": self.severity,
            "code": self.code.name,
            "what": self.message,
            "where": str(replace(where, more=0)),
            "location": asdict(self.where),
            "hint": self.hint,
        }


def of_layers(found: Iterable[tuple[str, str, Problem]]) -> list[Problem]:
    """Problems of layers (name, part of the layer, problem without a place); the same of several layers as one."""
    layers: dict[tuple[str, Problem], list[str]] = {}
    for name, part, problem in found:
        layers.setdefault((part, problem), []).append(name)
    return [replace(problem, where=named(names, part)) for (part, problem), names in layers.items()]


def declared_elsewhere(name: str) -> Code:
    """A code that another process printed. Raises ValueError for a text that is none."""
    return Code(name, "")


def from_json(told: dict[str, Any]) -> Problem:
    """A problem that another process printed with `as_json`."""
    at = told["location"]
    where = Location(**{**at, "key": tuple(at["key"])})
    return Problem(declared_elsewhere(told["code"]), told["what"], where, told["hint"], told["severity"])


def worst_first(problems: Iterable[Problem]) -> tuple[Problem, ...]:
    """Errors, then warnings, then notes; each in the order given."""
    return tuple(sorted(problems, key=lambda problem: _SEVERITIES.index(problem.severity)))
