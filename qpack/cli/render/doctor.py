"""`qpack doctor CHECKPOINT`: findings and repairs."""

from __future__ import annotations

import dataclasses
import textwrap

from qpack.cli.render.text import emit
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
                "findings": [dataclasses.asdict(finding) for finding in checkup.findings],
                "mended": found.mended,
                "output": str(found.output) if found.output else None,
            }
        )
        return
    for done in found.mended:
        print(f"repaired  {done}")
    if found.output is not None:
        print(f"{found.output}: {'repaired copy' if found.mended else 'copy, nothing to repair'}; what remains:\n")
    print(f"{found.name}: {_kind(found)}")
    for finding in checkup.findings:
        place = f"{finding.where}: " if finding.where and not finding.what.startswith(finding.where) else ""
        hint = f" {finding.hint}" if finding.hint else ""
        fixable = " (--fix)" if finding.mend and found.output is None else ""
        print(
            textwrap.fill(
                f"{place}{finding.what}.{hint}{fixable}",
                width=110,
                initial_indent=f"{finding.severity:<8}{finding.kind}: ",
                subsequent_indent=" " * 8,
                break_long_words=False,
                break_on_hyphens=False,
            )
        )
    if not checkup.findings:
        print("No problem found in the files. `--load` also loads it in vLLM.")


def _kind(found: Examined) -> str:
    checkup = found.checkup
    if checkup.method is None:
        return f"not quantized, {checkup.linear} linear layers"
    read = "; long tensors were sampled (--whole reads all)" if checkup.sampled else ""
    return f"{checkup.method}, {checkup.quantized} of {checkup.linear} linear layers quantized{read}"
