"""Promotion, rollback, signatures and checks from the command line."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from qpack.runtime import environments
from registry.lifecycle.signing import BUNDLE_TYPE
from registry.lifecycle.signing_environment import MODEL_SIGNING
from registry.local.changes import Author
from registry.local.registry import LocalRegistry
from tests.scenarios.command import Finished, Qpack
from tests.unit.laid_out import publish
from tests.unit.registry_examples import release

NAME = release().name


def published(home: Path, *, failed: bool = False) -> LocalRegistry:
    """One more release in the registry of `home`, made and pushed as a build does."""
    local = LocalRegistry(home / "registry")
    number = len(local.list())
    publish(local, NAME, home / f"release-{number}", number, release(failed=failed))
    return local


@pytest.fixture
def local(qpack: Qpack) -> LocalRegistry:
    """Two releases that passed their gates, and a third that was forced."""
    published(qpack.home)
    published(qpack.home)
    return published(qpack.home, failed=True)


def done(finished: Finished) -> str:
    assert finished.code == 0, finished.err
    return finished.out


def test_a_bad_release_is_stopped_and_a_good_one_is_rolled_back(qpack: Qpack, local: LocalRegistry) -> None:
    assert done(qpack("promote", f"{NAME}:1", "production", "--why", "first")).endswith(", new\n")
    assert "was version 1" in done(qpack("promote", f"{NAME}:2", "production"))
    refused = qpack("promote", f"{NAME}:3", "production")
    assert (refused.code, refused.out) == (6, "")
    assert "error[verdict] verdict: its verdict is 'fail': flip_rate" in refused.err
    assert local.resolve(f"{NAME}:production").version == "2"
    done(qpack("rollback", NAME, "production", "--why", "it stutters"))
    assert local.resolve(f"{NAME}:production").version == "1"
    served = json.loads(local.read(f"{NAME}:production", "serving.json"))["model"]["digest"]
    assert served == json.loads(local.read(f"{NAME}:1", "release.json"))["quantized"]["digest"]
    end = qpack("rollback", NAME, "production")
    assert (end.code, end.out) == (8, "")
    events = json.loads(done(qpack("history", NAME, "--json")))
    assert [(e["what"], e["version"], e["verdict"], e["note"]) for e in events[3:]] == [
        ("promote", "1", "pass", "first"),
        ("promote", "2", "pass", ""),
        ("rollback", "1", "pass", "it stutters"),
    ]
    assert "production (was 2)" in done(qpack("history"))


def test_a_policy_that_is_not_met_is_exit_8_with_all_that_is_missed(qpack: Qpack, local: LocalRegistry) -> None:
    (local.root / "policy.yaml").write_text("aliases:\n  production:\n    hardware: [hopper]\n")
    (qpack.cwd / "more.yaml").write_text("aliases: {production: {min_accuracy_samples: 1000}}\n")
    refused = qpack("promote", f"{NAME}:1", "production", "--policy", "more.yaml")
    assert refused.code == 8
    assert "error[other-hardware] hardware: " in refused.err
    assert "error[few-samples] min_accuracy_samples: the evidence rests on 500, fewer than 1000" in refused.err
    plain = qpack("alias", f"{NAME}:1", "production")
    assert plain.code == 8
    assert "registry[guarded-alias]" in plain.err
    done(qpack("alias", f"{NAME}:1", "staging"))


def test_a_policy_with_mistakes_is_told_by_line(qpack: Qpack, local: LocalRegistry) -> None:
    (local.root / "policy.yaml").write_text("aliases:\n  production:\n    hardwear: [hopper]\n")
    refused = qpack("promote", f"{NAME}:1", "production")
    assert refused.code == 8
    assert "error[no-such-key] " in refused.err
    assert "policy.yaml:3: aliases.production.hardwear: " in refused.err


def test_an_alias_moves_only_from_where_it_is_expected(qpack: Qpack, local: LocalRegistry) -> None:
    done(qpack("alias", f"{NAME}:1", "staging", "--expect", "none"))
    refused = qpack("alias", f"{NAME}:2", "staging", "--expect", "none")
    assert refused.code == 8
    assert "registry[alias-moved]" in refused.err
    answer = json.loads(done(qpack("alias", f"{NAME}:2", "staging", "--expect", "1", "--json")))
    assert (answer["before"], answer["version"]) == ("1", "2")


def test_a_damaged_file_is_named_and_nothing_is_promoted(qpack: Qpack, local: LocalRegistry) -> None:
    record = next(r for r in local.contents(NAME).files if r.path.endswith(".safetensors"))
    blob = local.blob(f"sha256:{record.sha256}")
    blob.chmod(0o600)
    blob.write_bytes(b"x" + blob.read_bytes()[1:])
    found = qpack("verify", NAME)
    assert found.code == 8
    assert "error[damaged-file] model/model.safetensors: " in found.err
    assert "WRONG  digests" in found.out
    assert "error[" not in found.out, "it is printed once"
    report = json.loads(qpack("verify", NAME, "--json").out)
    assert not report["ok"]
    digests = report["findings"][0]
    assert [problem["code"] for problem in digests["problems"]] == ["damaged-file"]
    assert digests["problems"][0]["location"]["file"] == "model/model.safetensors"


def test_garbage_is_told_before_it_is_removed(qpack: Qpack, local: LocalRegistry) -> None:
    stray = local.root / "blobs" / "sha256" / ("0" * 64)
    stray.write_bytes(b"left by a killed push" * 1000)
    assert f"sha256:{'0' * 64}" in done(qpack("gc", "--dry-run"))
    assert stray.exists()
    answer = json.loads(done(qpack("gc", "--json")))
    assert (answer["bytes_freed"], answer["dry_run"]) == (21000, False)
    assert not stray.exists()
    assert "WRONG" not in done(qpack("verify", NAME))


@pytest.mark.parametrize("arguments", [("sign", NAME, "--key", "k", "--keyless"), ("verify", NAME, "--identity", "me")])
def test_a_signer_is_named_in_one_way(arguments: tuple[str, ...], qpack: Qpack) -> None:
    assert qpack(*arguments).code == 2


@pytest.mark.engines
def test_a_signature_lets_a_release_through_and_is_checked_by_the_library_too(
    qpack: Qpack, engine_home: Path, tmp_path: Path
) -> None:
    (qpack.home).mkdir()
    (qpack.home / "envs").symlink_to(engine_home / "envs")
    local = published(qpack.home)
    for name in ("mine", "other"):
        openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", tmp_path / f"{name}.key")
        openssl("ec", "-in", tmp_path / f"{name}.key", "-pubout", "-out", tmp_path / f"{name}.pub")
    (local.root / "mine.pub").write_bytes((tmp_path / "mine.pub").read_bytes())
    (local.root / "policy.yaml").write_text("aliases: {production: {signed_by: [mine.pub]}}\n")
    digest = local.resolve(NAME).digest

    assert "error[unsigned] signature: " in qpack("verify", NAME, "--key", "mine.pub").err
    done(qpack("sign", NAME, "--key", "other.key"))
    refused = qpack("promote", NAME, "production")
    assert refused.code == 8, "another key's signature is none"
    assert "error[unsigned] signature: no valid signature by mine.pub" in refused.err
    done(qpack("sign", NAME, "--key", "mine.key", "--why", "read the report"))
    assert local.resolve(NAME).digest == digest
    assert "valid, by mine.pub" in done(qpack("verify", NAME, "--key", "mine.pub"))
    done(qpack("promote", NAME, "production"))
    assert [event.what for event in local.history()] == ["push", "sign", "sign", "promote"]
    assert local.collect(dry_run=False).blobs == ()

    # What a stranger does who has the model-signing library and no qpack.
    theirs, bundle = local.attached(NAME, BUNDLE_TYPE)
    done(qpack("pull", NAME, "pulled", "--signatures", "signatures"))
    assert [(tmp_path / "signatures" / f"{n}.json").read_bytes() for n in (1, 2)] == [theirs, bundle]
    python = environments.resolve(MODEL_SIGNING, "cpu", engine_home).python
    command = [
        *(python, "-m", "model_signing", "verify", "key", "pulled", "--signature", "signatures/2.json"),
        *("--public_key", "mine.pub", "--no-ignore-git-paths"),
    ]
    assert subprocess.run(command, cwd=tmp_path, capture_output=True, check=False).returncode == 0
    (tmp_path / "pulled" / "README.md").write_text("another card")
    assert subprocess.run(command, cwd=tmp_path, capture_output=True, check=False).returncode != 0
    # And with in-toto's own reader.
    code = (
        "import sys; from google.protobuf import json_format as j\n"
        "from in_toto_attestation.v1 import statement, statement_pb2 as pb\n"
        "s = statement.Statement.copy_from_pb(j.Parse(open(sys.argv[1]).read(), pb.Statement())); s.validate()\n"
    )
    subprocess.run([python, "-c", code, tmp_path / "pulled" / "provenance.json"], check=True)

    # A signature of another release, a forged one, and none at all, attached to the next release.
    published(qpack.home)
    forged = json.loads(bundle)
    forged["dsseEnvelope"]["signatures"] = json.loads(theirs)["dsseEnvelope"]["signatures"]
    for data in (bundle, json.dumps(forged).encode(), b"{}", b"\xff"):
        local.attach(f"{NAME}:2", data, media_type=BUNDLE_TYPE, annotations={}, by=Author("mallory"))
    found = qpack("verify", f"{NAME}:2", "--key", "mine.pub")
    assert found.code == 8
    assert "signature: none by mine.pub that holds" in found.err
    assert "forged or damaged" in found.err


@pytest.mark.engines
def test_keyless_signing_says_what_it_lacks_and_a_key_needs_no_network(qpack: Qpack, engine_home: Path) -> None:
    """What can be shown without sigstore's services: who is asked for, and that nothing passes for a signature."""
    qpack.home.mkdir()
    (qpack.home / "envs").symlink_to(engine_home / "envs")
    local = published(qpack.home)
    unreachable = {"HTTPS_PROXY": "http://127.0.0.1:9", "HTTP_PROXY": "http://127.0.0.1:9"}
    nobody = qpack("sign", NAME, "--keyless", **unreachable)
    assert (nobody.code, nobody.out) == (8, "")
    assert "id-token: write" in nobody.err
    not_allowed = qpack("sign", NAME, "--keyless", GITHUB_ACTIONS="true", **unreachable)
    assert not_allowed.code == 8
    assert "(GitHub: missing or insufficient OIDC token" in not_allowed.err
    planted = "PLANTED.identity.token"
    offline = qpack("sign", NAME, "--keyless", SIGSTORE_ID_TOKEN=planted, **unreachable)
    assert offline.code == 8
    assert "sigstore can't be used" in offline.err
    assert "It needs the network" in offline.err
    logs = "".join(path.read_text() for path in (qpack.home / "logs").iterdir())
    assert planted not in logs + offline.err
    assert local.attached(NAME, BUNDLE_TYPE) == ()

    for name in ("mine", "other"):
        openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", qpack.cwd / f"{name}.key")
        openssl("ec", "-in", qpack.cwd / f"{name}.key", "-pubout", "-out", qpack.cwd / f"{name}.pub")
    done(qpack("sign", NAME, "--key", "mine.key"))
    who = ("--identity", "release@example.com", "--issuer", "https://accounts.example.com")
    other = qpack("verify", NAME, *who, **unreachable)
    assert other.code == 8
    assert "signature: none by release@example.com (https://accounts.example.com) that holds" in other.err
    # Either may have signed: the one that can be checked is enough, the wrong one isn't.
    assert "valid, by mine.pub" in done(qpack("verify", NAME, "--key", "mine.pub", *who, **unreachable))
    assert qpack("verify", NAME, "--key", "other.pub", *who, **unreachable).code == 8
    identity = "identities: [{identity: release@example.com, issuer: 'https://accounts.example.com'}]"
    (local.root / "policy.yaml").write_text(f"aliases: {{production: {{{identity}}}}}\n")
    refused = qpack("promote", NAME, "production", **unreachable)
    assert refused.code == 8
    assert "error[unsigned] signature: no valid signature by release@example.com" in refused.err


@pytest.mark.engines
def test_an_encrypted_key_needs_its_password_which_is_written_nowhere(qpack: Qpack, engine_home: Path) -> None:
    qpack.home.mkdir()
    (qpack.home / "envs").symlink_to(engine_home / "envs")
    published(qpack.home)
    password = "planted-4f1c"
    key = qpack.cwd / "release.key"
    openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", qpack.cwd / "plain.key")
    openssl("ec", "-in", qpack.cwd / "plain.key", "-aes256", "-passout", f"pass:{password}", "-out", key)
    refused = qpack("sign", NAME, "--key", key)
    assert refused.code == 8
    assert "encrypted" in refused.err
    assert "QPACK_KEY_PASSWORD" in refused.err
    assert qpack("sign", NAME, "--key", key, QPACK_KEY_PASSWORD="wrong").code == 8
    done(qpack("sign", NAME, "--key", key, QPACK_KEY_PASSWORD=password))
    for folder, _, names in os.walk(qpack.cwd):
        for name in names:
            path = Path(folder) / name
            if path.is_file() and "envs" not in path.parts:
                assert password.encode() not in path.read_bytes(), path


def openssl(*arguments: str | Path) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)
