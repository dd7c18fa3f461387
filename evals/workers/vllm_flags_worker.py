"""Parses server arguments with the installed vLLM's own parser. Runs in vLLM's environment."""

import argparse
import json
from typing import Union

import qpack_worker
from vllm_flags_job import CommandsAnswer, CommandsJob, Parsed, TableAnswer, TableJob


class Refused(Exception):
    """An error for which the parser would exit."""


def ask(job, _out):
    """Parse the arguments with the real parser."""
    import vllm

    try:
        make_arg_parser, validate_api_server_args = _parser_of_the_server()
        from vllm.model_executor.layers.quantization import QUANTIZATION_METHODS
        from vllm.utils.argparse_utils import FlexibleArgumentParser
    except ImportError as error:
        qpack_worker.fail(
            f"vLLM {vllm.__version__} has its server's parser in another module: {error}",
            "Flags are checked against vLLM 0.26 to 0.33. Lint with one of these.",
        )
    parser = make_arg_parser(FlexibleArgumentParser(prog="vllm serve"))

    def refuse(message):
        raise Refused(message)

    parser.error = refuse
    if isinstance(job, TableJob):
        return TableAnswer(vllm.__version__, _table(parser), tuple(_variables()))
    known = {option for action in parser._actions for option in action.option_strings}
    answers = tuple(_answer(parser, known, given, validate_api_server_args) for given in job.commands)
    return CommandsAnswer(vllm.__version__, tuple(sorted(known)), tuple(QUANTIZATION_METHODS), answers)


def _parser_of_the_server():
    """The function that makes the parser, and the one that resolves names in its result (moved in vLLM 0.32)."""
    try:
        from vllm.entrypoints.launchers.cli_args import make_arg_parser
        from vllm.entrypoints.launchers.launcher import validate_api_server_args
    except ImportError:
        from vllm.entrypoints.openai.api_server import validate_api_server_args
        from vllm.entrypoints.openai.cli_args import make_arg_parser
    return make_arg_parser, validate_api_server_args


def _answer(parser, known, given, names_of_parsers):
    names = [word.partition("=")[0] for word in given if word.startswith("--")]
    # argparse accepts an unambiguous prefix of a flag.
    unknown = [name for name in names if name not in known]
    error = None
    if not unknown:
        try:
            parsed = parser.parse_args(list(given))
            # argparse accepts any name of a tool or reasoning parser; the server checks it before it loads the model.
            # Names from plugins are unknown here: plugins aren't run.
            if not (parsed.tool_parser_plugin or parsed.reasoning_parser_plugin):
                parsed.structured_outputs_config.reasoning_parser = parsed.reasoning_parser or (
                    parsed.structured_outputs_config.reasoning_parser
                )
                names_of_parsers(parsed)
        except KeyError as refused:
            error = str(refused.args[0])
        except (Refused, ValueError, TypeError) as refused:
            error = str(refused)
    return Parsed(tuple(unknown), error)


def _table(parser):
    """Flag (its first long name, without dashes) -> what it accepts."""
    names, ranges, fields = _registered_names(), _ranges(), _fields()
    flags = {}
    for action in parser._actions:
        flag = next((o.removeprefix("--") for o in action.option_strings if o.startswith("--")), None)
        if flag in (None, "help"):
            continue
        entry = {**_taken(action), **ranges.get(action.dest, {})}
        if flag in names:
            entry["choices"] = sorted(names[flag])
        if flag in fields:
            entry["fields"] = fields[flag]
        flags[flag] = entry
    return dict(sorted(flags.items()))


def _taken(action):
    """Type, choices and number of values of one action of argparse."""
    if isinstance(action, argparse.BooleanOptionalAction):
        return {"type": "switch", "default": action.default}
    if action.nargs == 0:
        return {"type": "on"}
    entry = {"type": _type(action.type)}
    choices = action.choices or (action.metavar if isinstance(action.metavar, list) else None)
    if choices:
        entry["choices"] = sorted({str(choice) for choice in choices} - {"None"})
    if isinstance(action, argparse._AppendAction):
        entry["many"] = "append"
    elif action.nargs in ("+", "*"):
        entry["many"] = "list"
    return entry


