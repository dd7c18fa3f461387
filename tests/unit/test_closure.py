"""The code that is in a key: what is read of a file, where that leads, and that every module moves its stage's key."""

from __future__ import annotations

import ast
import itertools
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qpack.core.store import Store
from qpack.pipeline import closure, evidence_keys, plan
from qpack.pipeline.closure import Reader, facts_of, words
from qpack.pipeline.stages.catalog import STAGES
from quantize.engines import catalog

# What prints, reports and plots: a change of it makes no evidence anew.
REPORTS = ("qpack/core/console", "qpack/cli", "evals/report/",
           "qpack/pipeline/plan", "qpack/pipeline/state.py", "qpack/pipeline/stage.py", "qpack/pipeline/run.py",
           "qpack/pipeline/why.py", "qpack/pipeline/stage_keys.py", "qpack/pipeline/evidence_keys.py")  # fmt: skip


def write(root: Path, **files: str) -> Reader:
    """A tree of these files (`a__b` is a/b.py), and a reader of it."""
    for name, text in files.items():
        path = root / f"{name.replace('__', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return Reader(root)


def test_imports_are_followed_wherever_they_stand(tmp_path: Path) -> None:
    reader = write(
        tmp_path,
        evals__a="import json\nfrom evals import b\nfrom evals.c import thing\n",
        evals__b="def f():\n    import qpack.d\n    if True:\n        from evals import e\n",
        evals__c="thing = 1\n",
        evals__e="",
        evals__unused="from evals import a\n",
        qpack__d="",
        qpack__init="",
    )
    (tmp_path / "qpack" / "__init__.py").write_text("")
    assert list(reader.closure(["evals.a"])) == [
        *("evals/a.py", "evals/b.py", "evals/c.py", "evals/e.py", "qpack/__init__.py", "qpack/d.py")
    ]


def test_what_is_imported_for_types_alone_does_not_count(tmp_path: Path) -> None:
    reader = write(
        tmp_path,
        evals__a="from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from evals import b\n"
        "else:\n    from evals import c\n",
        evals__b="",
        evals__c="",
    )
    assert list(reader.closure(["evals.a"])) == ["evals/a.py", "evals/c.py"]


def test_files_that_a_module_names_count_and_the_folders_on_the_way_do_not(tmp_path: Path) -> None:
    reader = write(
        tmp_path,
        evals__a="from pathlib import Path\n_HERE = Path(__file__).parent\n"
        'X = _HERE.parent / "quantize" / "workers" / "x.py"\n',
        quantize__workers__x="import beside\nimport qpack_worker\n",
        quantize__workers__beside="",
        quantize__workers__other="",
        qpack__runtime__workerlib__qpack_worker="",
    )
    assert list(reader.closure(["evals.a"])) == [
        "evals/a.py",
        "qpack/runtime/workerlib/qpack_worker.py",
        "quantize/workers/beside.py",
        "quantize/workers/x.py",
    ]


def test_a_folder_that_is_a_worker_and_a_template_count(tmp_path: Path) -> None:
    reader = write(
        tmp_path,
        evals__a='from pathlib import Path\nW = Path(__file__).parent / "worker"\n'
        'def f(resources):\n    return resources.files("evals").joinpath("card.md.jinja")\n',
        evals__worker__deep__b="",
    )
    (tmp_path / "evals" / "worker" / "__main__.py").write_text("")
    (tmp_path / "evals" / "card.md.jinja").write_text("{{ x }}")
    (tmp_path / "evals" / "worker" / "data.txt").write_text("")
    found = reader.closure(["evals.a"])
    assert set(found) == {"evals/a.py", "evals/card.md.jinja", "evals/worker/__main__.py", "evals/worker/deep/b.py"}
    (tmp_path / "evals" / "card.md.jinja").write_text("{{ y }}")
    assert Reader(tmp_path).closure(["evals.a"]) != found


