"""Every error that a user can meet, with its exit code.

An error says what happened, where, and what to do about it. Code raises one of these; `cli.py` is the only place that
catches them. Anything else that reaches the command line is a bug and exits with 70 (EX_SOFTWARE, as sysexits.h has
it).
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from qpack.core.problems import BAD_RECIPE, INVALID_OPTION, Code, Location, Problem


class QpackError(Exception):
    """What happened (as a code and in words), what to do, and the log to read. Every subclass has its exit code."""

    exit_code: ClassVar[int] = 70
    title: ClassVar[str] = "error"

    def __init__(
        self, code: Code, what: str, *, hint: str = "", log: Path | None = None, problems: tuple[Problem, ...] = ()
    ) -> None:
        super().__init__(what)
        self.code = code
        self.what = what
        self.hint = hint
        self.log = log
        self.problems = problems


class RecipeError(QpackError):
    """The recipe, or what it asks for, can't work. Nothing was started."""

    exit_code = 2
    title = "recipe"
    code_of_all: ClassVar[Code] = BAD_RECIPE

    @classmethod
    def of(cls, problems: list[Problem]) -> RecipeError:
        """One error for every problem of a recipe."""
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        return cls(cls.code_of_all, f"{count}; nothing was started", problems=tuple(problems))


class UsageError(RecipeError):
    """An option or an argument has a value that can't be used. Nothing was started."""

    title = "usage"
    code_of_all = INVALID_OPTION


def invalid_option(option: str, what: str, hint: str = "") -> RecipeError:
    """The error of an option or an argument that has a value which can't be used."""
    return UsageError.of([Problem(INVALID_OPTION, what, Location(option=option), hint)])


class EnvironmentFailed(QpackError):
    """An engine's environment can't be made or doesn't work; the disk, the network, a port or uv is missing."""

    exit_code = 3
    title = "environment"


class QuantizeError(QpackError):
    """Fetching, calibrating or quantizing failed."""

    exit_code = 4
    title = "quantize"


class EvaluateError(QpackError):
    """The server didn't start, died, or gave answers that can't be used."""

    exit_code = 5
    title = "evaluate"


class GateFailed(QpackError):
    """A gate of the recipe failed. The evidence is kept; nothing was published."""

    exit_code = 6
    title = "gate failed"


class GateUndecided(QpackError):
    """The samples don't decide a gate. Nothing was published."""

    exit_code = 7
    title = "gate undecided"


class RegistryError(QpackError):
    """A release can't be read or written."""

    exit_code = 8
    title = "registry"


class Interrupted(QpackError):
    """Ctrl-C or SIGTERM: the work was stopped and what was finished is kept."""

    exit_code = 130
    title = "interrupted"
