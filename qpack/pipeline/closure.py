"""The code that can change a result: the import closure of the modules that make it, computed from the source.

Nothing is imported. A file's imports (inside functions too), and the files that it names by `Path(__file__).parent /
"..."` (or `parents[1]`) or with `importlib.resources`, lead to other files, until nothing new is found. Imports under
`if TYPE_CHECKING:` don't run, and don't count. A worker script runs in a foreign interpreter: what it imports is looked
for beside it and in the library of workers.

A module counts by its tokens without comments, docstrings, layout and `__version__`, so a reworded comment renews
nothing. The digests are the same in every version of Python. Any other file counts by its bytes.

A stage's module also has what plans and prints the stage, which is in no key. So modules of `STAGES` count by
definition: `module:name` is a top-level name with every top-level name of its module that it uses. `from stage import
name` leads to that definition alone.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
import io
import os
import tokenize
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).parents[2]
"""The folder that holds the packages."""

PACKAGES = ("qpack", "quantize", "evals", "registry")
STAGES = "qpack/pipeline/stages/"
WORKERLIB = "qpack/runtime/workerlib"
# Libraries whose version can change a figure. Others carry text and data.
NUMERIC = ("numpy", "scipy")

_DIGITS = 16  # of a module's digest: 64 bits, for no more than a few hundred modules
_LAYOUT = {tokenize.COMMENT, tokenize.NL, tokenize.ENCODING, tokenize.ENDMARKER}
# Python 3.12 has tokens inside of f-strings, 3.14 of template strings.
_F_STRING = {
    getattr(tokenize, f"{kind}STRING_{name}", -1): step for kind in "FT" for name, step in (("START", 1), ("END", -1))
}


@dataclass(frozen=True)
class Facts:
    """The facts of one file: its digest, the modules that it imports, the paths that it names, relative to the root.

    `imports` are dotted names; `from a import b` gives `a:b`.
    """

    digest: str
    imports: tuple[str, ...] = ()
    files: tuple[str, ...] = ()


@dataclass
class Reader:
    """Reads files below `root`. `known` maps the SHA-256 of a file at a path to its facts, and is added to."""

    root: Path = ROOT
    known: dict[str, Facts] = field(default_factory=dict)
    _seen: dict[str, Facts] = field(default_factory=dict)
    _there: dict[str, str | None] = field(default_factory=dict)
    _after: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def closure(self, entries: Iterable[str]) -> dict[str, str]:
        """Path -> digest for every file that `entries` lead to: modules by dotted name, definitions as `module:name`,
        or files by path. A definition is in it as `path:name`.

        Numeric libraries are in it by name and version (`numpy==2.4.0`). Raises FileNotFoundError for an entry that
        isn't there.
        """
        found: dict[str, str] = {}
        waiting = [self._entry(name) for name in entries]
        while waiting:
            path = waiting.pop()
            if path in found:
                continue
            facts = self.facts(path)
            found[path] = facts.digest
            if path not in self._after:
                self._after[path] = tuple(self._next(path, facts))
            waiting += self._after[path]
            used = {name.partition(":")[0] for name in facts.imports}
            found |= {library: _version(library) for library in NUMERIC if library in used}
        return dict(sorted(found.items()))

    def facts(self, path: str) -> Facts:
        """The facts of one file, or of one definition in it (`path:name`)."""
        if path not in self._seen:
            file, _, name = path.partition(":")
            data = (self.root / file).read_bytes()
            key = hashlib.sha256(f"{path}\0".encode() + data).hexdigest()
            if key not in self.known:
                self.known[key] = facts_of(file, data, name or None)
            self._seen[path] = self.known[key]
        return self._seen[path]

    def _entry(self, name: str) -> str:
        if "/" in name:
            return name
        dotted, colon, definition = name.partition(":")
        found = self._module(dotted)
        if found is None:
            raise FileNotFoundError(f"no module {dotted} in {self.root}")
        return f"{found}{colon}{definition}"

    def _next(self, path: str, facts: Facts) -> Iterator[str]:
        beside = PurePosixPath(path.partition(":")[0]).parent.as_posix()
        for name in facts.imports:
            if name.replace(":", ".").partition(".")[0] in PACKAGES:
                yield from self._packages(name)
            else:
                # A worker's script: its folder and the library of workers are on its path.
                dotted = name.replace(":", ".")
                for near in (f"{folder}/{each}" for folder in (beside, WORKERLIB) for each in _prefixes(dotted)):
                    if (module := self._module(near.replace("/", "."))) is not None:
                        yield module
        for named in facts.files:
            if (self.root / named).is_file():
                yield named
            elif (self.root / named).is_dir():
                # A worker that is a folder. Data in a folder is named file by file, or is in a key of its own.
                yield from (
                    file.relative_to(self.root).as_posix() for file in sorted((self.root / named).rglob("*.py"))
                )

    def _packages(self, name: str) -> Iterator[str]:
        dotted, _, definition = name.partition(":")
        for each in _prefixes(name.replace(":", ".")):
            found = self._module(each)
            if found is not None and definition and each == dotted and found.startswith(STAGES):
                # `from qpack.pipeline.stages import fetch` names a module, and `__init__.py` has no definition of it.
                yield found if self._module(f"{dotted}.{definition}") else f"{found}:{definition}"
            elif found is not None:
                yield found

    def _module(self, name: str) -> str | None:
        if name not in self._there:
            base = name.replace(".", "/")
            options = (f"{base}.py", f"{base}/__init__.py")
            self._there[name] = next((each for each in options if os.path.isfile(f"{self.root}/{each}")), None)  # noqa: PTH113  (asked two thousand times a plan)
        return self._there[name]


def digest_of(modules: Mapping[str, str]) -> str:
    """One SHA-256 of a closure."""
    return hashlib.sha256("".join(f"{name}\0{found}\n" for name, found in sorted(modules.items())).encode()).hexdigest()


def facts_of(path: str, data: bytes, name: str | None = None) -> Facts:
    """The facts of a file with this content, or of its definition `name`.

    Raises SyntaxError for Python that isn't, NameError where there is no such definition.
    """
    if not path.endswith(".py"):
        return Facts(hashlib.sha256(data).hexdigest()[:_DIGITS])
    tree = ast.parse(data, path)
    skipped = _never_run(tree)
    statements: list[ast.stmt] = tree.body if name is None else _used_by(name, tree)
    nodes = [node for statement in statements for node in ast.walk(statement) if id(node) not in skipped]
    found = words(data) if name is None else [word for each in statements for word in _words_of(each, data)]
    return Facts(
        hashlib.sha256("\0".join(found).encode()).hexdigest()[:_DIGITS],
        tuple(dict.fromkeys(_imports(nodes, path))),
        tuple(dict.fromkeys(_files(tree, nodes, path))),
    )


def _prefixes(dotted: str) -> list[str]:
    """`a`, `a.b`, `a.b.c`."""
    parts = dotted.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts) + 1)]


def _used_by(name: str, tree: ast.Module) -> list[ast.stmt]:
    """The top-level statements that bind `name` and every name it uses, in the file's order.

    An import counts for the names that are used of it. A statement that binds nothing (a call, a loop) always counts:
    it may change what the others have bound.
    """
    bound: dict[str, list[ast.stmt]] = {}
    order: list[ast.stmt] = []
    always: list[ast.stmt] = []
    skipped = _never_run(tree)
    for statement in tree.body:
        for part in _parts(statement, skipped):
            order.append(part)
            names = _bound(part)
            for each in names:
                bound.setdefault(each, []).append(part)
            if not names and not _is_text(part):
                always.append(part)
    if name not in bound:
        raise NameError(f"no definition of {name}")
    found: dict[int, ast.stmt] = {}
    waiting = [*bound[name], *always]
    while waiting:
        part = waiting.pop()
        if id(part) not in found:
            found[id(part)] = part
            used = {node.id for node in ast.walk(part) if isinstance(node, ast.Name)}
            waiting += [each for one in used for each in bound.get(one, ())]
    return [part for part in order if id(part) in found]


def _parts(statement: ast.stmt, skipped: set[int]) -> list[ast.stmt]:
    """A top-level statement; an import as one for each name, and nothing for `if TYPE_CHECKING:`."""
    if isinstance(statement, ast.Import | ast.ImportFrom):
        if isinstance(statement, ast.ImportFrom) and statement.module == "__future__":
            return []
        names = (ast.Import(names=[alias]) if isinstance(statement, ast.Import) else
                 ast.ImportFrom(statement.module, [alias], statement.level) for alias in statement.names)  # fmt: skip
        return list(names)
    if isinstance(statement, ast.If) and any(id(inside) in skipped for inside in statement.body):
        return list(statement.orelse)
    return [statement]


def _bound(statement: ast.stmt) -> list[str]:
    if isinstance(statement, ast.Import | ast.ImportFrom):
        return [alias.asname or alias.name.partition(".")[0] for alias in statement.names]
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [statement.name]
    if isinstance(statement, ast.Assign):
        return [node.id for target in statement.targets for node in ast.walk(target)
                if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)]  # fmt: skip
    if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
        return [statement.target.id]
    return []


def _is_text(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def _words_of(statement: ast.stmt, data: bytes) -> list[str]:
    if isinstance(statement, ast.Import | ast.ImportFrom):
        return words(ast.unparse(statement).encode())
    first = min([statement.lineno, *(each.lineno for each in getattr(statement, "decorator_list", []))])
    lines = data.splitlines(keepends=True)[first - 1 : statement.end_lineno]
    return words(b"".join(lines))


def words(source: bytes) -> list[str]:
    """The tokens of Python source that can matter: no comments, no strings on their own, no layout.

    An f-string is one token, as it was before Python 3.12.
    """
    found: list[str] = []
    statement: list[tuple[int, str]] = []
    lines = io.BytesIO(source)
    text = source.decode("utf-8-sig").splitlines(keepends=True)
    deep, start = 0, (0, 0)
    for token in tokenize.tokenize(lines.readline):
        step = _F_STRING.get(token.type, 0)
        if step == 1 and deep == 0:
            start = token.start
        deep += step
        if step == -1 and deep == 0:
            statement.append((tokenize.NAME, _span(text, start, token.end)))
        elif step or deep or token.type in _LAYOUT:
            continue
        elif token.type in (tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT):
            if token.type != tokenize.NEWLINE:
                found.append("INDENT" if token.type == tokenize.INDENT else "DEDENT")
            elif not _says_nothing(statement):
                found += [word for _, word in statement] + ["NEWLINE"]
            statement = []
        else:
            statement.append((token.type, token.string))
    return found


def _says_nothing(statement: list[tuple[int, str]]) -> bool:
    """Whether it is a string on its own, or the version's number."""
    if [word for _, word in statement[:2]] == ["__version__", "="]:
        return True
    return all(kind == tokenize.STRING and not _formatted(word) for kind, word in statement)


