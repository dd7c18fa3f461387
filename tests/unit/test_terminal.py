"""What a stranger wrote does nothing to a terminal or to GitHub Actions."""

from __future__ import annotations

import errno
import io
import unicodedata
from typing import TextIO, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qpack.core import console, terminal

OBEYED = st.sampled_from(
    [*"\x00\x07\x08\x0d\x1b\x7f\x9b\u00ad\u061c\u115f\u180e\u200b\u200c\u200d\u200e\u200f\u2028\u2029\u202a\u202e",
     *"\u2060\u2066\u2069\u3164\ufeff\uffa0\ufff9\ud800\udcff\U000e0001\U000e0041\U000e0100"]
)  # fmt: skip
HOSTILE = st.lists(st.one_of(st.text(max_size=4), OBEYED, st.sampled_from(["::", "##[", "\n", " ", "%0A", ","])))
JOINERS = "\u200c\u200d"


@given(HOSTILE.map("".join))
def test_nothing_that_a_terminal_obeys_or_hides_is_left(text: str) -> None:
    shown = terminal.clean(text)
    left = [c for c in shown if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") and c not in "\n\t" + JOINERS]
    # Cf that is seen: signs above numbers, as of Arabic and Egyptian.
    assert [c for c in left if not ("\u0600" <= c <= "\u08ff" or "\U000110bd" <= c <= "\U0001343f")
            and not "\U0001bca0" <= c <= "\U0001bca3"] == []  # fmt: skip
    assert terminal.clean(shown) == shown


@pytest.mark.parametrize("text", ["\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645", "\U0001f468\u200d\U0001f469"])
def test_joiners_stay_where_a_script_needs_them(text: str) -> None:
    assert terminal.clean(text) == text


@pytest.mark.parametrize("text", ["lla\u200dma", "\u200cx", "x\u200c", "\u00e9\u200d\u200d\u00e9", "pay\u202elap"])
def test_invisible_characters_that_make_names_look_alike_are_shown(text: str) -> None:
    assert "�" in terminal.clean(text)


def commands(text: str) -> list[str]:
    """The lines that GitHub's runner takes for commands: trimmed they begin with `::`, or `##[` is in them.
    https://github.com/actions/runner/blob/main/src/Runner.Common/ActionCommand.cs
    """
    lines = text.splitlines()
    return [line for line in lines if line.strip().startswith("::") or "##[" in line]


@given(st.lists(HOSTILE.map("".join)))
def test_no_text_becomes_a_command_of_github_in_whatever_pieces_it_comes(pieces: list[str]) -> None:
    stream = io.StringIO()
    safe = terminal.Safe(stream, "output", github=True)
    for piece in pieces:
        # A mark that itself is cut into pieces is no text of one stranger.
        safe.write(piece.replace("##", "# #"))
    assert [line for line in commands(stream.getvalue()) if "##[" not in line] == []
    stream = io.StringIO()
    terminal.Safe(stream, "output", github=True).write("".join(pieces))
    assert commands(stream.getvalue()) == []


@given(HOSTILE.map("".join), HOSTILE.map("".join))
def test_an_annotation_is_one_line_and_reads_back(message: str, file: str) -> None:
    stream = io.StringIO()
    terminal.workflow(stream, "error", message, file=file)
    line = stream.getvalue()
    assert line.endswith("\n")
    assert line.count("\n") == 1
    head, _, data = line[2:-1].partition("::")
    assert head.startswith("error file=")
    assert "," not in head
    unescape = lambda text: text.replace("%0A", "\n").replace("%2C", ",").replace("%3A", ":").replace("%25", "%")  # noqa: E731
    assert unescape(head.removeprefix("error file=")) == terminal.clean(file)
    assert data.replace("%0A", "\n").replace("%25", "%") == terminal.clean(message)


@given(HOSTILE.map("".join))
def test_a_line_of_progress_is_one_line_and_no_command(text: str) -> None:
    stream = io.StringIO()
    plain = console.Plain(cast("TextIO", terminal.Safe(stream, "error", github=True)), groups=True, verbose=True)
    plain.said = -1000.0
    plain.progress(1, 2, text)
    plain.report(text)
    plain.end(text)
    assert stream.getvalue().count("\n") == 3
    assert commands(stream.getvalue()) == []


@given(HOSTILE.map("".join))
def test_a_stranger_s_text_is_no_markup_of_the_live_console(text: str) -> None:
    from rich.text import Text

    assert Text.from_markup(console._shown(text)).plain == terminal.line(text)


class Full(io.StringIO):
    """A stream on a full disk."""

    def fileno(self) -> int:
        return self.file.fileno()

    def flush(self) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_stream_that_cannot_be_written_is_no_error_of_the_work(tmp_path: object) -> None:
    import tempfile

    stream = Full()
    with tempfile.TemporaryFile() as stream.file, pytest.raises(terminal.Unwritable) as caught:
        terminal.Safe(stream, "output").flush()
    assert not isinstance(caught.value, Exception)
    assert "No space left on device" in str(caught.value)
