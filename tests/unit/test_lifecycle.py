"""How aliases move: what a policy lets through, and where a rollback leads."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tests.unit.registry_examples as examples
from qpack.core.errors import GateFailed, GateUndecided, RegistryError
from qpack.core.problems import Location
from qpack.pipeline.rejudge import rejudge
from registry.core.protocol import AliasMove, Event, PushRequest
from registry.lifecycle import promotion
from registry.lifecycle.promotion import previous, promote, rollback
from registry.local import alias_policy
from registry.local.alias_policy import Identity, Rule, allowed
from registry.local.registry import LocalRegistry
from tests.codes import coded
from tests.unit.laid_out import publish

VERSIONS = st.integers(1, 4).map(str)


def event(what: Any, version: str) -> Event:
    return Event(id="i", when="t", who="w", what=what, name="m", version=version, digest="d", alias="production")


@given(st.lists(VERSIONS | st.none(), max_size=30))
def test_rollbacks_undo_moves_one_after_the_other(steps: list[str | None]) -> None:
    """A plain stack of undos says the same; None is a rollback."""
    events: list[Event] = []
    trail: list[str] = []
    for step in steps:
        now = trail[-1] if trail else ""
        if step is not None:
            events.append(event("promote", step))
            trail += [step] if step != now else []
            continue
        back = previous(events, now)
        assert back == (trail[-2] if len(trail) > 1 else None)
        if back is not None:
            trail.pop()
            events.append(event("rollback", back))
    assert previous(events, "elsewhere") is None


def test_a_rule_names_everything_that_is_missing_at_once() -> None:
    rule = Rule(
        signed_by=("release.pub",),
        identities=(Identity(identity="a@example.org", issuer="https://issuer.example.org"),),
        hardware=("hopper", "ada"),
        min_accuracy_samples=501,
        min_perplexity_windows=4,
    )
    problems = allowed(examples.release(failed=True), rule, signed=False)
    assert [(problem.code.name, problem.where.name) for problem in problems] == [
        *(("verdict", "verdict"), ("unsigned", "signature"), ("other-hardware", "hardware")),
        *(("few-samples", "min_accuracy_samples"), ("few-samples", "min_perplexity_windows")),
    ]
    told = " ".join(map(str, problems))
    for words in ("'fail'", "flip_rate", "release.pub, a@example.org", "not hopper or ada", "500, fewer than 501"):
        assert words in told


def test_a_rule_that_is_met_lets_through() -> None:
    rule = Rule(signed_by=("k",), hardware=("cpu",), min_accuracy_samples=500, min_perplexity_windows=3)
    assert allowed(examples.release(), rule, signed=True) == ()
    assert allowed(examples.release(failed=True), Rule(verdict="any"), signed=False) == ()


def test_a_policy_is_strict_and_says_where(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(
        "aliases:\n  production:\n    signd_by: [k]\n    hardware: [hoper]\n    min_accuracy_samples: many\nalias: {}\n"
    )
    with pytest.raises(RegistryError, check=coded("bad-promotion-policy")) as caught:
        alias_policy.load(path)
    told = {(problem.code.name, problem.where, problem.hint) for problem in caught.value.problems}

    def at(line: int, *key: str | int) -> Location:
        return Location(str(path), line, key=key)

    assert told == {
        ("no-such-key", at(3, "aliases", "production", "signd_by"), "Did you mean 'signed_by'?"),
        ("invalid-value", at(4, "aliases", "production", "hardware", 0), ""),
        ("invalid-value", at(5, "aliases", "production", "min_accuracy_samples"), ""),
        ("no-such-key", at(6, "alias"), "Did you mean 'aliases'?"),
    }


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", "empty-file"),
        ("aliases: {}\n", "invalid-value"),
        ("aliases: {latest: {}}\n", "alias-rule"),
        ("aliases: {'7': {}}\n", "alias-rule"),
        ("aliases: {production: {signed_by: [gone.pub]}}\n", "no-such-file"),
        ("aliases: {production: {}, production: {}}\n", "duplicate-key"),
        ("[1]\n", "invalid-value"),
    ],
)
def test_a_policy_that_can_not_be_meant_is_refused(text: str, code: str, tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(text)
    with pytest.raises(RegistryError) as caught:
        alias_policy.load(path)
    assert code in [problem.code.name for problem in caught.value.problems]


def test_keys_are_looked_for_beside_the_policy(tmp_path: Path) -> None:
    (tmp_path / "release.pub").write_text("a key")
    (tmp_path / "policy.yaml").write_text("aliases:\n  production:\n    signed_by: [release.pub]\n")
    loaded = alias_policy.load(tmp_path / "policy.yaml")
    assert loaded.keys(loaded.aliases["production"]) == (tmp_path / "release.pub",)


@pytest.fixture
def local(tmp_path: Path) -> LocalRegistry:
    """Three releases: 1 and 2 passed their gates, 3 was forced."""
    made = LocalRegistry(tmp_path / "registry")
    for number in (1, 2, 3):
        publish(made, "m", tmp_path / str(number), number, examples.release(failed=number == 3))
    return made


def guarded(local: LocalRegistry, rule: str = "{}") -> tuple[alias_policy.Policy, ...]:
    path = local.root / alias_policy.FILE
    path.write_text(f"aliases: {{production: {rule}}}\n")
    return (alias_policy.load(path),)


def unsigned(*_: Any) -> bool:
    return False


def go(local: LocalRegistry, version: int, policies: tuple[alias_policy.Policy, ...] = ()) -> promotion.Moved:
    return promote(local, f"m:{version}", "production", demands(policies), actor="me", why="because")


def demands(
    policies: tuple[alias_policy.Policy, ...] = (), signed_by: promotion.SignedBy = unsigned
) -> promotion.Demands:
    return promotion.Demands(policies, signed_by, rejudge)


def back(local: LocalRegistry, policies: tuple[alias_policy.Policy, ...] = (), why: str = "") -> promotion.Moved:
    return rollback(local, "m", "production", demands(policies), actor="me", why=why)


def test_a_promotion_is_in_the_history_with_who_why_and_the_verdict(local: LocalRegistry) -> None:
    assert (go(local, 1).before, go(local, 2).before) == (None, "1")
    last = local.history("m")[-1]
    assert (last.what, last.who, last.note, last.verdict) == ("promote", "me", "because", "pass")
    assert (last.version, last.previous) == ("2", "1")


def test_a_release_whose_gates_did_not_pass_is_not_promoted(local: LocalRegistry) -> None:
    go(local, 1)
    before = local.history()
    with pytest.raises(GateFailed, check=coded("not-promoted")) as caught:
        go(local, 3)
    assert caught.value.exit_code == 6
    assert caught.value.problems[0].code.name == "verdict"
    assert "flip_rate" in caught.value.problems[0].message
    assert (local.resolve("m:production").version, local.history()) == ("1", before)
    go(local, 3, guarded(local, "{verdict: any}"))
    assert local.resolve("m:production").version == "3"


def test_what_a_policy_misses_besides_the_verdict_is_exit_8(local: LocalRegistry) -> None:
    with pytest.raises(RegistryError) as caught:
        go(local, 1, guarded(local, "{hardware: [hopper]}"))
    assert caught.value.exit_code == 8
    with pytest.raises(GateFailed):
        go(local, 3, guarded(local, "{hardware: [hopper]}"))


def test_an_undecided_verdict_is_exit_7(tmp_path: Path) -> None:
    made = LocalRegistry(tmp_path / "registry")
    publish(made, "m", tmp_path / "1", 1, examples.release(undecided=True))
    with pytest.raises(GateUndecided):
        go(made, 1)


def test_every_policy_has_to_agree(local: LocalRegistry, tmp_path: Path) -> None:
    other = tmp_path / "other.yaml"
    other.write_text("aliases: {production: {min_accuracy_samples: 1000}}\n")
    with pytest.raises(RegistryError, check=coded("not-promoted")):
        go(local, 1, (*guarded(local), alias_policy.load(other)))


def test_a_guarded_alias_is_moved_by_promotion_alone(local: LocalRegistry, tmp_path: Path) -> None:
    guarded(local)
    with pytest.raises(RegistryError, check=coded("guarded-alias")) as caught:
        promotion.move(local, "m:3", "production", None, actor="me", why="")
    assert "qpack promote" in caught.value.hint
    before = local.list()
    with pytest.raises(RegistryError, check=coded("guarded-alias")):
        local.push(tmp_path / "1" / "release", PushRequest("m", None, "production", actor="me"), annotations={})
    assert local.list() == before


def test_rollbacks_lead_back_along_the_history_and_say_when_it_ends(local: LocalRegistry) -> None:
    guarded(local, "{verdict: any}")
    policies = guarded(local, "{verdict: any}")
    for version in (1, 2, 3):
        go(local, version, policies)
    assert back(local, policies, "it stutters").to.version == "2"
    assert back(local, policies, "this too").to.version == "1"
    assert [(e.what, e.version, e.note) for e in local.history("m")][-2:] == [
        ("rollback", "2", "it stutters"),
        ("rollback", "1", "this too"),
    ]
    with pytest.raises(RegistryError, check=coded("no-earlier-version")):
        back(local, policies)


def test_a_release_that_is_damaged_is_neither_promoted_nor_rolled_back_to(local: LocalRegistry) -> None:
    go(local, 1)
    go(local, 2)
    blob = local.blob(next(f"sha256:{r.sha256}" for r in local.contents("m:1").files if r.path == "model/config.json"))
    blob.chmod(0o600)
    blob.write_text(blob.read_text().replace("llama", "lhama"))
    for ask in (lambda: go(local, 1), lambda: back(local)):
        with pytest.raises(RegistryError, check=coded("not-verified")) as caught:
            ask()
        damaged = caught.value.problems[0]
        assert (damaged.code.name, damaged.where.file) == ("damaged-file", "model/config.json")
    assert local.resolve("m:production").version == "2"


def test_an_alias_that_moved_during_a_promotion_is_left_alone(local: LocalRegistry) -> None:
    def meanwhile(*_: Any) -> bool:
        local.alias(AliasMove("m", "production", "2", actor="other", kind="promote"))
        return True

    asked = demands(guarded(local, "{signed_by: [policy.yaml]}"), meanwhile)
    with pytest.raises(RegistryError, check=coded("alias-moved")):
        promote(local, "m:1", "production", asked, actor="me", why="")
    assert local.resolve("m:production").version == "2"


@pytest.mark.parametrize(
    ("rule", "error"),
    [("{signed_by: [policy.yaml]}", RegistryError), ("{hardware: [hopper]}", RegistryError), ("{}", GateFailed)],
)
def test_a_rollback_asks_the_policy_that_the_alias_has_now(
    rule: str, error: type[Exception], local: LocalRegistry
) -> None:
    """The version came to the alias before there was a policy, or under a laxer one."""
    local.alias(AliasMove("m", "production", "3" if rule == "{}" else "1", actor="me"))
    local.alias(AliasMove("m", "production", "2", actor="me"))
    before = local.history()
    with pytest.raises(error, check=coded("not-promoted")):
        back(local, guarded(local, rule))
    assert (local.resolve("m:production").version, local.history()) == ("2", before)


def test_an_alias_that_no_policy_guards_goes_back_to_whatever_it_pointed_at(local: LocalRegistry) -> None:
    for version in ("3", "2"):
        local.alias(AliasMove("m", "staging", version, actor="me"))
    moved = rollback(local, "m", "staging", demands(guarded(local)), actor="me", why="")
    assert moved.to.version == "3"


def _dangling(path: Path) -> None:
    path.symlink_to("gone.yaml")


def _in_a_circle(path: Path) -> None:
    path.symlink_to(path.name)


def _under_a_file(path: Path) -> None:
    (path.parent / "file").touch()
    path.symlink_to("file/policy.yaml")


def _folder(path: Path) -> None:
    path.mkdir()


def _pipe(path: Path) -> None:
    os.mkfifo(path)


def _device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def _empty(path: Path) -> None:
    path.touch()


def _blank(path: Path) -> None:
    path.write_text("# nothing yet\n---\n")


def _binary(path: Path) -> None:
    path.write_bytes(b"\xff\xfe\x00")


PLACES = [_dangling, _in_a_circle, _under_a_file, _folder, _pipe, _device, _empty, _blank, _binary]


@pytest.mark.parametrize("put", PLACES)
def test_a_policy_that_can_not_be_read_lets_nothing_by(
    put: Callable[[Path], None], local: LocalRegistry, tmp_path: Path
) -> None:
    local.alias(AliasMove("m", "production", "1", actor="me"))
    local.alias(AliasMove("m", "production", "2", actor="me"))
    put(local.root / alias_policy.FILE)
    before = (local.list(), local.history())
    for ask in (
        lambda: alias_policy.of_registry(local.root),
        lambda: promotion.move(local, "m:3", "production", None, actor="me", why=""),
        lambda: local.push(tmp_path / "1" / "release", PushRequest("m", None, "latest", actor="me"), annotations={}),
    ):
        with pytest.raises(RegistryError) as caught:
            ask()
        assert caught.value.exit_code == 8
        assert alias_policy.FILE in caught.value.what
        assert caught.value.hint
    assert (local.list(), local.history()) == before


def test_a_registry_without_a_policy_or_without_a_folder_has_none(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert [alias_policy.of_registry(path) for path in (tmp_path, tmp_path / "none", tmp_path / "file")] == [None] * 3
    (tmp_path / "kept.yaml").write_text("aliases: {production: {}}\n")
    (tmp_path / alias_policy.FILE).symlink_to("kept.yaml")
    found = alias_policy.of_registry(tmp_path)
    assert found is not None
    assert "production" in found.aliases, "a link to a policy is one"
