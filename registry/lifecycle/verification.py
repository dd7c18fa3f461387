"""Does a release hold? Every digest, the links between its parts, and what says how it was made.

A manifest's digest pins its files. What it can't pin is whether they belong together: the evidence has to be about
these weights, the figures and the verdict have to follow from the evidence, the annotations have to be about this
verdict, and no file may be there that no release has. `verify` looks at all of it and returns every finding.
"""

from __future__ import annotations

import json
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from qpack.core.errors import Problem, RegistryError
from qpack.core.frozen import Frozen
from qpack.core.hashing import digest_of, in_threads, sha256
from qpack.core.records import FileRecord, Release, Verdict
from registry.core import modelpack
from registry.local.blobs import Blobs
from registry.local.registry import LocalRegistry
from registry.release import provenance, release_files, release_folder
from registry.release.release_files import MODEL
from registry.release.release_folder import oci_annotations
from registry.serving.serving_manifest import ServingManifest


class Finding(Frozen):
    """One thing that was looked at. `ok` None means that it couldn't be judged, as a signature without a key."""

    what: str
    ok: bool | None
    why: str


class Report(Frozen):
    """All findings of a release."""

    reference: str
    digest: str
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong. What couldn't be judged is not wrong."""
        return all(finding.ok is not False for finding in self.findings)


Problems = Iterator[str]


class Judged(Frozen):
    """What of a release's figures and verdict doesn't follow from the evidence in it; empty where all does."""

    figures: tuple[str, ...] = ()
    verdict: tuple[str, ...] = ()


Judge = Callable[[Release], Judged]
"""Computes figures and verdict again, with the code that a build computes them with (`qpack.pipeline.rejudge`)."""


def verify(local: LocalRegistry, ref: str, judge: Judge) -> Report:
    """Look at everything that needs no key. Raises RegistryError only when there is no such release to look at."""
    return _report(local, ref, judge, lambda _: True)


def verify_but_for_the_model(local: LocalRegistry, ref: str, judge: Judge) -> Report:
    """`verify`, but the content of `model/` isn't read: for whoever proves it by the manifest's digests himself."""
    return _report(local, ref, judge, lambda record: not record.path.startswith(MODEL))


def whole(local: LocalRegistry, ref: str, judge: Judge) -> Release:
    """The release manifest of a release that holds. Raises RegistryError with every finding that is wrong."""
    check(verify(local, ref, judge))
    return release_folder.read(local.read(ref, "release.json"), ref)


def _report(local: LocalRegistry, ref: str, judge: Judge, read: Callable[[FileRecord], bool]) -> Report:
    resolved = local.resolve(ref)
    exact = f"{resolved.name}:{resolved.version}@{resolved.digest}"
    contents = local.contents(exact)
    findings = [_digests(local, exact, contents, [record for record in contents.files if read(record)])]
    if findings[0].ok:
        findings += _links(local, exact, contents, resolved.annotations, judge)
    return Report(reference=f"{resolved.name}:{resolved.version}", digest=resolved.digest, findings=tuple(findings))


def check(report: Report) -> None:
    """Raises RegistryError with what didn't verify."""
    wrong = tuple(Problem(f.why, f.what) for f in report.findings if f.ok is False)
    if wrong:
        unsigned = all(problem.where == "signature" for problem in wrong)
        hint = (
            "The files hold; who vouches for them is open. Ask whoever published it, or name the key that signed it."
            if unsigned
            else "Don't serve it. `qpack build` of its recipe, or a pull of the same release from elsewhere, mends a"
            " damaged file; else roll back."
        )
        raise RegistryError(f"{report.reference} does not verify", hint=hint, problems=wrong)


