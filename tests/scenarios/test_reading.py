"""The commands that read: tables for people, JSON and nothing else for programs, and hints when there is nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from qpack.core.hashing import digest_tree
from qpack.pipeline.plan import SPECS
from registry.core.protocol import PushRequest
from registry.registries import open_registry
from registry.release import release_folder
from tests.scenarios.command import DEMO, Finished, Qpack
from tests.unit.recipes import checkpoint
from tests.unit.registry_examples import release, serving

NAME = release().name


@pytest.fixture
def published(qpack: Qpack) -> Qpack:
    """A registry with one release in it, made and pushed as a build does."""
    artifact = checkpoint(qpack.cwd / "artifact")
    records, digest = digest_tree(artifact)
    made = release()
    made = made.model_copy(update={"quantized": made.quantized.model_copy(update={"files": records, "digest": digest})})
    folder = qpack.cwd / "release"
    folder.mkdir()
    release_folder.lay_out(
        folder, checkpoint=artifact, source=artifact, release=made, serving=serving(), license_text="As you like.\n"
    )
    registry = open_registry("local", str(qpack.home / "registry"))
    registry.push(
        folder,
        PushRequest(NAME, None, "latest", actor="test", note="test"),
        annotations=release_folder.oci_annotations(made),
    )
    return qpack


def said(done: Finished) -> Any:
    """What stdout holds, all of it JSON; the command did what it was asked."""
    assert done.code == 0, done
    assert done.err == ""
    return json.loads(done.out)


def test_check_as_json(qpack: Qpack, recipe: Path) -> None:
    answer = said(qpack("check", recipe, "--json"))
    assert (answer["ok"], answer["engine"]) == (True, "llmcompressor")
    # What counts windows and rows is an environment, and none is made here.
    assert ["environment `transformers`" in left for left in answer["unchecked"]] == [True]


def test_plan_as_json_has_every_step_and_starts_nothing(qpack: Qpack) -> None:
    answer = said(qpack("plan", DEMO, "--json"))
    assert [step["stage"].partition(".")[0] for step in answer["steps"]][:4] == [
        "fetch",
        "hold_out",
        "calibrate",
        "quantize",
    ]
    assert not any(step["done"] for step in answer["steps"])
    assert all(step["key"] for step in answer["steps"])
    assert not (qpack.home / "store").exists()


def test_environments_as_json(qpack: Qpack) -> None:
    found = said(qpack("envs", "list", "--json"))
    assert {environment["name"] for environment in found} == set(SPECS)
    assert not any(environment["made"] for environment in found)


def test_doctor_as_json(qpack: Qpack) -> None:
    found = {finding["what"]: finding for finding in said(qpack("doctor", "--json"))}
    assert {"system", "Python", "uv", "memory", "work store", "registry"} <= set(found)
    assert found["Python"]["value"].endswith(f"({sys.executable})")


def test_doctor_says_when_the_work_store_can_not_be(qpack: Qpack) -> None:
    (qpack.cwd / "file").write_text("")
    done = qpack("doctor", QPACK_HOME=str(qpack.cwd / "file" / "home"))
    assert done.code == 3
    assert "Set QPACK_HOME" in done.out


def test_an_empty_registry_lists_nothing_and_says_how_to_begin(qpack: Qpack) -> None:
    assert said(qpack("list", "--json")) == []
    assert qpack("list").out == "No release yet. `qpack build RECIPE` makes one.\n"


def test_a_release_that_is_not_there_is_exit_8_with_a_hint(qpack: Qpack) -> None:
    done = qpack("show", "nosuch")
    assert (done.code, done.out) == (8, "")
    assert "registry[no-such-release]" in done.err
    assert "Nothing was published" in done.err


def test_a_misspelt_release_gets_those_that_there_are(published: Qpack) -> None:
    done = published("show", NAME[:-1])
    assert done.code == 8
    assert NAME in done.err.splitlines()[-1]


def test_a_reference_that_is_none_says_how_one_is_written(qpack: Qpack) -> None:
    done = qpack("show", "../etc/passwd")
    assert done.code == 8
    assert "registry[invalid-reference]" in done.err


def test_a_report_before_the_build_is_exit_8_and_names_the_command(qpack: Qpack, recipe: Path) -> None:
    done = qpack("report", recipe)
    assert (done.code, done.out) == (8, "")
    assert "registry[no-verdict]" in done.err


def test_a_release_is_listed_shown_and_reported(published: Qpack) -> None:
    assert f"{NAME}:1" in published("list").out
    assert "gate" in published("show", NAME).out
    page = published.cwd / "page.html"
    assert published("report", NAME, "-o", page).out.startswith(f"Wrote {page}")
    assert page.read_text().startswith("<!doctype html>")


def test_a_release_as_json(published: Qpack) -> None:
    (listed,) = said(published("list", "--json"))
    assert (listed["name"], listed["version"], listed["aliases"]) == (NAME, "1", ["latest"])
    shown = said(published("show", f"{NAME}:latest", "--json"))
    assert shown["digest"] == listed["digest"]
    assert shown["release"]["verdict"]["gates"]
    reported = said(published("report", NAME, "-o", published.cwd / "page.html", "--json"))
    assert reported["report"] == str(published.cwd / "page.html")


def test_a_report_that_can_not_be_written_is_an_error_with_a_way_out(published: Qpack) -> None:
    done = published("report", NAME, "-o", published.cwd / "no" / "folder" / "page.html")
    assert done.code == 8
    assert "--output" in done.err


def test_an_environment_that_there_is_not_is_named_with_those_that_there_are(qpack: Qpack) -> None:
    done = qpack("envs", "build", "vlmm")
    assert done.code == 3
    assert "environment[unknown-environment]" in done.err
    assert "vllm" in done.err.splitlines()[-1]


def test_checking_environments_when_none_is_made_says_so(qpack: Qpack) -> None:
    assert qpack("envs", "check").out.startswith("No environment yet.")


def test_a_wrong_option_is_exit_2_with_the_usage(qpack: Qpack) -> None:
    done = qpack("build", "recipe.yaml", "--froce")
    assert done.code == 2
    assert "--froce" in done.err
    assert "Usage: " in done.err


def test_a_reader_that_goes_away_is_no_error(published: Qpack) -> None:
    # `true` has read nothing and is gone before the first line: the pipe is surely broken when it is written.
    command = f"(sleep 0.5; {sys.executable} -m qpack.cli.app schema) | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", command], env=published.environment(), capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_build_that_nobody_can_follow_any_more_is_not_taken_for_a_finished_one(qpack: Qpack, recipe: Path) -> None:
    command = f"(sleep 0.5; {sys.executable} -m qpack.cli.app build {recipe} 2>&1) | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], cwd=qpack.cwd, env=qpack.environment(), check=False)
    assert done.returncode not in (0, 70)


def test_completion_for_bash_completes_commands_and_options(qpack: Qpack) -> None:
    # What the shell runs; the script that it is given names the program as it was called.
    complete = "env COMP_WORDS='qpack {words}' COMP_CWORD=1 _QPACK_COMPLETE=complete_bash {program}"
    program = Path(sys.executable).parent / "qpack"

    def completed(words: str) -> list[str]:
        line = complete.format(words=words, program=program)
        done = subprocess.run(
            ["bash", "-c", line], env=qpack.environment(), capture_output=True, text=True, check=False
        )
        assert done.stderr == ""
        return done.stdout.split()

    # It looks for the shell that it was started from; a test's own ancestors may be none. (A last command is exec'd.)
    started = ["bash", "-c", f"{program} --show-completion; exit $?"]
    script = subprocess.run(started, env=qpack.environment(), capture_output=True, text=True, check=True).stdout
    assert "complete -o default -F _qpack_completion qpack" in script
    assert completed("pl") == ["plan"]
    assert set(completed("")) >= {"build", "plan", "show", "list", "report", "envs", "doctor"}


def test_a_bug_is_exit_70_and_its_log_is_ready_to_send(qpack: Qpack, recipe: Path) -> None:
    # The real command line around a planted bug.
    planted = (
        "from qpack.cli import app; from qpack.pipeline import plan; plan.make = lambda *a, **k: {}['lost']; app.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", planted, "plan", str(recipe)],
        env=qpack.environment(TMPDIR=str(qpack.cwd)),
        cwd=qpack.cwd,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 70
    first, second = done.stderr.splitlines()
    assert first == "qpack: a bug in qpack: KeyError: 'lost'"
    log = Path(second.rpartition(": ")[2])
    assert log.is_relative_to(qpack.cwd)
    text = log.read_text()
    assert "command: plan tiny.yaml" in text
    assert "Traceback" in text


def test_a_bug_report_holds_no_token(qpack: Qpack, recipe: Path) -> None:
    """Neither those of the environment, nor the one that `hf auth login` stored, nor what an address holds."""
    (qpack.cwd / "hf").mkdir()
    (qpack.cwd / "hf" / "token").write_text("hf_planted7e1b")
    words = "GET /x?sig=PLANTED-5c1f hf_planted7e1b https://s3.example/b?X-Amz-Signature=planted&a=1"
    raising = f"qpack.pipeline.plan.make = lambda *a, **k: {{}}[{words!r}]"
    planted = f"import huggingface_hub, qpack.pipeline.plan, qpack.cli.app; {raising}; qpack.cli.app.main()"
    login = "model.source=oci://me:planted@127.0.0.1/m"
    done = subprocess.run(
        [sys.executable, "-c", planted, "plan", recipe, "--set", "name=planted-9d2e", "--set", login],
        env=qpack.environment(
            TMPDIR=str(qpack.cwd),
            HF_HOME=str(qpack.cwd / "hf"),
            SIGSTORE_ID_TOKEN="PLANTED-5c1f",
            QPACK_OCI_PASSWORD="planted-9d2e",
        ),
        cwd=qpack.cwd,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 70
    log = Path(done.stderr.splitlines()[1].rpartition(": ")[2]).read_text()
    told = "GET /x?sig=[SIGSTORE_ID_TOKEN] [Hub token] https://s3.example/b?[query]"
    assert f"KeyError: '{told}'" in log
    assert f"KeyError: '{told}'" in done.stderr
    assert "model.source=oci://[login]@127.0.0.1/m" in log
    assert "planted" not in (done.stderr + log).lower()
