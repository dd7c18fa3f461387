"""Exports against the programs that read them: promtool, systemd-analyze, a shell."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from registry.serving.exporters import prometheus
from registry.serving.exporters.formats import FORMATS
from registry.serving.serving_manifest import vllm_arguments
from tests.patience import PATIENCE
from tests.unit.export_examples import export, export_to

PROFILES = ("measured", "two-gpus")


def tool(name: str, package: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not here (Debian package {package})")
    return found


def written(folder: Path, name: str, profile: str) -> Path:
    for file, text in FORMATS[name].files(export_to(name, profile)).items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(text)
    return folder


def run(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("name", ["prometheus", "compose"])
def test_prometheus_takes_its_configuration_and_rules(name: str, profile: str, tmp_path: Path) -> None:
    promtool = tool("promtool", "prometheus")
    written(tmp_path, name, profile)
    assert "SUCCESS" in run(promtool, "check", "config", "prometheus.yml", cwd=tmp_path)
    assert "rules found" in run(promtool, "check", "rules", "rules.yml", cwd=tmp_path)


@pytest.mark.parametrize("profile", PROFILES)
def test_systemd_takes_the_unit(profile: str, tmp_path: Path) -> None:
    analyze = tool("systemd-analyze", "systemd")
    (unit,) = written(tmp_path, "systemd", profile).iterdir()
    # It looks for the program, which is where the reader of the unit puts it.
    unit.write_text(unit.read_text().replace("/opt/vllm/bin/vllm", sys.executable))
    assert "Unknown key" not in run(analyze, "verify", unit, cwd=tmp_path)


@pytest.mark.parametrize("profile", PROFILES)
def test_a_shell_reads_the_script_and_hands_every_argument_on(profile: str, tmp_path: Path) -> None:
    script = written(tmp_path, "docker", profile) / "docker-run.sh"
    docker = tmp_path / "bin" / "docker"
    docker.parent.mkdir()
    docker.write_text('#!/bin/sh\nfor word in "$@"; do printf "%s\\n" "$word"; done\n')
    docker.chmod(0o755)
    (tmp_path / "a model").mkdir()
    words = run("env", f"PATH={docker.parent}:/usr/bin:/bin", "sh", script, "a model", cwd=tmp_path).splitlines()
    from registry.serving.exporters.export import serve

    wanted = serve(export(profile), "/models/small-gptq")[1:]
    assert words[-len(wanted) :] == wanted
    assert f"{tmp_path / 'a model'}:/models/small-gptq:ro" in words


@pytest.mark.parametrize("profile", PROFILES)
def test_kserve_s_shell_hands_every_flag_on(profile: str) -> None:
    """KServe's template runs `eval "exec vllm serve ... ${VLLM_ADDITIONAL_ARGS} ..."` in bash."""
    service = yaml.safe_load(FORMATS["kserve"].files(export(profile))["kserve.yaml"])
    (main,) = service["spec"]["template"]["containers"]
    more = next(entry["value"] for entry in main["env"] if entry["name"] == "VLLM_ADDITIONAL_ARGS")
    command = ["bash", "-c", "eval \"printf '%s\\0' ${VLLM_ADDITIONAL_ARGS}\""]
    done = subprocess.run(command, env={"VLLM_ADDITIONAL_ARGS": more}, capture_output=True, text=True, check=True)
    manifest = export(profile).manifest
    wanted = vllm_arguments(manifest, "model", host="", port=1)
    kserve = {"--model", "--served-model-name", "--host", "--port", "--tensor-parallel-size"}
    assert done.stdout.split("\0")[:-1] == [word for word in wanted if word.partition("=")[0] not in kserve]


def strict(schema: Any) -> Any:
    """A structural schema that refuses fields it doesn't know, as the API server does when asked to be strict."""
    if isinstance(schema, list):
        return [strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: strict(part) for key, part in schema.items()}
    keeps = made.get("x-kubernetes-preserve-unknown-fields")
    if isinstance(made.get("properties"), dict) and made.get("type") == "object" and not keeps:
        made.setdefault("additionalProperties", False)
    if isinstance(made.get("pattern"), str):
        made["pattern"] = made["pattern"].replace("^(?i)", "(?i)^")  # Go's flags may stand anywhere
    if made.get("x-kubernetes-int-or-string"):
        made.pop("type", None)
    return made


@pytest.fixture(scope="module")
def custom() -> dict[tuple[str, str], Any]:
    """The schemas of custom resources, by apiVersion and kind, from CRDs in the folder that QPACK_TEST_CRDS names."""
    folder = os.environ.get("QPACK_TEST_CRDS")
    if folder is None:
        pytest.skip("no CRDs are here (QPACK_TEST_CRDS, a folder of them: see CONTRIBUTING.md)")
    found = {}
    for path in Path(folder).glob("*.yaml"):
        spec = yaml.load(path.read_text(), yaml.CSafeLoader)["spec"]
        for version in spec["versions"]:
            schema = strict(version["schema"]["openAPIV3Schema"])
            schema["properties"]["metadata"] = {"type": "object"}
            found[f"{spec['group']}/{version['name']}", spec["names"]["kind"]] = schema
    return found