def _formatted(word: str) -> bool:
    return "f" in word[: min(word.find(quote) % 9 for quote in "'\"")].lower()


def _span(lines: list[str], start: tuple[int, int], end: tuple[int, int]) -> str:
    if start[0] == end[0]:
        return lines[start[0] - 1][start[1] : end[1]]
    return "".join((lines[start[0] - 1][start[1] :], *lines[start[0] : end[0] - 1], lines[end[0] - 1][: end[1]]))


def _never_run(tree: ast.AST) -> set[int]:
    """The nodes below `if TYPE_CHECKING:`."""
    return {
        id(below)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")
        for inside in node.body
        for below in ast.walk(inside)
    }


def _imports(nodes: Iterable[ast.AST], path: str) -> Iterator[str]:
    package = PurePosixPath(path).parent.parts
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join((*above, *([node.module] if node.module else [])))
            yield from (f"{base}:{alias.name}" for alias in node.names)


def _files(tree: ast.Module, nodes: Iterable[ast.AST], path: str) -> Iterator[str]:
    """Files named by a path that starts at `__file__`, or in a package's resources."""
    known: dict[str, PurePosixPath] = {}
    for statement in tree.body:
        if isinstance(statement, ast.Assign) and len(statement.targets) == 1:
            target, place = statement.targets[0], _place(statement.value, path, known)
            if isinstance(target, ast.Name) and place is not None:
                known[target.id] = place
    asked = [node for node in nodes if isinstance(node, ast.BinOp | ast.Call | ast.Attribute)]
    # `here / "workers" / "x.py"` names one file, and not the folder on the way to it.
    on_the_way = {id(base) for node in asked if (base := _base(node)) is not None}
    for node in asked:
        if isinstance(node, ast.Call):
            yield from _resource(node, path)
        if isinstance(node, ast.Attribute) or id(node) in on_the_way:
            continue
        if (place := _place(node, path, known)) is not None:
            yield place.as_posix()


