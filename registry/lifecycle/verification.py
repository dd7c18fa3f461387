"""Verification of a release: digests, consistency of its parts, provenance.

A manifest's digest pins its files, but not that they belong together: the evidence has to be about these weights,
figures and verdict have to follow from the evidence, the annotations have to match, and there may be no unexpected
files. `verify` checks all of it and returns every finding.
"""

from __future__ import annotations

import json
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from qpack.core.errors import RegistryError
from qpack.core.frozen import Frozen
from qpack.core.hashing import digest_of, in_threads, sha256
from qpack.core.problems import Code, Location, Problem
from qpack.core.records import FileRecord, Release, Verdict
from registry.core import modelpack
from registry.core.codes import UNREADABLE_MANIFEST
from registry.local.alias_policy import UNSIGNED
from registry.local.blobs import Blobs
from registry.local.registry import LocalRegistry
from registry.release import provenance, release_files, release_folder
from registry.release.release_files import MODEL
from registry.release.release_folder import oci_annotations
from registry.serving.serving_manifest import ServingManifest

_DAMAGED = Code("damaged-file", "A file of a release isn't what its digest says, or can't be read.")
_CONFIG = Code("other-config", "The config of a release doesn't list the digests of its files.")
_WEIGHTS = Code("other-weights", "The model's files aren't those that the release manifest lists.")
_EVIDENCE = Code("other-evidence", "Evidence or serving manifest are about another model.")
_FIGURES = Code("other-figures", "A figure doesn't follow from the evidence.")
_VERDICT = Code("other-verdict", "The verdict doesn't follow from the figures and the recipe's gates.")
_RECIPE = Code("other-recipe", "recipe.yaml isn't the recipe in the release manifest.")
_PROVENANCE = Code("other-provenance", "The provenance is about something else than this release.")
_NO_PROVENANCE = Code("no-provenance", "The release has no provenance; qpack wrote none when it was made.")
_ANNOTATIONS = Code("other-annotations", "The registry's annotations say something else than the release manifest.")
_NOT_VERIFIED = Code("not-verified", "A release doesn't verify.")


@dataclass(frozen=True)
class Checked:
    """One part of a release that was looked at, what is `right` about it, and its problems: an error is wrong, a note
    couldn't be judged, as a signature without a key.
    """

    what: str
    right: str
    problems: tuple[Problem, ...] = ()

    @property
    def ok(self) -> bool | None:
        """None where it couldn't be judged."""
        return (
            False if any(problem.severity == "error" for problem in self.problems) else None if self.problems else True
        )


