from __future__ import annotations

import itertools
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pytest

from evals.gates.gates import judge
from evals.report import layer_errors, plots, tables
from evals.report.html_report import headline, render
from qpack.core.findings import LayerError
from qpack.core.records import GateResult, Release, Reply, Verdict
from tests.unit import evidence_samples, hostile_texts
from tests.unit.evidence_samples import BOUNDS, TASKS, estimate, make_release

VOID = {"meta", "br", "hr", "img", "link", "input"}


class Page(HTMLParser):
    """Every element in order, with its attributes and text; and whether all that was opened is closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "title", "desc"):
            self.text.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())


@pytest.fixture(scope="module")
def passed(tmp_path_factory: pytest.TempPathFactory) -> Release:
    return make_release(tmp_path_factory.mktemp("logprobs"))


@pytest.fixture(scope="module")
def page(passed: Release) -> str:
    return render(passed)


@pytest.fixture(scope="module")
def failed(passed: Release) -> Release:
    bounds = BOUNDS | {"perplexity_ratio": 1.05, "accuracy_drop": passed.comparison.accuracy_drop.value + 0.001}
    return passed.model_copy(update={"verdict": judge(passed.comparison, passed.artifact, bounds)})


def test_the_page_is_well_formed_and_its_ids_are_unique(page: str):
    parsed = Page(page)
    assert parsed.open == []
    ids = Counter(a["id"] for _, a in parsed.elements if "id" in a)
    assert [i for i, count in ids.items() if count > 1] == []
    for tag, attributes in parsed.elements:
        for name in ("href", "xlink:href", "aria-labelledby"):
            for target in (attributes.get(name) or "").split():
                assert target.lstrip("#") in ids, f"<{tag} {name}={target}> points nowhere"
    assert set(re.findall(r"url\(#([^)]+)\)", page)) <= ids.keys()


def test_the_page_loads_nothing_and_runs_nothing(page: str):
    parsed = Page(page)
    loading = {"script", "link", "img", "iframe", "object", "embed", "audio", "video", "source"}
    assert loading.isdisjoint(tag for tag, _ in parsed.elements)
    names = {name for _, attributes in parsed.elements for name in attributes}
    assert not {n for n in names if n.startswith("on")}
    assert "src" not in names
    assert all(a["href"].startswith("#") for a in parsed.all("a"))  # type: ignore[union-attr]
    assert "@import" not in page
    assert not re.search(r"url\((?!#)", page)


def test_the_same_release_gives_the_same_page(passed: Release, page: str):
    assert render(passed) == page
    assert render(Release.model_validate_json(passed.model_dump_json())) == page


def test_plots_can_be_read_without_seeing_them(page: str):
    parsed = Page(page)
    drawn = [a for a in parsed.all("svg") if a.get("role") == "img"]
    assert len(drawn) == 5
    assert len(re.findall(r"<title id=", page)) == len(re.findall(r"<desc id=", page)) == 5
    assert all(a.get("aria-hidden") == "true" for a in parsed.all("svg") if a.get("role") != "img")
    assert re.search(r"<desc id=\"tasks-desc\">Points lost, with intervals: piqa ", page)


def test_the_page_can_be_walked_by_keyboard_and_landmark(page: str):
    parsed = Page(page)
    tags = Counter(tag for tag, _ in parsed.elements)
    assert tags["main"] == tags["header"] == tags["footer"] == tags["nav"] == tags["h1"] == 1
    assert parsed.all("a")[0]["href"] == "#content"
    assert tags["table"] == tags["caption"]
    assert parsed.all("html")[0]["lang"] == "en"


def test_every_colour_of_a_plot_follows_the_page(page: str):
    for drawing in re.findall(r'<svg role="img".*?</svg>', page, flags=re.DOTALL):
        assert set(re.findall(r"#[0-9a-f]{6}\b", drawing)) <= {"#ffffff"}
        assert "var(--artifact)" in drawing


def test_a_passed_build_says_so_first(passed: Release, page: str):
    assert headline(passed) == f"Passed all {len(passed.verdict.gates)} gates"
    assert Page(page).words.index("Passed all") < Page(page).words.index("Bounds come from the recipe")
    assert "--allow-failed-gates" not in page


def test_a_failed_build_says_which_figure_missed_and_by_how_much(failed: Release):
    words = Page(render(failed)).words
    assert headline(failed) == f"Failed: 1 of {len(failed.verdict.gates)} gates"
    ratio = failed.comparison.perplexity_ratio.value
    missed = f"perplexity_ratio fail : {ratio:.3f} is {ratio - 1.05:.5f} (4 %) above the ceiling of 1.05."
    assert missed in words
    assert "accuracy_drop undecided : The interval," in words
    assert re.search(r"about [\d,]+ items", words)


def test_a_floor_that_was_missed_reads_the_right_way_round(passed: Release):
    verdict = judge(passed.comparison, passed.artifact, {"throughput_ratio": 2.0})
    words = Page(render(passed.model_copy(update={"verdict": verdict}))).words
    assert re.search(r"throughput_ratio\[16\] fail : 0\.7\d+ is 1\.2\d+ \(6\d %\) below the floor of 2\.", words)


def test_a_release_published_against_its_gates_is_marked(failed: Release):
    assert "--allow-failed-gates" in render(failed.model_copy(update={"forced": True}))


def test_every_gate_has_a_row_with_its_answer(passed: Release, page: str):
    words = Page(page).words
    for result in passed.verdict.gates:
        assert result.gate in words
        assert result.why in words


def test_every_task_environment_and_stage_is_there(passed: Release, page: str):
    words = Page(page).words
    for name, size in TASKS:
        assert re.search(rf"{name} acc_norm 0 {size} ", words)
    for environment in passed.environments:
        assert f"{environment.name}, {environment.variant}: Python 3.11.9" in words
        assert all(f"{name}=={version}" in words for name, version in environment.packages.items())
    for stage in passed.stages:
        assert f"{stage.stage} {tables.duration(stage.seconds)}" in words
    assert passed.source.digest in words
    assert "group_size: 64 # divides the hidden size, 576" in words


def test_replies_stand_side_by_side_and_cannot_add_markup(passed: Release, page: str):
    assert "hold &lt;more&gt; water than they can carry &amp; the drops" in page
    assert ", identical</h4>" in page
    evil = Reply(prompt="<b>hi", text="</p><script>x</script>", finish_reason="length", streamed_the_same=False)
    canary = passed.artifact.canary.model_copy(update={"replies": (evil,)})
    artifact = passed.artifact.model_copy(update={"canary": canary})
    html = render(passed.model_copy(update={"artifact": artifact, "name": "<i>name", "recipe_text": "<u>"}))
    parsed = Page(html)
    assert parsed.open == []
    assert {"script", "b", "i", "u"}.isdisjoint(tag for tag, _ in parsed.elements)
    assert "(finish reason: length) (the stream differs)" in parsed.words


def test_task_names_cannot_break_a_plot(passed: Release):
    tasks = tuple(t.model_copy(update={"task": 'a<b>&"c" $\\frac{$'}) for t in passed.comparison.tasks)
    html = render(passed.model_copy(update={"comparison": passed.comparison.model_copy(update={"tasks": tasks})}))
    parsed = Page(html)
    assert parsed.open == []
    assert not parsed.all("b")
    assert 'a<b>&"c" $\\frac{$' in parsed.words


def test_a_build_with_little_evidence_still_has_a_page(passed: Release):
    def bare(of: object) -> dict[str, object]:
        evidence = passed.baseline if of == "baseline" else passed.artifact
        return {
            "accuracy": evidence.accuracy.model_copy(update={"tasks": ()}),
            "language": evidence.language.model_copy(update={"windows": ()}),
            "latency": evidence.latency.model_copy(update={"levels": ()}),
            "canary": evidence.canary.model_copy(update={"replies": ()}),
        }

    none = estimate(float("nan"), samples=0)
    comparison = passed.comparison.model_copy(
        update={
            "tasks": (),
            "speed": (),
            "accuracy_drop": none,
            "perplexity_ratio": none,
            "kl_divergence": none,
            "flip_rate": none,
            "perplexity_baseline": float("nan"),
            "perplexity_artifact": float("nan"),
        }
    )
    release = passed.model_copy(
        update={
            "baseline": passed.baseline.model_copy(update=bare("baseline")),
            "artifact": passed.artifact.model_copy(update=bare("artifact")),
            "comparison": comparison,
            "verdict": judge(comparison, passed.artifact, {"accuracy_drop": 0.1}),
            "calibration": None,
            "stages": (),
        }
    )
    parsed = Page(render(release))
    assert parsed.open == []
    for said in ("No tasks were run.", "No text was scored.", "No load was measured.", "No prompts were sent."):
        assert said in parsed.words
    assert "needs no calibration data" in parsed.words
    assert "Failed: 1 of 1 gates" in parsed.words


def test_a_broken_model_still_has_a_page(passed: Release):
    """Infinite perplexity and an interval without end must not stop the plots."""
    wide = estimate(0.01, float("-inf"), float("inf"), samples=1)
    tasks = tuple(t.model_copy(update={"drop": wide}) for t in passed.comparison.tasks)
    windows = tuple(w.model_copy(update={"nll": float("inf")}) for w in passed.artifact.language.windows)
    artifact = passed.artifact.model_copy(
        update={"language": passed.artifact.language.model_copy(update={"windows": windows})}
    )
    comparison = passed.comparison.model_copy(
        update={"tasks": tasks, "perplexity_ratio": estimate(float("inf")), "perplexity_artifact": float("inf")}
    )
    verdict = judge(comparison, artifact, {"perplexity_ratio": 1.1, "task_accuracy_drop": 0.05})
    html = render(passed.model_copy(update={"artifact": artifact, "comparison": comparison, "verdict": verdict}))
    words = Page(html).words
    assert "infinity" in words
    assert "Failed: 1 of 4 gates" in words


def test_a_build_without_gates_says_so(passed: Release):
    release = passed.model_copy(update={"verdict": judge(passed.comparison, passed.artifact, {})})
    assert headline(release) == "No gates set"
    assert "The recipe has no gates." in render(release)


def test_the_title_can_be_given(passed: Release):
    assert "<h1>smollm2-135m-gptq:3</h1>" in render(passed, title="smollm2-135m-gptq:3")


@pytest.mark.parametrize("kind", ["max", "min"])
def test_the_strip_of_a_gate_tints_the_side_that_passes(kind: str):
    figures = estimate(0.9, 0.8, 1.0)
    result = GateResult(gate="size_ratio", kind=kind, bound=0.85, estimate=figures, outcome="undecided", why="")
    strip = plots.gate_strip(result, width=100)
    x, width = (float(re.search(rf'class="zone".*? {name}="([\d.]+)"', strip)[1]) for name in ("x", "width"))  # type: ignore[index]
    bound = float(re.search(r'class="bound" x1="([\d.]+)"', strip)[1])  # type: ignore[index]
    mark = float(re.search(r'cx="([\d.]+)"', strip)[1])  # type: ignore[index]
    assert (x, x + width) == ((0, bound) if kind == "max" else (bound, 100))
    assert bound < mark


def test_numbers_have_sensible_digits_and_units():
    assert [tables.number(x) for x in (0.02293, 22.49, 1204.4, 0, -3.14159)] == [
        "0.0229",
        "22.5",
        "1,204",
        "0",
        "−3.14",
    ]
    assert [tables.size(x) for x in (500, 1536, 257 * 1024**2, 1912 * 1024**2)] == [
        "500 bytes",
        "1.50 KiB",
        "257 MiB",
        "1.87 GiB",
    ]
    assert [tables.duration(x) for x in (1.25, 131, 7320)] == ["1.2 s", "2 min 11 s", "2 h 2 min"]
    assert [tables.points(x) for x in (0.0094, -0.054, -0.0001)] == ["0.9", "−5.4", "0.0"]
    assert [tables.points(x, signed=True) for x in (0.005, -0.054)] == ["+0.5", "−5.4"]
    assert tables.percent_change(0.432) == "−57 %"
    assert [tables.p_value(x) for x in (0.0001, 0.0391)] == ["< 0.001", "0.039"]


def test_the_template_is_beside_the_module():
    assert (Path(plots.__file__).parent / "report.html.jinja").is_file()


def test_the_worst_positions_and_the_bound_of_the_tail_can_be_read(passed: Release, page: str):
    words = Page(page).words
    first = passed.comparison.worst[0]
    assert passed.comparison.tail is not None
    assert f"KL divergence, top-k lists only {tables.bounds(passed.comparison.tail)}" in words
    assert passed.comparison.tail.kl_at_least is not None
    assert f"“{first.baseline[0].text.strip()}” {tables.percent(first.baseline[0].probability)}" in words
    odd = first.model_copy(update={"context": "a\n<script>", "actual": "\t"})
    comparison = passed.comparison.model_copy(update={"worst": (odd,)})
    parsed = Page(render(passed.model_copy(update={"comparison": comparison})))
    assert "…a⏎<script> ⇥" in parsed.words
    assert not parsed.all("script")


def test_an_anomaly_stands_beside_the_verdict(passed: Release):
    verdict = passed.verdict.model_copy(update={"anomalies": ("piqa: a gain of <half> the items",)})
    words = Page(render(passed.model_copy(update={"verdict": verdict}))).words
    assert words.index("piqa: a gain of <half> the items") < words.index("Bounds come from the recipe")


@pytest.fixture(scope="module")
def told(passed: Release) -> Release:
    """A release of an engine that says what each layer lost."""
    quantized = passed.quantized.model_copy(update={"sites": evidence_samples.sites(), "bits_per_weight": 4.31})
    return passed.model_copy(update={"quantized": quantized})


def test_the_layers_that_hurt_most_come_first(told: Release) -> None:
    worst = layer_errors.worst(layer_errors.measured(told))
    assert [(site.layer, site.site) for site in worst[:2]] == [("model.layers.1", "down"), ("model.layers.29", "down")]
    table = layer_errors.table(told)
    assert len(table.rows) == 10
    assert table.rows[0][:5] == ("model.layers.1", "down", "4, groups of 64", "38 %", "14.4 %")
    assert re.search(r"\b4 of 120 inputs\b", table.note)
    assert "1 needed more damping" in table.note


def test_the_report_shows_which_layers_hurt(told: Release) -> None:
    page = Page(render(told))
    assert 'id="layers"' in render(told)
    assert "4.310 with scales and zero points" in page.words
    assert "#layers" in {link["href"] for link in page.all("a")}
    drawn = plots.layer_error_plot(told)
    assert "model.layers.1 down 14 %" in drawn
    for kind in ("qkv", "gate_up", "down"):
        assert f">{kind}<" in drawn


def test_a_release_without_errors_by_layer_has_a_report_without_that_view(passed: Release) -> None:
    assert not passed.quantized.sites
    assert 'id="layers"' not in render(passed)
    plain = tuple(site.model_copy(update={"error_after": None}) for site in evidence_samples.sites(2))
    quantized = passed.quantized.model_copy(update={"sites": plain})
    assert 'id="layers"' not in render(passed.model_copy(update={"quantized": quantized}))


def test_a_record_from_before_errors_were_kept_can_be_read(passed: Release) -> None:
    old = passed.model_dump(mode="json")
    for key in ("sites", "bits_per_weight", "format"):
        del old["quantized"][key]
    assert Release.model_validate(old) == passed


def experts_sent(*tokens: int) -> tuple[LayerError, ...]:
    """A layer whose experts were sent that many tokens, two inputs each, behind attention's inputs."""
    first = evidence_samples.sites(1)
    return first + tuple(
        first[3].model_copy(update={"site": f"expert_{i}_{name}", "routed_tokens": count})
        for i, count in enumerate(tokens)
        for name in ("gate_up", "down")
    )


