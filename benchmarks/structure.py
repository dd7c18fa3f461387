"""How many modules name an engine, a stage or a gate, how many a plan runs, and how wide functions are.

`python benchmarks/structure.py [TREE]`: this tree, or a checkout of another commit. Plans the unit tests' recipe, whose
model is a folder of headers, in a home of its own: nothing is built, nothing fetched.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout, suppress
from io import StringIO
from pathlib import Path
from typing import Any

PACKAGES = ("qpack", "quantize", "evals", "registry")
NAMED = {"an engine": "gptqmodel", "a stage": "hold_out", "a gate": "flip_rate"}
_IS_FUNCTION = 0x1  # CO_OPTIMIZED: not the body of a module or of a class


def names(tree: ast.Module) -> Iterator[str]:
    """Everything that a module names: strings but for docstrings, names, attributes, keywords, imports."""
    own = (ast.Module, ast.ClassDef, ast.FunctionDef)
    first = (n.body[0] for n in ast.walk(tree) if isinstance(n, own) and n.body)
    docs = {id(node.value) for node in first if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs:
            yield node.value
        elif isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.keyword) and node.arg:
            yield node.arg
        elif isinstance(node, ast.Import | ast.ImportFrom):
            yield from (alias.name.rpartition(".")[2] for alias in node.names)


def width(node: ast.FunctionDef) -> int:
    """How many parameters a caller can give."""
    given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    return sum(arg.arg not in ("self", "cls") for arg in given)


def of_a_kernel(node: ast.FunctionDef) -> bool:
    """Whether a function is a Triton kernel, whose parameters are pointers and sizes, or calls one with its own."""
    return any("triton" in ast.unparse(each) for each in node.decorator_list) or node.name.endswith("round_block")


def planned(root: Path) -> set[tuple[str, str]]:
    """(module, function) of everything that `qpack plan` runs."""
    ran: set[tuple[str, str]] = set()

    def called(frame: Any, event: str, _: Any) -> None:
        code = frame.f_code
        place = code.co_filename.removeprefix(f"{root}/")
        if event == "call" and code.co_flags & _IS_FUNCTION and place.split("/")[0] in PACKAGES:
            ran.add((place, code.co_name))

    sys.path.insert(0, str(root))
    recipes: Any = importlib.import_module("tests.unit.recipes")
    with tempfile.TemporaryDirectory() as folder:
        recipes.workspace(Path(folder))
        os.environ["QPACK_HOME"] = f"{folder}/home"
        os.chdir(folder)
        sys.argv = ["qpack", "plan", "tiny.yaml"]
        command: Any = importlib.import_module("qpack.cli.app" if (root / "qpack" / "cli").is_dir() else "qpack.cli")
        sys.setprofile(called)
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()), suppress(SystemExit):
            command.main()
        sys.setprofile(None)
        os.chdir(root)
    return ran


def main() -> None:
    """Print the counts."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("tree", type=Path, nargs="?", default=Path(__file__).parents[1], help="a checkout")
    root = parser.parse_args().tree.resolve()
    trees = {p: ast.parse(p.read_text()) for package in PACKAGES for p in sorted((root / package).rglob("*.py"))}
    for what, word in NAMED.items():
        found = [path.relative_to(root).as_posix() for path, tree in trees.items() if word in set(names(tree))]
        print(f"{len(found):4} modules name {what} ({word}): {' '.join(found)}")
    wide = [
        node.name
        for path, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and width(node) > 6 and "commands" not in path.parts
        if not of_a_kernel(node)
    ]
    print(f"{len(wide):4} functions have more than six parameters, but commands and kernels: {' '.join(wide)}")
    ran = planned(root)
    print(f"{len({place for place, _ in ran}):4} modules and {len(ran)} functions are run by a plan")


if __name__ == "__main__":
    main()
