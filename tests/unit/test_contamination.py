"""Claims about calibration texts that also stand in what the model is measured on."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evals.measure import contamination, suite
from evals.measure.contamination import NGRAM, SHORTEST, find, task_texts, texts_of
from evals.report import markdown
from evals.report.html_report import render
from qpack.core.errors import EvaluateError
from qpack.core.findings import Contamination
from qpack.core.records import Accuracy, Sample, TaskScore
from registry.release import card
from tests.codes import coded
from tests.unit.evidence_samples import make_release
from tests.unit.registry_examples import release as card_release
from tests.unit.registry_examples import serving

LONG = "the quick brown fox jumps over the lazy dog while seven green frogs look on in silence from the pond"
SOME = settings(max_examples=25)
words = st.lists(st.sampled_from("abcdefghijklmnop"), min_size=NGRAM, max_size=40)


@pytest.mark.parametrize("name", suite.TASKS)
def test_the_text_of_every_own_task_s_items_is_known(name: str):
    samples = tuple(Sample(id=f"{name}:{index}:00", score=1.0) for index in (0, 3))
    score = TaskScore(task=name, version="1", metric="m", few_shot=0, mean=1.0, samples=samples)
    known, unchecked = task_texts(Accuracy(lm_eval_version="0", tasks=(score,)))
    assert unchecked == []
    assert all(text.strip() for text in known[name].values())
    assert set(known[name]) == {sample.id for sample in samples}


def test_a_long_run_of_words_in_common_is_found_whatever_case_and_punctuation():
    row = f"Before. {LONG.upper().replace(' ', ', ')}! After."
    (one,) = find({"row": row}, {"task": {"item": f"They say that {LONG}", "other": "x " * 30}}).sets
    assert [(o.item, o.row) for o in one.overlaps] == [("item", "row")]
    assert 0 < one.overlaps[0].share < 1
    assert one.overlaps[0].words == " ".join(LONG.split()[:NGRAM])


def test_one_word_less_than_a_run_is_no_overlap():
    shared = " ".join(LONG.split()[: NGRAM - 1])
    (one,) = find({"row": f"{shared} one two three"}, {"task": {"item": f"four five six {shared} seven eight"}}).sets
    assert one.overlaps == ()


def test_a_short_item_overlaps_when_all_of_it_stands_in_a_row():
    short = " ".join(LONG.split()[:SHORTEST])
    (one,) = find({"row": LONG}, {"t": {"in": short, "not": short + " cat", "too short": "the quick"}}).sets
    assert [o.item for o in one.overlaps] == ["in"]
    assert (one.items, one.too_short) == (3, 1)


def test_the_end_of_a_word_is_not_the_word():
    (one,) = find({"row": "xthe quick brown fox jumps over the lazy dogs"}, {"t": {"i": LONG[:43]}}).sets
    assert one.overlaps == ()


@given(words, words, words)
def test_a_text_that_stands_in_a_row_is_always_found_with_all_of_it(
    before: list[str], text: list[str], after: list[str]
):
    row = " ".join([*before, *text, *after])
    (one,) = find({"row": row}, {"t": {"item": " ".join(text)}}).sets
    assert [o.share for o in one.overlaps] == [1.0]


@SOME
@given(words, words)
def test_rows_and_items_without_a_word_in_common_never_overlap(row: list[str], item: list[str]):
    (one,) = find({"row": " ".join(row)}, {"t": {"item": " ".join(w + "z" for w in item)}}).sets
    assert one.overlaps == ()


def test_rows_are_read_back_by_their_digests_as_the_calibration_wrote_them(tmp_path: Path):
    chat = [{"role": "user", "content": "hello there"}]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"text": t}) + "\n" for t in ("used", "unused", chat)))
    digests = [hashlib.sha256(t.encode()).hexdigest() for t in ("used", json.dumps(chat, sort_keys=True))]
    assert texts_of(file, "text", digests) == {digests[0]: "used", digests[1]: "hello there"}
    (tmp_path / "lines.txt").write_text("used\n\nunused\n")
    assert texts_of(tmp_path / "lines.txt", "text", digests) == {digests[0]: "used"}


@pytest.mark.parametrize("row", ["[]", "7", "{", "[" * 100_000, '{"text": "a", "text": "b"}', "\udcff"])
def test_a_row_that_is_none_is_an_error_with_its_line(row: str, tmp_path: Path):
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b'{"text": "used"}\n\n' + row.encode("utf-8", "surrogateescape") + b"\n")
    with pytest.raises(EvaluateError, check=coded("unreadable-file"), match=r"rows\.jsonl:[13]"):
        texts_of(file, "text", ["0" * 64])


def test_an_item_of_a_task_is_found_in_a_row_made_from_it_and_hub_tasks_are_named_as_unchecked():
    from evals.measure import suite
    from evals.tasks.utils import read_docs

    docs, _ = read_docs(suite.data_root() / suite.TASKS["qpack_siqa"].file)
    ids = [f"qpack_siqa:{i}:0" for i in (3, 700)]
    scores = [
        TaskScore(
            task=name,
            version="1",
            metric="acc",
            few_shot=0,
            mean=1.0,
            samples=tuple(Sample(id=i, score=1) for i in ids),
        )
        for name in ("qpack_siqa", "lm_eval:arc_easy")
    ]
    known, unchecked = task_texts(Accuracy(lm_eval_version="0", tasks=tuple(scores)))
    assert unchecked == ["lm_eval:arc_easy"]
    found = find({"row": f"{docs[700]['passage']} {docs[700]['question']}"}, known, unchecked)
    assert [o.item for o in found.sets[0].overlaps] == [ids[1]]


def overlapping() -> Contamination:
    return find({"a" * 64: LONG}, {"piqa": {"piqa-7": LONG, "piqa-8": "short"}}, ["lm_eval:arc_easy"])


def test_overlaps_are_named_in_report_card_and_markdown(tmp_path: Path):
    release = make_release(tmp_path).model_copy(update={"contamination": overlapping()})
    page = render(release)
    assert "1 of 2, 1 too short to check: piqa-7 in row aaaaaaaaaaaa (100.0 % of it: “the quick brown" in page
    assert "not checked: only lm-eval has the texts" in page
    text = markdown.render(release, release.verdict, "x")
    assert "- piqa: 1 of 2 items, `piqa-7`" in text
    made = card_release().model_copy(update={"contamination": overlapping()})
    told = card.render(made, serving())
    (line,) = [line for line in told.splitlines() if "1 of 2 items of piqa" in line]
    assert line.endswith("`piqa-7`.")
    assert "- lm_eval:arc_easy: not checked." in told
    assert contamination.NGRAM == 13
