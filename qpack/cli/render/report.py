"""`qpack report`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from qpack.cli.render.text import emit
from qpack.core.errors import EvaluateError, RegistryError
from qpack.core.problems import ALREADY_EXISTS, FILE_SYSTEM, Code
from qpack.core.records import Release
from registry.core.protocol import check_name

_NOT_ON_THE_HUB = Code("not-on-the-hub", "No task of a release is of a benchmark that the Hub registers.")

_FILES = {"html": "-report.html", "markdown": "-report.md", "junit": "-report.xml", "hub": "-eval-results.yaml"}
"""What a file's default name ends with, by format; other formats are folders."""


def reported(release: Release, form: str, output: Path | None, *, as_json: bool) -> None:
    """Write the report, or the evaluation in another tool's format."""
    name = _file_name(release.name)
    if form in _FILES:
        target = output or Path(f"{name}{_FILES[form]}")
        _write({target: _text(release, form)})
    else:
        target = output or Path(f"{name}-{form}")
        _new_files({target / path: text for path, text in _folder(release, form, target).items()})
    missed = [gate for gate in release.verdict.gates if gate.outcome != "pass"]
    if as_json:
        emit({"report": str(target.absolute()), "verdict": release.verdict.model_dump()})
        return
    print(f"Wrote {target}: {release.verdict.outcome}")
    for gate in missed:
        print(f"  {gate.gate}: {gate.why}")


def _text(release: Release, form: str) -> str:
    """One file's content. Raises EvaluateError where the format has nothing to say of this release."""
    from evals.report import html_report, junit, markdown
    from registry.release import eval_results

    if form == "html":
        return html_report.render(release)
    if form == "markdown":
        return markdown.render(release, release.verdict, release.name)
    if form == "junit":
        return junit.render(release, release.verdict, release.name)
    scores = eval_results.render(release)
    if scores is None:
        raise EvaluateError(
            _NOT_ON_THE_HUB,
            "no task covers a benchmark that is registered on the Hub",
            hint="`.eval_results` is for whole benchmarks, such as lm_eval:gsm8k without `samples`.",
        )
    return scores


def _folder(release: Release, form: str, target: Path) -> Mapping[str, str]:
    """The files of a format that is a folder."""
    from evals.report.exports import every_eval_ever, lm_eval_results, mlflow_run

    if form == "mlflow":
        return mlflow_run.files(release, target.absolute().as_uri())
    return every_eval_ever.files(release) if form == "every-eval-ever" else lm_eval_results.files(release)


def _new_files(files: Mapping[Path, str]) -> None:
    """Write files that aren't there yet. MLflow's folder holds other runs, and the experiment's own file stays."""
    there = [path for path in files if path.exists() and path.parent.parent.name != "mlruns"]
    if there:
        raise RegistryError(ALREADY_EXISTS, f"{there[0]} is there already", hint="Name another folder with --output.")
    _write({path: text for path, text in files.items() if not path.exists()})


def _write(files: Mapping[Path, str]) -> None:
    for path, text in files.items():
        try:
            if len(files) > 1:
                path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        except OSError as error:
            raise RegistryError(
                FILE_SYSTEM, f"{path}: {error.strerror}", hint="Name another place with --output."
            ) from error


def _file_name(name: str) -> str:
    """A release calls itself what it likes: by that name no other folder is written to."""
    try:
        return check_name(name).replace("/", "-")
    except RegistryError:
        return "release"
