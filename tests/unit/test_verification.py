"""What a stranger can write into a release, and that verification finds it: files, figures, gates, verdicts."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tests.unit.evidence_samples as samples
import tests.unit.registry_examples as examples
from evals.comparison import recheck
from evals.comparison.verdicts import verdict
from qpack.core.errors import RegistryError
from qpack.core.records import Release
from qpack.pipeline.rejudge import rejudge
from registry.release import release_files, release_folder
from registry.serving.serving_manifest import ServingManifest

EXAMPLES = int(os.environ.get("QPACK_TEST_EXAMPLES", "100"))

GOOD = (
    *("release.json", "serving.json", "recipe.yaml", "README.md", "LICENSE", "provenance.json", "bom.cdx.json"),
    *(".eval_results/qpack.yaml", "model/config.json", "model/model-00001-of-00002.safetensors"),
    *("model/model.safetensors.index.json", "model/tokenizer.model", "model/merges.txt", "model/qwen.tiktoken"),
    *("model/chat_template.jinja", "model/additional_chat_templates/tool_use.jinja", "model/recipe.yaml"),
    *("model/quant_log.csv", "model/LICENSE", "model/LICENSE.txt", "model/LICENSE-APACHE-2.0", "model/NOTICE"),
    *("model/USE_POLICY.md", "model/Notice.txt", "model/modeling_phi3.py", "model/configuration_phi3.py"),
)
BAD = (
    *("torch.py", "sitecustomize.py", "usercustomize.py", "conftest.py", "__init__.py", "evil.pth", ".env"),
    *("pyproject.toml", "Makefile", "setup.py", "vllm/__init__.py", "json/__init__.py", ".git/config", "."),
    *("Readme.md", "README.MD", "readme.md", "LICENSE.py", "license", "recipe.yml", "Recipe.yaml", "release.JSON"),
    *("model/torch.py", "model/json.py", "model/JSON.py", "model/__init__.py", "model/conftest.py", "model/x.so"),
    *("model/sitecustomize.py", "model/x.pth", "model/x.bin", "model/x.pt", "model/x.pkl", "model/x.pyc", "model/x.sh"),
    *("model/x.PY", "model/a.b.py", "model/.hidden.json", "model/-flag.json", "model/../torch.py", "model/./a.json"),
    *("model//a.json", "/model/a.json", "../model/a.json", "model/sub/a.json", "model/a\n.json", "model/a\0.json"),
    *("model/c\u043enfig.json", "model/config\u202e.json", "model/\uff43onfig.json", "model/a.json ", "model/ a.json"),
    *("Model/config.json", "MODEL/config.json", "model\\a.json", "model/LICENSE.so", "model/LICENSE/x.py", "model"),
    *("model/", "/", "", "serving.json ", "release.json/x"),
    *(".eval_results/other.yaml", ".eval_results/qpack.yaml/x", "model/additional_chat_templates/../x.jinja"),
)  # fmt: skip


def test_every_file_that_a_release_has_is_expected() -> None:
    assert release_files.unexpected(GOOD) == ()


@pytest.mark.parametrize("path", BAD)
def test_a_file_that_no_release_has_is_refused(path: str) -> None:
    (problem,) = release_files.unexpected([path])
    assert problem.code.name == "foreign-file"
    assert problem.where.file.isprintable()
    with pytest.raises(RegistryError) as caught:
        release_files.check("m:1", [*GOOD, path])
    assert caught.value.exit_code == 8


def test_names_that_differ_by_case_alone_are_refused() -> None:
    (problem,) = release_files.unexpected(["model/config.json", "model/Config.json"])
    assert problem.where.file == "model/config.json"


def test_a_file_of_the_model_that_the_release_does_not_list_is_refused() -> None:
    listed = {"config.json"}
    assert release_files.unexpected(["release.json", "model/config.json"], listed) == ()
    (problem,) = release_files.unexpected(["model/config.json", "model/generation_config.json"], listed)
    assert problem.where.file == "model/generation_config.json"


@given(st.lists(st.text(max_size=40) | st.sampled_from([*GOOD, *BAD]), max_size=20))
@settings(max_examples=EXAMPLES)
def test_whatever_lets_a_path_through_it_stays_inside_and_is_no_module_of_anybody(paths: list[str]) -> None:
    refused = {problem.where.file for problem in release_files.unexpected(paths)}
    for path in paths:
        if path not in refused and repr(path)[:120] not in refused:
            assert path in release_files.TOP or path.startswith("model/")
            assert path.isascii()
            assert ".." not in path.split("/")
            assert not path.endswith((".pth", ".pyc", ".so", ".sh", ".bin", ".pkl", ".pt"))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Release:
    """A release whose figures and verdict were computed as a build does."""
    bounds = {"accuracy_drop": 0.06, "task_accuracy_drop": 0.2, "perplexity_ratio": 1.3, "flip_rate": 0.35,
              "domain_perplexity_ratio": 1.4, "needle_drop": 0.6, "size_ratio": 0.6, "throughput_ratio": 0.5,
              "failed_requests": 0}  # fmt: skip
    found = samples.make_release(tmp_path_factory.mktemp("made"), bounds=bounds)
    judged = verdict(found.comparison, found.baseline, found.artifact, bounds)
    return found.model_copy(update={"verdict": judged, "forced": judged.outcome != "pass"})


def test_figures_and_verdict_of_a_build_follow_from_its_evidence(made: Release) -> None:
    again = release_folder.read(made.model_dump_json(), "m:1")
    for release in (made, again, examples.release(), examples.release(failed=True), examples.release(undecided=True)):
        assert rejudge(release).figures == ()
        assert rejudge(release).verdict == ()


def edited(release: Release, *changes: tuple[str, Any]) -> Release:
    """The release with other values at dotted places."""
    data = release.model_dump(mode="json")
    for place, value in changes:
        *parents, last = [int(part) if part.isdigit() else part for part in place.split(".")]
        at: Any = data
        for part in parents:
            at = at[part]
        if value is KeyError:
            del at[last]
        else:
            at[last] = value(at[last]) if callable(value) else value
    return Release.model_validate(data)


def shifted(by: float) -> Callable[[float], float]:
    return lambda value: value + by


FIGURES = (
    *("accuracy_drop.value", "tasks.0.drop.value", "tasks.1.artifact", "tasks.2.baseline", "perplexity_baseline"),
    *("perplexity_artifact", "perplexity_ratio.value", "perplexity_ratio.interval.high", "accuracy_drop.interval.high"),
    *("size_ratio.value", "memory_ratio.value", "speed.0.throughput.value", "speed.1.ttft_p50", "speed.2.ttft.value"),
    *("speed.0.throughput.interval.low", "speed.0.inter_token_p50", "needle.drop.value", "needle.artifact"),
    *("domains.0.perplexity_ratio.value", "domains.1.perplexity_artifact", "domains.0.perplexity_ratio.interval.high"),
)


@pytest.mark.parametrize("place", FIGURES)
@pytest.mark.parametrize("by", [-0.05, 0.05])
def test_a_figure_that_the_evidence_does_not_give_is_found(place: str, by: float, made: Release) -> None:
    found = rejudge(edited(made, (f"comparison.{place}", shifted(by)))).figures
    assert found
    assert any(place.removeprefix("domains.0.").removeprefix("domains.1.").split(".")[0] in why for why in found)


EDITS: dict[str, list[tuple[str, Any]]] = {
    "samples": [("comparison.accuracy_drop.samples", 5000)],
    "no interval": [("comparison.accuracy_drop.interval", None)],
    "a narrower level": [("comparison.accuracy_drop.interval.confidence", 0.5)],
    "a task is left out": [("comparison.tasks.0", KeyError)],
    "a concurrency is left out": [("comparison.speed.0", KeyError)],
    "another name": [("comparison.tasks.0.task", "easy")],
    "no needle": [("comparison.needle", None)],
    "no domains": [("comparison.domains", [])],
    "kl of fewer windows": [("comparison.kl_divergence.samples", 1)],
    "kl below its interval": [("comparison.kl_divergence.value", 0.0)],
    "negative flips": [("comparison.flip_rate.value", -0.1), ("comparison.flip_rate.interval", None)],
    "a look that none is": [
        (f"{who}.accuracy.look", {"number": 1, "looks": 4, "share": 0.25, "tail": 0.4})
        for who in ("baseline", "artifact")
    ],
    "evidence of fewer items": [("artifact.accuracy.tasks.0.samples.0", KeyError)],
    "other answers": [("artifact.accuracy.tasks.0.samples", lambda s: [{**x, "score": 1.0} for x in s])],
    "other text": [("artifact.language.windows.0.nll", 1.0)],
    "another machine": [("artifact.hardware.cores", 64)],
    "domains that share out nothing": [(f"{who}.language.domains.0.windows", -5) for who in ("baseline", "artifact")],
}


@pytest.mark.parametrize("edit", EDITS)
def test_a_comparison_that_is_not_of_the_evidence_is_found(edit: str, made: Release) -> None:
    assert rejudge(edited(made, *EDITS[edit])).figures


def gate(release: Release, name: str) -> str:
    return f"verdict.gates.{[g.gate for g in release.verdict.gates].index(name)}"


def test_a_gate_beyond_its_bound_that_says_pass_is_found() -> None:
    failed = examples.release(failed=True)
    passed = (("verdict.gates.0.outcome", "pass"), ("verdict.outcome", "pass"), ("forced", False))
    lied = edited(failed, *passed)
    assert any("recomputed 'fail'" in why for why in rejudge(lied).verdict)
    higher = edited(
        failed, ("verdict.gates.0.outcome", "pass"), ("verdict.outcome", "pass"), ("verdict.gates.0.bound", 0.5)
    )
    assert any("the recipe's is 0.2" in why for why in rejudge(higher).verdict)
    fewer = edited(failed, ("verdict.gates.0", KeyError), ("verdict.outcome", "pass"))
    assert any("the verdict doesn't" in why for why in rejudge(fewer).verdict)
    lower = edited(failed, ("verdict.gates.0.estimate.value", 0.1), ("verdict.gates.0.outcome", "pass"))
    assert any("figure 0.1, recomputed" in why for why in rejudge(lower).verdict)
    undecided = edited(
        examples.release(undecided=True), ("verdict.gates.0.outcome", "pass"), ("verdict.outcome", "pass")
    )
    assert any("recomputed 'undecided'" in why for why in rejudge(undecided).verdict)


def test_gates_are_the_recipes_no_more_and_no_fewer(made: Release) -> None:
    first = made.verdict.gates[0]
    twice = made.model_copy(update={"verdict": made.verdict.model_copy(update={"gates": (first, *made.verdict.gates)})})
    assert any("duplicate" in why for why in rejudge(twice).verdict)
    more = edited(made, ("recipe.gates.kl_divergence", KeyError if "kl_divergence" in made.recipe["gates"] else 0.5))  # type: ignore[operator]
    assert any("the verdict doesn't" in why for why in rejudge(more).verdict)
    less = edited(made, ("recipe.gates.size_ratio", KeyError))
    assert any("the recipe doesn't" in why for why in rejudge(less).verdict)
    for name in [g.gate for g in made.verdict.gates]:
        other = edited(made, (f"{gate(made, name)}.outcome", lambda was: "fail" if was != "fail" else "pass"))
        assert any(name in why for why in rejudge(other).verdict), name


@pytest.mark.parametrize(
    "gates", [[], "x", 7, {"flip_rate": "0.3"}, {"flip": 1}, {"flip_rate": -1}, {"flip_rate": 1e999}]
)
def test_gates_that_no_recipe_can_set_are_wrong_and_no_bug(gates: object) -> None:
    release = examples.release()
    release = release.model_copy(update={"recipe": {**release.recipe, "gates": gates}})
    assert rejudge(release).verdict


NUMBERS = st.integers(-(2**64), 2**64) | st.floats() | st.sampled_from([0, -1, 1, 1e308, -1e308, 2**63 - 1, 1e-320])
# A new list or dict each time: what one example changes is in no other.
ODD = NUMBERS | st.none() | st.booleans() | st.text(max_size=5) | st.builds(list) | st.builds(dict)


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value[:3]) if isinstance(value, list) else ()
    return [at, *(place for key, item in items for place in places(item, (*at, key)))]


def _at(data: Any, place: tuple[Any, ...], value: Any) -> None:
    for part in place[:-1]:
        data = data[part]
    data[place[-1]] = value


PLAIN = examples.release().model_dump(mode="json")
PLACES = places(PLAIN)[1:]
MANIFEST = json.loads(examples.serving().to_json())
MANIFEST_PLACES = places(MANIFEST)[1:]


@given(st.lists(st.tuples(st.sampled_from(PLACES), ODD), min_size=1, max_size=3))
@settings(max_examples=EXAMPLES, deadline=None)
def test_a_release_manifest_is_judged_or_refused_whatever_is_in_it(changes: list[tuple[tuple[Any, ...], Any]]) -> None:
    data = json.loads(json.dumps(PLAIN))
    for place, value in changes:
        try:
            _at(data, place, value)
        except (LookupError, TypeError):  # an earlier change took the place away
            continue
    try:
        release = release_folder.read(json.dumps(data), "m:1")
    except RegistryError:
        return
    found = rejudge(release)
    if release == examples.release():
        assert (found.figures, found.verdict) == ((), ())
    for who in ("baseline", "artifact"):
        if getattr(release, who) == getattr(examples.release(), who) and release.interleaved is None:
            told, right = release.comparison, examples.release().comparison
            for name in ("accuracy_drop", "perplexity_ratio", "size_ratio", "memory_ratio"):
                same = getattr(told, name).value == pytest.approx(getattr(right, name).value, rel=1e-5)
                assert same or found.figures


@given(st.sampled_from(MANIFEST_PLACES), ODD)
@settings(max_examples=EXAMPLES, deadline=None)
def test_a_serving_manifest_is_read_or_refused_whatever_is_in_it(place: tuple[Any, ...], value: Any) -> None:
    data = json.loads(json.dumps(MANIFEST))
    _at(data, place, value)
    try:
        ServingManifest.from_json(json.dumps(data))
    except RegistryError:
        return


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
@settings(max_examples=EXAMPLES, deadline=None)
def test_bytes_that_are_no_manifest_are_refused(data: bytes) -> None:
    for read in (lambda: release_folder.read(data, "m:1"), lambda: ServingManifest.from_json(data)):
        with pytest.raises(RegistryError):
            read()


def test_the_figures_that_are_computed_again_are_all_but_what_a_release_does_not_hold() -> None:
    """A new figure of the comparison has to be computed again, or to be named as one that can't."""
    known = {"tail", "worst", "continued", "apart", "domains", "method", "divergences", "chance_flips", "gained"}
    assert known == recheck._NOT_COMPARED
