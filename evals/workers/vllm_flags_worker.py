"""Asks the parser of the vLLM that is installed here about arguments of its server. Runs in vLLM's environment.

The job: `arguments`, as the server would get them. The result: `version`, `unknown` (flags that this parser doesn't
have, in full), `error` (what the parser says to the rest), and `quantization` (the methods that this vLLM can load).
"""

import qpack_worker


class Refused(Exception):
    """What the parser would have ended the process with."""


def ask(job):
    """Parse the arguments with the real parser."""
    import vllm
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.model_executor.layers.quantization import QUANTIZATION_METHODS
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = make_arg_parser(FlexibleArgumentParser(prog="vllm serve"))

    def refuse(message):
        raise Refused(message)

    parser.error = refuse
    known = {option for action in parser._actions for option in action.option_strings}
    given = job["arguments"]
    names = [word.partition("=")[0] for word in given if word.startswith("--")]
    # The parser would take the beginning of a flag for the flag, as long as no other begins so.
    unknown = [name for name in names if name not in known]
    error = None
    if not unknown:
        try:
            parser.parse_args(given)
        except (Refused, ValueError, TypeError) as refused:
            error = str(refused)
    return {
        "version": vllm.__version__,
        "unknown": unknown,
        "known": sorted(known),
        "error": error,
        "quantization": list(QUANTIZATION_METHODS),
    }


if __name__ == "__main__":
    qpack_worker.main(ask)