def _base(node: ast.BinOp | ast.Call | ast.Attribute) -> ast.AST | None:
    if isinstance(node, ast.BinOp):
        return node.left
    if isinstance(node, ast.Attribute):
        return node.value
    return node.func.value if isinstance(node.func, ast.Attribute) else None


def _place(node: ast.AST, path: str, known: Mapping[str, PurePosixPath]) -> PurePosixPath | None:
    """The value of an expression of paths, relative to the root; None for any other expression."""
    if isinstance(node, ast.Name):
        return known.get(node.id)
    if isinstance(node, ast.Attribute) and node.attr == "parent":
        below = _place(node.value, path, known)
        return below.parent if below is not None else None
    if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Attribute) and node.value.attr == "parents":
        below = _place(node.value.value, path, known)
        up = node.slice.value if isinstance(node.slice, ast.Constant) else None
        return below.parents[up] if below is not None and isinstance(up, int) and up < len(below.parents) else None
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div) and isinstance(node.right, ast.Constant):
        left = _place(node.left, path, known)
        return left / str(node.right.value) if left is not None else None
    if not isinstance(node, ast.Call):
        return None
    if isinstance(node.func, ast.Name) and node.func.id == "Path" and len(node.args) == 1:
        given = node.args[0]
        return PurePosixPath(path) if isinstance(given, ast.Name) and given.id == "__file__" else None
    if isinstance(node.func, ast.Attribute) and node.func.attr in ("resolve", "absolute", "with_name", "joinpath"):
        base = _place(node.func.value, path, known)
        names = [arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
        if base is None or len(names) != len(node.args):
            return None
        return base.parent.joinpath(*names) if node.func.attr == "with_name" else base.joinpath(*names)
    return None


def _resource(node: ast.Call, path: str) -> Iterator[str]:
    """`resources.files(...).joinpath("name")`, `loader.get_template("name")`: a file beside the module."""
    if isinstance(node.func, ast.Attribute) and node.func.attr in ("joinpath", "get_template"):
        for arg in node.args:
            if isinstance(arg, ast.Constant) and isinstance(arg.value, str) and "." in arg.value:
                yield (PurePosixPath(path).parent / arg.value).as_posix()


@functools.cache
def _version(library: str) -> str:
    import importlib.metadata

    return importlib.metadata.version(library)


def analysis() -> str:
    """The version of this analysis: facts are reused by the same version alone."""
    return hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:_DIGITS]


def beside_the_code() -> Path:
    """Where facts are kept for every user and store: a file beside Python's own bytecode of this module."""
    return Path(importlib.util.cache_from_source(__file__)).with_name(f"closure-{analysis()}.json")


def to_note(known: Mapping[str, Facts]) -> dict[str, object]:
    """Facts as plain data, for a file that keeps them from one process to the next."""
    return {key: asdict(facts) for key, facts in known.items()}


def from_note(note: Mapping[str, object]) -> dict[str, Facts]:
    """Back from plain data. What isn't facts is dropped, and read again."""
    found = {}
    for key, value in note.items():
        if isinstance(value, dict) and value.keys() == {"digest", "imports", "files"}:
            found[key] = Facts(str(value["digest"]), tuple(value["imports"]), tuple(value["files"]))
    return found
