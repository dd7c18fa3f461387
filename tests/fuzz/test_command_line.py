"""The command line itself: hostile words, options, files and settings end with a code of ours and leave nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qpack.recipe import recipe_file
from registry.core.protocol import PushRequest
from registry.local.registry import LocalRegistry
from tests.fuzz.command import qpack
from tests.fuzz.law import counted, fuzz, refused_or_read, some
from tests.fuzz.mutations import texts
from tests.patience import PATIENCE
from tests.unit.laid_out import laid_out
from tests.unit.recipes import workspace

REF, FILE, WORD, NUMBER = "REF", "FILE", "WORD", "NUMBER"
# None of these starts an engine or makes an environment, whatever stands in its places.
COMMANDS: tuple[tuple[str, ...], ...] = (
    ("show", REF),
    ("show", REF, "--json"),
    ("list", WORD),
    ("alias", REF, WORD, "--why", WORD, "--expect", WORD),
    ("promote", REF, WORD, "--policy", FILE, "--why", WORD),
    ("rollback", REF, WORD, "--why", WORD),
    ("history", WORD),
    ("gc", "--dry-run"),
    ("verify", REF),
    ("report", REF, "-o", FILE),
    ("gate", REF, "--policy", FILE),
    ("gate", REF, "--junit", FILE, "--markdown", FILE),
    ("compare", REF, REF),
    ("export", REF, "--to", WORD, "--port", NUMBER, "--profile", WORD),
    ("export", REF, "--to", "kubernetes", "--repository", WORD, "--model", WORD, "-o", FILE),
    ("export", REF, "--to", "docker", "--model", WORD),
    ("serve", REF, "--dry-run", "--port", NUMBER, "--profile", WORD),
    ("pull", REF, FILE),
    ("publish", REF, "--to", WORD),
    ("plan", FILE, "--set", WORD, "--config", FILE),
    ("check", FILE, "--set", WORD),
    ("sweep", FILE, "--vary", WORD),
    ("bench", FILE, "--concurrency", WORD, "--rate", WORD, "--slo", WORD, "--flag", WORD),
    ("batch", "http://127.0.0.1:9", FILE, "-o", FILE, "--max-tokens", NUMBER),
    ("chat", "http://127.0.0.1:9", WORD, "--system", WORD, "--temperature", NUMBER),
    ("drift", WORD, REF),
    ("doctor", FILE),
    ("envs", "check", WORD),
    ("envs", "remove", WORD),
    ("manifest", "lint", WORD, "--memory", NUMBER),
    (WORD,),
)
# Words that would start what this test is not about: environments, the network.
words = texts.filter(lambda text: "\0" not in text and len(text) < 100_000 and "://host" not in text)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with a release and a policy, and files of every bad kind beside a recipe."""
    place = tmp_path_factory.mktemp("place")
    folder, annotations = laid_out(place / "scratch")
    registry = place / "home" / "registry"
    LocalRegistry(registry).push(folder, PushRequest("small", None, "latest", actor="me"), annotations=annotations)
    workspace(place / "work")
    work = place / "work"
    (work / "empty").touch()
    (work / "bytes").write_bytes(os.urandom(64))
    (work / "loop").symlink_to("loop")
    (work / "nowhere").symlink_to("gone/file")
    (work / "list.yaml").write_text("- a\n- b\n")
    (work / "deep.json").write_text("[" * 100_000)
    return place


files = st.one_of(
    st.sampled_from(("tiny.yaml", "texts.jsonl", "model", "model/config.json", "empty", "bytes", "loop", "nowhere")),
    st.sampled_from(("list.yaml", "deep.json", ".", "..", "/dev/null", "no/such", "tiny.yaml/x", "/proc/self/mem")),
    words.map(lambda word: f"w{word}".replace("/", "_")),
)
references = st.one_of(
    st.sampled_from(("small", "small:1", "small:latest", "small:2", "gone:1", "small@sha256:0")), words
)
numbers = st.one_of(st.sampled_from(("0", "-1", "1", "8000", "99999", "1e9", "nan", "inf", "", "٣", "0x1")), words)


