"""Regular expressions for layer names, matched like Python's `re.match` but with bounded work.

Engines and servers pass the same expressions to `re`, which backtracks: `(a+)+$` doubles the work with each character.
Expressions with little backtracking are passed to `re` here too. Others are simulated as an NFA: all reachable
positions at once, as bits of an integer, in time proportional to the lengths of expression and name. The simulation
supports classes, groups, repeats, anchors, lookahead and lookbehind; an expression that backtracks much and needs more
(backreferences, other flags) is refused. Law: the result equals that of `re.match`.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any

# Private, available from Python 3.11 on; hypothesis uses it too.
_parser: Any = re._parser  # type: ignore[attr-defined]
_constants: Any = re._constants  # type: ignore[attr-defined]

MAX_LENGTH = 10_000
"""Characters of an expression."""
MAX_STEPS = 200_000
"""Steps of the simulation for one expression and one name."""
# Up to this number of paths for a name of that length, `re` is fast.
_WAYS, _NAME = 20_000, 256
_MAX_REPEAT = 1000
# With IGNORECASE, Python's compiler visits every character of a range.
_MAX_RANGE = 1000
_MAX_NESTING = 40

Items = Any
"""A sequence of `re`'s parse tree: (operation, argument)."""
Matches = Callable[[str], bool]


class PatternError(ValueError):
    """Why an expression is refused, as the end of a sentence about it."""


@functools.lru_cache(maxsize=4096)
def compiled(expression: str) -> Matches:
    """Whether a name matches, from its start. Raises PatternError, also for a name that takes more than MAX_STEPS."""
    if len(expression) > MAX_LENGTH:
        raise PatternError(f"has more than {MAX_LENGTH:,} characters")
    try:
        tree = _parser.parse(expression)
        flags = tree.state.flags
        few = _ways(tree, flags, 0, last=True) <= _WAYS
        if few:
            return _plain(re.compile(expression))
    except (RecursionError, OverflowError):
        raise PatternError("is nested too deep, or repeats too often") from None
    except re.error as error:
        raise PatternError(f"not a regular expression: {error}") from None
    if flags & ~(re.VERBOSE | re.UNICODE):
        raise PatternError("has too many ways to match, and flags: write it without nested repeats")
    _known(tree)
    return lambda name: bool(_ends(tree, 1, _Name(name)))


def _plain(found: re.Pattern[str]) -> Matches:
    return lambda name: found.match(name) is not None


def _ways(items: Items, flags: int, nesting: int, *, last: bool) -> int:
    """An upper bound on the paths that `re` tries for a name; `last`: nothing follows."""
    if nesting > _MAX_NESTING:
        raise PatternError("is nested too deep")
    ways = 1
    for i, (operation, argument) in enumerate(items):
        name, end = str(operation), last and i == len(items) - 1
        ways = min(ways * _ways_of(name, argument, flags, nesting + 1, end), _WAYS + 1)
    return ways


def _ways_of(name: str, argument: Any, flags: int, nesting: int, last: bool) -> int:
    if name == "IN" and flags & re.IGNORECASE:
        wide = sum(high - low for kind, pair in argument if str(kind) == "RANGE" for low, high in [pair])
        if wide > _MAX_RANGE:
            raise PatternError("has a range of characters that is too wide where case doesn't matter")
    if name == "BRANCH":
        return sum(_ways(items, flags, nesting, last=last) for items in argument[1])
    if name == "SUBPATTERN":
        return _ways(argument[3], flags | argument[1], nesting, last=last)
    if name in ("ASSERT", "ASSERT_NOT"):
        return _ways(argument[1], flags, nesting, last=False)
    if name == "ATOMIC_GROUP":
        return _ways(argument, flags, nesting, last=False)
    if name == "GROUPREF_EXISTS":
        return sum(_ways(items, flags, nesting, last=last) for items in argument[1:] if items is not None)
    if name not in ("MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT"):
        return 1
    low, high, items = argument
    inside = _ways(items, flags, nesting, last=False)
    if _single(items):
        # Nothing after the last repeat can fail, so it isn't retried.
        return 1 if last and low == 0 else max(1, min(high, _NAME) - low + 1)
    return _WAYS + 1 if high > 1 else 1 + inside


def _single(items: Items) -> bool:
    return len(items) == 1 and str(items[0][0]) in ("LITERAL", "NOT_LITERAL", "ANY", "IN")


_OPERATIONS = {"LITERAL", "NOT_LITERAL", "ANY", "IN", "AT", "BRANCH", "SUBPATTERN", "ASSERT", "ASSERT_NOT", "FAILURE",
               "MAX_REPEAT", "MIN_REPEAT"}  # fmt: skip


def _known(items: Items) -> None:
    """Raise PatternError for operations that the simulation doesn't support."""
    for operation, argument in items:
        name = str(operation)
        if name not in _OPERATIONS or (name == "SUBPATTERN" and (argument[1] or argument[2])):
            raise PatternError("has too many ways to match, and a backreference, a flag or an atomic group")
        if name in ("MAX_REPEAT", "MIN_REPEAT"):
            low, high, inside = argument
            if low > _MAX_REPEAT or _MAX_REPEAT < high < _constants.MAXREPEAT:
                raise PatternError(f"repeats more than {_MAX_REPEAT:,} times")
            _known(inside)
        elif name == "BRANCH":
            for inside in argument[1]:
                _known(inside)
        elif name in ("SUBPATTERN", "ASSERT", "ASSERT_NOT"):
            _known(argument[-1])