def test_experts_that_saw_few_tokens_are_counted_once_and_named_from_the_fewest(told: Release) -> None:
    found = layer_errors.warning(experts_sent(500, 127, 0, 128, 5, 6))
    assert found is not None
    assert re.match(r"4 of 6 experts \D*128 .*\(model\.layers\.0 expert_2: 0, ", found)
    assert "expert_4: 5, model.layers.0 expert_5: 6, ...)" in found
    quantized = told.quantized.model_copy(update={"sites": experts_sent(0, 900)})
    assert "1 of 2 experts" in Page(render(told.model_copy(update={"quantized": quantized}))).words


def test_experts_that_saw_enough_tokens_and_models_without_experts_bring_no_warning() -> None:
    assert layer_errors.warning(experts_sent(128, 5000)) is None
    assert layer_errors.warning(evidence_samples.sites()) is None


def test_of_many_experts_the_worst_of_a_layer_is_drawn(told: Release) -> None:
    one = evidence_samples.sites(1)[3]
    experts = [one.model_copy(update={"site": f"experts.{i} down", "error_after": 0.01 * (i % 7)}) for i in range(16)]
    kinds = layer_errors.by_kind(experts)
    assert list(kinds) == ["experts down"]
    assert kinds["experts down"][0].error_after == 0.06