@pytest.mark.parametrize(
    ("name", "file", "kind"),
    [
        ("kserve", "kserve.yaml", "LLMInferenceService"),
        ("leaderworkerset", "leaderworkerset.yaml", "LeaderWorkerSet"),
        ("kubernetes", "monitoring.yaml", "PodMonitor"),
        ("kubernetes", "monitoring.yaml", "PrometheusRule"),
    ],
)
def test_custom_resources_are_ones_by_their_own_definitions(custom: Any, name: str, file: str, kind: str) -> None:
    for profile in PROFILES:
        (document,) = (
            d for d in yaml.safe_load_all(FORMATS[name].files(export_to(name, profile))[file]) if d["kind"] == kind
        )
        schemas = {version: schema for (version, of), schema in custom.items() if of == kind}
        assert document["apiVersion"] in schemas
        for version, schema in schemas.items():
            validator = jsonschema.Draft202012Validator(schema)
            validator.validate({**document, "apiVersion": version})
            assert not validator.is_valid({**document, "spec": {**document["spec"], "imagine": 1}})


VALUES = {"llm-d": "llm-d-modelservice", "production-stack": "vllm-stack"}


def closed(schema: Any) -> Any:
    """A chart's schema of values without fields that it doesn't name, but for parts that are Kubernetes' own. What it
    refers to elsewhere isn't fetched.
    """
    if isinstance(schema, list):
        return [closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    if str(schema.get("$ref", "")).startswith("http"):
        return {}
    made = {key: closed(part) for key, part in schema.items()}
    if isinstance(made.get("properties"), dict) and "v1-core" not in str(made.get("description")):
        made.setdefault("additionalProperties", False)
    return made


@pytest.mark.parametrize("hub", [None, "example/small@" + "1" * 40])
@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize(("name", "chart"), VALUES.items())
def test_a_chart_s_own_schema_takes_the_values(name: str, chart: str, profile: str, hub: str | None) -> None:
    folder = os.environ.get("QPACK_TEST_CRDS")
    if folder is None:
        pytest.skip("no schemas of charts are here (QPACK_TEST_CRDS: see CONTRIBUTING.md)")
    validator = jsonschema.Draft202012Validator(closed(json.loads((Path(folder) / f"{chart}.schema.json").read_text())))
    values = yaml.safe_load(FORMATS[name].files(replace(export(profile), hub=hub))["values.yaml"])
    validator.validate(values)
    part = "modelArtifacts" if name == "llm-d" else "servingEngineSpec"
    assert not validator.is_valid({**values, part: {**values[part], "imagine": 1}})


RAY = """
import dataclasses, sys, yaml
from ray.serve.llm import LLMConfig
from ray.serve.schema import ServeDeploySchema
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.entrypoints.launchers.cli_args import FrontendArgs

known = {field.name for kind in (AsyncEngineArgs, FrontendArgs) for field in dataclasses.fields(kind)}
for path in sys.argv[1:]:
    whole = yaml.safe_load(open(path))
    ServeDeploySchema.model_validate(whole)
    for config in whole["applications"][0]["args"]["llm_configs"]:
        LLMConfig.model_validate(config)
        print(path, sorted(set(config["engine_kwargs"]) - known))
        try:
            LLMConfig.model_validate({**config, "imagine": 1})
        except ValueError:
            continue
        sys.exit("an unknown key was taken")
"""


def test_ray_s_own_models_take_the_configuration(tmp_path: Path) -> None:
    python = os.environ.get("QPACK_TEST_RAY")
    if python is None:
        pytest.skip("Ray is not here (QPACK_TEST_RAY, a Python with Ray Serve and vLLM: see CONTRIBUTING.md)")
    paths = [written(tmp_path / profile, "ray", profile) / "serve.yaml" for profile in PROFILES]
    said = run(python, "-c", RAY, *paths, cwd=tmp_path)
    assert [line for line in said.splitlines() if line.startswith(str(tmp_path))] == [f"{path} []" for path in paths]


# Alerts: when they come, and when they don't.

JOB = '{job="small-gptq"}'


def case(name: str, series: dict[str, str], at: str, alerts: dict[str, int]) -> dict[str, Any]:
    """A test of promtool: `series` in its notation, one sample a minute, and how often each alert fires at a time."""
    labels = {
        rule["alert"]: rule["labels"]
        for group in prometheus.rules(export("two-gpus"))["groups"] + prometheus.rules(export())["groups"]
        for rule in group["rules"]
        if "alert" in rule
    }
    assert set(alerts) <= set(labels)
    return {
        "name": name,
        "interval": "1m",
        "input_series": [{"series": series_, "values": values} for series_, values in series.items()],
        "promql_expr_test": [
            {
                "expr": f'count(ALERTS{{alertname="{alert}", alertstate="firing"}}) or vector(0)',
                "eval_time": at,
                "exp_samples": [{"labels": "{}", "value": count}],
            }
            for alert, count in alerts.items()
        ],
    }


def latency(slow: int, fast: int) -> dict[str, str]:
    """Observations a minute above and below the threshold of the first objective."""
    goal = export().manifest.objectives[0]
    metric = f"vllm:{goal.indicator}"
    return {
        f'{metric}_bucket{{job="small-gptq", le="{goal.threshold_seconds}"}}': f"0+{fast}x200",
        f'{metric}_bucket{{job="small-gptq", le="+Inf"}}': f"0+{fast + slow}x200",
        f"{metric}_count{JOB}": f"0+{fast + slow}x200",
    }


HTTP = "http_requests_total"
CASES = [
    case("all is well", {
        **latency(0, 100),
        f"up{JOB}": "1x200",
        f"vllm:num_requests_waiting{JOB}": "0 5 0 7 0 3 0 9 0 0x190",
        f"vllm:kv_cache_usage_perc{JOB}": "0.5x200",
        f"vllm:num_preemptions_total{JOB}": "3x200",
        f'{HTTP}{{job="small-gptq", status="2xx"}}': "0+100x200",
        f'{HTTP}{{job="small-gptq", status="5xx"}}': "0+0x200",
    }, "2h", dict.fromkeys(("VllmDown", "VllmErrors", "VllmQueueNeverEmpty", "VllmKvCachePressure", "VllmPreemptions",
                            "VllmTimeToFirstTokenBudgetBurn"), 0)),
    case("a fifth is slow: the month's budget would be gone in hours",
         latency(20, 80), "90m", {"VllmTimeToFirstTokenBudgetBurn": 3}),
    case("one in fifty is slow: a ticket, nobody is woken",
         latency(2, 98), "90m", {"VllmTimeToFirstTokenBudgetBurn": 1}),
    case("no requests: no promise is broken", latency(0, 0), "90m", {"VllmTimeToFirstTokenBudgetBurn": 0}),
    case("the queue builds up", {f"vllm:num_requests_waiting{JOB}": "0x5 1+2x60"}, "30m", {"VllmQueueNeverEmpty": 1}),
    case("a burst that is worked off", {f"vllm:num_requests_waiting{JOB}": "0 40 30 20 10 5 0x60"}, "12m",
         {"VllmQueueNeverEmpty": 0}),
    case("the cache is full", {f"vllm:kv_cache_usage_perc{JOB}": "0.99x60"}, "30m", {"VllmKvCachePressure": 1}),
    case("requests are preempted", {f"vllm:num_preemptions_total{JOB}": "0+2x60"}, "30m", {"VllmPreemptions": 1}),
    case("one in twenty fails", {
        f'{HTTP}{{job="small-gptq", status="2xx"}}': "0+95x60",
        f'{HTTP}{{job="small-gptq", status="5xx"}}': "0+5x60",
    }, "30m", {"VllmErrors": 1}),
    case("the server is gone", {f"up{JOB}": "1x5 0x60"}, "30m", {"VllmDown": 1}),
]  # fmt: skip


def test_alerts_come_when_they_should_and_not_otherwise(tmp_path: Path) -> None:
    promtool = tool("promtool", "prometheus")
    written(tmp_path, "prometheus", "measured")
    tests = {"rule_files": ["rules.yml"], "evaluation_interval": "1m", "tests": CASES}
    (tmp_path / "tests.yml").write_text(yaml.safe_dump(tests, sort_keys=False))
    assert "SUCCESS" in run(promtool, "test", "rules", "tests.yml", cwd=tmp_path)


@pytest.mark.parametrize(("accepted", "fires"), [("0+60x1440 86400+10x120", 1), ("0+60x1600", 0)])
def test_acceptance_that_falls_below_the_days_is_told(accepted: str, fires: int, tmp_path: Path) -> None:
    promtool = tool("promtool", "prometheus")
    written(tmp_path, "prometheus", "two-gpus")
    series = {
        f"vllm:spec_decode_num_draft_tokens_total{JOB}": "0+100x1600",
        f"vllm:spec_decode_num_accepted_tokens_total{JOB}": accepted,
    }
    tests = {
        "rule_files": ["rules.yml"],
        "evaluation_interval": "1m",
        "tests": [case("acceptance", series, "1550m", {"VllmAcceptanceFallen": fires})],
    }
    (tmp_path / "tests.yml").write_text(yaml.safe_dump(tests, sort_keys=False))
    assert "SUCCESS" in run(promtool, "test", "rules", "tests.yml", cwd=tmp_path)
