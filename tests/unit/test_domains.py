"""Held-out text of several domains: windows, figures and gates of each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from evals.comparison import compare
from evals.comparison.compare import differences, domains
from evals.comparison.verdicts import verdict
from evals.measure import divergence
from evals.report import html_report, markdown
from qpack.core.errors import QuantizeError, RecipeError
from qpack.core.findings import TextDomain
from qpack.core.records import Evidence, Release
from qpack.pipeline import held_out
from qpack.recipe import recipe_file
from qpack.recipe.models import Perplexity
from tests.codes import coded
from tests.unit.evidence_samples import DOMAINS, TOP_K, WINDOWS, make_release, write_logprobs
from tests.unit.recipes import RECIPE, workspace


def split(one: Evidence, domains: tuple[TextDomain, ...]) -> Evidence:
    return one.model_copy(update={"language": one.language.model_copy(update={"domains": domains})})


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Release:
    return make_release(tmp_path_factory.mktemp("domains"))


def windows_of() -> held_out.Windows:
    """As the tokens worker: a window for each row, here of its characters."""

    def windows(texts: Path, field: str, out: Path) -> tuple[str, ...]:
        rows = [json.loads(line)[field] for line in texts.read_text().splitlines()]
        taken = tuple(row for row in rows if len(row) >= 16)[:2]
        lines = [json.dumps({"input_ids": [ord(c) for c in row[:16]]}) for row in taken]
        (out / "tokens.jsonl").write_text("".join(f"{line}\n" for line in lines))
        return taken

    return windows


def ask(**more: Any) -> Perplexity:
    return Perplexity.model_validate_json(json.dumps({"windows": 2, "window_tokens": 16, **more}))


def test_windows_of_every_text_stand_one_after_the_other_and_source_code_is_cut_into_pieces(tmp_path: Path):
    prose, code, out = tmp_path / "prose.jsonl", tmp_path / "code.py", tmp_path / "out"
    prose.write_text("".join(json.dumps({"body": f"{i} line of plain prose"}) + "\n" for i in range(3)))
    code.write_text("\n\n".join(f"def f{i}():\n    return {i} * {'x' * 90}" for i in range(5)))
    out.mkdir()
    named = [{"name": "prose", "source": "p", "field": "body"}, {"name": "code", "source": "c"}]
    made = held_out.make(ask(texts=named), (prose, code), windows_of(), out)
    assert made.domains == (TextDomain(name="prose", windows=2), TextDomain(name="code", windows=2))
    assert (made.windows, made.window_tokens, len(set(made.row_digests))) == (4, 16, 4)
    rows = [json.loads(line)["input_ids"] for line in (out / "tokens.jsonl").read_text().splitlines()]
    starts = ["".join(map(chr, row)) for row in rows]
    assert starts == ["0 line of plain ", "1 line of plain ", "def f0():\n    re", "def f1():\n    re"]
    path, field = held_out.rows_of(ask(texts=named).texts[1], code, out)
    assert json.loads(path.read_text().splitlines()[0])[field] in code.read_text()


def test_two_texts_with_a_passage_in_common_are_refused_by_name(tmp_path: Path):
    file, out = tmp_path / "a.jsonl", tmp_path / "out"
    file.write_text("".join(json.dumps({"text": f"{i} line of plain prose"}) + "\n" for i in range(2)))
    out.mkdir()
    named = [{"name": "one", "source": "a"}, {"name": "two", "source": "a"}]
    with pytest.raises(QuantizeError, check=coded("shared-text"), match="two: 2 of its 2"):
        held_out.make(ask(texts=named), (file, file), windows_of(), out)


@given(st.lists(st.text(alphabet="ab \n", min_size=0, max_size=60)), st.integers(1, 80))
def test_pieces_are_long_enough_and_hold_the_paragraphs_in_their_order(paragraphs: list[str], characters: int):
    text = "\n\n".join(paragraphs)
    found = held_out.pieces(text, characters)
    assert all(len(piece) + 2 >= characters for piece in found)
    kept = "\n\n".join(found).split()
    assert kept == text.split()[: len(kept)]


def test_one_text_asks_for_its_windows_as_ever_so_that_what_is_stored_is_found():
    assert held_out.asked(ask(source="a.jsonl", field="body")) == {"field": "body", "windows": 2, "window_tokens": 16}


def test_a_domain_has_the_figures_that_its_windows_have_alone(release: Release, tmp_path: Path):
    before = divergence.load(write_logprobs(tmp_path / "b.npz"))
    after = divergence.load(write_logprobs(tmp_path / "a.npz", quantized=True))
    prose, code = release.comparison.domains
    assert [(d.domain, d.windows) for d in (prose, code)] == [("prose", 14), ("code", WINDOWS - 14)]
    alone = [divergence.part(top, range(14, WINDOWS)) for top in (before, after)]
    kl, flips = compare.of_sums(divergence.sums(*alone), TOP_K)
    assert (code.kl_divergence, code.flip_rate) == (kl, flips)
    assert code.tail == divergence.tail(*alone)
    assert code.tail is not None
    assert code.tail.kl_at_most >= code.kl_divergence.value
    whole, parts = release.comparison.tail, [domain.tail for domain in (prose, code)]
    assert whole is not None
    bounds = [part.kl_at_least for part in parts if part is not None and part.kl_at_least is not None]
    assert (14 * bounds[0] + 10 * bounds[1]) / 24 == pytest.approx(whole.kl_at_least)
    nll = [np.array([w.nll for w in e.language.windows[14:]]) for e in (release.baseline, release.artifact)]
    tokens = sum(w.tokens for w in release.baseline.language.windows[14:])
    assert code.perplexity_ratio.value == pytest.approx(np.exp((nll[1] - nll[0]).sum() / tokens))


def test_one_text_has_no_domains(release: Release, tmp_path: Path):
    one = split(release.baseline, (TextDomain(name="text", windows=WINDOWS),)).language
    top = divergence.load(write_logprobs(tmp_path / "b.npz"))
    assert domains(one, one, top, top) == ()


def test_other_domains_can_not_be_compared(release: Release):
    other = split(release.artifact, DOMAINS[::-1])
    found = differences(release.baseline, other)
    assert [(p.code.name, "text domains" in p.message) for p in found] == [("measured-differently", True)]


def test_a_gate_on_each_domain_is_one_of_holms_family(release: Release):
    bounds = {"flip_rate": 0.9, "domain_flip_rate": 0.01}
    judged = verdict(release.comparison, release.baseline, release.artifact, bounds)
    named = {gate.gate: gate for gate in judged.gates}
    assert list(named) == ["flip_rate", "domain_flip_rate[prose]", "domain_flip_rate[code]"]
    assert judged.outcome == "fail"
    assert [gate.outcome for gate in named.values()] == ["pass", "fail", "fail"]
    alone = verdict(release.comparison, release.baseline, release.artifact, {"domain_flip_rate": 0.28})
    more = verdict(release.comparison, release.baseline, release.artifact, {"domain_flip_rate": 0.28, "flip_rate": 0.2})
    for few, many in zip(alone.gates, [g for g in more.gates if g.gate != "flip_rate"], strict=True):
        assert few.holm_p is not None
        assert many.holm_p is not None
        assert many.holm_p >= few.holm_p
    nothing = verdict(make_plain(release), release.baseline, release.artifact, {"domain_flip_rate": 0.9})
    assert [(gate.gate, gate.outcome) for gate in nothing.gates] == [("domain_flip_rate", "fail")]


def make_plain(release: Release) -> Any:
    return release.comparison.model_copy(update={"domains": ()})


def test_report_and_markdown_tell_each_domain(release: Release):
    page = html_report.render(release)
    assert "Held-out text by domain" in page
    assert "Held-out text by domain" not in html_report.render(
        release.model_copy(update={"comparison": make_plain(release)})
    )
    text = markdown.render(release, release.verdict, "x")
    assert "| Perplexity, code |" in text
    assert "| KL divergence, top-k lists only |  |  | at least " in text


@pytest.mark.parametrize(
    ("change", "gates", "expected"),
    [
        ({"source": None}, {}, "evaluate.perplexity: no held-out text"),
        ({"texts": [{"name": "a", "source": "texts.jsonl"}]}, {}, "source and texts exclude each other"),
        (
            {"source": None, "texts": [{"name": "a", "source": "texts.jsonl"}] * 2},
            {},
            "evaluate.perplexity.texts[1].name: is a duplicate",
        ),
        ({}, {"domain_flip_rate": 0.2}, "gates.domain_flip_rate: 0.2 for each text domain, and there is one text"),
    ],
)
def test_what_can_not_go_together_is_told(
    change: dict[str, Any], gates: dict[str, float], expected: str, tmp_path: Path
):
    path = workspace(tmp_path)
    data = yaml.safe_load(RECIPE)
    data["evaluate"]["perplexity"] |= change
    data["gates"] |= gates
    path.write_text(yaml.safe_dump(data))
    with pytest.raises(RecipeError) as error:
        recipe_file.load(path)
    assert expected in "\n".join(map(str, error.value.problems))
