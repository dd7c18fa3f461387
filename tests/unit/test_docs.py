"""Claims about the docs: every example is loaded, every key, command, option, exit code, gate and link is checked."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from pydantic import BaseModel

from evals.gates.gates import GATES
from evals.measure import suite
from qpack.cli.app import app
from qpack.core import errors
from qpack.pipeline.stages import native
from qpack.pipeline.stages.catalog import STAGES
from qpack.recipe import models as sections
from qpack.recipe import recipe_file
from quantize.engines.protocol import Engine
from quantize.schemes.schemes import SCHEMES, TARGETS
from registry.core.protocol import PushRequest, Registry, Releases
from registry.local import alias_policy
from registry.local.registry import LocalRegistry
from tests.unit.laid_out import laid_out
from tests.unit.recipes import RECIPE, workspace

ROOT = Path(__file__).parents[2]
COMMANDS_PAGE = "docs/reference/commands.md"
DOCS = sorted(
    [
        *ROOT.glob("*.md"),
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / name / "README.md" for name in ("requirements", "benchmarks")),
    ]
)


def read(name: str) -> str:
    return (ROOT / name).read_text()


def blocks(language: str) -> list[tuple[str, str]]:
    """(where, text) of every fenced block of a language."""
    found = []
    for path in DOCS:
        text = path.read_text()
        for match in re.finditer(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
            found.append((f"{path.relative_to(ROOT)}:{text[: match.start()].count(chr(10)) + 2}", match[1]))
    return found


def section(text: str, heading: str) -> str:
    """The text below a heading, up to the next of any level."""
    found = re.search(rf"^#+ {re.escape(heading)}\n(.*?)(?=^#+ |\Z)", text, re.MULTILINE | re.DOTALL)
    assert found, f"no heading '{heading}'"
    return found[1]


def rows(text: str) -> list[list[str]]:
    """The cells of the first table in a text, without its heading."""
    lines = re.search(r"(?:^\|.*\n?)+|\Z", text, re.MULTILINE)[0].splitlines()  # type: ignore[index]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    assert len(cells) > 2, "no table"
    return cells[2:]


def code(cell: str) -> str:
    found = re.fullmatch(r"`([^`]+)`", cell)
    assert found, f"{cell} is not `code`"
    return found[1]


# Recipes


@pytest.mark.parametrize(("where", "text"), blocks("yaml"), ids=lambda value: value if ".md:" in value else "")
def test_every_recipe_example_is_taken_by_the_loader(where: str, text: str, tmp_path: Path) -> None:
    data = yaml.safe_load(text)
    if "jobs" in data:
        assert {"runs-on", "steps"} <= set(data["jobs"]["release"]), "a workflow"
        return
    if "aliases" in data:
        (tmp_path / "policy.yaml").write_text(text)
        (tmp_path / "release.pub").write_text("a key")
        assert alias_policy.load(tmp_path / "policy.yaml").aliases
        return
    whole = workspace(tmp_path, RECIPE)
    (tmp_path / "calibration.jsonl").write_text((tmp_path / "texts.jsonl").read_text())
    if "model" in data and "quantize" in data:
        whole.write_text(text)
    else:
        # A part of a recipe stands in for the same part of a whole one.
        whole.write_text(yaml.safe_dump({**yaml.safe_load(RECIPE), **data}, sort_keys=False))
    assert recipe_file.load(whole).recipe is not None


def models(at: str = "", model: type[BaseModel] = sections.Recipe) -> Iterator[tuple[str, type[BaseModel]]]:
    """Every section of a recipe, by its place."""
    yield at, model
    for name in model.model_fields:
        inner = re.findall(r"\w+", str(model.model_fields[name].annotation))
        for candidate in (sections.Section, sections.Gates):
            for kind in (candidate, *candidate.__subclasses__(), *_below(candidate)):
                if kind.__name__ in inner:
                    yield from models(f"{at}.{name}".strip("."), kind)


def _below(kind: type[BaseModel]) -> list[type[BaseModel]]:
    return [deeper for sub in kind.__subclasses__() for deeper in sub.__subclasses__()]


SECTIONS = dict(models())


def test_the_sections_of_a_recipe_are_found() -> None:
    assert {"", "calibration", "evaluate.tasks", "evaluate.perplexity", "gates", "limits"} <= set(SECTIONS)


@pytest.mark.parametrize("place", SECTIONS)
def test_the_reference_has_exactly_the_keys_of_each_section_with_their_defaults(place: str) -> None:
    table = rows(section(read("docs/reference/recipes.md"), place or "Top level"))
    told = {code(key): default for key, _, default, _ in table}
    fields = SECTIONS[place].model_fields
    assert list(told) == list(fields)
    for name, field in fields.items():
        if field.is_required():
            shown = "required"
        else:
            value = field.get_default(call_default_factory=True)
            shown = "its defaults" if isinstance(value, BaseModel) else plain(value)
        assert told[name] == shown, f"{place}.{name}"


def plain(value: Any) -> str:
    """A default as YAML has it."""
    if isinstance(value, tuple):
        return f"[{', '.join(map(plain, value))}]"
    return value if isinstance(value, str) else json.dumps(value)


def test_the_reference_names_every_choice_and_every_task() -> None:
    text = read("docs/reference/recipes.md")
    schema = json.dumps(recipe_file.schema())
    choices = {word for found in re.findall(r'"enum": \[([^\]]+)\]', schema) for word in json.loads(f"[{found}]")}
    assert len(choices) > 15
    missing = [word for word in (*choices, *suite.TASKS) if not re.search(rf"\b{re.escape(word)}\b", text)]
    assert missing == []


# The command line


def commands(group: Any = None, before: tuple[str, ...] = ("qpack",)) -> Iterator[tuple[str, Any]]:
    """Every command with its whole name; groups as well."""
    group = group or typer.main.get_command(app)
    yield " ".join(before), group
    for name, command in getattr(group, "commands", {}).items():
        yield from commands(command, (*before, name))


COMMANDS = dict(commands())
LEAVES = {name: command for name, command in COMMANDS.items() if not hasattr(command, "commands")}


def options(command: Any) -> set[str]:
    return {option for p in command.params for option in p.opts if option.startswith("-")}


def test_the_commands_are_found() -> None:
    assert {"qpack build", "qpack envs remove"} <= set(LEAVES)
    assert "--allow-failed-gates" in options(LEAVES["qpack build"])


def heading_of(name: str) -> str:
    found = [h for h in re.findall(r"^## (.*)$", read(COMMANDS_PAGE), re.MULTILINE) if h.startswith("qpack")]
    matching = [h for h in found if re.sub(r" [A-Z\[].*$", "", h) == name]
    assert len(matching) == 1, f"{COMMANDS_PAGE} has no section for {name}"
    return matching[0]


@pytest.mark.parametrize("name", [*LEAVES, "qpack"])
def test_every_command_has_a_section_with_exactly_its_options(name: str) -> None:
    text = section(read(COMMANDS_PAGE), heading_of(name))
    told = set(re.findall(r"`(--?[a-z][a-z-]*)", text))
    assert told == options(COMMANDS[name]) - {"--help"}


def test_no_section_is_about_a_command_that_is_gone() -> None:
    headings = re.findall(r"^## (qpack.*)$", read(COMMANDS_PAGE), re.MULTILINE)
    assert {re.sub(r" [A-Z\[].*$", "", heading) for heading in headings} == {*LEAVES, "qpack"}


def test_the_overview_names_every_command() -> None:
    listed = [re.findall(r"\[`(.+?)`\]", cell)[0] for cell, _ in rows(section(read(COMMANDS_PAGE), "Commands"))]
    assert sorted(listed) == sorted(LEAVES)


def lines_with_qpack() -> list[tuple[str, str]]:
    """(where, words) of every call of qpack in a shell example."""
    found = []
    for where, text in blocks("sh"):
        for line in text.replace("\\\n", " ").splitlines():
            plain_line = re.sub(r"(^|\s)#.*", "", line)
            found += [(where, m[1]) for m in re.finditer(r"(?:^|[\s/])(qpack [^;&|#>()]+)", plain_line)]
    return found


@pytest.mark.parametrize(("where", "line"), lines_with_qpack(), ids=lambda value: value if ".md:" in value else "")
def test_every_command_line_in_the_docs_is_one_that_qpack_takes(where: str, line: str) -> None:
    words = shlex.split(line)
    depth = max(n for n in range(1, len(words) + 1) if " ".join(words[:n]) in COMMANDS)
    name, rest = " ".join(words[:depth]), words[depth:]
    assert name in LEAVES, line
    used = {word for word in rest if word.startswith("-")}
    assert used <= options(LEAVES[name]) | {"--help"}
    settings = [rest[i + 1] for i, word in enumerate(rest) if word == "--set"]
    for file in (word for word in rest if word.startswith("recipes/") and word.endswith(".yaml")):
        try:
            recipe_file.load(ROOT / file, settings)
        except errors.RecipeError as error:
            told = [str(problem) for problem in error.problems]
            pytest.fail(f"{where}: {line}: {told}")


def test_every_make_target_in_the_docs_exists() -> None:
    makefile = read("Makefile")
    named = {m for _, text in blocks("sh") for m in re.findall(r"^make ([a-z-]+)", text, re.MULTILINE)}
    named |= {m for path in DOCS for m in re.findall(r"`make ([a-z-]+)`", path.read_text())}
    assert {"demo", "test", "lock"} <= named
    assert {name for name in named if not re.search(rf"^{name}:", makefile, re.MULTILINE)} == set()


def test_every_variable_that_qpack_reads_is_in_the_docs() -> None:
    packages = ("qpack", "quantize", "evals", "registry")
    code_text = "".join(path.read_text() for package in packages for path in (ROOT / package).rglob("*.py"))
    used = set(re.findall(r"QPACK_[A-Z_]+[A-Z]", code_text)) - {"QPACK_ENV"}
    docs = "".join(path.read_text() for path in DOCS)
    assert {"QPACK_HOME", "QPACK_REGISTRY"} <= used
    assert {name for name in used if name not in docs} == set()
    mentioned = set(re.findall(r"QPACK_[A-Z_]+[A-Z]", docs))
    tests = "".join(map(read, ("tests/conftest.py", "tests/contract/test_exports.py", "tests/fuzz/law.py")))
    used |= set(re.findall(r"QPACK_[A-Z_]+[A-Z]", tests))
    assert {name for name in mentioned - used if not name.startswith("QPACK_ENV_")} == set()


# Exit codes, stages, gates, engines, registry


def test_the_exit_codes_in_the_docs_are_those_of_the_errors() -> None:
    table = {int(code_): kind for code_, kind, *_ in rows(read("docs/reference/exit-codes.md"))}
    raised = {kind.exit_code: kind.title for kind in errors.QpackError.__subclasses__()}
    assert table == {0: "", 70: "", **raised}
    solved = re.findall(r"^## (\d+): (.+)$", read("docs/guides/troubleshoot.md"), re.MULTILINE)
    assert {int(code_): kind for code_, kind in solved} == {70: "a bug", **raised}
    brief = section(read("README.md"), "Exit codes")
    assert {int(n) for n in re.findall(r"\b(\d{1,3}) (?=[a-z])", brief)} == set(table)


def test_the_stages_are_told_in_their_order() -> None:
    """The tutorial's build hasn't the second baseline, which a recipe asks for."""
    stages = [stage.name for stage in STAGES]
    told = re.findall(r"## The stages\n\n```text\n(.*?)```", read("docs/explanation/architecture.md"), re.DOTALL)[0]
    assert [line.split()[0] for line in told.splitlines()] == stages
    built = re.findall(r"^\[\d/9\] (\w+):", read("docs/tutorial.md"), re.MULTILINE)
    assert built == [name for name in stages if name != native.NAME]


def test_the_folders_in_the_docs_are_those_of_the_project() -> None:
    tree = re.findall(r"```text\n(.*?)```", section(read("docs/explanation/architecture.md"), "Folders"), re.DOTALL)[0]
    told: dict[str, set[str]] = {}
    package = ""
    for line in tree.splitlines():
        names = re.match(r"( *)((?:\w+/ ?)+)", line)
        if names is None:
            continue
        found = set(names[2].replace("/", " ").split())
        if names[1]:
            told[package] |= found
        else:
            (package,) = found
            told[package] = set()
    assert [name for name in told if not (ROOT / name).is_dir()] == []
    for package in ("qpack", "quantize", "evals", "registry"):
        folders = {path.name for path in (ROOT / package).iterdir() if path.is_dir() and any(path.rglob("*.*"))}
        assert told[package] == folders - {"__pycache__"}, package


def test_every_gate_and_every_task_is_defined_in_the_docs_of_evidence() -> None:
    text = read("docs/explanation/evidence.md")
    assert [gate for gate in GATES if f"`{gate}`" not in text] == []
    told = {code(name): (int(items), float(choices), metric) for name, _, items, choices, metric in
            rows(section(text, "Accuracy"))}  # fmt: skip
    assert told == {task.name: (task.items, task.choices, task.metric) for task in suite.TASKS.values()}


def test_the_table_of_schemes_is_that_of_the_code() -> None:
    text = read("docs/reference/engines.md")
    told = {code(name): rest for name, *rest in rows(section(text, "Schemes"))}
    assert told == {
        s.name: [
            f"{s.weight_bits} bits",
            f"{s.activation_bits} bits",
            "yes" if s.grouped else f"blocks of {s.block}" if s.block else "no",
            ", ".join(s.methods),
        ]
        for s in SCHEMES.values()
    }
    kernels = {code(name): rest for name, *rest in rows(section(text, "vLLM kernels"))}
    assert kernels == {s.name: [s.kernels.get(target, "none") for target in TARGETS] for s in SCHEMES.values()}


def test_the_table_of_profiles_is_that_of_the_recipes_of_llama_3() -> None:
    table = rows(section(read("docs/guides/serve.md"), "The profiles that ship"))
    told = {code(name): [code(profile) for profile in profiles.split(", ")] for _, name, profiles in table}
    shipped = {path.stem: recipe_file.load(path).recipe for path in (ROOT / "recipes").glob("llama3-*.yaml")}
    assert told == {name: list(r.serve.profiles) for name, r in shipped.items() if r.serve.profiles}


def test_the_keys_of_a_policy_are_told_with_their_defaults() -> None:
    table = {code(key): default for key, default, _ in rows(section(read("docs/guides/promote.md"), "Policies"))}
    fields = {name: field.get_default() for name, field in alias_policy.Rule.model_fields.items()}
    assert table == {name: "none" if value is None else plain(value) for name, value in fields.items()}


def members(protocol: type) -> set[str]:
    own = {*vars(protocol), *vars(protocol).get("__annotations__", {})}
    return {name for name in own if not name.startswith("_")}


def test_adding_an_engine_tells_of_every_member_of_the_protocol() -> None:
    told = {
        code(cell).partition("(")[0]
        for cell, _ in rows(section(read("docs/guides/add-an-engine.md"), "3. The adapter"))
    }
    assert told == members(Engine)


def test_the_docs_of_the_registry_name_every_method_and_every_file(tmp_path: Path) -> None:
    text = read("docs/explanation/registry.md")
    assert [name for name in members(Registry) | members(Releases) if f"`{name}`" not in text] == []
    (tmp_path / "release").mkdir()
    (tmp_path / "release" / "README.md").write_text("a card")
    local = LocalRegistry(tmp_path / "registry")
    local.push(tmp_path / "release", PushRequest("tiny", None, "latest", actor="test"), annotations={})
    there = {path.name for path in (tmp_path / "registry").iterdir()}
    layout = re.findall(r"```text\n(.*?)```", text, re.DOTALL)[0]
    assert {line.split()[0].partition("/")[0] for line in layout.splitlines()} == there


def test_a_release_has_the_files_that_the_docs_list(tmp_path: Path) -> None:
    listed = {code(cell).rstrip("/") for cell, _ in rows(section(read("docs/reference/files.md"), "A release"))}
    there = {path.name for path in laid_out(tmp_path)[0].iterdir()}
    assert len(there) > 6
    assert there <= listed
    assert listed - there <= {".eval_results", "LICENSE"}, "files that only some releases have"


def test_every_term_is_defined_once() -> None:
    defined = re.findall(r"^- \*\*(.+?)\*\*: ", read("docs/concepts.md"), re.MULTILINE)
    assert len(set(defined)) == len(defined)
    assert {
        *("Recipe", "Stage", "Store", "Key", "Engine", "Environment", "Scheme", "Artifact", "Baseline", "Release"),
        *("Registry", "Alias", "Gate", "Verdict", "Evidence", "Canary", "Drift", "Manifest", "Profile"),
        "Held-out text",
    } == set(defined)


def test_the_four_kinds_of_docs_are_kept_apart() -> None:
    folders = {path.relative_to(ROOT / "docs").parts[0] for path in (ROOT / "docs").rglob("*.md")}
    assert {name for name in folders if not name.endswith(".md")} == {
        *("guides", "reference", "explanation", "benchmarks", "decisions")
    }
    assert {name.removesuffix(".md") for name in folders if name.endswith(".md")} == {
        *("index", "tutorial", "concepts", "upgrade")
    }


def test_the_readme_is_short_and_shows_a_report() -> None:
    text = read("README.md")
    assert len(text.splitlines()) < 150
    (picture,) = (ROOT / target for target in re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text))
    data = picture.read_bytes()
    assert data.startswith(b"\x89PNG")
    assert 20_000 < len(data) < 400_000


def test_the_recipe_in_the_readme_is_the_demos() -> None:
    (text,) = (text for where, text in blocks("yaml") if where.startswith("README.md"))
    demo = yaml.safe_load(read("recipes/smollm2-135m-gram.yaml"))

    def differs(shown: Any, whole: Any, at: str = "") -> list[str]:
        if not isinstance(shown, dict):
            return [] if shown == whole else [f"{at}: {shown}, and {whole} in the recipe"]
        return [line for key, value in shown.items() for line in differs(value, (whole or {}).get(key), f"{at}.{key}")]

    assert differs(yaml.safe_load(text), demo) == []


# Links and blocks


def anchors(path: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_link_leads_somewhere(path: Path) -> None:
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text()):
        if target.startswith(("https://", "http://")):
            continue
        file, _, anchor = target.partition("#")
        there = (path.parent / file).resolve() if file else path
        if not there.exists() or (anchor and anchor not in anchors(there)):
            broken.append(target)
    assert broken == []


def test_every_page_of_the_docs_can_be_reached_from_the_readme() -> None:
    seen: set[Path] = set()
    todo = [ROOT / "README.md"]
    while todo:
        path = todo.pop()
        if path in seen or path.suffix != ".md":
            continue
        seen.add(path)
        for target in re.findall(r"\]\(([^)\s#]+)[^)]*\)", path.read_text()):
            there = (path.parent / target).resolve()
            if there.is_dir():
                todo += there.glob("*.md")
            elif there.exists():
                todo.append(there)
    assert {path for path in (ROOT / "docs").rglob("*.md") if path not in seen} == set()


def test_every_path_of_docs_that_the_code_names_exists() -> None:
    of_modelpack = {"docs/spec.md", "docs/config.md", "docs/annotations.md"}
    found = set()
    for package in ("qpack", "quantize", "evals", "registry", "benchmarks"):
        for path in (ROOT / package).rglob("*.py"):
            for named in re.findall(r"(?<![\w/.])docs/[\w./-]*\w", path.read_text()):
                found.add(named)
                there = (ROOT / named).exists() or any(ROOT.glob(f"{named}-*.md"))
                assert there or named in of_modelpack, f"{path.name} names {named}"
    assert {"docs/reference/recipes.md", "docs/decisions/0042-the-source-as-a-release.md"} <= found


def test_every_path_of_the_project_that_the_docs_name_exists() -> None:
    pattern = r"`((?:qpack|quantize|evals|registry|tests|recipes|requirements|docs|benchmarks)/[\w./-]*)`"
    missing = {
        f"{path.relative_to(ROOT)}: {named}"
        for path in DOCS
        for named in re.findall(pattern, path.read_text())
        if "NAME" not in named and not (ROOT / named).exists()
    }
    assert missing == set()


@pytest.mark.parametrize(("where", "text"), blocks("python"), ids=lambda value: value if ".md:" in value else "")
def test_every_python_example_imports_what_is_there(where: str, text: str) -> None:
    ours = ("qpack", "quantize", "evals", "registry")
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] in ours:
            module = importlib.import_module(node.module)
            for alias in node.names:
                assert hasattr(module, alias.name) or importlib.util.find_spec(f"{node.module}.{alias.name}"), (
                    f"{where}: {node.module}.{alias.name}"
                )


@pytest.mark.parametrize(("where", "text"), blocks("python"), ids=lambda value: value if ".md:" in value else "")
def test_every_python_example_compiles(where: str, text: str) -> None:
    compile(text, where, "exec")


def test_decisions_have_a_number_of_their_own_and_each_says_what_was_decided() -> None:
    records = sorted(set((ROOT / "docs" / "decisions").glob("*.md")) - {ROOT / "docs" / "decisions" / "index.md"})
    numbers = [int(record.name[:4]) for record in records]
    assert len(set(numbers)) == len(numbers)
    for number, record in zip(numbers, records, strict=True):
        text = record.read_text()
        assert text.startswith(f"# {number}. ")
        assert "\n## Decision\n" in text