def _digests(local: LocalRegistry, ref: str, contents: modelpack.Contents, files: Sequence[FileRecord]) -> Finding:
    def look(record: FileRecord) -> str | None:
        path: Path = local.blob(f"sha256:{record.sha256}")
        try:
            found = path.stat()
            # A pipe or a device would be read for ever.
            if not stat.S_ISREG(found.st_mode):
                return f"{record.path} is damaged: {path} is no file"
            if found.st_size != record.size_bytes:
                return f"{record.path} has {found.st_size} bytes, not {record.size_bytes}"
            if sha256(path) == record.sha256:
                return None
            Blobs(local.root).mark_suspect(f"sha256:{record.sha256}")
            return f"{record.path} is damaged: {path} is not what it says"
        except OSError as error:
            return f"{record.path} can't be read: {path}: {error.strerror}"

    wrong = [found for found in in_threads(look, files) if found]
    try:
        config = local.config(ref)
        wrong += list(_config_problems(config, contents))
    except RegistryError as error:
        wrong.append(error.what)
    size = sum(record.size_bytes for record in files)
    return _finding("digests", wrong, f"{len(files)} files, {size:,} bytes, the config and the manifest")


def _config_problems(config: bytes, contents: modelpack.Contents) -> Problems:
    try:
        found = json.loads(config)["modelfs"]["diffIds"]
    except (ValueError, KeyError, TypeError, RecursionError):
        found = None
    if found != [f"sha256:{record.sha256}" for record in contents.files]:
        yield "the config doesn't list the digests of these files"


def _links(
    local: LocalRegistry, ref: str, contents: modelpack.Contents, annotations: dict[str, str], judge: Judge
) -> Iterator[Finding]:
    files = {record.path: record for record in contents.files}
    try:
        release = release_folder.read(local.read(ref, "release.json"), ref)
        serving = ServingManifest.from_json(local.read(ref, "serving.json"))
    except RegistryError as error:
        yield Finding(what="manifests", ok=False, why=error.what)
        yield _files(contents, None)
        return
    yield _files(contents, release)
    weights = f"weights {release.quantized.digest[:12]}"
    yield _finding("weights", _weights(release, contents), f"{weights} are those that the release manifest lists")
    yield _finding("evidence", _evidence(release, serving), f"all of it is about {weights} and their source")
    again = judge(release)
    yield _finding(
        "figures", list(again.figures), "all but KL divergence and flip rate were computed again from the evidence"
    )
    wrong = [*_verdict(release), *again.verdict]
    yield _finding(
        "verdict", wrong, f"'{release.verdict.outcome}' is what the figures and the recipe's gates add up to"
    )
    text = local.read(ref, "recipe.yaml").decode(errors="replace") if "recipe.yaml" in files else None
    same = [] if text == release.recipe_text else ["recipe.yaml is not the recipe in the release manifest"]
    yield _finding("recipe", same, "recipe.yaml is the recipe of the release manifest")
    if provenance.FILE in files:
        made = provenance.problems(local.read(ref, provenance.FILE), release, contents.files)
        yield _finding("provenance", made, "it names these files, their source, recipe, environments and calibration")
    else:
        # Not wrong: it can't be taken out of a release without making another, and one from before has to be served.
        yield Finding(what="provenance", ok=None, why="it has none; qpack wrote none when it was made")
    told = [f"{key} is {annotations.get(key)!r}, not {value!r}"
            for key, value in oci_annotations(release).items() if annotations.get(key) != value]  # fmt: skip
    yield _finding("annotations", told, "they say what the release manifest says")


def _files(contents: modelpack.Contents, release: Release | None) -> Finding:
    listed = None if release is None else {record.path for record in release.quantized.files}
    found = release_files.unexpected((record.path for record in contents.files), listed)
    return _finding(
        "files", [f"{problem.where}: {problem.what}" for problem in found], "each is one that a release has"
    )


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
        wrong.append(f"the verdict is '{release.verdict.outcome}', but its gates add up to '{sum_}'")
    if release.forced != (release.verdict.outcome != "pass"):
        wrong.append("whether its publication was forced doesn't agree with the verdict")
    return wrong


def outcome(verdict: Verdict) -> str:
    """What the gates add up to: fail when any fails, else undecided when any is, else pass."""
    found = {gate.outcome for gate in verdict.gates}
    return next((kind for kind in ("fail", "undecided") if kind in found), "pass")


def _finding(what: str, wrong: list[str], right: str) -> Finding:
    return Finding(what=what, ok=not wrong, why="; ".join(wrong) if wrong else right)
