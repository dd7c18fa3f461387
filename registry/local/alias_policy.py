"""Promotion policies: what an alias requires of a release. `allowed` is pure; `load` reads YAML.

A registry's own policy is `policy.yaml` in its folder. Aliases that it names move only by promotion and rollback.
"""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError

from qpack.core import yamlfile
from qpack.core.errors import RegistryError
from qpack.core.problems import NO_SUCH_FILE, Code, Location, Problem
from qpack.core.records import Release
from qpack.core.yamlfile import INVALID_VALUE, NO_SUCH_KEY, YamlFile
from registry.core.protocol import DEFAULT_ALIAS, check_alias, did_you_mean

FILE = "policy.yaml"

Target = Literal["cpu", "ampere", "ada", "hopper", "blackwell"]


class _Section(BaseModel):
    """Immutable; refuses unknown keys and type conversion."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Identity(_Section):
    """A keyless signer: who (`identity`, an e-mail address or a workflow's URL), and who vouches (`issuer`, a URL)."""

    identity: str = Field(min_length=1)
    issuer: str = Field(min_length=1)


class Rule(_Section):
    """What an alias requires of a release.

    `signed_by` are public keys (PEM files), `identities` keyless signers: one of them has to have signed. `hardware`
    lists where the evidence may have been measured; empty allows any. `min_accuracy_samples` is the least number of
    items behind the accuracy drop, `min_perplexity_windows` that of windows behind the perplexity ratio.
    """

    verdict: Literal["pass", "any"] = "pass"
    signed_by: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    identities: tuple[Identity, ...] = ()
    hardware: tuple[Target, ...] = ()
    min_accuracy_samples: PositiveInt | None = None
    min_perplexity_windows: PositiveInt | None = None

    @property
    def wants_signature(self) -> bool:
        """Whether a signature is required."""
        return bool(self.signed_by or self.identities)


class Policy(_Section):
    """Rules by alias. Key files are relative to `base`."""

    aliases: dict[str, Rule] = Field(min_length=1)
    base: Path = Field(Path(), exclude=True)

    def keys(self, rule: Rule) -> tuple[Path, ...]:
        """The rule's public keys as paths."""
        return tuple(self.base / Path(key).expanduser() for key in rule.signed_by)


VERDICT = Code("verdict", "The verdict of a release isn't what a promotion asks for.")
UNSIGNED = Code("unsigned", "A release has no valid signature by somebody who is trusted.")
_OTHER_HARDWARE = Code("other-hardware", "The evidence of a release is from other hardware than a promotion asks for.")
_FEW_SAMPLES = Code("few-samples", "The evidence of a release rests on fewer samples than a promotion asks for.")
_ALIAS_RULE = Code("alias-rule", "An alias can't have such a rule, or isn't an alias.")
_BAD_PROMOTION_POLICY = Code("bad-promotion-policy", "The promotion policy can't be read or used.")


def allowed(release: Release, rule: Rule, *, signed: bool) -> tuple[Problem, ...]:
    """Every requirement of `rule` that `release` doesn't meet; empty if it meets all.

    `signed`: whether a signer that the rule names has signed this release.
    """
    problems = []
    if rule.verdict == "pass" and release.verdict.outcome != "pass":
        missed = [f"{gate.gate} ({gate.why})" for gate in release.verdict.gates if gate.outcome != "pass"]
        problems.append(
            Problem(
                VERDICT, f"its verdict is '{release.verdict.outcome}': {', '.join(missed)}", Location(name="verdict")
            )
        )
    if rule.wants_signature and not signed:
        names = ", ".join([*rule.signed_by, *(who.identity for who in rule.identities)])
        where = Location(name="signature")
        problems.append(Problem(UNSIGNED, f"no valid signature by {names}.", where, "`qpack sign` makes one."))
    hardware = release.artifact.hardware
    if rule.hardware and hardware.target not in rule.hardware:
        wanted = " or ".join(rule.hardware)
        what = f"the evidence is from {hardware.target} ({hardware.name}), not {wanted}"
        problems.append(Problem(_OTHER_HARDWARE, what, Location(name="hardware")))
    for key, figure, least in (
        ("min_accuracy_samples", release.comparison.accuracy_drop, rule.min_accuracy_samples),
        ("min_perplexity_windows", release.comparison.perplexity_ratio, rule.min_perplexity_windows),
    ):
        if least is not None and figure.samples < least:
            what = f"the evidence rests on {figure.samples}, fewer than {least}"
            problems.append(Problem(_FEW_SAMPLES, what, Location(name=key)))
    return tuple(problems)


def of_registry(root: Path) -> Policy | None:
    """The policy of the registry in the folder `root`, or None.

    Raises RegistryError if there is one that can't be read: without a policy everything would be allowed.
    """
    path = root / FILE
    try:
        # Not following links: a broken link is a lost policy.
        path.lstat()
    except FileNotFoundError:
        return None
    except OSError as error:
        # A file instead of the folder: no registry, no policy.
        if isinstance(error, NotADirectoryError):
            return None
        raise _lost(path, error.strerror or str(error)) from error
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise _lost(path, f"broken link ({error.strerror})") from error
    if not stat.S_ISREG(mode):
        # Opening a pipe would block.
        raise _lost(path, "not a regular file")
    return load(path)


def load(path: Path) -> Policy:
    """Read a policy. Raises RegistryError with every problem, each with file:line."""
    file, problems = yamlfile.load(path)
    if file is None or problems:
        raise _unreadable(path, problems)
    try:
        # As JSON, strict mode still accepts a list for a tuple.
        policy = Policy.model_validate_json(json.dumps(file.data))
    except ValidationError as error:
        raise _unreadable(path, [_problem(file, details) for details in error.errors()]) from error
    policy = policy.model_copy(update={"base": path.absolute().parent})
    if wrong := _mistakes(policy, file):
        raise _unreadable(path, wrong)
    return policy


def _mistakes(policy: Policy, file: YamlFile) -> list[Problem]:
    problems = []
    for alias, rule in policy.aliases.items():
        at = ("aliases", alias)
        try:
            check_alias(alias)
        except RegistryError as error:
            problems.append(Problem(_ALIAS_RULE, error.what, file.where(at), error.hint))
        if alias == DEFAULT_ALIAS:
            what = f"{alias!r} can't have a rule: every publication moves it"
            problems.append(Problem(_ALIAS_RULE, what, file.where(at), "Guard another alias, such as 'production'."))
        for i, (name, key) in enumerate(zip(rule.signed_by, policy.keys(rule), strict=True)):
            if not key.is_file():
                where = file.where((*at, "signed_by", i))
                problems.append(Problem(NO_SUCH_FILE, f"{name}: no such file.", where, f"Looked for {key}."))
    return problems


def _lost(path: Path, why: str) -> RegistryError:
    return RegistryError(
        _BAD_PROMOTION_POLICY,
        f"the promotion policy {path} can't be read: {why}",
        hint="No alias is moved. Restore the policy, or remove the file to have none.",
    )


def _unreadable(path: Path, problems: list[Problem]) -> RegistryError:
    return RegistryError(
        _BAD_PROMOTION_POLICY,
        f"the promotion policy {path} can't be used",
        hint="Fix the problems above; docs/guides/promote.md lists the keys.",
        problems=tuple(problems),
    )


def _problem(file: YamlFile, details: Any) -> Problem:
    at = tuple(details["loc"])
    if details["type"] == "extra_forbidden":
        parts: dict[int, type[_Section]] = {1: Policy, 3: Rule, 5: Identity}
        known = [name for name in parts.get(len(at), Rule).model_fields if name != "base"]
        hint = did_you_mean(str(at[-1]), known) or f"Known: {', '.join(known)}."
        return Problem(NO_SUCH_KEY, "unknown key", file.where(at), hint)
    message = details["msg"].removeprefix("Input ")
    return Problem(INVALID_VALUE, f"{message[:1].lower()}{message[1:]}", file.where(at))
