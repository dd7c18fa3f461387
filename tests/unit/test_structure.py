"""Claims about how the project is put together, read from its own source: who imports whom, how long a file is."""

from __future__ import annotations

import ast
import functools
import importlib.metadata
import os
import re
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Set
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("qpack", "quantize", "evals", "registry")

# Run by an engine's own interpreter: no qpack is installed there.
STANDALONE = ("workers/", "workerlib/", "evals/tasks/")
# Written by hand, kept by git, read by people: what a claim about text is held against.
TEXTS = ("*.py", "*.md", "*.yaml", "*.yml", "*.toml", "*.jinja", "*.in", "*.json", "Makefile", "run")
NOT_OURS = {"__pycache__", "dist"}


def sources() -> list[Path]:
    """Every Python file of the packages, however deep."""
    return sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def scripts() -> list[Path]:
    """Python beside the packages: benchmarks, and what writes docs, locks and releases."""
    return sorted(
        path for folder in ("benchmarks", "docs", "requirements", ".ci") for path in (ROOT / folder).glob("*.py")
    )


def standalone(path: Path) -> bool:
    return any(part in path.relative_to(ROOT).as_posix() for part in STANDALONE)


@functools.cache
def tree_of(path: Path) -> ast.Module:
    """A file's syntax, parsed once: a dozen claims are about all of them."""
    return ast.parse(path.read_text())


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in sources()}


def imported(path: Path) -> Iterator[str]:
    """Every module that a file imports, at its top or inside a function; a name from a package counts as a module."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = path.relative_to(ROOT).parts[: -node.level] if node.level else ()
            base = ".".join((*package, *filter(None, [node.module])))
            for alias in node.names:
                deeper = f"{base}.{alias.name}"
                yield deeper if deeper in MODULES else base


def arrows() -> dict[str, set[str]]:
    """Module -> the project's own modules that it imports."""
    found = {}
    for name, path in MODULES.items():
        if not standalone(path):
            found[name] = {other for other in imported(path) if other in MODULES} - {name}
    return found


ARROWS = arrows()


def package(module: str) -> str:
    return module.partition(".")[0]


def folder(module: str) -> str:
    """The folder of a module, two levels deep: `qpack.cli.commands.gate` -> `qpack.cli`. The tree decides."""
    path = MODULES[module]
    return ".".join(path.parent.relative_to(ROOT).parts[:2])


def folder_arrows() -> dict[str, set[str]]:
    """Folder -> the folders that its modules import. An empty `__init__.py` imports nothing and is no arrow's end."""
    found: dict[str, set[str]] = defaultdict(set)
    for module, others in ARROWS.items():
        found[folder(module)] |= {folder(other) for other in others if MODULES[other].name != "__init__.py"}
    return {name: others - {name} for name, others in found.items()}


FOLDERS = folder_arrows()


def circle(arrows: Mapping[str, Set[str]]) -> list[str] | None:
    """The first circle among `arrows`, None where they all point down."""
    done: set[str] = set()

    def walk(name: str, path: list[str]) -> list[str] | None:
        if name in path:
            return [*path[path.index(name) :], name]
        if name in done:
            return None
        for other in sorted(arrows.get(name, ())):
            if found := walk(other, [*path, name]):
                return found
        done.add(name)
        return None

    return next((found for name in sorted(arrows) if (found := walk(name, []))), None)


def test_the_arrows_are_read_at_all() -> None:
    assert "quantize.schemes.schemes" in ARROWS["qpack.recipe.recipe_file"], "an import inside a function is seen"
    assert "evals.stats.estimates" in ARROWS["evals.comparison.compare"], "`from package import module` is the module"
    assert "evals.workers.lm_eval_worker" in MODULES, "folders below a package are seen"
    assert folder("qpack.cli.app") == "qpack.cli"
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"a"}}) == ["a", "b", "c", "a"], "a circle is found"


def test_imports_point_down_from_folder_to_folder() -> None:
    assert circle(FOLDERS) is None


def test_no_two_files_import_each_other_in_a_circle() -> None:
    assert circle(ARROWS) is None


def test_core_is_at_the_bottom_and_the_command_line_at_the_top() -> None:
    assert FOLDERS["qpack.core"] == set()
    assert [name for name, others in FOLDERS.items() if "qpack.cli" in others] == []