@st.composite
def command_lines(draw: st.DrawFn) -> list[str]:
    """A command whose places are filled with hostile words, sometimes with one more of them."""
    drawn = {REF: references, FILE: files, WORD: words, NUMBER: numbers}
    line = [draw(drawn[part]) if part in drawn else part for part in draw(st.sampled_from(COMMANDS))]
    if draw(st.integers(0, 5)) == 0:
        line.insert(draw(st.integers(1, len(line))), draw(words))
    return line


@some
@given(line=command_lines())
def test_whatever_a_command_is_given_it_ends_with_a_code_of_ours(line: Sequence[str], place: Path) -> None:
    counted["read"] += 1
    qpack(line, place / "work", place / "home")
    assert qpack(["show", "small:1"], place / "work", place / "home").code == 0, "what was published is still there"


settings_of = st.one_of(
    words,
    st.tuples(
        st.sampled_from(
            ("name", "quantize.group_size", "evaluate.tasks.0.task", "evaluate.tasks.9", "serve.arguments.x")
        ),
        words,
    ).map("=".join),
    words.map(lambda word: f"{word}=1"),
    words.map(lambda word: f"quantize.{word}=[1, {{a: *b}}]"),
)


@fuzz
@given(given_=st.lists(settings_of, min_size=1, max_size=3))
def test_a_setting_over_a_recipe_is_taken_or_refused(given_: list[str], place: Path) -> None:
    refused_or_read(lambda: recipe_file.load(place / "work" / "tiny.yaml", given_))


PLACES = (
    ("check", "PLACE"),
    ("plan", "PLACE"),
    ("plan", "RECIPE", "--config", "PLACE"),
    ("sweep", "PLACE", "--vary", "quantize.damping=0.1"),
    ("gate", "PLACE"),
    ("gate", "m", "--policy", "PLACE"),
    ("promote", "m", "production", "--policy", "PLACE"),
)


@pytest.mark.parametrize("command", PLACES, ids=" ".join)
@pytest.mark.parametrize("kind", ["pipe.yaml", "/dev/zero", "device.yaml"])
def test_what_is_no_regular_file_is_refused_and_not_read(command: tuple[str, ...], kind: str, tmp_path: Path) -> None:
    """In a process of its own: a pipe is waited for and a device read for ever, where either is opened as a file."""
    place = Path(kind) if kind.startswith("/") else tmp_path / kind
    if kind == "pipe.yaml":
        os.mkfifo(place)
    elif kind == "device.yaml":
        place.symlink_to("/dev/zero")
    named = {"PLACE": str(place), "RECIPE": str(workspace(tmp_path / "w"))}
    words = [named.get(word, word) for word in command]
    root = Path(__file__).parents[2]
    code = "import sys; sys.path.insert(0, sys.argv.pop(1)); from qpack.cli.app import main; main()"
    limits = f"ulimit -v 8000000; ulimit -t 30; exec {sys.executable} -c '{code}' {root} \"$@\""
    environment = {**os.environ, "QPACK_HOME": str(tmp_path / "home"), "QPACK_REGISTRY": str(tmp_path / "registry")}
    done = subprocess.run(
        ["bash", "-c", limits, "qpack", *words], cwd=tmp_path, env=environment, capture_output=True, text=True,
        timeout=PATIENCE,
    )  # fmt: skip
    # What is neither there as a file nor called as a recipe is the name of a release.
    release = command[:2] == ("gate", "PLACE") and kind.startswith("/")
    assert done.returncode == (8 if release or command[0] == "promote" else 2), done.stderr
    assert release or ("a pipe, a device" in " ".join(done.stderr.split()) and place.name in done.stderr)