SAME = [
    ('"""One."""\nx = 1\n', '"""Another docstring."""\n\n\nx = 1  # why\n'),
    ('def f():\n    """One."""\n    return 1\n', "# more\ndef f():\n    return 1\n"),
    ("x = [1,\n     2]\n", "x = [1, 2]\n"),
    ("if x:\n    y = 1\n", "if x:\n  y = 1\n"),
    ("x = 1\n", "x = 1"),
    ('__version__ = "0.1.0"\nx = 1\n', '__version__ = "9"\nx = 1\n'),
]
OTHER = [
    ("x = 1\n", "x = 2\n"),
    ('x = "#1"\n', 'x = "#2"\n'),
    ("x = f'{a}'\n", "x = f'{b}'\n"),
    ('x = f"a {b:>{c}} d"\n', 'x = f"a {b:>{c}} e"\n'),
    ("if x:\n    y = 1\n    z = 1\n", "if x:\n    y = 1\nz = 1\n"),
    ('def f(x="""a"""):\n    pass\n', 'def f(x="""b"""):\n    pass\n'),
    ('x = """a\n# b"""\n', 'x = """a\n# c"""\n'),
    ("f'{x()}'\n", "f'{y()}'\n"),
    ("x = a, b\n", "x = ab\n"),
]


@pytest.mark.parametrize(("one", "other"), SAME)
def test_comments_docstrings_and_layout_change_nothing(one: str, other: str) -> None:
    assert facts_of("x.py", one.encode()).digest == facts_of("x.py", other.encode()).digest


@pytest.mark.parametrize(("one", "other"), OTHER)
def test_whatever_can_run_changes_the_digest(one: str, other: str) -> None:
    assert facts_of("x.py", one.encode()).digest != facts_of("x.py", other.encode()).digest


def test_the_digest_is_the_same_in_every_python() -> None:
    """Recorded with Python 3.11, which has f-strings as one token each; 3.12 and later take them apart."""
    source = (
        'import os\n\n\nclass A:\n    """Doc."""\n\n    x: int = 0x_ff\n\n    async def f(self, /, *, b=b"1"):\n'
        "        # comment\n"
        '        return f"{self.x!r:>{os.sep}}" f\'\'\'{1}\n{{2}} {"a" "b"}\'\'\' rf"\\d{b}" "end" \\\n'
        "            + str(1_0.5e-3j)\n"
    )
    ast.parse(source)
    assert facts_of("x.py", source.encode()).digest == "4f53a62e7c9fc564"
    assert "f'''{1}\n{{2}} {\"a\" \"b\"}'''" in words(source.encode())


@given(st.text(alphabet="ab#'\"{}\\\n (),=fr:", max_size=40))
def test_equal_words_mean_equal_programs(text: str) -> None:
    """Held against Python's own parser: what it reads as another program has other words."""
    try:
        there, here = ast.parse(text), words(text.encode())
    except (SyntaxError, ValueError):
        return
    try:
        again = ast.parse(" ".join(word for word in here if word not in ("NEWLINE", "INDENT", "DEDENT")))
    except SyntaxError:
        return
    if len(there.body) == 1 and not isinstance(getattr(there.body[0], "value", None), ast.Constant):
        assert ast.dump(again) == ast.dump(there)


def entries() -> dict[str, tuple[str, ...]]:
    """The modules and definitions of every step, `quantize` with each engine."""
    found = dict(evidence_keys.CODE)
    for stage in STAGES:
        found |= stage.code
    own = found.pop("quantize")
    for name, engine in catalog.ENGINES.items():
        found[f"quantize {name}"] = (*own, engine.__name__)  # type: ignore[attr-defined]
    return found


def closures(reader: Reader) -> dict[str, str]:
    """Stage -> digest of its closure."""
    return {stage: closure.digest_of(reader.closure(named)) for stage, named in entries().items()}


def after(reader: Reader, file: str) -> Reader:
    """A reader that knows all that `reader` has read but this file, which has changed."""
    seen, following = (
        {path: found for path, found in known.items() if path.partition(":")[0] != file}
        for known in (reader._seen, reader._after)
    )
    return Reader(reader.root, reader.known, seen, reader._there, following)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the packages."""
    root = tmp_path_factory.mktemp("tree")
    for package in closure.PACKAGES:
        shutil.copytree(closure.ROOT / package, root / package, ignore=shutil.ignore_patterns("__pycache__"))
    return root


def changed(source: bytes, name: str) -> bytes:
    """A definition with another statement at its end, a constant with another value."""
    lines = source.decode().splitlines()
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name:
            last = node.body[-1]
            lines.insert(last.end_lineno or 0, f"{' ' * last.col_offset}_CHANGED = 1")
        elif isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if name in map(ast.unparse, targets):
                lines[(node.value.end_lineno or 0) - 1] += " or None"
    return "\n".join(lines).encode()


def told(path: Path) -> bytes:
    """A stage's module with every function changed that its `Stage` is made of, but for the one that `code` names."""
    tree = ast.parse(path.read_bytes())
    (made,) = (
        node.value for node in tree.body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "STAGE"
    )
    assert isinstance(made, ast.Call)
    functions = [ast.unparse(each) for each in (*made.args, *(k.value for k in made.keywords))]
    found = path.read_bytes()
    for name in functions:
        if name.isidentifier() and name.islower():
            before, found = found, changed(found, name)
            assert found != before
    return found