@pytest.mark.parametrize("name", ["quantize", "evals", "registry"])
def test_quantize_evals_and_registry_do_not_know_each_other(name: str) -> None:
    """They import qpack's folders that know none of the three: what is below them, by the tree itself."""
    below = {f for f, others in FOLDERS.items() if package(f) == "qpack" and {package(o) for o in others} <= {"qpack"}}
    wrong = {
        f"{module} -> {other}"
        for module, others in ARROWS.items()
        if package(module) == name
        for other in others
        if package(other) != name and folder(other) not in below
    }
    assert wrong == set()


def test_relative_imports_are_for_gram_alone_which_is_also_imported_under_its_own_name() -> None:
    relative = {
        folder(module_of(path))
        for path in sources()
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.ImportFrom) and node.level
    }
    assert relative == {"quantize.gram"}


def test_reading_a_recipe_needs_nothing_heavy() -> None:
    needed = ARROWS["qpack.recipe.recipe_file"] | ARROWS["qpack.recipe.models"]
    beyond = {other for other in needed if package(other) != "qpack"}
    assert beyond == {"evals.gates.gates", "quantize.engines.catalog", "quantize.schemes.schemes"}


def test_workers_import_nothing_of_qpack_but_the_worker_protocol() -> None:
    workers = [path for path in sources() if standalone(path)]
    assert len(workers) > 5
    wrong = {
        f"{path.relative_to(ROOT)} -> {other}"
        for path in workers
        for other in imported(path)
        if package(other) in PACKAGES
    }
    assert wrong == set()


def test_gram_which_runs_in_an_engine_environment_knows_nothing_but_itself() -> None:
    inside = {module: others for module, others in ARROWS.items() if f"{module}.".startswith("quantize.gram.")}
    assert len(inside) > 8
    assert {o for others in inside.values() for o in others if not f"{o}.".startswith("quantize.gram.")} == set()


def test_qpack_uses_of_gram_only_what_needs_no_torch() -> None:
    torchless = {"quantize.gram.architectures"}
    used = {
        other
        for module, others in ARROWS.items()
        if not f"{module}.".startswith("quantize.gram.")
        for other in others
        if f"{other}.".startswith("quantize.gram.")
    }
    assert used == torchless
    for module in torchless:
        assert {name.partition(".")[0] for name in imported(MODULES[module])} <= {
            "__future__",
            "collections",
            "re",
            "dataclasses",
        }


def test_no_file_is_longer_than_600_lines() -> None:
    long = {str(path.relative_to(ROOT)): n for path in sources() if (n := len(path.read_text().splitlines())) > 600}
    assert long == {}


def test_every_public_function_class_and_module_says_what_it_is_for() -> None:
    silent = []
    for path in sources():
        tree = tree_of(path)
        if not standalone(path):
            silent += [f"{module_of(path)}.{name}" for name in undocumented(tree)]
        if tree.body and ast.get_docstring(tree) is None:
            silent.append(module_of(path))
    assert silent == []


def defined(tree: ast.Module) -> set[str]:
    """Names of functions, classes and values at the top of a module."""
    found = set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        for target in (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        ):
            found |= {each.id for each in ast.walk(target) if isinstance(each, ast.Name)}
    return {name for name in found if not name.startswith("__")}


