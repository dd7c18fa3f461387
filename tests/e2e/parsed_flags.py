"""Run by vLLM's interpreter: what its parser makes of command lines, against what a manifest meant by them.

IN is a list of cases, each with `words` and `wanted` (flag without dashes -> value as the manifest has it). OUT is a
list of answers: `error` (the parser's own refusal) or `wrong` (every flag with another value than wanted, and every
other setting that isn't as without arguments).
"""

import dataclasses
import json
import sys
from pathlib import Path

from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser, human_readable_int


class Refused(Exception):
    """What the parser would have ended the process with."""


def refuse(message):
    raise Refused(message)


def same(wanted, found):
    """Whether the parser's value is the one meant: numbers by value, an object of JSON by the keys that it sets."""
    if dataclasses.is_dataclass(found) and isinstance(wanted, dict):
        return all(hasattr(found, key) and same(value, getattr(found, key)) for key, value in wanted.items())
    if isinstance(wanted, bool) or isinstance(found, bool) or wanted is None:
        return wanted is found
    if isinstance(found, list) and not isinstance(wanted, list):
        return len(found) == 1 and same(wanted, found[0])
    if isinstance(found, list):
        return len(wanted) == len(found) and all(map(same, wanted, found))
    if isinstance(wanted, str) and isinstance(found, dict):
        return json.loads(wanted) == found
    if isinstance(wanted, str) and dataclasses.is_dataclass(found):
        return same(json.loads(wanted), found)
    if isinstance(wanted, str) and isinstance(found, int):
        return human_readable_int(wanted) == found
    if isinstance(wanted, str) and isinstance(found, float):
        return float(wanted) == found
    # A few flags take a number as text.
    return wanted == found or str(wanted) == str(found)


def answer(parser, defaults, case):
    """The parser's answer to one case."""
    try:
        parsed = vars(parser.parse_args(case["words"]))
    except (Refused, ValueError, TypeError, AssertionError, IndexError) as error:
        return {"error": f"{type(error).__name__}: {error}"[:300], "wrong": {}}
    wrong, named = {}, set()
    for flag, wanted in case["wanted"].items():
        action = parser._option_string_actions.get(f"--{flag}")
        dest = action.dest if action is not None else flag
        named.add(dest)
        if action is None or not same(wanted, parsed[dest]):
            wrong[flag] = repr(parsed.get(dest))[:200]
    for dest, value in parsed.items():
        if dest not in named and not (value == defaults[dest] or repr(value) == repr(defaults[dest])):
            wrong[dest] = repr(value)[:200]
    return {"error": None, "wrong": wrong}


def main(given, out):
    """Answer every case of the file `given` in the file `out`."""
    parser = make_arg_parser(FlexibleArgumentParser(prog="vllm serve"))
    parser.error = refuse
    defaults = vars(parser.parse_args([]))
    cases = json.loads(Path(given).read_text("utf-8"))
    Path(out).write_text(json.dumps([answer(parser, defaults, case) for case in cases]), "utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
