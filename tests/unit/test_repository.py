"""Claims about the repository's own files: workflows, forms, citation, hooks, packaging, the check before a release."""

from __future__ import annotations

import ast
import importlib.util
import re
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from check_jsonschema import main as check_jsonschema
from click.testing import CliRunner

import qpack
from tests.unit.test_structure import PACKAGES, texts

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
KEPT = [
    *((path, "github-workflows") for path in WORKFLOWS),
    (ROOT / "docs" / "guides" / "ci" / "github-actions.yml", "github-workflows"),
    (ROOT / "docs" / "guides" / "ci" / "gitlab-ci.yml", "gitlab-ci"),
    (ROOT / ".github" / "dependabot.yml", "dependabot"),
    (ROOT / ".github" / "ISSUE_TEMPLATE" / "bug.yml", "github-issue-forms"),
    (ROOT / ".github" / "ISSUE_TEMPLATE" / "feature.yml", "github-issue-forms"),
    (ROOT / ".github" / "ISSUE_TEMPLATE" / "config.yml", "github-issue-config"),
    (ROOT / "CITATION.cff", "citation-file-format"),
]


def refused(path: Path, *options: str) -> str:
    """What check-jsonschema says against a file; empty if nothing."""
    done = CliRunner().invoke(check_jsonschema, [*options, str(path)])
    return "" if done.exit_code == 0 else done.output or str(done.exception)


def parsed(path: Path) -> Any:
    # BaseLoader: `on:` stays a word, as GitHub reads it.
    return yaml.load(path.read_text(), Loader=yaml.BaseLoader)


@pytest.mark.parametrize(("path", "schema"), KEPT, ids=lambda value: value.name if isinstance(value, Path) else "")
def test_every_file_for_a_host_keeps_the_hosts_schema(path: Path, schema: str) -> None:
    assert refused(path, "--builtin-schema", f"vendor.{schema}") == ""


def test_no_file_for_a_host_is_left_out() -> None:
    forms = set((ROOT / ".github").rglob("*.yml")) | set((ROOT / "docs").rglob("*.yml"))
    assert forms - {path for path, _ in KEPT} == set()


def test_a_file_that_breaks_its_schema_is_seen(tmp_path: Path) -> None:
    broken = tmp_path / "broken.yml"
    broken.write_text((ROOT / ".github" / "workflows" / "ci.yml").read_text().replace("runs-on", "runs-where"))
    assert "runs-where" in refused(broken, "--builtin-schema", "vendor.github-workflows")


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_every_job_has_a_time_limit_and_every_workflow_reads_by_default(path: Path) -> None:
    data = parsed(path)
    assert data["permissions"] == {"contents": "read"}
    assert [name for name, job in data["jobs"].items() if "uses" not in job and "timeout-minutes" not in job] == []
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"\bmake ([a-z-]+)", path.read_text().partition("jobs:")[2]):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_only_the_jobs_that_need_them_have_more_permissions() -> None:
    jobs = parsed(ROOT / ".github" / "workflows" / "release.yml")["jobs"]
    more = {name: set(job["permissions"]) - {"contents"} for name, job in jobs.items() if "permissions" in job}
    assert more == {"build": {"id-token", "attestations"}, "pypi": {"id-token"}, "github": set()}
    assert jobs["github"]["needs"] == "pypi", "nothing is announced that isn't published"
    assert jobs["pythons"] == {"needs": "check", "uses": "./.github/workflows/ci.yml"}
    assert jobs["test"] == {"needs": "check", "uses": "./.github/workflows/nightly.yml"}
    assert set(jobs["build"]["needs"]) == {"pythons", "test"}


def test_ci_runs_every_python_that_the_package_names() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = {
        m[1] for c in project["classifiers"] if (m := re.fullmatch(r"Programming Language :: Python :: (3\.\d+)", c))
    }
    matrix = parsed(ROOT / ".github" / "workflows" / "ci.yml")["jobs"]["quick"]["strategy"]["matrix"]["python"]
    assert set(matrix) == named == {"3.11", "3.12", "3.13"}
    assert project["requires-python"] == f">={min(named, key=lambda v: int(v.split('.')[1]))}"


def slow_marks() -> dict[Path, tuple[Any, ...]]:
    """Test file -> the arguments of its `slow` mark."""
    found = {}
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.slow":
                found[path] = tuple(ast.literal_eval(argument) for argument in node.args)
            elif isinstance(node, ast.Attribute) and ast.unparse(node) == "pytest.mark.slow":
                found.setdefault(path, ())
    return found