def read_in(tree: ast.Module) -> set[str]:
    """Every name that a module reads, of its own or of another one."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            found.add(node.id)
        elif isinstance(node, ast.Attribute):
            found.add(node.attr)
        elif isinstance(node, ast.ImportFrom):
            found |= {alias.name for alias in node.names}
    return found


def test_nothing_is_defined_that_only_tests_read() -> None:
    """Names at the top of modules. Files that aren't Python name some too: lm-eval's tasks, templates, entry points."""
    read = {name for path in (*sources(), *scripts()) for name in read_in(tree_of(path))}
    tasks, templates = (ROOT / "evals" / "tasks").glob("*.yaml"), (ROOT / "evals").rglob("*.jinja")
    for path in (ROOT / "pyproject.toml", *tasks, *templates):
        read |= set(re.findall(r"\w+", path.read_text()))
    unread = {f"{module}.{name}" for module, path in MODULES.items() for name in defined(tree_of(path)) - read}
    assert unread == set()


def undocumented(tree: ast.Module | ast.ClassDef) -> Iterator[str]:
    """Public functions, classes and methods without a docstring."""
    for node in tree.body:
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) or node.name.startswith("_"):
            continue
        if ast.get_docstring(node) is None:
            yield node.name
        if isinstance(node, ast.ClassDef):
            yield from (f"{node.name}.{name}" for name in undocumented(node))


def test_no_other_distribution_owns_the_names_of_the_packages() -> None:
    owners = importlib.metadata.packages_distributions()
    assert "typer" in owners
    for name in PACKAGES:
        assert set(owners.get(name, ())) <= {"qpack"}


def texts() -> list[Path]:
    """Files with text of our own. Hidden folders are caches and environments, but for those of CI."""
    found = []
    for folder, folders, names in os.walk(ROOT):
        folders[:] = [f for f in folders if (f not in NOT_OURS and f[0] != ".") or f in (".ci", ".github")]
        found += [Path(folder) / name for name in names if any(fnmatch(name, pattern) for pattern in TEXTS)]
    return sorted(found)


def test_no_file_names_a_place_of_the_machine_it_was_written_on() -> None:
    place = re.compile(r"(?<![\w.}\])~-])/(?:work|root|home/\w+|Users/\w+)/")
    assert {ROOT / "README.md", ROOT / ".ci" / "run", ROOT / "evals" / "workers" / "lm_eval_worker.py"} <= set(texts())
    found = {
        f"{path.relative_to(ROOT)}:{number}"
        for path in texts()
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if place.search(line)
    }
    assert found == set()


def test_locks_have_a_hash_for_every_package_and_name_no_index() -> None:
    locks = sorted(
        [
            *ROOT.glob("requirements/*.txt"),
            *(
                lock
                for package in PACKAGES
                for lock in (ROOT / package).rglob("envs/*/*.txt")
                if lock.stem in ("cpu", "cuda")
            ),
        ]
    )
    assert len(locks) >= 8
    for lock in locks:
        text = lock.read_text()
        pins = re.split(r"\n(?=[A-Za-z0-9])", text)[1:]
        assert pins, lock
        assert [pin.split("\n")[0] for pin in pins if "--hash=sha256:" not in pin] == [], lock
        options = [line for line in text.splitlines() if line.startswith(("-i ", "--index", "--extra-index", "-f "))]
        assert options == [], lock


# What runs code that is hidden in data, or writes where an archive says. `torch.load` and friends read pickles.
NEVER = {
    *("eval", "exec", "os.system", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "marshal.loads"),
    *("pickle.load", "pickle.loads", "torch.load", "joblib.load", "jinja2.Environment", "jinja2.Template"),
    *("shutil.unpack_archive", "tarfile.open", "zipfile.ZipFile"),
}
NEVER_TRUE = {"shell", "allow_pickle", "trust_remote_code"}


def test_nothing_that_runs_code_hidden_in_data_is_called() -> None:
    """Pickle is never loaded, templates are sandboxed, remote code is on only where a recipe says so, and a model's
    code runs in the sandbox's child alone.
    """
    wrong, templates, executed = [], [], []
    for path in sources():
        for node in ast.walk(tree_of(path)):
            if not isinstance(node, ast.Call):
                continue
            called, at = ast.unparse(node.func), f"{module_of(path)}:{node.lineno}"
            # qpack.core.yamlfile._Loader is a yaml.SafeLoader.
            safe = called == "yaml.load" and "_Loader" in map(ast.unparse, [k.value for k in node.keywords])
            confined = called == "exec" and module_of(path) == "evals.tasks.sandbox_child"
            executed += [at] if confined else []
            wrong += [f"{at}: {called}"] if called in NEVER and not safe and not confined else []
            templates += [at] if called.endswith("SandboxedEnvironment") else []
            for given in node.keywords:
                if given.arg in NEVER_TRUE and isinstance(given.value, ast.Constant) and given.value.value:
                    wrong.append(f"{at}: {given.arg}={given.value.value}")
    assert wrong == []
    assert len(executed) == 1
    assert {at.partition(":")[0] for at in templates} == {"registry.release.card", "evals.report.html_report"}, (
        "the sandboxes are seen"
    )


def untyped(annotation: ast.AST | None) -> bool:
    """Whether an annotation has a dict of anything: `dict`, `dict[str, Any]`, `Mapping[str, Any]`, alone or inside."""
    if annotation is None:
        return False
    if isinstance(annotation, ast.Expression):
        annotation = annotation.body
    if isinstance(annotation, ast.Subscript) and ast.unparse(annotation.value) == "Annotated":
        annotation = annotation.slice.elts[0] if isinstance(annotation.slice, ast.Tuple) else annotation.slice
    kinds = {"dict", "Mapping", "MutableMapping"}
    given = {id(node.value) for node in ast.walk(annotation) if isinstance(node, ast.Subscript)}
    for node in ast.walk(annotation):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.isascii():
            if untyped(ast.parse(node.value, mode="eval")):
                return True
        elif isinstance(node, ast.Name) and node.id in kinds and id(node) not in given:
            return True
    return any(
        ast.unparse(node.value) in kinds and ast.unparse(node.slice.elts[-1]) == "Any"
        for node in ast.walk(annotation)
        if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Tuple)
    )


def functions(tree: ast.Module | ast.ClassDef, inside: str = "") -> Iterator[tuple[str, ast.FunctionDef]]:
    """Public functions, and methods of public classes as `Class.method`."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from functions(node, f"{node.name}.")
        elif isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            yield f"{inside}{node.name}", node


