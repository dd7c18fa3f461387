"""How the help names arguments and values, as most command lines do: `qpack serve [OPTIONS] REF`, `--port PORT`."""

from __future__ import annotations

import re
from typing import Any

from typer.core import TyperCommand

_TYPE = re.compile(r" <([^>]*)>$")


def argument(parameter: Any) -> str:
    """An argument's name: in brackets where it can be left out, with dots where it can be repeated."""
    name = str(parameter.metavar or parameter.name.upper())
    name = name if parameter.required else f"[{name}]"
    return f"{name}..." if parameter.nargs == -1 else name


def option(parameter: Any, ctx: Any) -> tuple[str, str]:
    """An option with its value, and its help. The value's name: its choices, or the last word of the option's."""
    name, text = parameter.get_help_record(ctx)
    if (found := _TYPE.search(name)) is None:
        return name, text
    value = found[1] if "|" in found[1] else parameter.name.upper().rpartition("_")[2]
    return _TYPE.sub(f" {value}", name), text


class Command(TyperCommand):
    """A command whose help has names of values where typer's has Python types."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """The parts of the line of usage."""
        arguments = [argument(each) for each in self.get_params(ctx) if each.param_type_name == "argument"]
        return ["[OPTIONS]", *arguments]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write arguments, then options."""
        shown = [each for each in self.get_params(ctx) if not getattr(each, "hidden", False)]
        arguments = [(argument(each), _help(each, ctx)) for each in shown if each.param_type_name == "argument"]
        if arguments:
            with formatter.section("Arguments"):
                formatter.write_dl(arguments)
        with formatter.section("Options"):
            formatter.write_dl([option(each, ctx) for each in shown if each.param_type_name == "option"])


def _help(parameter: Any, ctx: Any) -> str:
    return str(parameter.get_help_record(ctx)[1])
