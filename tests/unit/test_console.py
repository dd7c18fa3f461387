from __future__ import annotations

import io
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qpack.core import console


def plain(*, groups: bool = False, verbose: bool = True) -> tuple[console.Plain, io.StringIO]:
    stream = io.StringIO()
    return console.Plain(stream, groups=groups, verbose=verbose), stream


def test_plain_output_is_one_line_a_fact() -> None:
    said, stream = plain()
    said.stage(2, 9, "quantize", "gptq W4A16")
    said.report("making the environment")
    said.end("52.0 s")
    assert stream.getvalue() == "[2/9] quantize: gptq W4A16\n      making the environment\n      52.0 s\n"


def test_on_github_every_stage_is_a_group_that_is_closed() -> None:
    said, stream = plain(groups=True)
    said.stage(1, 2, "fetch", "model")
    said.end("1.0 s")
    said.stage(2, 2, "quantize", "gptq")
    said.close()
    lines = stream.getvalue().splitlines()
    assert [line for line in lines if line.startswith("::")] == [
        "::group::[1/2] fetch: model",
        "::endgroup::",
        "::group::[2/2] quantize: gptq",
        "::endgroup::",
    ]


def test_progress_in_a_log_is_rare(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    said, stream = plain(verbose=False)
    said.stage(1, 1, "quantize", "gptq")
    for step in range(60):
        now[0] += 1
        said.progress(step, 60, "layers")
    assert stream.getvalue().count(" layers") == 4
    assert (
        "30/60 layers, about 30.0 s left" in stream.getvalue() or "29/60 layers, about 31.0 s left" in stream.getvalue()
    )


def test_what_nobody_knows_the_end_of_has_no_time_left() -> None:
    said, stream = plain()
    said.said = -100.0
    said.progress(0, 0, "loading the model")
    assert stream.getvalue() == "      loading the model\n"


@given(st.floats(min_value=0, max_value=1e6))
def test_a_duration_is_never_empty_and_never_60_seconds(count: float) -> None:
    text = console.seconds(count)
    assert text
    assert not re.match(r"60(\.0)? (s|min)", text)
    assert " 60 s" not in text


def test_the_live_clock_goes_on_without_a_word_from_anyone(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    said = console.Live(verbose=False)
    said.rich.file = stream = io.StringIO()
    said.stage(1, 9, "quantize", "gptq")
    try:
        shown = []
        for now[0] in (100.0, 107.0, 175.0):
            stream.truncate(0)
            said.rich.print(said.status.renderable)
            shown.append(stream.getvalue().split()[-2:] if now[0] < 160 else stream.getvalue().split()[-4:])
    finally:
        said.close()
    assert shown == [["0.0", "s"], ["7.0", "s"], ["1", "min", "15", "s"]]


def test_what_is_told_before_the_first_stage_is_a_line_of_its_own() -> None:
    said = console.Live(verbose=False)
    said.rich.file = stream = io.StringIO()
    said.report("hashing model.safetensors")
    assert stream.getvalue().strip() == "hashing model.safetensors"