def names_of(tree: ast.Module) -> dict[str, str]:
    """Name in a module -> what it was imported as, dotted."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.asname or alias.name: alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return found


def used_in(tree: ast.Module) -> set[str]:
    """Dotted names of what a module uses of others, and `.name` for every attribute that it uses of anything."""
    names = names_of(tree)
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id in names:
            found.add(names[node.id])
        elif isinstance(node, ast.Attribute):
            found.add(f".{node.attr}")
            if isinstance(node.value, ast.Name | ast.Attribute) and (base := names.get(ast.unparse(node.value))):
                found.add(f"{base}.{node.attr}")
    return found


def test_no_dict_of_anything_passes_between_packages() -> None:
    """What one package asks another for, and gets, has a type with a name; so has what benchmarks and docs ask for. A
    method counts as used by every module of another package that imports from its folder and uses an attribute of that
    name.
    """
    trees = {module: tree_of(path) for module, path in MODULES.items() if module in ARROWS}
    beside = {module_of(path): path for path in scripts()}
    used = {module: used_in(tree) for module, tree in trees.items()}
    used |= {module: used_in(tree_of(path)) for module, path in beside.items()}
    near = {module: {folder(other) for other in ARROWS[module]} for module in trees}
    near |= {module: {folder(o) for o in imported(path) if o in MODULES} for module, path in beside.items()}
    wrong, seen = set(), 0
    for module, tree in trees.items():
        for name, function in functions(tree):
            a = function.args
            hints = [arg.annotation for arg in (*a.posonlyargs, *a.args, *a.kwonlyargs)]
            callers = {
                other
                for other, uses in used.items()
                if package(other) != package(module)
                and (
                    f"{module}.{name}" in uses
                    if "." not in name
                    else f".{name.partition('.')[2]}" in uses and folder(module) in near[other]
                )
            }
            seen += bool(callers)
            if callers and any(map(untyped, (*hints, function.returns))):
                wrong.add(f"{module}.{name}: {', '.join(sorted(callers))}")
    assert seen > 100, "uses are seen"
    assert "benchmarks.engines" in used
    assert "docs.generate" in used
    assert wrong == set()


@pytest.mark.parametrize(
    ("annotation", "is_untyped"),
    [
        ("dict", True),
        ("dict[str, Any]", True),
        ("list[Mapping[str, Any]] | None", True),
        ("Callable[[dict[str, Any]], int]", True),
        ("'dict[str, Any]'", True),
        ("Annotated[dict[str, Any], 'Print the version.']", True),
        ("Annotated[int, 'Print the version.']", False),
        ("dict[str, int]", False),
        ("Mapping[str, Entry[Any]]", False),
        ("JsonObject", False),
    ],
)
def test_a_dict_of_anything_is_known_by_its_annotation(annotation: str, is_untyped: bool) -> None:
    assert untyped(ast.parse(annotation, mode="eval")) is is_untyped


def worker_scripts() -> list[Path]:
    """Every script that qpack runs as a worker, and not the modules beside them."""
    return [path for path in sources() if path.parent.name == "workers" and path.stem.endswith("_worker")]


def test_a_worker_gets_and_gives_dataclasses_of_a_module_beside_it() -> None:
    """A job and an answer are read by both sides with one class; a dict has no place in it but for JSON of others."""
    scripts = worker_scripts()
    assert len(scripts) > 12
    for path in scripts:
        tree = tree_of(path)
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
        (main,) = [call for call in calls if ast.unparse(call.func) == "qpack_worker.main"]
        names = {node.id for node in ast.walk(main.args[1]) if isinstance(node, ast.Name)} - {"Union"}
        beside = {
            alias.name
            for node in tree.body
            if isinstance(node, ast.ImportFrom) and node.module and path.with_name(f"{node.module}.py").exists()
            for alias in node.names
        }
        assert names, path
        assert names <= beside, path


def test_jobs_of_workers_are_read_by_python_3_9_and_are_frozen() -> None:
    """An engine's interpreter may be older than qpack's, and has no qpack: no `int | None`, no newer syntax."""
    beside = [path for path in sources() if path.parent.name == "workers" and path not in worker_scripts()]
    # The others are parts of a worker, which only its script imports.
    ours = {name for path in sources() if path.parent.name != "workers" for name in imported(path)}
    jobs = [path for path in beside if any(name.startswith(module_of(path)) for name in ours)]
    assert all(path in jobs for path in beside if path.stem.endswith(("_job", "_answer")))
    protocol = ROOT / "qpack" / "runtime" / "workerlib" / "qpack_protocol.py"
    assert len(jobs) > 12
    for path in (*jobs, protocol):
        tree = ast.parse(path.read_text(), feature_version=(3, 9))
        assert {name.partition(".")[0] for name in imported(path)} <= {"__future__", *sys.stdlib_module_names}, path
        for node in ast.walk(tree):
            if isinstance(node, ast.AnnAssign | ast.arg) and node.annotation is not None:
                assert not any(isinstance(part, ast.BitOr) for part in ast.walk(node.annotation)), path
            if isinstance(node, ast.ClassDef) and path != protocol:
                assert [ast.unparse(one) for one in node.decorator_list] == ["dataclass(frozen=True)"], path


STAGES = {ast.literal_eval(node.value)
          for path in (ROOT / "qpack/pipeline/stages").glob("*.py")
          for node in tree_of(path).body
          if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "NAME"}  # fmt: skip


def test_a_stage_is_named_in_its_own_module_alone() -> None:
    """Others take the name from there. `quantize` and `publish` are sections of a recipe too. What is printed has
    headings for the two sides of a comparison, which are named as the stages that measure them, and so are the fields
    of a release.
    """
    from qpack.core.records import Release, TaskDifference
    from qpack.recipe.models import Recipe

    assert len(STAGES) == 10
    wrong = []
    for path in sources():
        place = path.relative_to(ROOT).as_posix()
        if not place.startswith("qpack/") or place.startswith("qpack/pipeline/stages/") or standalone(path):
            continue
        elsewhere = set(Recipe.model_fields)
        if place.startswith("qpack/cli/render/"):
            elsewhere |= set(TaskDifference.model_fields)
        if place == "qpack/core/side_by_side.py":
            elsewhere |= set(Release.model_fields)
        wrong += [
            f"{place}:{node.lineno}: {node.value}"
            for node in ast.walk(tree_of(path))
            if isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and node.value.partition(".")[0] in STAGES - elsewhere
        ]
    assert wrong == []


def parameters(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """How many a caller can give: without `self` and `cls`."""
    given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    return len([arg for arg in given if arg.arg not in ("self", "cls")])


def test_no_function_has_more_than_eight_parameters() -> None:
    """But commands and kernels. Each parameter of a command is an option, which the command line gives by name; typer
    reads them from the signature. A kernel's are pointers and sizes, which Triton passes to the GPU one by one.
    """
    wide = {}
    for path in (*sources(), *scripts()):
        command = path.parent == ROOT / "qpack" / "cli" / "commands"
        for node in ast.walk(tree_of(path)):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            kernel = any("triton.jit" in ast.unparse(each) for each in node.decorator_list)
            if (count := parameters(node)) > 8 and not (command and node.name == path.stem) and not kernel:
                wide[f"{module_of(path)}.{node.name}"] = count
    # What calls a kernel.
    assert wide.keys() <= {"quantize.gram.kernels.round_block", "quantize.gram.gptq._round_block"}