@dataclass(frozen=True)
class Report:
    """Every part of a release that was looked at."""

    reference: str
    digest: str
    parts: tuple[Checked, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong. What couldn't be judged is not wrong."""
        return all(part.ok is not False for part in self.parts)

    @property
    def problems(self) -> tuple[Problem, ...]:
        """Those of all parts."""
        return tuple(problem for part in self.parts for problem in part.problems)


class Judged(Frozen):
    """Figures and verdicts of a release that don't follow from its evidence; empty if all do."""

    figures: tuple[str, ...] = ()
    verdict: tuple[str, ...] = ()


Judge = Callable[[Release], Judged]
"""Recomputes figures and verdict with the code of a build (`qpack.pipeline.rejudge`)."""


def verify(local: LocalRegistry, ref: str, judge: Judge) -> Report:
    """Check everything that needs no key. Raises RegistryError only if there is no such release."""
    return _report(local, ref, judge, lambda _: True)


def verify_but_for_the_model(local: LocalRegistry, ref: str, judge: Judge) -> Report:
    """`verify` without reading `model/`, for callers that check its digests themselves."""
    return _report(local, ref, judge, lambda record: not record.path.startswith(MODEL))


def whole(local: LocalRegistry, ref: str, judge: Judge) -> Release:
    """The release manifest of a release that verifies. Raises RegistryError with every failed finding."""
    check(verify(local, ref, judge))
    return release_folder.read(local.read(ref, "release.json"), ref)


def _report(local: LocalRegistry, ref: str, judge: Judge, read: Callable[[FileRecord], bool]) -> Report:
    resolved = local.resolve(ref)
    exact = f"{resolved.name}:{resolved.version}@{resolved.digest}"
    contents = local.contents(exact)
    parts = [_digests(local, exact, contents, [record for record in contents.files if read(record)])]
    if parts[0].ok:
        parts += _links(local, exact, contents, resolved.annotations, judge)
    return Report(f"{resolved.name}:{resolved.version}", resolved.digest, tuple(parts))


def check(report: Report) -> None:
    """Raise RegistryError with the failed findings, if any."""
    wrong = tuple(problem for problem in report.problems if problem.severity == "error")
    if wrong:
        unsigned = all(problem.code == UNSIGNED for problem in wrong)
        hint = (
            "The files are intact, but no trusted key signed them. Ask the publisher, or pass the right key."
            if unsigned
            else "Don't serve it. To repair damaged files, run `qpack build` with its recipe or pull the same release"
            " from elsewhere; otherwise roll back."
        )
        raise RegistryError(_NOT_VERIFIED, f"{report.reference} does not verify", hint=hint, problems=wrong)


def _digests(local: LocalRegistry, ref: str, contents: modelpack.Contents, files: Sequence[FileRecord]) -> Checked:
    def look(record: FileRecord) -> str | None:
        path: Path = local.blob(f"sha256:{record.sha256}")
        try:
            found = path.stat()
            # A pipe or a device would be read for ever.
            if not stat.S_ISREG(found.st_mode):
                return f"is damaged: {path} is no file"
            if found.st_size != record.size_bytes:
                return f"has {found.st_size} bytes, not {record.size_bytes}"
            if sha256(path) == record.sha256:
                return None
            Blobs(local.root).mark_suspect(f"sha256:{record.sha256}")
            return f"is damaged: {path} is not what it says"
        except OSError as error:
            return f"can't be read: {path}: {error.strerror}"

    wrong = [
        Problem(_DAMAGED, what, Location(record.path))
        for record, what in zip(files, in_threads(look, files), strict=True)
        if what
    ]
    try:
        wrong += _config_problems(local.config(ref), contents)
    except RegistryError as error:
        wrong.append(Problem(_DAMAGED, error.what, Location(name="digests")))
    size = sum(record.size_bytes for record in files)
    return Checked("digests", f"{len(files)} files, {size:,} bytes, the config and the manifest", tuple(wrong))


def _config_problems(config: bytes, contents: modelpack.Contents) -> list[Problem]:
    try:
        found = json.loads(config)["modelfs"]["diffIds"]
    except (ValueError, KeyError, TypeError, RecursionError):
        found = None
    if found == [f"sha256:{record.sha256}" for record in contents.files]:
        return []
    return [Problem(_CONFIG, "the config doesn't list the digests of these files", Location(name="digests"))]


def _links(
    local: LocalRegistry, ref: str, contents: modelpack.Contents, annotations: dict[str, str], judge: Judge
) -> Iterator[Checked]:
    files = {record.path: record for record in contents.files}
    try:
        release = release_folder.read(local.read(ref, "release.json"), ref)
        serving = ServingManifest.from_json(local.read(ref, "serving.json"))
    except RegistryError as error:
        yield _checked("manifests", UNREADABLE_MANIFEST, [error.what], "")
        yield _files(contents, None)
        return
    yield _files(contents, release)
    weights = f"weights {release.quantized.digest[:12]}"
    yield _checked(
        "weights", _WEIGHTS, _weights(release, contents), f"{weights} are those that the release manifest lists"
    )
    yield _checked("evidence", _EVIDENCE, _evidence(release, serving), f"all of it is about {weights} and their source")
    again = judge(release)
    whole = release.comparison.divergences is not None
    which = "all were" if whole else "all but KL divergence and flip rate were"
    yield _checked("figures", _FIGURES, again.figures, f"{which} computed again from the evidence")
    wrong = [*_verdict(release), *again.verdict]
    right = f"'{release.verdict.outcome}' is what the figures and the recipe's gates add up to"
    yield _checked("verdict", _VERDICT, wrong, right)
    text = local.read(ref, "recipe.yaml").decode(errors="replace") if "recipe.yaml" in files else None
    same = [] if text == release.recipe_text else ["recipe.yaml is not the recipe in the release manifest"]
    yield _checked("recipe", _RECIPE, same, "recipe.yaml is the recipe of the release manifest")
    if provenance.FILE in files:
        made = provenance.problems(local.read(ref, provenance.FILE), release, contents.files)
        right = "it names these files, their source, recipe, environments and calibration"
        yield _checked("provenance", _PROVENANCE, made, right)
    else:
        # Not wrong: it can't be taken out of a release without making another, and one from before has to be served.
        what = "it has none; qpack wrote none when it was made"
        none = Problem(_NO_PROVENANCE, what, Location(name="provenance"), severity="note")
        yield Checked("provenance", "", (none,))
    told = [f"{key} is {annotations.get(key)!r}, not {value!r}"
            for key, value in oci_annotations(release).items() if annotations.get(key) != value]  # fmt: skip
    yield _checked("annotations", _ANNOTATIONS, told, "they say what the release manifest says")


def _files(contents: modelpack.Contents, release: Release | None) -> Checked:
    listed = None if release is None else {record.path for record in release.quantized.files}
    found = release_files.unexpected((record.path for record in contents.files), listed)
    return Checked("files", "each is one that a release has", found)


def _weights(release: Release, contents: modelpack.Contents) -> list[str]:
    listed = {record.path: record for record in release.quantized.files}
    there = {r.path.removeprefix(MODEL): r for r in contents.files if r.path.startswith(MODEL)}
    wrong = [f"model/{path} is missing" for path in sorted(listed.keys() - there.keys())]
    both = sorted(listed.keys() & there.keys())
    wrong += [f"model/{p} is not the file that was measured" for p in both if listed[p].sha256 != there[p].sha256]
    if digest_of(release.quantized.files) != release.quantized.digest:
        wrong.append("the artifact's digest is not that of its files")
    return wrong


def _evidence(release: Release, serving: ServingManifest) -> list[str]:
    artifact, source = release.quantized.digest, release.source.digest
    pairs = (
        ("the artifact's evidence", release.artifact.model_digest, artifact),
        ("the baseline's evidence", release.baseline.model_digest, source),
        ("the serving manifest", serving.model.digest, artifact),
    )
    return [f"{what} is about {found[:12]}, not {wanted[:12]}" for what, found, wanted in pairs if found != wanted]


def _verdict(release: Release) -> list[str]:
    wrong = []
    if (sum_ := outcome(release.verdict)) != release.verdict.outcome:
        wrong.append(f"the verdict is '{release.verdict.outcome}', but its gates give '{sum_}'")
    if release.forced != (release.verdict.outcome != "pass"):
        wrong.append("whether its publication was forced doesn't agree with the verdict")
    return wrong


def outcome(verdict: Verdict) -> str:
    """The outcome of the gates: fail if any fails, else undecided if any is, else pass."""
    found = {gate.outcome for gate in verdict.gates}
    return next((kind for kind in ("fail", "undecided") if kind in found), "pass")


def _checked(what: str, code: Code, wrong: Sequence[str], right: str) -> Checked:
    return Checked(what, right, tuple(Problem(code, each, Location(name=what)) for each in wrong))
