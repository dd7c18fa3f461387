"""Claims about the files that a verdict is written to: JUnit XML and Markdown."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from evals.comparison.verdicts import verdict
from evals.report import junit, markdown
from qpack.core.records import Release, Verdict
from tests.unit.evidence_samples import BOUNDS, TASKS, make_release

MIXED = BOUNDS | {"perplexity_ratio": 1.01, "accuracy_drop": 0.021}


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Release:
    return make_release(tmp_path_factory.mktemp("logprobs"))


@pytest.fixture(scope="module")
def mixed(release: Release) -> Verdict:
    found = verdict(release.comparison, release.baseline, release.artifact, MIXED)
    assert {gate.outcome for gate in found.gates} == {"pass", "fail", "undecided"}
    return found.model_copy(update={"anomalies": ("piqa: <b> gained | a lot & more",)})


def test_every_gate_is_a_test_case_and_the_counts_are_right(release: Release, mixed: Verdict):
    root = ET.fromstring(junit.render(release, mixed, "tiny:1"))
    cases = root.findall("./testsuite/testcase")
    assert [case.get("name") for case in cases] == [gate.gate for gate in mixed.gates]
    for element in (root, root.find("testsuite")):
        assert element is not None
        assert int(element.get("tests", "")) == len(cases)
        assert int(element.get("failures", "")) == len(root.findall(".//failure")) > 0
        assert int(element.get("errors", "")) == len(root.findall(".//error")) > 0
    for gate, case in zip(mixed.gates, cases, strict=True):
        expected = {"pass": None, "fail": "failure", "undecided": "error"}[gate.outcome]
        told = [child for child in case if child.tag in ("failure", "error")]
        assert [child.tag for child in told] == ([expected] if expected else [])
        assert all(child.get("message") == gate.why for child in told)


def test_junit_survives_any_name(release: Release, mixed: Verdict):
    root = ET.fromstring(junit.render(release, mixed, 'a<b>&"\x00\x1b]'))
    suite = root.find("testsuite")
    assert suite is not None
    assert suite.get("name") == 'a<b>&"\ufffd\ufffd]'


def test_markdown_has_the_verdict_first_and_every_gate_and_task(release: Release, mixed: Verdict):
    text = markdown.render(release, mixed, "tiny:1")
    assert text.startswith("## tiny:1: ❌ fail\n")
    for gate in mixed.gates:
        assert f"| {gate.gate} | " in text
    for name, items in TASKS:
        row = re.search(rf"^\| {name} \| {items} \|.*$", text, re.MULTILINE)
        assert row, name
        assert re.search(
            r"\| −?\d+\.\d \| −?\d+\.\d to −?\d+\.\d \| \d+\.\d % \| \d+\.\d % to \d+\.\d % \| −\d+ \+\d+ \| [<\d]",
            row[0],
        ), row[0]
    assert "piqa: &lt;b> gained \\| a lot & more" in text


def test_every_row_of_a_markdown_table_has_as_many_cells_as_its_head(release: Release, mixed: Verdict):
    width = 0
    for line in markdown.render(release, mixed, "a | b").splitlines():
        cells = len(re.findall(r"(?<!\\)\|", line))
        assert cells == width or not line.startswith("|") or not width, line
        width = cells if line.startswith("|") else 0


def test_the_sign_of_points_is_that_of_the_change(release: Release, mixed: Verdict, tmp_path: Path):
    worse = make_release(tmp_path, harm=0.2)
    (row,) = re.findall(r"^\| mean over tasks \|.*$", markdown.render(worse, mixed, "x"), re.MULTILINE)
    assert "| −" in row
