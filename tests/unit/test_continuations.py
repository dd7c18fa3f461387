"""Greedy continuations of held-out text: which windows are shown, and how."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from evals.comparison.continued_windows import WORST, compare, domain_of
from evals.measure import divergence
from evals.measure.continuations import continuation_of
from evals.report import html_report, markdown
from evals.report.tables import visible
from qpack.cli.render.figures import figures
from qpack.core.errors import EvaluateError
from qpack.core.records import Release
from tests.codes import coded
from tests.unit import evidence_samples as samples
from tests.unit.evidence_samples import DOMAINS, HOSTILE, WINDOWS


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Release:
    return samples.make_release(tmp_path_factory.mktemp("release"))


@pytest.fixture(scope="module")
def tops(tmp_path_factory: pytest.TempPathFactory) -> tuple[divergence.TopK, divergence.TopK]:
    folder = tmp_path_factory.mktemp("tops")
    before = samples.write_logprobs(folder / "b.npz")
    after = samples.write_logprobs(folder / "a.npz", quantized=True)
    return divergence.load(before), divergence.load(after)


def test_the_worst_windows_are_those_that_diverge_most_and_both_go_on_from_the_same_text(
    tops: tuple[divergence.TopK, divergence.TopK],
):
    made = compare(samples.continuations(), samples.continuations(quantized=True), *tops, DOMAINS)
    kl = divergence.kl_by_position(*tops)
    means = {window: kl[tops[0].window == window].mean() for window in range(WINDOWS)}
    assert [w.window for w in made.worst] == sorted(means, key=lambda w: -means[w])[:WORST]
    for w in made.worst:
        assert w.kl == pytest.approx(means[w.window])
        assert w.domain == ("prose" if w.window < DOMAINS[0].windows else "code")
        assert (w.before, w.follows) == (f"text {w.window} that", f" really stands {w.window}")
        assert w.baseline == f" in window {w.window} as it was before"
        assert (w.alike, HOSTILE in w.artifact) == ((2, True) if w.window % 3 == 0 else (6, False))
    assert (made.same, made.windows, made.tokens) == (16, WINDOWS, 6)
    assert made.alike == pytest.approx((16 * 6 + 8 * 2) / 24)


def test_continuations_of_other_windows_are_refused(tops: tuple[divergence.TopK, divergence.TopK]):
    whole = samples.continuations()
    moved = whole.model_copy(update={"windows": whole.windows[1:]})
    with pytest.raises(EvaluateError, check=coded("other-windows")):
        compare(whole, moved, *tops)


def test_a_window_belongs_to_its_domain():
    assert [domain_of(w, DOMAINS) for w in (0, 13, 14, 23)] == ["prose", "prose", "code", "code"]
    assert domain_of(0, ()) == ""


def test_an_answer_without_token_ids_is_an_error():
    assert continuation_of({"choices": [{"text": " a", "token_ids": [5]}]}) == (" a", (5,))
    for answer in ({"choices": [{"text": " a", "token_ids": None}]}, {"choices": []}, []):
        with pytest.raises(EvaluateError, check=coded("server-answer")):
            continuation_of(answer)


def hostile(release: Release) -> Release:
    """With a window at the top that both continue with text that wants to be markup."""
    found = release.comparison.continued
    assert found is not None
    first = found.worst[0].model_copy(update={"baseline": HOSTILE, "artifact": HOSTILE + "``", "before": HOSTILE})
    found = found.model_copy(update={"worst": (first, *found.worst[1:])})
    return release.model_copy(update={"comparison": release.comparison.model_copy(update={"continued": found})})


def test_what_a_model_wrote_is_text_in_the_report_and_nothing_else(release: Release):
    page = html_report.render(hostile(release))
    assert "<b>bold</b>" not in page
    assert "&lt;b&gt;bold&lt;/b&gt;" in page
    assert "\x1b" not in page
    assert "Continuations of the worst windows" in page
    assert "16 of 24 continuations" in page


def test_what_a_model_wrote_is_code_in_markdown(release: Release):
    text = markdown.render(hostile(release), release.verdict, "x")
    row = next(line for line in text.splitlines() if "![x]" in line)
    cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]]
    assert len(cells) == 4
    # More backticks than the text holds, so that the code ends where it should.
    assert cells[2].startswith("`` <b>bold</b> \\|")
    assert cells[3].startswith("``` <b>bold</b> \\|")
    assert cells[3].endswith(" ```")


def test_what_a_model_wrote_sends_no_escape_sequence_to_a_terminal(
    release: Release, capsys: pytest.CaptureFixture[str]
):
    figures(hostile(release))
    out = capsys.readouterr().out
    assert "largest difference, window" in out
    assert "\x1b" not in out
    assert re.search(r"facts found in 1,993 tokens +90% +70% ", out)


def test_what_is_not_to_be_seen_is_replaced_and_what_scripts_need_stays():
    assert visible("a\x1b[2J\u202eb\x00") == "a\ufffd[2J\ufffdb\ufffd"
    for text in ("caf\u00e9\u00a0!", "\u0645\u06cc\u200c\u062e", "\U0001f468\u200d\U0001f469", "\u6f22\u3000\u5b57"):
        assert visible(text) == text
    assert visible("a\n\tb\r") == "a⏎⇥b"


def test_without_continuations_nothing_is_said_of_them(release: Release, tmp_path: Path):
    plain = release.model_copy(update={"comparison": release.comparison.model_copy(update={"continued": None})})
    assert "Continuations of the" not in html_report.render(plain)
    assert "Continuations of the" not in markdown.render(plain, plain.verdict, "x")
