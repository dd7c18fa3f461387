"""The worker that asks vLLM's parser, under a vLLM that keeps it where 0.26 did, and under one that has none there."""

from __future__ import annotations

import venv
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from evals.server import flags
from qpack.core.errors import EvaluateError
from qpack.runtime.variables import Group
from tests.codes import coded

INIT = '__version__ = "{version}"\n'
PARSER = "import argparse\n\n\ndef make_arg_parser(parser):\n    parser.add_argument('--model')\n" \
    "    parser.add_argument('--tool-parser-plugin', default='x')\n    return parser\n"  # fmt: skip
MODULES = {
    "vllm/model_executor/layers/quantization/__init__.py": "QUANTIZATION_METHODS = ['awq']\n",
    "vllm/utils/argparse_utils.py": "from argparse import ArgumentParser as FlexibleArgumentParser\n",
}
AT_026 = {
    "vllm/entrypoints/openai/cli_args.py": PARSER,
    "vllm/entrypoints/openai/api_server.py": "def validate_api_server_args(args):\n    pass\n",
}


@dataclass(frozen=True)
class Here:
    """An interpreter of its own, with a package `vllm` of the layout that a test asks for."""

    python: Path
    name: str = "vllm"
    variables: dict[str, str] = field(default_factory=dict)
    inherits: tuple[Group, ...] = ()


def vllm(folder: Path, version: str, modules: dict[str, str]) -> Here:
    venv.create(folder / "env", symlinks=True)
    (site,) = (folder / "env").glob("lib/python*/site-packages")
    for name, text in {"vllm/__init__.py": INIT.format(version=version), **modules}.items():
        path = site / name
        path.parent.mkdir(parents=True, exist_ok=True)
        for parent in path.relative_to(site).parents:
            if parent.name and not (site / parent / "__init__.py").exists():
                (site / parent / "__init__.py").write_text("")
        path.write_text(text)
    return Here(folder / "env" / "bin" / "python")


def test_a_vllm_that_keeps_its_parser_where_0_26_did_is_asked(tmp_path: Path) -> None:
    here = vllm(tmp_path, "0.26.0", MODULES | AT_026)
    answer = flags.ask(here, [["--model=m"], ["--modle=m"]], out=tmp_path / "out", log=tmp_path / "log")
    assert (answer.version, answer.quantization) == ("0.26.0", ("awq",))
    assert [len(problems) for problems in answer.problems] == [0, 1]


def test_a_vllm_without_the_parser_is_told_by_its_version_with_what_to_do(tmp_path: Path) -> None:
    here = vllm(tmp_path, "0.99.0", MODULES)
    with pytest.raises(EvaluateError, check=coded("worker-failed"), match=r"0\.99\.0") as told:
        flags.ask(here, [["--model=m"]], out=tmp_path / "out", log=tmp_path / "log")
    assert "0.26" in told.value.hint
