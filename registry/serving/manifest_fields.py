"""Validation of a serving manifest's flags and variables, and messages for invalid fields."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field, JsonValue, PositiveFloat, ValidationError

from qpack.core.problems import Code, Location, Problem
from registry.serving import plain_text

_INVALID_FIELD = Code("invalid-field", "A field of a manifest has a value that it doesn't take.")

Argument = bool | int | float | str | list[str | int | float] | dict[str, JsonValue]

MOST_PROBLEMS = 8
"""The most problems in one message."""

_FLAG = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SECRET = re.compile(r"(^|_)(TOKEN|KEY|SECRET|PASSWORD)$", re.IGNORECASE)
_FIELDS = ("max-model-len", "kv-cache-memory-bytes", "dtype")
_COUNTS = {
    "tensor-parallel-size": "GPUs",
    "pipeline-parallel-size": "groups of GPUs",
    "data-parallel-size": "copies of the model",
}
ONLINE = ("fp8_per_channel", "fp8_per_tensor", "fp8_per_block", "mxfp8", "mxfp4")
"""What vLLM quantizes 16-bit weights to as it loads them."""
_GIVEN = ("model", "model-tag", "served-model-name", "host", "port", "uds", "config", "headless", "grpc", "help")


def _dashes(arguments: object) -> object:
    """Write flags with dashes: to vLLM `max_num_seqs` and `max-num-seqs` are the same."""
    if not isinstance(arguments, dict):
        return arguments
    renamed = {name.replace("_", "-") if isinstance(name, str) else name: value for name, value in arguments.items()}
    if len(renamed) < len(arguments):
        raise ValueError("a flag is given twice, with dashes and with underscores")
    for name in renamed:
        if isinstance(name, str) and name.startswith("no-") and name.removeprefix("no-") in renamed:
            raise ValueError(f"{plain_text.shown(name)}: a flag is given twice, with and without no-")
    return renamed


def _check_arguments(arguments: dict[str, Argument]) -> dict[str, Argument]:
    for flag, value in arguments.items():
        if not _FLAG.fullmatch(flag) or len(flag) > 96:
            shown = plain_text.shown(flag)
            raise ValueError(f"{shown} is not a flag: write it without leading dashes, such as 'enforce-eager'")
        if flag in _FIELDS:
            raise ValueError(f"{flag!r} has a field of its own: set {flag.replace('-', '_')}")
        if flag == "q" or (flag == "quantization" and value not in ONLINE):
            raise ValueError(
                f"remove {flag!r}: vLLM reads it from the checkpoint; to quantize a 16-bit one as it is loaded, set "
                f"'quantization' to one of {', '.join(ONLINE)}"
            )
        if flag in _GIVEN:
            raise ValueError(f"{flag!r} is set when the server is started")
        number = not isinstance(value, bool) and re.fullmatch(r"[1-9]\d{0,5}", str(value))
        if flag in _COUNTS and value is not None and not number:
            raise ValueError(f"{flag!r} has to be a number of {_COUNTS[flag]}, not {plain_text.shown(value)}")
        if flag == "api-key":
            raise ValueError("'api-key' is a secret: set VLLM_API_KEY where the server runs")
        if isinstance(value, list):
            _check_list(flag, value)
    return arguments


def _check_list(flag: str, values: list[str | int | float]) -> None:
    """The values of a list are separate words on the command line; none may look like a flag."""
    if not values:
        raise ValueError(f"{flag!r} is an empty list: the server would read it as a flag without a value")
    for value in values:
        if str(value).startswith("-"):
            raise ValueError(f"{flag!r} has {plain_text.shown(value)} in its list: the server would read it as a flag")


def _check_environment(environment: dict[str, str]) -> dict[str, str]:
    for name in environment:
        if not _VARIABLE.fullmatch(name) or len(name) > 128:
            raise ValueError(f"{plain_text.shown(name)} is not the name of an environment variable")
        if _SECRET.search(name):
            raise ValueError(f"{name!r} looks like a secret: set it where the server runs, not in a manifest")
    return environment


Arguments = Annotated[dict[str, Argument], BeforeValidator(_dashes), AfterValidator(_check_arguments)]
ProfileArguments = Annotated[dict[str, Argument | None], BeforeValidator(_dashes), AfterValidator(_check_arguments)]
Share = Annotated[float, Field(ge=0, le=1)]
Seconds = Annotated[PositiveFloat, Field(allow_inf_nan=False)]
Variables = Annotated[dict[str, str], AfterValidator(_check_environment)]


def problems(error: ValidationError, file: str) -> tuple[Problem, ...]:
    """Pydantic's errors with their fields. Input in messages is made printable."""
    found = []
    for each in error.errors()[:MOST_PROBLEMS]:
        what = each["msg"]
        if each["type"] == "string_pattern_mismatch":
            what = f"{plain_text.shown(each['input'])} isn't allowed here: it has to match {each['ctx']['pattern']}"
        where = Location(file, key=plain_text.key(each["loc"]))
        found.append(Problem(_INVALID_FIELD, what.removeprefix("Value error, "), where))
    return tuple(found)


def refuse_duplicates(pairs: list[tuple[str, JsonValue]]) -> dict[str, JsonValue]:
    """The object of JSON's pairs. Raises ValueError for a duplicate key."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key is given twice, which readers resolve differently")
    return found


def no_constant(name: str) -> JsonValue:
    """Refuse NaN and Infinity, which Python accepts but JSON doesn't have."""
    raise ValueError(f"{name} is not JSON")
