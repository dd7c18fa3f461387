"""`qpack doctor CHECKPOINT`: findings and repairs."""

from __future__ import annotations

import textwrap
from typing import Any

from qpack.cli.render.text import emit
from qpack.core.problems import Problem
from qpack.doctor.checkpoint import Examined


def examined(found: Examined, *, as_json: bool) -> None:
    """The findings, worst first; for people one a paragraph."""
    checkup = found.checkup
    if as_json:
        emit(
            {
                "checkpoint": found.name,
                "sound": checkup.sound,
                "method": checkup.method,
                "quantized_layers": checkup.quantized,
                "linear_layers": checkup.linear,
                "sampled": checkup.sampled,
                "findings": [_json(finding) for finding in checkup.findings],
                "repaired": found.repaired,
                "output": str(found.output) if found.output else None,
            }
        )
        return
    for done in found.repaired:
        print(f"repaired  {done}")
    if found.output is not None:
        print(f"{found.output}: {'repaired copy' if found.repaired else 'copy, nothing to repair'}; what remains:\n")
    print(f"{found.name}: {_kind(found)}")
    for finding in checkup.findings:
        fixable = " (--fix)" if finding.fixable and found.output is None else ""
        print(
            textwrap.fill(
                f"{finding}{fixable}",
                width=110,
                subsequent_indent=" " * 8,
                break_long_words=False,
                break_on_hyphens=False,
            )
        )
    if not checkup.findings:
        print("No problem found in the files. `--load` also loads it in vLLM.")


def _json(finding: Problem) -> dict[str, Any]:
    """`fixable`: --fix repairs it."""
    return {**finding.as_json(), "fixable": finding.fixable}


def _kind(found: Examined) -> str:
    checkup = found.checkup
    if checkup.method is None:
        return f"not quantized, {checkup.linear} linear layers"
    read = "; long tensors were sampled (--whole reads all)" if checkup.sampled else ""
    return f"{checkup.method}, {checkup.quantized} of {checkup.linear} linear layers quantized{read}"
