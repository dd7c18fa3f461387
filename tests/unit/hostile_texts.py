"""Texts that would be markup, and a release with one of them in every field that can hold a text."""

from __future__ import annotations

import os
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, cast

from hypothesis import strategies as st
from pydantic import BaseModel

import tests.unit.evidence_samples as samples
import tests.unit.registry_examples as examples
from qpack.core.findings import Contamination, Overlap, OverlapSet
from qpack.core.records import Check, Proof, Release
from registry.serving.serving_manifest import ServingManifest

TEXTS = (
    *("<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "</title><svg onload=alert(1)>", "<!-- ", "]]>"),
    *('" onmouseover="alert(1)', "' onfocus='alert(1)' autofocus='", "&lt;script&gt;", "&#60;b&#62;", "<b", "</b"),
    *("[x](javascript:alert(1))", "![x](http://example.org/a.png)", "[x]: http://example.org", "[^1]", "<http://x.y>"),
    *("http://example.org/a", "www.example.org", "who@example.org", "mailto:who@example.org", "HTTPS://EXAMPLE.ORG"),
    *("a | b", "|", "\\|", "\\", "\\\\|", "`", "``", "```\n<b>", "~~~", "`a|b`", "a`", "`` ` ``", "| --- |"),
    *("# head", "- item", "+ item", "1. item", "2) item", "> quote", "---", "===", "***", "___", "    code", "\tcode"),
    *("**b**", "_i_", "__b__", "a_b_c", "~~s~~", "$x$", "$$", "{{ 7*7 }}", "{% raw %}", "{# #}", "a\n\nb", "a\r\nb"),
    *("---\nlicense: mit\n---", "\n---\n", "x: y", "- x", "!!python/object:os.system", "*a", "&a", "%TAG", "'", '"'),
    *("\u202egnp.exe", "\u2066x", "\x1b[31mred", "\x00", "\x7f", "\u2028---\u2029", "\x85", "\ufeff", "\ud7ff", "   "),
)

texts = st.sampled_from(TEXTS) | st.lists(st.sampled_from(TEXTS), min_size=2, max_size=3).map("".join) | st.text()


def rounds() -> list[tuple[str, ...]]:
    """Rounds of texts for the fields of a release, one after the other. In QPACK_TEST_EXAMPLES every field gets every
    text; else every text gets into some fields, and every field has several.
    """
    marks = [text for text in TEXTS if text.strip()]
    if "QPACK_TEST_EXAMPLES" in os.environ:
        return [(text,) for text in marks]
    return [tuple(marks[start:] + marks[:start]) for start in range(0, len(marks), len(marks) // 5)]


def with_texts(model: BaseModel, texts: Iterator[str]) -> BaseModel:
    """The same record, with the next of `texts` in place of each text that may be any."""
    hints = typing.get_type_hints(type(model))
    changed = {name: _changed(getattr(model, name), hints[name], texts) for name in type(model).model_fields}
    return type(model).model_construct(**changed)


def _changed(value: Any, hint: Any, texts: Iterator[str]) -> Any:
    if isinstance(value, BaseModel):
        return with_texts(value, texts)
    inside = _parts(hint)
    if isinstance(value, str):
        return value if any(typing.get_origin(part) is Literal for part in (hint, *inside)) else next(texts)
    if isinstance(value, tuple | list):
        return type(value)(_changed(item, inside[0] if inside else Any, texts) for item in value)
    if isinstance(value, Mapping):
        return {next(texts): _changed(item, inside[-1] if inside else Any, texts) for item in value.values()}
    return value


def _parts(hint: Any) -> tuple[Any, ...]:
    parts = tuple(part for part in typing.get_args(hint) if part is not type(None) and part is not Ellipsis)
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        return tuple(inner for part in parts for inner in (part, *_parts(part)))
    return parts


def whole(tmp_path: Path) -> Release:
    """A release that has every part that a card shows."""
    made = samples.make_release(tmp_path, bounds={"flip_rate": 0.01})
    overlap = Overlap(item="i", row="r", share=0.5, words="w")
    found = Contamination(
        ngram=13,
        rows=16,
        sets=(
            OverlapSet(name="one", items=5, too_short=0, overlaps=(overlap,) * 6),
            OverlapSet(name="two", items=5, too_short=1, overlaps=()),
        ),
        unchecked=("three",),
    )
    checks = tuple(Check(name="n", claim="c", outcome=kind, why="w") for kind in ("pass", "fail", "skip"))  # type: ignore[arg-type]
    return made.model_copy(
        update={
            "contamination": found,
            "forced": True,
            "artifact": made.artifact.model_copy(update={"proof": Proof(clients={"openai": "1"}, checks=checks)}),
            "verdict": made.verdict.model_copy(update={"anomalies": ("too good", "far too good")}),
            "source": made.source.model_copy(update={"source": "hf://a/b@main", "resolved": "hf://a/b@c"}),
        }
    )


def with_fields(whole: Release, words: Iterator[str]) -> tuple[Release, ServingManifest]:
    """Such a release and a serving manifest, with the next of `words` in each field that holds a text."""
    release = cast("Release", with_texts(whole, words))
    # Tables join by these: they have to agree, whatever they are.
    tasks = [task.task for task in release.comparison.tasks]
    accuracy = release.artifact.accuracy
    renamed = tuple(t.model_copy(update={"task": name}) for t, name in zip(accuracy.tasks, tasks, strict=True))
    artifact = release.artifact.model_copy(update={"accuracy": accuracy.model_copy(update={"tasks": renamed})})
    serving = cast("ServingManifest", with_texts(examples.serving(), words))
    return release.model_copy(update={"artifact": artifact}), serving
