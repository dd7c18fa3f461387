"""Write what the docs take from the code: tables of keys, commands, gates, manifests, exit codes, problems, schemes; an
index of decisions.

    python docs/generate.py            write the pages
    python docs/generate.py --check    exit with 1 if a page isn't what the code says

A page marks what is generated with `<!-- code: NAME -->` and `<!-- /code -->`; the rest of it is written by hand. Facts
about a recipe key that don't belong into its description (links, bounds between keys) are in `docs/notes.yaml`.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import inspect
import itertools
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import typer
import yaml
from pydantic import BaseModel

from benchmarks import measured_builds
from evals.gates.gates import GATES, Gates
from qpack.cli import usage
from qpack.cli.app import app
from qpack.core import errors
from qpack.core.problems import Code
from qpack.core.records import Release
from qpack.recipe import models as sections
from qpack.runtime import platforms
from qpack.runtime.fetching import mib
from quantize.schemes.schemes import SCHEMES, TARGETS
from registry.serving.exporters.formats import FORMATS
from registry.serving.serving_manifest import ServingManifest

DOCS = Path(__file__).parent
PACKAGES = ("qpack", "quantize", "evals", "registry")
REGION = re.compile(r"(<!-- code: (.+?) -->\n)(.*?)(<!-- /code -->)", re.DOTALL)
Rows = list[tuple[str, ...]]
_BAR = r"\|"


def table(heading: tuple[str, ...], rows: Rows) -> str:
    """A Markdown table; a bar in a cell is escaped."""
    lines = [heading, ("---",) * len(heading), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', _BAR) for cell in line)} |" for line in lines)


def prose(text: str | None) -> str:
    """A docstring as one line per paragraph."""
    paragraphs = re.split(r"\n\s*\n", inspect.cleandoc(text or ""))
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


# Types, from JSON Schema


def bounds(schema: Mapping[str, Any]) -> str:
    """`, at least 1`, `, 1 to 20`, ` above 0, at most 16`: the bounds of a number."""
    low, above, high = (schema.get(key) for key in ("minimum", "exclusiveMinimum", "maximum"))
    if low is not None and high is not None:
        return f", {low} to {high}"
    lower = f", at least {low}" if low is not None else f" above {above}" if above is not None else ""
    return f"{lower}, at most {high}" if high is not None else lower


def kind(schema: Mapping[str, Any], defs: Mapping[str, Any], section: Callable[[str], str]) -> str:
    """The type of a value in words; `section` names an object of its own."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return section(name) if "properties" in defs.get(name, {}) else kind(defs[name], defs, section)
    if "anyOf" in schema:
        kinds = [kind(choice, defs, section) for choice in schema["anyOf"]]
        named = list(dict.fromkeys(k for k in kinds if k != "null"))
        if len(named) > 3:
            return "value"
        return ", or ".join([*named, *(["null"] if "null" in kinds else [])])
    if "enum" in schema or "const" in schema:
        return ", ".join(map(str, schema.get("enum", [schema.get("const")])))
    match schema.get("type"):
        case "array":
            items = schema.get("items") or {}
            inner = re.sub(r"^(number|integer|section)\b", r"\1s", kind(items, defs, section) if items else "value")
            return f"list of {inner}{', at least one' if schema.get('minItems') else ''}"
        case "object":
            values = schema.get("additionalProperties")
            inner = kind(values, defs, section) if isinstance(values, dict) and values else ""
            return "mapping" if inner in ("", "value", "value, or null") else f"mapping of {inner}"
        case "number" | "integer" as number:
            return f"{number}{bounds(schema)}"
        case plain:
            return {"string": "text", "boolean": "true or false", "null": "null", None: "value"}[plain]


def default(value: Any) -> str:
    """A default as YAML has it."""
    if isinstance(value, BaseModel):
        return "its defaults"
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(default, value))}]"
    return value if isinstance(value, str) else json.dumps(value)