def test_every_test_runs_somewhere_and_a_slow_file_says_what_only_it_can_show() -> None:
    """`make test` leaves out the marked files alone; `make test-all` has them, and CI runs it each night."""
    marks = slow_marks()
    assert marks, "the marks are found"
    assert [path.name for path, said in marks.items() if len(said) != 1 or len(said[0].split()) < 4] == []
    recipes = dict(re.findall(r"^(test|test-all):.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert '-m "not slow"' in recipes["test"]
    assert "-m " not in recipes["test-all"]
    assert "make test-all" in (ROOT / ".github" / "workflows" / "nightly.yml").read_text()


def test_the_citation_has_the_version_and_the_licence_of_the_code() -> None:
    cited = parsed(ROOT / "CITATION.cff")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert cited["version"] == qpack.__version__
    assert cited["license"] == project["license"]


def test_every_package_ships_its_types() -> None:
    assert [name for name in PACKAGES if not (ROOT / name / "py.typed").is_file()] == []


def test_hooks_run_the_tools_of_the_dev_lock_on_files_that_exist() -> None:
    (repo,) = parsed(ROOT / ".pre-commit-config.yaml")["repos"]
    assert repo["repo"] == "local", "the tools are those of requirements/dev.txt"
    lock = (ROOT / "requirements" / "dev.txt").read_text()
    files = [path.relative_to(ROOT).as_posix() for path in texts()]
    for hook in repo["hooks"]:
        program, *rest = hook["entry"].removeprefix(".venv/bin/").split()
        script = [word for word in rest if word.endswith(".py")]
        assert program == "python" or f"\n{program}==" in lock, hook["id"]
        assert all((ROOT / name).exists() for name in script)
        assert any(re.search(hook.get("files", ""), name) for name in files), f"{hook['id']} runs on nothing"


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda path: path.name)
def test_every_recipe_keeps_the_schema_as_the_hook_checks_it(path: Path) -> None:
    assert refused(path, "--schemafile", str(ROOT / "recipes" / "recipe.schema.json")) == ""


# The check before a release


@pytest.fixture(scope="module")
def release() -> ModuleType:
    spec = importlib.util.spec_from_file_location("release", ROOT / ".ci" / "release.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


CHANGELOG = "# Changelog\n\n## Unreleased\n\n## 0.2.0 (2027-01-01)\n\n- New.\n\n## 0.1.0\n\n- Old.\n"
PROJECT = "[project.urls]\n" + "".join(
    f'{name} = "https://example.com/{name}"\n' for name in ("Source", "Documentation", "Changelog", "Issues")
)
GOOD = {"version": "0.2.0", "cited": "0.2.0", "changelog": CHANGELOG, "project": PROJECT}


def test_a_tag_that_agrees_with_everything_can_be_released(release: ModuleType) -> None:
    assert release.problems("v0.2.0", **GOOD) == []
    assert release.sections(CHANGELOG)["0.2.0"] == "- New."


@pytest.mark.parametrize(
    "change",
    [
        {"version": "0.1.0"},
        {"cited": "0.1.0"},
        {"changelog": CHANGELOG.replace("0.2.0", "0.3.0")},
        {"changelog": CHANGELOG.replace("- New.", "")},
        {"changelog": CHANGELOG.replace("## Unreleased\n", "## Unreleased\n\n- Newer.\n")},
        {"project": "[project.urls]\n"},
        {"project": PROJECT.replace("https://example.com/Issues", "example.com/issues")},
    ],
    ids=["version", "citation", "no section", "empty section", "unreleased entries", "no address", "no https"],
)
def test_a_tag_that_disagrees_with_one_thing_is_refused(release: ModuleType, change: dict[str, str]) -> None:
    assert len(release.problems("v0.2.0", **{**GOOD, **change})) == 1


def test_the_changelog_can_be_read_as_the_release_reads_it(release: ModuleType) -> None:
    found = release.sections((ROOT / "CHANGELOG.md").read_text())
    assert next(iter(found)) == "Unreleased", "entries are collected there"
    assert found[qpack.__version__], "the version of the code has its section"


def test_the_projects_own_addresses_are_in_pyproject_alone_and_are_no_placeholders() -> None:
    """A placeholder is a link to somebody else. Once there is an address, no other file repeats it."""
    urls = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]
    home = urls.get("Source", "https://github.com/OWNER/qpack")
    own = [
        path.relative_to(ROOT).as_posix()
        for path in texts()
        if path != Path(__file__) and "docs/decisions" not in path.as_posix() and home in path.read_text()
    ]
    assert own == (["pyproject.toml"] if urls else [])
    assert all(address.startswith("https://") and "OWNER" not in address for address in urls.values())