def test_how_a_stage_is_planned_titled_and_summed_up_is_in_no_key(tree: Path) -> None:
    reader = Reader(tree)
    before = closures(reader)
    stages = [path for path in (tree / "qpack/pipeline/stages").glob("*.py") if "\nSTAGE = " in path.read_text()]
    assert len(stages) == len(STAGES)
    for path in stages:
        whole = path.read_bytes()
        path.write_bytes(told(path))
        assert closures(after(reader, path.relative_to(tree).as_posix())) == before, path.name
        path.write_bytes(whole)


def test_a_definition_counts_with_all_that_it_uses_and_nothing_else(tmp_path: Path) -> None:
    reader = write(
        tmp_path,
        qpack__pipeline__stages__a="import json\nfrom evals import b\nfrom qpack.pipeline.stages.c import SLOT\n"
        "LIMIT = 1\ndef make():\n    return helper(SLOT)\ndef helper(x):\n    return json, LIMIT\n"
        "def title():\n    return b\nTABLE = {}\n",
        qpack__pipeline__stages__c="from evals import d\nNAME = 'c'\nSLOT = NAME\ndef title():\n    return d\n",
        evals__b="",
        evals__d="",
    )
    entry = "qpack.pipeline.stages.a:make"
    before = reader.closure([entry])
    assert list(before) == ["qpack/pipeline/stages/a.py:make", "qpack/pipeline/stages/c.py:SLOT"]
    path = tmp_path / "qpack/pipeline/stages/a.py"
    text = path.read_text()
    for old, new, moves in [
        ("LIMIT = 1", "LIMIT = 2", True),
        ("return json, LIMIT", "return json, -LIMIT", True),
        ("return helper(SLOT)", "return helper(0)", True),
        ("TABLE = {}", "TABLE = {1: 2}", False),
        ("TABLE = {}", "TABLE = {}\nmake.cache = 1", True),
        ("TABLE = {}", "TABLE = {}\nfor _ in (1, 2):\n    LIMIT += 1", True),
        ("return b", "return b, 1", False),
        ("import json", "import json  # why", False),
        ("import json", "import math as json", True),
    ]:
        path.write_text(text.replace(old, new))
        assert (Reader(tmp_path).closure([entry]) != before) == moves, new
    with pytest.raises(NameError, match="nothing"):
        reader.closure(["qpack.pipeline.stages.a:nothing"])


def test_a_change_of_any_module_of_a_closure_moves_the_keys_of_the_stages_that_it_is_in(tree: Path) -> None:
    reader = Reader(tree)
    members = {stage: set(reader.closure(named)) for stage, named in entries().items()}
    before = closures(reader)
    modules = sorted({module for found in members.values() for module in found if "/" in module})
    assert len(modules) > 100
    for module in modules:
        file, _, name = module.partition(":")
        path = tree / file
        whole = path.read_bytes()
        if name:
            path.write_bytes(changed(whole, name))
        else:
            path.write_bytes(whole + (b"\n_CHANGED = 1\n" if module.endswith(".py") else b"changed"))
        now = closures(after(reader, file))
        path.write_bytes(whole)
        moved = {stage for stage in before if before[stage] != now[stage]}
        there = {stage for stage, found in members.items() if module in found}
        if name:
            # Other definitions of the file may use it.
            file_of = {stage for stage, found in members.items() if any(one.startswith(f"{file}:") for one in found)}
            assert there <= moved <= file_of, module
        else:
            assert moved == there, module
    assert closures(Reader(tree)) == before