class _Outline(HTMLParser):
    """The tags and attributes of a page, without texts. Those of plots apart: matplotlib places labels by text."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.found: list[str] = []
        self.drawn: set[str] = set()
        self.links: list[str] = []
        self.inside = False
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value or "" for name, value in attrs if name in ("href", "src", "xlink:href", "style")]
        if tag == "svg":
            self.inside = True
        if self.inside:
            self.drawn |= {tag, *(f"@{name}" for name, _ in attrs)}
        else:
            self.found.append(f"<{tag} {' '.join(name for name, _ in attrs)}>")

    def handle_endtag(self, tag: str) -> None:
        if not self.inside:
            self.found.append(f"</{tag}>")
        self.inside = self.inside and tag != "svg"

    def handle_comment(self, data: str) -> None:
        if not self.inside:
            self.found.append(f"<!--{data}-->")

    def handle_decl(self, decl: str) -> None:
        self.found.append(f"<!{decl}>")

    def handle_pi(self, data: str) -> None:
        self.found.append(f"<?{data}>")

    def unknown_decl(self, data: str) -> None:
        self.found.append(f"<![{data}>")


def test_whatever_a_release_calls_anything_the_page_has_no_markup_of_it(tmp_path: Path) -> None:
    """Texts, attributes, plots and all: the tags and attributes are those of a release with plain texts."""
    made = hostile_texts.whole(tmp_path)
    plain = _Outline(render(hostile_texts.with_fields(made, itertools.repeat("plain"))[0]))
    assert len(plain.found) > 500
    for words in hostile_texts.rounds()[:3]:
        html = render(hostile_texts.with_fields(made, itertools.cycle(words))[0])
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f\u202a-\u202e\u2066-\u2069]", html)
        page = _Outline(html)
        assert page.found == plain.found
        assert page.drawn <= plain.drawn | {"tspan", "@x", "@y", "@transform"}
        assert not [value for value in page.links if re.search("script:|example.org|http", value, re.IGNORECASE)]


@pytest.mark.parametrize(
    ("value", "shown"), [(1_204.0, "1,204"), (9_999_999.0, "9,999,999"), (1.234e11, "1.23e+11"), (-2e8, "−2e+08")]
)
def test_a_figure_is_never_wider_than_its_tile(value: float, shown: str) -> None:
    assert tables.number(value) == shown
    assert len(shown) <= 10


def test_a_build_that_published_nothing_says_so_and_a_forced_release_that_it_was_allowed(tmp_path: Path) -> None:
    failed = Verdict(outcome="fail", gates=())
    texts = [
        render(make_release(tmp_path, forced=forced).model_copy(update={"verdict": failed})) for forced in (False, True)
    ]
    assert ["Published with --allow-failed-gates" in text for text in texts] == [False, True]
    assert ["Not published" in text for text in texts] == [True, False]