class _Name:
    """A name, the positions of its characters (bit i for position i), and the steps so far."""

    def __init__(self, text: str) -> None:
        self.text, self.steps = text, 0
        self.places: dict[str, int] = {}
        for i, character in enumerate(text):
            self.places[character] = self.places.get(character, 0) | 1 << i
        self.classes: dict[int, int] = {}
        self.looked: dict[tuple[int, int], bool] = {}

    def step(self) -> None:
        self.steps += 1
        if self.steps > MAX_STEPS:
            raise PatternError(f"takes more than {MAX_STEPS:,} steps with {self.text[:100]}")

    def where(self, key: int, test: Callable[[str], bool]) -> int:
        """The positions of characters that pass a test; `key` identifies the test."""
        if key not in self.classes:
            self.classes[key] = sum(places for character, places in self.places.items() if test(character))
        return self.classes[key]


def _ends(items: Items, starts: int, name: _Name) -> int:
    """The positions where the items can end, from these starts."""
    for operation, argument in items:
        if not starts:
            break
        name.step()
        starts = _STEPS[str(operation)](argument, starts, name)
    return starts


def _literal(code: int, starts: int, name: _Name) -> int:
    return (starts & name.places.get(chr(code), 0)) << 1


def _not_literal(code: int, starts: int, name: _Name) -> int:
    return (starts & ((1 << len(name.text)) - 1) & ~name.places.get(chr(code), 0)) << 1


def _any(_: Any, starts: int, name: _Name) -> int:
    return _not_literal(ord("\n"), starts, name)


def _in(members: Any, starts: int, name: _Name) -> int:
    return (starts & name.where(id(members), lambda character: _member(members, character))) << 1


_CATEGORIES: dict[str, Callable[[str], bool]] = {
    "DIGIT": str.isdecimal,
    "SPACE": str.isspace,
    "WORD": lambda character: character.isalnum() or character == "_",
}


def _member(members: Any, character: str) -> bool:
    found, negated = False, False
    for kind, argument in members:
        name = str(kind)
        if name == "NEGATE":
            negated = True
        elif name == "LITERAL":
            found |= ord(character) == argument
        elif name == "RANGE":
            found |= argument[0] <= ord(character) <= argument[1]
        else:
            category = str(argument).removeprefix("CATEGORY_")
            found |= _CATEGORIES[category.removeprefix("NOT_")](character) != category.startswith("NOT_")
    return found != negated


def _branch(argument: Any, starts: int, name: _Name) -> int:
    ends = 0
    for items in argument[1]:
        ends |= _ends(items, starts, name)
    return ends


def _repeat(argument: Any, starts: int, name: _Name) -> int:
    low, high, items = argument
    for _ in range(low):
        starts = _ends(items, starts, name)
    # A position that was reached in fewer rounds needs no second visit.
    reached, fresh, rounds = starts, starts, low
    while fresh and rounds < high:
        fresh = _ends(items, fresh, name) & ~reached
        reached |= fresh
        rounds += 1
    return reached


def _look(argument: Any, starts: int, name: _Name) -> int:
    direction, items = argument
    back = items.getwidth()[0] if direction < 0 else 0
    ends = 0
    for at in _bits(starts):
        key = (id(items), at)
        if key not in name.looked:
            found = _ends(items, 1 << (at - back), name) if at >= back else 0
            name.looked[key] = bool(found >> at & 1 if direction < 0 else found)
        ends |= name.looked[key] << at
    return ends


def _bits(number: int) -> list[int]:
    return [at for at in range(number.bit_length()) if number >> at & 1]


def _at(argument: Any, starts: int, name: _Name) -> int:
    text, end = name.text, len(name.text)
    kind = str(argument)
    if kind in ("AT_BEGINNING", "AT_BEGINNING_STRING"):
        return starts & 1
    if kind == "AT_END_STRING":
        return starts & 1 << end
    if kind == "AT_END":
        return starts & (1 << end | (1 << end - 1 if text.endswith("\n") else 0))
    word = name.where(-1, _CATEGORIES["WORD"])
    boundary = word ^ (word << 1)
    every = (1 << end + 1) - 1 if text else 0
    return starts & (boundary if kind == "AT_BOUNDARY" else every & ~boundary)


_STEPS: dict[str, Callable[[Any, int, _Name], int]] = {
    "LITERAL": _literal,
    "NOT_LITERAL": _not_literal,
    "ANY": _any,
    "IN": _in,
    "BRANCH": _branch,
    "SUBPATTERN": lambda argument, starts, name: _ends(argument[3], starts, name),
    "MAX_REPEAT": _repeat,
    "MIN_REPEAT": _repeat,
    "ASSERT": _look,
    "ASSERT_NOT": lambda argument, starts, name: starts & ~_look(argument, starts, name),
    "AT": _at,
    "FAILURE": lambda _argument, _starts, _name: 0,
}