def test_modules_that_only_print_or_plan_are_in_no_closure(tree: Path) -> None:
    reader = Reader(tree)
    for stage, named in entries().items():
        found = reader.closure(named)
        assert [module for module in found if module.startswith(REPORTS)] == [], stage
        assert "registry/release/card.py" not in found or stage == "package"


def test_what_changed_results_and_no_key_before_is_in_the_closures(tree: Path) -> None:
    reader = Reader(tree)
    found = {stage: set(reader.closure(named)) for stage, named in entries().items()}
    for stage in ("quantize gram", "quantize llmcompressor", "accuracy", "performance", "hold_out", "calibrate"):
        assert found[stage] >= {
            "qpack/runtime/worker.py",
            "qpack/runtime/workerlib/qpack_worker.py",
            "qpack/core/records.py",
        }, stage
    assert "quantize/engines/llmcompressor.py" in found["quantize llmcompressor"]
    assert {"quantize/engines/bit_budget.py", "quantize/gram/kernels.py"} <= found["quantize gram"]
    assert {
        "evals/measure/suite.py",
        "evals/server/client.py",
        "evals/parts/collect_evidence.py",
        "evals/server/vllm_server.py",
    } <= found["accuracy"]
    assert {"evals/tasks/utils.py", "evals/workers/lm_eval_worker.py"} <= found["accuracy"]
    assert "evals/server/footprint.py" in found["interleaved"]
    assert "evals/server/canary.py" in found["proof"]
    assert {
        "qpack/pipeline/release_records.py",
        "registry/serving/serving_manifest.py",
        "registry/release/card.md.jinja",
    } <= found["package"]
    assert {"qpack/core/speed.py", "qpack/runtime/memory_limits.py", "qpack/core/figures.py"} <= found["performance"]
    assert "qpack/pipeline/held_out.py" in found["hold_out"]


def test_a_worker_in_a_closure_has_its_job_its_answer_and_their_json_there_too(tree: Path) -> None:
    reader, scripts = Reader(tree), 0
    for stage, named in entries().items():
        found = set(reader.closure(named))
        for script in [module for module in found if "/workers/" in module and module.endswith("_worker.py")]:
            beside = {f"{Path(script).parent}/{name.partition(':')[0]}.py" for name in reader.facts(script).imports}
            there = {name for name in beside if (tree / name).is_file()}
            assert there, script
            assert there | {"qpack/runtime/workerlib/qpack_protocol.py"} <= found, (stage, script)
            scripts += 1
    assert scripts > 10


def test_no_module_of_a_closure_imports_by_a_name_that_is_not_in_the_source(tree: Path) -> None:
    reader = Reader(tree)
    for module in {module.partition(":")[0] for named in entries().values() for module in reader.closure(named)}:
        if module.endswith(".py"):
            text = (tree / module).read_text()
            assert "import_module(" not in text, module
            assert "__import__(" not in text, module


def test_facts_outlive_a_process_and_damaged_ones_are_read_anew(tree: Path) -> None:
    first = Reader(tree)
    before = closures(first)
    note = closure.to_note(first.known)
    second = Reader(tree, closure.from_note(note))
    assert closures(second) == before
    assert second.known == closure.from_note(note), "nothing had to be read again"
    damaged = dict(zip(note, itertools.cycle(({"digest": 1}, [], None))))
    assert closures(Reader(tree, closure.from_note(damaged))) == before


@pytest.mark.parametrize("writable", [True, False])
def test_a_new_store_reads_no_source_that_another_has_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, writable: bool
) -> None:
    (tmp_path / "file").touch()
    shared = tmp_path / ("code" if writable else "file") / "note.json"
    monkeypatch.setattr(closure, "beside_the_code", lambda: shared)
    read: list[str] = []
    facts_of = closure.facts_of
    monkeypatch.setattr(closure, "facts_of", lambda path, *more: read.append(path) or facts_of(path, *more))
    homes = ("one", "one", "other") if not writable else ("one", "other", "third")
    counts = []
    for home in homes:
        with plan.code_reader(Store(tmp_path / home)) as reader:
            reader.closure(["qpack.core.hashing"])
        counts.append(len(read))
        read.clear()
    first, second, third = counts
    assert first > 0 == second
    assert third == (0 if writable else first)
    assert shared.exists() == writable
