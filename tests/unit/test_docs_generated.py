"""Claims about what the docs take from the code: docs/generate.py writes it, and the pages are what it writes."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
from pydantic import BaseModel

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_every_page_is_what_the_code_says(generate: ModuleType) -> None:
    pages = generate.pages()
    assert len(pages) >= 7
    stale = [path.relative_to(ROOT).as_posix() for path, text in pages.items() if path.read_text() != text]
    assert stale == [], "run `make docs`"


def test_every_kind_of_table_is_on_a_page(generate: ModuleType) -> None:
    text = "".join(generate.pages().values())
    named = {name.partition(":")[0] for name in re.findall(r"<!-- code: (.+?) -->", text)}
    assert named == set(generate.MAKERS)
    assert text.count("<!-- code: ") == text.count("<!-- /code -->")


def test_every_section_and_every_command_has_its_table(generate: ModuleType) -> None:
    named = set(re.findall(r"<!-- code: (.+?) -->", "".join(generate.pages().values())))
    places = {f"recipe:{place}" for place, _ in generate.sections_of(generate.sections.Recipe)}
    calls = {f"command:{name}" for name, _ in generate.commands()}
    assert len(places) > 15
    assert len(calls) > 30
    assert (places | calls) - named == set()


def test_notes_are_about_keys_that_exist(generate: ModuleType) -> None:
    places: dict[str, type[BaseModel]] = dict(generate.sections_of(generate.sections.Recipe))
    keys = {f"{place}.{name}".strip(".") for place, model in places.items() for name in model.model_fields}
    assert set(generate.notes()) - keys == set()


def test_a_key_that_nothing_explains_is_an_error(generate: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generate, "notes", dict)
    with pytest.raises(KeyError, match=r"serve\.max_model_len"):
        generate.recipe_section("serve")


def test_a_region_is_filled_and_the_rest_of_the_page_is_kept(generate: ModuleType) -> None:
    page = "before\n<!-- code: exit codes -->\nold\n<!-- /code -->\nafter\n"
    text = generate.filled(page)
    assert text.startswith("before\n<!-- code: exit codes -->\n\n| Code |")
    assert text.endswith("\n\n<!-- /code -->\nafter\n")
    assert "old" not in text
    assert generate.filled(text) == text
    with pytest.raises(KeyError):
        generate.filled("<!-- code: nothing -->\n<!-- /code -->")


def test_check_writes_nothing_and_fails_on_a_stale_page(
    generate: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!-- code: exit codes -->\n<!-- /code -->\n")
    before = page.read_text()
    monkeypatch.setattr(generate, "DOCS", tmp_path)
    monkeypatch.setattr(sys, "argv", ["generate.py", "--check"])
    assert generate.main() == 1
    assert page.read_text() == before
    monkeypatch.setattr(sys, "argv", ["generate.py"])
    assert generate.main() == 0
    monkeypatch.setattr(sys, "argv", ["generate.py", "--check"])
    assert generate.main() == 0


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "integer", "minimum": 1}, "integer, at least 1"),
        ({"type": "integer", "minimum": 1, "maximum": 20}, "integer, 1 to 20"),
        ({"type": "number", "exclusiveMinimum": 0, "maximum": 16}, "number above 0, at most 16"),
        ({"type": "array", "items": {"type": "number", "minimum": 0, "maximum": 1}}, "list of numbers, 0 to 1"),
        ({"anyOf": [{"enum": ["a", "b"]}, {"type": "null"}]}, "a, b, or null"),
        ({"type": "object", "additionalProperties": {"type": "string"}}, "mapping of text"),
        ({"type": "object", "additionalProperties": True}, "mapping"),
        ({"$ref": "#/$defs/Part"}, "Part!"),
    ],
)
def test_types_are_told_in_words(generate: ModuleType, schema: dict[str, object], words: str) -> None:
    defs = {"Part": {"properties": {}}}
    assert generate.kind(schema, defs, lambda name: f"{name}!") == words