def _type(convert):
    """`int`, `size` (an int that may have a suffix such as 2k), `float`, `json` or `text`."""
    name = getattr(convert, "__name__", "")
    # optional_type and parse_type wrap the type that they convert to.
    inner = [cell.cell_contents for cell in getattr(convert, "__closure__", None) or ()]
    if name in ("_optional_type", "_parse_type") and inner:
        return _type(inner[0])
    if name == "parse_dataclass" or convert is json.loads or name == "union_dict_and_str":
        return "json"
    known = {"int": "int", "float": "float", "human_readable_int": "size", "human_readable_int_or_auto": "size"}
    return known.get(name, "text")


def _registered_names():
    """Flags whose names vLLM keeps in registries of its own, where argparse takes any text."""
    from vllm.config.vllm import OptimizationLevel
    from vllm.model_executor.model_loader import _LOAD_FORMAT_TO_MODEL_LOADER
    from vllm.reasoning import ReasoningParserManager
    from vllm.tokenizers.registry import _VLLM_TOKENIZERS
    from vllm.tool_parsers import ToolParserManager
    from vllm.v1.attention.backends.registry import AttentionBackendEnum

    return {
        "tool-call-parser": ToolParserManager.list_registered(),
        "reasoning-parser": ReasoningParserManager.list_registered(),
        "load-format": _LOAD_FORMAT_TO_MODEL_LOADER,
        # "slow" and "auto" are no classes: the server chooses one.
        "tokenizer-mode": {"auto", "slow", *_VLLM_TOKENIZERS},
        "attention-backend": AttentionBackendEnum.__members__,
        "optimization-level": {str(level.value) for level in OptimizationLevel},
    }


def _ranges():
    """Bounds by field name, where all configurations with that field agree."""
    import dataclasses

    import vllm.config

    found = {}
    for kind in vars(vllm.config).values():
        if isinstance(kind, type) and dataclasses.is_dataclass(kind):
            for name, field in getattr(kind, "__pydantic_fields__", {}).items():
                found.setdefault(name, []).append(_bounds(field))
    return {name: bounds[0] for name, bounds in found.items() if all(other == bounds[0] for other in bounds)}


def _bounds(field):
    names = {"ge": "least", "gt": "above", "le": "most", "lt": "below"}
    return {
        names[bound]: getattr(part, bound)
        for part in field.metadata
        for bound in names
        if isinstance(getattr(part, bound, None), (int, float))
    }


def _fields():
    """Types of the keys of JSON flags, by flag."""
    from vllm.config import SpeculativeConfig, StructuredOutputsConfig
    from vllm.engine.arg_utils import _compute_kwargs
    from vllm.reasoning import ReasoningParserManager

    found = {}
    for flag, kind in (
        ("speculative-config", SpeculativeConfig),
        ("structured-outputs-config", StructuredOutputsConfig),
    ):
        parser = argparse.ArgumentParser(allow_abbrev=False)
        for name, more in _compute_kwargs(kind).items():
            parser.add_argument(f"--{name}", **{key: value for key, value in more.items() if key != "help"})
        found[flag] = {
            action.dest: {**_taken(action), **_bounds(kind.__pydantic_fields__[action.dest])}
            for action in sorted(parser._actions, key=lambda action: action.dest)
            if action.dest != "help"
        }
    names = sorted(ReasoningParserManager.list_registered())
    found["structured-outputs-config"]["reasoning_parser"]["choices"] = names
    return found


def _variables():
    """The environment variables that vLLM reads."""
    from vllm import envs

    return sorted(envs.environment_variables)


if __name__ == "__main__":
    qpack_worker.main(ask, Union[CommandsJob, TableJob])
