"""A verdict as JUnit XML, which GitLab, Jenkins, Azure and most other CI systems show as test results.

One test case per gate; a failed gate is a `failure`, an undecided one an `error`; figure and bound are in `system-out`.
The elements are those of the schema of Jenkins' xunit plugin.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

from evals.gates.gates import figure
from qpack.core.records import Release, Verdict

# XML 1.0 allows no control characters but tab, line feed and carriage return.
_NOT_XML = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def render(release: Release, verdict: Verdict, name: str) -> str:
    """The file as text. `name`, that of the suite, is a reference or a recipe."""
    outcomes = [gate.outcome for gate in verdict.gates]
    counts = {
        "tests": str(len(outcomes)),
        "failures": str(outcomes.count("fail")),
        "errors": str(outcomes.count("undecided")),
        "skipped": "0",
        "time": "0",
    }
    root = ET.Element("testsuites", {"name": "qpack gate", **counts})
    suite = ET.SubElement(root, "testsuite", {"name": _clean(name), "timestamp": release.created.rstrip("Z"), **counts})
    facts = ET.SubElement(suite, "properties")
    for key, value in (
        ("verdict", verdict.outcome),
        ("artifact", release.quantized.digest),
        ("source", release.source.resolved),
        ("server", release.artifact.server),
    ):
        ET.SubElement(facts, "property", {"name": key, "value": _clean(value)})
    for gate in verdict.gates:
        case = ET.SubElement(
            suite, "testcase", {"classname": _clean(f"qpack.{name}"), "name": _clean(gate.gate), "time": "0"}
        )
        reason = _clean(f"{gate.why}\n{gate.estimate.method}")
        if gate.outcome == "fail":
            ET.SubElement(case, "failure", {"message": _clean(gate.why), "type": "fail"}).text = reason
        elif gate.outcome == "undecided":
            ET.SubElement(case, "error", {"message": _clean(gate.why), "type": "undecided"}).text = reason
        bound = f"{'at most' if gate.kind == 'max' else 'at least'} {figure(gate.bound)}"
        ET.SubElement(case, "system-out").text = _clean(f"{figure(gate.estimate.value)}, {bound}. {reason}")
    if verdict.anomalies:
        ET.SubElement(suite, "system-err").text = _clean("\n".join(verdict.anomalies))
    ET.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def _clean(text: str) -> str:
    return _NOT_XML.sub("\ufffd", text)
