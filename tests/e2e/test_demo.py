"""The main job: a recipe that ships, on the real model, through the real llm-compressor, vLLM and lm-eval.

One store for the module, so that each test starts from what the ones before it made, as a person's builds do. The
recipe is measured as `qpack demo --quick` measures, but at both its loads, and calibrated as the demo; `make test-all`
builds it as it ships.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from evals.server.eval_environments import VLLM
from qpack.recipe import effective, recipe_file
from qpack.recipe.demo import QUICK
from qpack.runtime import environments
from qpack.runtime.hardware import has_avx512
from qpack.serve import served_release
from registry.serving.exporters import grafana
from registry.serving.exporters.export import Export
from tests.e2e import exported
from tests.scenarios.command import wait_for
from tests.unit.figures_shown import Texts, hold_together

pytestmark = [
    pytest.mark.engines,
    pytest.mark.skipif(not has_avx512(), reason="vLLM's build for CPUs serves the demo's 4 bits with AVX-512 alone"),
]
RECIPES = Path(__file__).parents[2] / "recipes"
FEWER = ("calibration.samples=16", *(setting for setting in QUICK if not setting.startswith("measure.")))
# Served otherwise: what a server that isn't the release's looks like to `drift`.
PROFILE = "serve.profiles={short: {max_model_len: 1024}}"


@pytest.fixture(scope="module")
def home(engine_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    (folder / "envs").symlink_to(engine_home / "envs")
    return folder


def qpack(home: Path, *arguments: str, ok: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "qpack.cli.start", *arguments],
        env={**os.environ, "QPACK_HOME": str(home), "QPACK_REGISTRY": ""},
        cwd=home,
        capture_output=True,
        text=True,
        timeout=3600,
        check=False,
    )
    assert done.returncode == ok, done.stderr[-4000:]
    return done


def said(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(done.stdout)
    return value


@pytest.fixture(scope="module")
def recipe(home: Path) -> str:
    file = home / "recipe.yaml"
    file.write_text(effective.text(recipe_file.load(RECIPES / "smollm2-135m-gptq.yaml", [*FEWER, PROFILE])))
    return str(file)


@pytest.fixture(scope="module")
def gptq(home: Path, recipe: str) -> dict[str, Any]:
    return said(qpack(home, "build", recipe, "--json"))


@pytest.fixture(scope="module")
def released(home: Path, gptq: dict[str, Any]) -> dict[str, Any]:
    return said(qpack(home, "show", gptq["published"]["reference"], "--json"))


def test_the_demo_recipe_ends_with_a_published_release(gptq: dict[str, Any]) -> None:
    assert gptq["published"]["reference"] == "smollm2-135m-gptq:1"
    assert gptq["verdict"]["outcome"] == "pass"
    assert not gptq["nothing_to_do"]


def test_the_release_holds_measured_figures_of_both_models(released: dict[str, Any]) -> None:
    release = released["release"]
    for who in ("baseline", "artifact"):
        evidence = release[who]
        assert sum(len(task["samples"]) for task in evidence["accuracy"]["tasks"]) >= 300
        assert len(evidence["latency"]["levels"]) >= 2
        assert all(run["failed"] == 0 for level in evidence["latency"]["levels"] for run in level["runs"])
        assert evidence["memory"]["peak_resident_bytes"] > evidence["memory"]["weights_bytes"] > 100e6
        assert all(reply["text"].strip() for reply in evidence["canary"]["replies"])
    comparison = release["comparison"]
    # SmolLM2 at 4 bits is worse than at 16, and not broken: a mix-up of the two models or of their tokens would show.
    assert 1.0 < comparison["perplexity_ratio"]["value"] < 1.6
    assert 0.0 < comparison["kl_divergence"]["value"] < 1.0
    assert 0.05 < comparison["flip_rate"]["value"] < 0.4
    assert 0.3 < comparison["size_ratio"]["value"] < 0.5
    assert release["quantized"]["quantized_layers"] == 210


def test_a_figure_of_the_release_is_the_same_wherever_it_is_shown(
    home: Path, recipe: str, gptq: dict[str, Any], tmp_path: Path
) -> None:
    name = gptq["published"]["reference"]
    qpack(home, "report", name, "-o", str(tmp_path / "report.html"))
    qpack(home, "report", name, "--format", "markdown", "-o", str(tmp_path / "report.md"))
    qpack(home, "pull", name, str(tmp_path / "pulled"))
    texts = Texts(
        name=name,
        console=qpack(home, "show", name).stdout,
        release=said(qpack(home, "show", name, "--json"))["release"],
        page=(tmp_path / "report.html").read_text(),
        markdown=(tmp_path / "report.md").read_text(),
        card=(tmp_path / "pulled" / "README.md").read_text(),
        compared=qpack(home, "compare", name, recipe).stdout,
        compared_row=said(qpack(home, "compare", name, recipe, "--json"))["rows"][0],
    )
    assert hold_together(texts) > 15


def test_the_serving_manifest_says_what_was_measured_through_it(released: dict[str, Any]) -> None:
    serving, release = released["serving"], released["release"]
    files = {record["path"]: record["sha256"] for record in release["quantized"]["files"]}
    assert serving["model"]["tokenizer_digest"] == files["tokenizer.json"]
    assert serving["model"]["chat_template_digest"] == files["chat_template.jinja"]
    assert serving["memory"]["basis"] == "measured"
    assert serving["ran_with"] == {"kv_cache_dtype": "auto", "prefix_caching": True, "chunked_prefill": True}
    assert serving["probes"]["measured_start_seconds"] < serving["probes"]["startup_budget_seconds"] == 20 * 60
    assert serving["memory"]["resident_bytes"] == release["artifact"]["memory"]["peak_resident_bytes"]
    highest = max(level["concurrency"] for level in release["artifact"]["latency"]["levels"])
    assert len(serving["objectives"]) == 3
    for objective in serving["objectives"]:
        assert objective["benchmark"]["concurrency"] == highest
        assert objective["threshold_seconds"] >= objective["benchmark"]["p99_seconds"]


def test_the_pulled_artifact_has_every_file_that_a_server_needs(home: Path, released: dict[str, Any]) -> None:
    from registry.registries import open_registry

    folder = home / "pulled"
    open_registry("local", str(home / "registry")).pull("smollm2-135m-gptq:latest", folder)
    names = {path.name for path in (folder / "model").iterdir()}
    assert {
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "model.safetensors",
    } <= names
    assert {"release.json", "serving.json", "recipe.yaml", "README.md", "LICENSE"} <= {
        path.name for path in folder.iterdir()
    }
    config = json.loads((folder / "model" / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "compressed-tensors"
    assert config["rope_parameters"]["rope_theta"] == 100000


def test_the_canary_of_the_build_is_evidence_and_a_gate(released: dict[str, Any]) -> None:
    release = released["release"]
    checks = {check["name"]: check["outcome"] for check in release["artifact"]["proof"]["checks"]}
    skipped = {name for name, outcome in checks.items() if outcome == "skip"}
    assert skipped == {"tools", "acceptance", "picture", "thinking"}
    assert "fail" not in checks.values()
    assert len(checks) >= 13
    assert [gate["outcome"] for gate in release["verdict"]["gates"] if gate["gate"] == "canary"] == ["pass"]
    assert release["baseline"]["proof"] is None


def test_the_release_is_served_from_its_export_proved_watched_and_compared(
    home: Path, gptq: dict[str, Any], engine_home: Path, tmp_path: Path
) -> None:
    ref, port = gptq["published"]["reference"], exported.free_port()
    folder = home / "deploy"
    qpack(home, "pull", ref, str(folder))
    for to in ("vllm", "prometheus"):
        qpack(home, "export", ref, "--to", to, "--port", str(port), "-o", str(folder))
    vllm = environments.ensure(environments.resolve(VLLM, "cpu", engine_home), engine_home, print)
    made = served_release.find(home / "registry", ref)
    export = Export(made.manifest, ref, made.resolved.digest, made.profile)
    configuration, rules = (yaml.safe_load((folder / name).read_text()) for name in ("prometheus.yml", "rules.yml"))
    with exported.from_export(folder, vllm) as url, exported.prometheus(tmp_path, configuration, rules) as watched:
        proved = said(qpack(home, "canary", url, "--json"))
        assert {check["name"] for check in proved["checks"] if check["outcome"] != "pass"} == {
            *("tools", "acceptance", "picture", "thinking", "metrics")  # a URL alone promises none
        }
        wait_for(lambda: not watched.empty(grafana.queries(export)), "a panel has no data")
        assert not {"VllmDown", "VllmQueueNeverEmpty", "VllmErrors"} & set(watched.firing())
        assert said(qpack(home, "drift", url, ref, "--json"))["differences"] == []
        found = said(qpack(home, "drift", url, ref, "--profile", "short", "--json", ok=5))["differences"]
        # The models list says it, and the fingerprint of the flags.
        assert [each["what"] for each in found] == ["max_model_len", "--max-model-len"]
        assert {(each["expected"], each["found"]) for each in found} == {("1024", "2048")}


def test_a_second_build_does_nothing_and_says_so(home: Path, recipe: str, gptq: dict[str, Any]) -> None:
    logs = {path: path.stat().st_mtime_ns for path in (home / "logs").iterdir()}
    done = qpack(home, "build", recipe)
    assert done.stdout.startswith("Nothing to do: smollm2-135m-gptq:1 is published")
    assert {path: path.stat().st_mtime_ns for path in (home / "logs").iterdir()} == logs


def test_a_gate_out_of_reach_fails_publishes_nothing_and_the_report_says_which(
    home: Path, recipe: str, gptq: dict[str, Any]
) -> None:
    setting = ("--set", "gates.size_ratio=0.01", "--set", "name=unreachable")
    refused = said(qpack(home, "build", recipe, *setting, "--json", ok=6))
    assert refused["error"]["code"] == "gate-failed"
    assert [problem["where"] for problem in refused["problems"]] == ["--set gates.size_ratio"]
    assert (refused["ok"], refused["verdict"]["outcome"]) == (False, "fail")
    assert {gate["gate"] for gate in refused["verdict"]["gates"] if gate["outcome"] == "fail"} == {"size_ratio"}
    assert "unreachable" not in qpack(home, "list").stdout
    written = said(qpack(home, "report", recipe, *setting, "-o", str(home / "failed.html"), "--json"))
    assert [gate["gate"] for gate in written["verdict"]["gates"] if gate["outcome"] == "fail"] == ["size_ratio"]
    assert "size_ratio" in (home / "failed.html").read_text()


def test_a_gate_inside_its_interval_is_undecided(home: Path, recipe: str, released: dict[str, Any]) -> None:
    middle = released["release"]["comparison"]["accuracy_drop"]["value"]
    done = qpack(home, "build", recipe, "--set", f"gates.accuracy_drop={middle}", ok=7)
    assert "accuracy_drop" in done.stderr
    assert "Evaluate more samples" in done.stderr


def test_a_failed_gate_is_published_only_when_told_to_and_marked(home: Path, recipe: str, gptq: dict[str, Any]) -> None:
    setting = ("--set", "gates.size_ratio=0.01", "--set", "name=forced")
    assert (
        said(qpack(home, "build", recipe, *setting, "--allow-failed-gates", "--json"))["published"]["reference"]
        == "forced:1"
    )
    assert "PUBLISHED ALTHOUGH ITS GATES DID NOT PASS" in qpack(home, "show", "forced").stdout


@pytest.mark.slow("two recipes as they ship, the second on the baseline of the first")
def test_recipes_build_as_they_ship_and_the_second_takes_its_baseline_from_the_store(
    home: Path, gptq: dict[str, Any]
) -> None:
    whole = said(qpack(home, "build", str(RECIPES / "smollm2-135m-gptq.yaml"), "--json"))
    assert (whole["published"]["reference"], whole["verdict"]["outcome"]) == ("smollm2-135m-gptq:2", "pass")
    done = qpack(home, "build", str(RECIPES / "smollm2-135m-awq.yaml"))
    stages = {
        line.split()[1].rstrip(":"): done.stderr.splitlines()[i + 1]
        for i, line in enumerate(done.stderr.splitlines())
        if line.startswith("[")
    }
    assert "from the store" in stages["baseline"]
    assert "from the store" not in stages["artifact"]
    assert "Published smollm2-135m-awq:1" in done.stdout
    assert qpack(home, "list").stdout.count("latest") == 3
    (source,) = (home / "store" / "fetch").glob("*/checkpoint")
    found = said(qpack(home, "doctor", "smollm2-135m-awq", "--against", str(source), "--whole", "--json"))
    assert (found["findings"], found["quantized_layers"]) == ([], 210)


def test_the_report_is_one_file_that_needs_no_network(home: Path, gptq: dict[str, Any]) -> None:
    qpack(home, "report", "smollm2-135m-gptq", "-o", str(home / "report.html"))
    page = (home / "report.html").read_text()
    assert page.count("<svg") >= 5
    for outside in ('src="http', 'href="http', "@import", "url(http"):
        assert outside not in page


def test_the_doctor_finds_nothing_wrong_with_the_release_nor_with_its_source(home: Path, gptq: dict[str, Any]) -> None:
    (source,) = (home / "store" / "fetch").glob("*/checkpoint")
    assert said(qpack(home, "doctor", str(source), "--json"))["findings"] == []
    reference = gptq["published"]["reference"]
    found = said(qpack(home, "doctor", reference, "--against", str(source), "--whole", "--json"))
    assert (found["findings"], found["quantized_layers"]) == ([], 210)


def test_what_was_expected_stands_beside_what_was_measured(released: dict[str, Any]) -> None:
    quantized = released["release"]["quantized"]
    assert quantized["expected_weights_bytes"] == pytest.approx(quantized["weights_bytes"], rel=0.02)
    assert quantized["expected_peak_memory_bytes"] > 0


@pytest.mark.slow("a sweep on a real Ray cluster")
def test_a_sweep_on_a_real_ray_cluster_shares_the_store_and_one_bad_point_stops_no_other(
    home: Path, recipe: str, gptq: dict[str, Any]
) -> None:
    grid = ("--vary", "gates.size_ratio=0.5,0.1", "--vary", "quantize.group_size=64,63")
    before = len(list((home / "store" / "performance").iterdir()))
    done = qpack(home, "sweep", recipe, *grid, "--on", "ray", "--job-cpus", "1", "--json", ok=2)
    found = json.loads(done.stdout)
    assert [(row["name"], row["outcome"]) for row in found["rows"]] == [
        ("gates.size_ratio=0.5 quantize.group_size=64", "pass"),
        ("gates.size_ratio=0.1 quantize.group_size=64", "fail"),
    ]
    assert [point["settings"] for point in found["not_built"]] == [
        "gates.size_ratio=0.5 quantize.group_size=63",
        "gates.size_ratio=0.1 quantize.group_size=63",
    ]
    assert [problem["code"] for problem in found["not_built"][0]["problems"]] == ["group-size"]
    assert "2 of 4 combinations could not be built" in done.stderr
    assert len(list((home / "store" / "performance").iterdir())) == before, "a job measured again what was in the store"