def default_of(model: type[BaseModel], name: str) -> str:
    """The default of a field, or `required`."""
    field = model.model_fields[name]
    return "required" if field.is_required() else default(field.get_default(call_default_factory=True))


# Recipes


def _kinds(base: type[BaseModel]) -> Iterator[type[BaseModel]]:
    yield base
    for sub in base.__subclasses__():
        yield from _kinds(sub)


def sections_of(model: type[BaseModel], at: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    """Every section of a recipe, by its place: `evaluate.tasks`."""
    yield at, model
    for name, field in model.model_fields.items():
        words = re.findall(r"\w+", str(field.annotation))
        for base in (sections.Section, Gates):
            for inner in _kinds(base):
                if inner.__name__ in words and inner is not sections.Section:
                    yield from sections_of(inner, f"{at}.{name}".strip("."))


def notes() -> dict[str, str]:
    """Facts about recipe keys that their descriptions don't hold, by place."""
    found: dict[str, str] = yaml.safe_load((DOCS / "notes.yaml").read_text())
    return found


def recipe_section(place: str) -> str:
    """The keys of one section: type, default, description and notes. Raises KeyError for one that nothing explains."""
    places = dict(sections_of(sections.Recipe))
    model = places[place]
    schema = model.model_json_schema()
    rows: Rows = []
    for name, field in model.model_fields.items():
        at = f"{place}.{name}".strip(".")
        inner = places.get(at)
        told = field.description or (prose(inner.__doc__) if inner else "")
        meaning = " ".join(filter(None, [told, notes().get(at, "")]))
        if not meaning:
            raise KeyError(f"{at} has no description; add one to the field")
        said = kind(schema["properties"][name], schema.get("$defs", {}), lambda _: "section")
        rows.append((f"`{name}`", said, default_of(model, name), meaning))
    return table(("Key", "Type", "Default", "Meaning"), rows)


# Commands


def commands(group: Any = None, before: tuple[str, ...] = ("qpack",)) -> Iterator[tuple[str, Any]]:
    """Every command that can be run, by its whole name, and `qpack` itself."""
    group = group or typer.main.get_command(app)
    inner = getattr(group, "commands", {})
    if not inner or len(before) == 1:
        yield " ".join(before), group
    for name, command in inner.items():
        yield from commands(command, (*before, name))


def command_overview(_: str) -> str:
    """Each command and the first sentence of its help."""
    rows: Rows = [
        (f"[`{name}`](#{_anchor(name, command)})", re.split(r"(?<=\.)\s", prose(command.help))[0])
        for name, command in commands()
        if name != "qpack"
    ]
    return table(("Command", "What it does"), rows)


def _anchor(name: str, command: Any) -> str:
    heading = f"{name} {' '.join(usage.argument(p) for p in command.params if p.param_type_name == 'argument')}".strip()
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def command_reference(name: str) -> str:
    """What a command's own help has: its text, arguments and options."""
    command = dict(commands())[name]
    context = typer.Context(command)
    rows: Rows = []
    for parameter in command.params:
        if parameter.param_type_name == "argument":
            if parameter.help:
                rows.append((f"`{usage.argument(parameter)}`", parameter.help))
            continue
        if getattr(parameter, "hidden", False) or "--help" in parameter.opts:
            continue
        value = "" if parameter.is_flag else f" {usage.option(parameter, context)[0].rpartition(' ')[2]}"
        names = ", ".join(f"`{option}{value}`" for option in (*parameter.opts, *parameter.secondary_opts))
        given = parameter.default
        shown = not parameter.is_flag and given and parameter.show_default
        rows.append((names, f"{parameter.help or ''}{f' Default: `{given}`.' if shown else ''}".strip()))
    told = prose(command.help)
    return f"{told}\n\n{table(('Option', 'Meaning'), rows)}" if rows else told


# Gates, schemes, exit codes


def gates(_: str) -> str:
    """The gates: whether the bound is a ceiling or a floor, which bounds it takes, and what narrows its interval."""
    schema = Gates.model_json_schema()
    rows: Rows = []
    for name, gate in GATES.items():
        bound = kind(schema["properties"][name], schema.get("$defs", {}), lambda _: "section").removesuffix(", or null")
        rows.append(
            (f"`{name}`", "ceiling" if gate.kind == "max" else "floor", bound, gate.meaning, gate.unit or "nothing")
        )
    return table(("Gate", "Bound", "Takes", "Figure", "Narrowed by more"), rows)


def schemes(_: str) -> str:
    """Bits, groups and methods of each scheme."""
    rows: Rows = [
        (
            f"`{s.name}`",
            f"{s.weight_bits} bits",
            f"{s.activation_bits} bits",
            "yes" if s.grouped else f"blocks of {s.block}" if s.block else "no",
            ", ".join(s.methods),
        )
        for s in SCHEMES.values()
    ]
    return table(("Scheme", "Weights", "Activations", "Groups", "Methods"), rows)


def kernels(_: str) -> str:
    """The vLLM kernel of each scheme on each target."""
    rows: Rows = [(f"`{s.name}`", *(s.kernels.get(t, "none") for t in TARGETS)) for s in SCHEMES.values()]
    return table(("Scheme", *TARGETS), rows)


def exports(_: str) -> str:
    """Every format of `qpack export`."""
    rows: Rows = [(f"`{name}`", one.FILES, one.MODEL) for name, one in FORMATS.items()]
    return table(("Format", "Files", "The model"), rows)


def locks(_: str) -> str:
    """Where each environment's lock can be installed, and what it fetches."""
    rows: Rows = []
    for key in json.loads(platforms.FILE.read_text()):
        name, variant = key.split()
        size = platforms.size(name, variant)
        cells = []
        for processor, python in itertools.product(platforms.PROCESSORS, platforms.PYTHONS):
            found = platforms.status(name, variant, python, processor)
            cells.append("no" if not found.works else "yes, torch?" if found.why else "yes")
        fetched = f"{size.packages} packages, {mib(size.bytes)}" if size else ""
        rows.append((f"`{name}` {variant}", fetched, *cells))
    heads = [
        f"{processor}, {python}" for processor, python in itertools.product(platforms.PROCESSORS, platforms.PYTHONS)
    ]
    return table(("Environment", "To fetch", *heads), rows)


def lacking(_: str) -> str:
    """What each lock has no wheel of, somewhere."""
    rows: Rows = []
    for key in json.loads(platforms.FILE.read_text()):
        name, variant = key.split()
        for processor, python in itertools.product(platforms.PROCESSORS, platforms.PYTHONS):
            found = platforms.status(name, variant, python, processor)
            if not found.works:
                rows.append((f"`{name}` {variant}", f"{processor}, {python}", found.why))
    return table(("Environment", "Where", "Why not"), rows)


def predictions(_: str) -> str:
    """What the rates of `qpack plan` predict for each build whose time was measured."""
    rows: Rows = []
    for one in measured_builds.read():
        factor = one.predicted / one.seconds
        how = "fitted" if one.fitted else "predicted only"
        page = f"[{one.page}]({one.page}.md)"
        measured, predicted = (f"{seconds:,.1f}" for seconds in (one.seconds, one.predicted))
        rows.append((one.build, one.machine, page, measured, predicted, f"{factor:.2f}", how))
    return table(("Build", "Machine", "From", "Measured, s", "Predicted, s", "Factor", "Rates"), rows)


def exit_codes(_: str) -> str:
    """Every error's exit code, name and meaning."""
    kinds = sorted(errors.QpackError.__subclasses__(), key=lambda kind: kind.exit_code)
    rows: Rows = [("0", "", "Done, or done already.")]
    rows += [(str(k.exit_code), k.title, prose(k.__doc__)) for k in kinds]
    rows.append((str(errors.QpackError.exit_code), "", "A bug in qpack."))
    return table(("Code", "Kind", "Meaning"), rows)


# Problems


def problem_codes() -> Iterator[tuple[str, Code]]:
    """Every code of a problem, with the module that declares it: `NAME = Code(...)` at its top."""
    for path in sorted(path for package in PACKAGES for path in (DOCS.parent / package).rglob("*.py")):
        text = path.read_text()
        if " = Code(" not in text:
            continue
        name = ".".join(path.relative_to(DOCS.parent).with_suffix("").parts)
        module = importlib.import_module(name)
        for node in ast.parse(text).body:
            if isinstance(node, ast.Assign) and ast.unparse(node.value).startswith("Code("):
                yield name, getattr(module, ast.unparse(node.targets[0]))


def problems(places: str) -> str:
    """The codes of modules and folders, and what each means."""
    prefixes = tuple(f"{place}." for place in places.split())
    rows: Rows = [
        (f"`{code.name}`", f"{code.title}{' `qpack doctor --fix` can repair it.' if code.fixable else ''}")
        for module, code in problem_codes()
        if f"{module}.".startswith(prefixes)
    ]
    return table(("Code", "Meaning"), sorted(rows))


# Manifests


def manifest(name: str) -> str:
    """The fields of a manifest and of every object in it."""
    models: dict[str, type[BaseModel]] = {"release": Release, "serving": ServingManifest}
    model = models[name]
    schema = model.model_json_schema()
    defs = {key: value for key, value in schema.get("$defs", {}).items() if "properties" in value}
    parts = []
    for title, part in {model.__name__: schema, **defs}.items():
        required = part.get("required", [])
        rows: Rows = []
        for field, value in part["properties"].items():
            said = kind(value, schema.get("$defs", {}), lambda inner: f"[{inner}](#{inner.lower()})")
            given = "required" if field in required else default(value["default"]) if "default" in value else "empty"
            rows.append((f"`{field}`", said, given))
        parts.append(f"### {title}\n\n{prose(part.get('description'))}\n\n{table(('Field', 'Type', 'Default'), rows)}")
    return "\n\n".join(parts)


# Decisions


def decisions(_: str) -> str:
    """The index of decisions, from the titles of their files."""
    lines: Rows = []
    for record in sorted((DOCS / "decisions").glob("[0-9]*.md")):
        number, title = re.match(r"# (\d+)\. (.*)", record.read_text()).groups()  # type: ignore[union-attr]
        lines.append((number, f"[{title}]({record.name})"))
    return table(("Number", "Decision"), lines)


MAKERS: Mapping[str, Callable[[str], str]] = {
    "recipe": recipe_section,
    "command": command_reference,
    "commands": command_overview,
    "gates": gates,
    "schemes": schemes,
    "kernels": kernels,
    "exports": exports,
    "locks": locks,
    "predictions": predictions,
    "lacking": lacking,
    "exit codes": exit_codes,
    "problems": problems,
    "manifest": manifest,
    "decisions": decisions,
}
"""What stands before the colon of a region's name, and what makes its text from what stands behind."""


def filled(text: str) -> str:
    """A page with every region as the code has it now. Raises KeyError for a region that nothing makes."""

    def fill(match: re.Match[str]) -> str:
        maker, _, argument = match[2].partition(":")
        return f"{match[1]}\n{MAKERS[maker](argument.strip())}\n\n{match[4]}"

    return REGION.sub(fill, text)


def pages() -> dict[Path, str]:
    """Every page that has a region, as it has to be."""
    found = {path: path.read_text() for path in sorted(DOCS.rglob("*.md"))}
    return {path: filled(text) for path, text in found.items() if "<!-- code:" in text}


def main() -> int:
    """Write or check the pages; the exit code."""
    parser = argparse.ArgumentParser(description="Write what the docs take from the code.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a page differs")
    check = parser.parse_args().check
    stale = {path: text for path, text in pages().items() if path.read_text() != text}
    for path, text in stale.items():
        print(f"{path.relative_to(DOCS.parent)}: {'differs from the code; run `make docs`' if check else 'written'}")
        if not check:
            path.write_text(text)
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
