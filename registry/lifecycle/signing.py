"""Signatures of releases, made and checked with sigstore's model-signing and attached in the registry.

A signature covers every file of the release by path and SHA-256, as `model_signing` signs a folder, so a pulled release
can be checked with that tool alone. It is an OCI referrer (a manifest whose `subject` is the release): the release
keeps its digest and can have several signatures.
https://github.com/opencontainers/image-spec/blob/main/manifest.md#image-manifest-property-descriptions
"""

from __future__ import annotations

import base64
import contextlib
import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from qpack.core.errors import RegistryError, invalid_option
from qpack.core.problems import Code, Location, Problem, Severity
from qpack.runtime import environments, worker
from qpack.runtime.environments import Environment
from registry.core.files import confined
from registry.core.modelpack import CREATED, Contents
from registry.lifecycle.signing_environment import MODEL_SIGNING
from registry.lifecycle.verification import Checked
from registry.lifecycle.workers import signing_job
from registry.local.alias_policy import UNSIGNED, Identity, Policy, Rule
from registry.local.changes import Author, now
from registry.local.registry import LocalRegistry

_PARTLY_SIGNED = Code("partly-signed", "A signature doesn't cover every file.")

BUNDLE_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
_WORKER = Path(__file__).parent / "workers" / "signing_worker.py"
_PREDICATE = "https://model_signing/signature/v1.0"
# Less than a slow disk reads. The library hashes every file.
_BYTES_PER_SECOND = 20_000_000

Trusted = Path | Identity
"""A trusted signer: a public key (PEM file), or a keyless identity."""


def _unsigned(why: str, severity: Severity = "error") -> Checked:
    return Checked("signature", "", (Problem(UNSIGNED, why, Location(name="signature"), severity=severity),))


@dataclass(frozen=True)
class Signatures:
    """The signatures in a registry. Their environment is in `home`."""

    local: LocalRegistry
    home: Path
    report: Callable[[str], None]

    def sign(self, ref: str, key: Path | None, *, actor: str, why: str) -> str:
        """Sign a release with a private key, or the identity of the CI job, and attach the signature.

        Returns the digest of the attachment. Raises RegistryError, and attaches nothing then.
        """
        if key is not None and not key.is_file():
            make = f"`openssl ecparam -name prime256v1 -genkey -noout -out {key}` makes one."
            raise invalid_option("--key", f"there is no file {key}", make)
        with self._files(ref) as (folder, contents, scratch):
            target = scratch / "signature.json"
            job = signing_job.SignJob(str(folder), str(target), str(key.absolute()) if key else None)
            worker.run(_WORKER, job, signing_job.Signed, self._call(contents, scratch))
            bundle = target.read_bytes()
        if missing := uncovered(bundle, contents):
            raise RegistryError(
                _PARTLY_SIGNED, f"the signature doesn't cover {', '.join(missing)}", hint="Nothing was attached."
            )
        notes = {CREATED: now(), "dev.sigstore.bundle.predicateType": _PREDICATE}
        return self.local.attach(ref, bundle, media_type=BUNDLE_TYPE, annotations=notes, by=Author(actor, why))

    def of(self, ref: str) -> tuple[bytes, ...]:
        """The sigstore bundles that are attached to a release."""
        return self.local.attached(ref, BUNDLE_TYPE)

    def checked(self, ref: str, trusted: tuple[Trusted, ...]) -> Checked:
        """Whether one of `trusted` has signed exactly this release. Left open without trusted signers."""
        bundles = self.of(ref)
        if not trusted:
            count = f"{len(bundles)} not checked; name a public key with --key" if bundles else "it is not signed"
            return _unsigned(count, "note")
        if not bundles:
            return _unsigned("it is not signed")
        with self._files(ref) as (folder, contents, scratch):
            paths = [scratch / f"{number}.json" for number in range(len(bundles))]
            for path, bundle in zip(paths, bundles, strict=True):
                path.write_bytes(bundle)
            job = signing_job.VerifyJob(str(folder), tuple(map(str, paths)), tuple(map(_signer, trusted)))
            answers = worker.run(_WORKER, job, signing_job.Verified, self._call(contents, scratch)).answers
        wrong = []
        for bundle, answer in worker.paired(bundles, answers, RegistryError):
            missing = uncovered(bundle, contents)
            for who, why in worker.paired(trusted, answer, RegistryError):
                if why is None and not missing:
                    return Checked("signature", f"valid, by {name_of(who)}")
                wrong.append(why or f"it doesn't cover {', '.join(missing)}")
        names = " or ".join(map(name_of, trusted))
        return _unsigned(f"none by {names} that holds: {'; '.join(dict.fromkeys(wrong))}")

    def by_rule(self, ref: str, policy: Policy, rule: Rule) -> bool:
        """Whether a signer that the rule names has signed the release."""
        return self.checked(ref, (*policy.keys(rule), *rule.identities)).ok is True

    @contextlib.contextmanager
    def _files(self, ref: str) -> Iterator[tuple[Path, Contents, Path]]:
        """A folder of links to the release's blobs, its contents, and a scratch folder. Copies nothing."""
        resolved = self.local.resolve(ref)
        contents, name = self.local.contents(resolved), resolved.name
        with tempfile.TemporaryDirectory(prefix="qpack-signing-") as made:
            folder = Path(made) / "release" / name.rpartition("/")[2]
            for record in contents.files:
                link = confined(folder, record.path)
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(self.local.blob(f"sha256:{record.sha256}").absolute())
            yield folder, contents, Path(made)

    def _call(self, contents: Contents, scratch: Path) -> worker.Call:
        seconds = 600 + sum(record.size_bytes for record in contents.files) / _BYTES_PER_SECOND
        log = self.home / "logs" / f"signing-{contents.config_digest[7:23]}.log"
        return worker.Call(self._environment(), scratch, log, seconds, RegistryError)

    def _environment(self) -> Environment:
        return environments.ensure(environments.resolve(MODEL_SIGNING, "cpu", self.home), self.home, self.report)


def uncovered(bundle: bytes, contents: Contents) -> tuple[str, ...]:
    """Differences between a signature and a release: files that are missing, different or additional.

    A valid signature may exclude files; only one over exactly the release's files is accepted.
    """
    try:
        payload = json.loads(base64.b64decode(json.loads(bundle)["dsseEnvelope"]["payload"]))
        predicate = payload["predicate"]
        signed = {(str(r["name"]), r["algorithm"], r["digest"]) for r in predicate["resources"]}
    except (ValueError, KeyError, TypeError, RecursionError):
        return ("anything: it can't be read",)
    wanted = {(record.path, "sha256", record.sha256) for record in contents.files}
    return tuple(sorted({name for name, _, _ in wanted ^ signed}))


def name_of(who: Trusted) -> str:
    """The signer's name for messages."""
    return who.name if isinstance(who, Path) else f"{who.identity} ({who.issuer})"


def _signer(who: Trusted) -> signing_job.Key | signing_job.Signer:
    if isinstance(who, Path):
        return signing_job.Key(str(who.absolute()))
    return signing_job.Signer(who.identity, who.issuer)
