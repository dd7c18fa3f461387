"""Asks the parser of the vLLM that is installed here about arguments of its server. Runs in vLLM's environment.

The job: `commands`, a list of argument lists. The result: `version`, `known` (every flag), `quantization` (the methods
that this vLLM can load), and for each command in `answers`: `unknown` (flags that this parser doesn't have, in full)
and `error` (what the parser says to the rest).
"""

import qpack_worker


class Refused(Exception):
    """What the parser would have ended the process with."""


def ask(job):
    """Parse the arguments with the real parser."""
    import vllm
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.entrypoints.launchers.launcher import validate_api_server_args
    from vllm.model_executor.layers.quantization import QUANTIZATION_METHODS
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = make_arg_parser(FlexibleArgumentParser(prog="vllm serve"))

    def refuse(message):
        raise Refused(message)

    parser.error = refuse
    known = {option for action in parser._actions for option in action.option_strings}
    answers = [_answer(parser, known, given, validate_api_server_args) for given in job["commands"]]
    return {
        "version": vllm.__version__,
        "known": sorted(known),
        "quantization": list(QUANTIZATION_METHODS),
        "answers": answers,
    }


def _answer(parser, known, given, names_of_parsers):
    names = [word.partition("=")[0] for word in given if word.startswith("--")]
    # The parser would take the beginning of a flag for the flag, as long as no other begins so.
    unknown = [name for name in names if name not in known]
    error = None
    if not unknown:
        try:
            parsed = parser.parse_args(given)
            # The parser takes any name of a tool or reasoning parser; the server asks for it before it loads the model.
            # One that a plugin brings isn't known here, and the plugin isn't run.
            if not (parsed.tool_parser_plugin or parsed.reasoning_parser_plugin):
                parsed.structured_outputs_config.reasoning_parser = parsed.reasoning_parser or (
                    parsed.structured_outputs_config.reasoning_parser
                )
                names_of_parsers(parsed)
        except KeyError as refused:
            error = str(refused.args[0])
        except (Refused, ValueError, TypeError) as refused:
            error = str(refused)
    return {"unknown": unknown, "error": error}


if __name__ == "__main__":
    qpack_worker.main(ask)
