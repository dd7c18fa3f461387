"""Exports against reviewed files, and against the schemas of who reads them."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import re
from importlib import resources
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from qpack.core.errors import RecipeError
from qpack.core.records import Hardware
from qpack.pipeline.plan import request_of
from qpack.pipeline.planned_serving import serving as serving_of
from qpack.recipe import recipe_file
from qpack.serve import served_release
from registry.serving import metrics
from registry.serving.exporters import compose, grafana, kubernetes, prometheus
from registry.serving.exporters.export import Export, name_of
from registry.serving.exporters.formats import FORMATS
from registry.serving.serving_manifest import image_of, select, settings
from tests.unit import registry_examples
from tests.unit.export_examples import MEASURED, export, export_to, fitted, manifest

ROOT = Path(__file__).parents[2]
GOLDEN = Path(__file__).parent / "snapshots" / "exports"
PROFILES = ("measured", "two-gpus")
KUBERNETES = "1.37"


def documents(text: str) -> list[Any]:
    return list(yaml.safe_load_all(text))


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("name", FORMATS)
def test_exports_are_those_that_were_reviewed(name: str, profile: str) -> None:
    folder = GOLDEN / profile / name
    files = FORMATS[name].files(export_to(name, profile))
    if os.environ.get("UPDATE_SNAPSHOTS"):
        for file, text in files.items():
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).write_text(text)
    there = {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}
    assert dict(files) == there


@pytest.mark.parametrize("name", FORMATS)
def test_every_file_is_whole_and_names_its_release(name: str) -> None:
    texts = FORMATS[name].files(export_to(name))
    assert any("small-gptq:3" in text and "sha256:abab" in text for text in texts.values())
    for file, text in texts.items():
        assert text.endswith("\n"), file
        if file.endswith((".yaml", ".yml")):
            assert documents(text)
        elif file.endswith(".json"):
            json.loads(text)


@pytest.mark.parametrize("profile", PROFILES)
def test_the_compose_file_is_one_by_the_specification(profile: str) -> None:
    text = resources.files("check_jsonschema").joinpath("builtin_schemas/vendor/compose-spec.json").read_text("utf-8")
    whole = yaml.safe_load(compose.files(export(profile))["compose.yaml"])
    jsonschema.validate(whole, json.loads(text))
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**whole, "services": {"vllm": {"imagine": 1}}}, json.loads(text))


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("mount", ["pull", "image"])
def test_the_kubernetes_objects_are_ones_by_the_api_schemas(profile: str, mount: str) -> None:
    files = kubernetes.files(export(profile, mount=mount))
    found = [document for text in files.values() for document in documents(text)]
    core = [document for document in found if not document["apiVersion"].startswith("monitoring.")]
    assert {document["kind"] for document in core} == {"ServiceAccount", "Deployment", "Service", "ConfigMap"}
    for document in core:
        kubernetes_validate.validate(document, KUBERNETES, strict=True)
    broken = json.loads(json.dumps(core[1]))
    broken["spec"]["template"]["spec"]["containers"][0]["imagine"] = 1
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, KUBERNETES, strict=True)


@pytest.mark.parametrize("mount", ["pull", "image"])
def test_a_pod_gets_the_model_by_digest(mount: str) -> None:
    assert (
        "registry.example.com/models/small-gptq@sha256:abab" in kubernetes.files(export(mount=mount))["kubernetes.yaml"]
    )


@pytest.mark.parametrize("profile", PROFILES)
def test_kserve_runs_the_pod_that_kubernetes_would_take(profile: str) -> None:
    service = yaml.safe_load(FORMATS["kserve"].files(export(profile))["kserve.yaml"])
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": service["spec"]["template"]}
    kubernetes_validate.validate(pod, KUBERNETES, strict=True)
    arguments = {v["name"]: v.get("value") for v in pod["spec"]["containers"][0]["env"]}["VLLM_ADDITIONAL_ARGS"]
    assert "--max-model-len=2048" in arguments
    assert "--port" not in arguments


def spec_of(profile: str, **more: Any) -> dict[str, Any]:
    text = kubernetes.files(export(profile, **more))["kubernetes.yaml"]
    (deployment,) = (d for d in documents(text) if d["kind"] == "Deployment")
    return dict(deployment["spec"]["template"]["spec"])


def test_a_private_registry_is_pulled_from_with_a_secret_that_may_be_missing() -> None:
    spec = spec_of("measured")
    (pull,) = spec["initContainers"]
    (volume,) = (v for v in spec["volumes"] if "secret" in v)
    (mount,) = (m for m in pull["volumeMounts"] if m["name"] == volume["name"])
    assert {e["name"]: e["value"] for e in pull["env"]}["DOCKER_CONFIG"] == mount["mountPath"]
    assert volume["secret"]["items"] == [{"key": ".dockerconfigjson", "path": "config.json"}]
    assert volume["secret"]["optional"] is True
    (kubelets,) = spec_of("measured", mount="image")["imagePullSecrets"]
    assert kubelets["name"] == volume["secret"]["secretName"]
    assert f"docker-registry {kubelets['name']} " in kubernetes.files(export())["kubernetes.yaml"]


def test_a_pod_asks_for_what_was_measured_and_is_limited_above_it() -> None:
    spec = spec_of("measured")
    for container in (*spec["initContainers"], *spec["containers"]):
        assert container["resources"]["requests"]["cpu"] == "2"
        asked, most = (int(container["resources"][k]["memory"].removesuffix("Mi")) for k in ("requests", "limits"))
        assert asked * 2**20 >= MEASURED.resident_bytes
        assert most >= 1.2 * asked
    assert spec["initContainers"][0]["resources"]["requests"]["ephemeral-storage"] == "128Mi"


def test_a_profile_on_gpus_asks_for_a_core_per_gpu_and_two_more() -> None:
    (server,) = spec_of("two-gpus")["containers"]
    assert server["resources"]["requests"] == {"cpu": "4", "nvidia.com/gpu": "2"}
    assert server["resources"]["limits"] == {"nvidia.com/gpu": "2"}
    assert "was not measured" in kubernetes.files(export("two-gpus"))["kubernetes.yaml"]


def takes(spec: dict[str, Any], labels: dict[str, str]) -> bool:
    """Whether the scheduler takes a node with these labels, by the API's rules for selectors and affinity."""
    if any(labels.get(key) != value for key, value in spec.get("nodeSelector", {}).items()):
        return False
    wanted = spec.get("affinity", {}).get("nodeAffinity", {}).get("requiredDuringSchedulingIgnoredDuringExecution")
    holds = {"In": lambda have, values: have in values, "Gt": lambda have, values: int(have) > int(values[0])}
    return wanted is None or any(
        all(
            each["key"] in labels and holds[each["operator"]](labels[each["key"]], each["values"])
            for each in term["matchExpressions"]
        )
        for term in wanted["nodeSelectorTerms"]
    )


@pytest.mark.parametrize(
    ("target", "capability", "taken"),
    [
        *(("ampere", "8.0", True), ("ampere", "7.5", False), ("ampere", "9.0", True)),
        *(("ada", "8.6", False), ("ada", "8.9", True), ("ada", "9.0", True), ("ada", "10.0", True)),
        *(("hopper", "8.9", False), ("hopper", "9.0", True), ("blackwell", "9.0", False), ("blackwell", "12.0", True)),
    ],
)
def test_a_pod_goes_to_gpus_of_the_target_or_newer(target: str, capability: str, taken: bool) -> None:
    major, minor = capability.split(".")
    labels = {"nvidia.com/gpu.compute.major": major, "nvidia.com/gpu.compute.minor": minor}
    served = export("two-gpus").manifest.model_copy(update={"target": target})
    assert takes(spec_of("two-gpus", manifest=served), labels) is taken
    assert not takes(spec_of("two-gpus", manifest=served), {})
    (other,) = documents(FORMATS["kserve"].files(export("two-gpus", manifest=served))["kserve.yaml"])
    assert takes(other["spec"]["template"], labels) is taken


def test_a_pod_with_kernels_of_avx512_goes_to_no_other_cpu() -> None:
    x86, avx512 = {"kubernetes.io/arch": "amd64"}, {"feature.node.kubernetes.io/cpu-cpuid.AVX512F": "true"}
    assert takes(spec_of("measured"), x86 | avx512)
    assert not takes(spec_of("measured"), x86)
    any_x86 = dataclasses.replace(MEASURED, avx512=False)
    assert takes(spec_of("measured", host=any_x86), x86)
    assert not takes(spec_of("measured", host=any_x86), {"kubernetes.io/arch": "arm64"})


def test_a_kubelet_mounts_the_models_folder_of_the_release_s_image() -> None:
    spec = spec_of("measured", mount="image", image="sha256:" + "c" * 64)
    (volume,) = (v for v in spec["volumes"] if v["name"] == "model")
    assert volume["image"]["reference"] == "registry.example.com/models/small-gptq@sha256:" + "c" * 64
    (server,) = spec["containers"]
    assert next(m for m in server["volumeMounts"] if m["name"] == "model")["subPath"] == "models"
    assert "initContainers" not in spec


@pytest.mark.parametrize(
    ("more", "uri"),
    [
        ({}, "pvc://small-gptq/abababababab/model"),
        ({"hub": "example/small@" + "1" * 40}, "hf://example/small:" + "1" * 40),
        ({"image": "sha256:" + "c" * 64, "hub": "example/small"},
         "oci+native://registry.example.com/models/small-gptq@sha256:" + "c" * 64),
    ],
)  # fmt: skip
def test_kserve_gets_the_model_from_where_it_is(more: dict[str, Any], uri: str) -> None:
    (service,) = documents(FORMATS["kserve"].files(export(**more))["kserve.yaml"])
    assert service["spec"]["model"]["uri"] == uri


def test_the_nodes_of_a_leaderworkerset_are_one_server_and_the_leader_alone_answers() -> None:
    four = export("two-gpus").manifest.model_copy(update={"arguments": {"tensor-parallel-size": 4}})
    made = dataclasses.replace(export("two-gpus"), manifest=four, nodes=2)
    _, group, service = documents(FORMATS["leaderworkerset"].files(made)["leaderworkerset.yaml"])
    template = group["spec"]["leaderWorkerTemplate"]
    leader, worker = (template[name]["spec"]["containers"][0] for name in ("leaderTemplate", "workerTemplate"))
    assert template["size"] == 2
    for container in (leader, worker):
        assert container["resources"]["limits"]["nvidia.com/gpu"] == "2"
        assert {"--nnodes=2", "--master-addr=$(LWS_LEADER_ADDRESS)"} <= set(container["args"])
    assert "--node-rank=0" in leader["args"]
    assert {"--node-rank=$(LWS_WORKER_INDEX)", "--headless"} <= set(worker["args"])
    assert "startupProbe" in leader
    assert "startupProbe" not in worker
    chosen = service["spec"]["selector"].items()
    assert chosen <= template["leaderTemplate"]["metadata"]["labels"].items()
    assert not chosen <= template["workerTemplate"]["metadata"]["labels"].items()


@pytest.mark.parametrize(("nodes", "gpus"), [(1, 2), (3, 2), (2, 1)])
def test_gpus_that_nodes_can_t_share_are_an_error(nodes: int, gpus: int) -> None:
    served = export("two-gpus").manifest.model_copy(update={"arguments": {"tensor-parallel-size": gpus}})
    with pytest.raises(RecipeError) as raised:
        FORMATS["leaderworkerset"].files(dataclasses.replace(export(), manifest=served, nodes=nodes))
    assert [(p.code.name, p.where.option) for p in raised.value.problems] == [("invalid-option", "--nodes")]


def test_a_server_on_the_cpu_is_not_spread_over_nodes() -> None:
    with pytest.raises(RecipeError) as raised:
        FORMATS["leaderworkerset"].files(export(nodes=2))
    assert [p.where.option for p in raised.value.problems] == ["--nodes"]


@pytest.mark.parametrize(
    ("repository", "taken"),
    [
        ("registry.example.com/models/small", True),
        ("localhost:5000/a", True),
        ("[::1]:5000/a/b_c", True),
        ("Registry.Example.com/UPPER", False),
        ("registry.example.com/models/small:latest", False),
        (f"registry.example.com/models/small@sha256:{'a' * 64}", False),
        ("https://registry.example.com/models/small", False),
        ("oci://registry.example.com/small", False),
        ("registry.example.com", False),
        ("registry.example.com/a b", False),
        ("", False),
    ],
)
def test_a_repository_that_is_none_is_refused_before_anything_is_written(repository: str, taken: bool) -> None:
    if taken:
        assert f"{repository}@sha256:" in FORMATS["kubernetes"].files(export(repository=repository))["kubernetes.yaml"]
        return
    with pytest.raises(RecipeError) as raised:
        export(repository=repository)
    assert [p.where.option for p in raised.value.problems] == ["--repository"]


@pytest.mark.parametrize(
    "name", ["docker", "dockerfile", "compose", "kubernetes", "kserve", "llm-d", "production-stack"]
)
def test_every_image_has_its_digest_where_digests_are_known(name: str) -> None:
    images = (image_of(export().manifest), *FORMATS[name].IMAGES)
    pins = {image: f"{image}@sha256:{'d' * 64}" for image in images}
    joined = "".join(FORMATS[name].files(export(pins=pins)).values())
    for image in images:
        tag = image.rpartition(":")[2]
        assert f"{tag}@sha256:{'d' * 64}" in joined, image
        assert not re.search(rf"{re.escape(tag)}(?!@sha256)\b[^.@]", joined), image


@pytest.mark.parametrize(("default", "given"), [(True, None), (True, True), (False, False)])
def test_the_production_stack_keeps_prefix_caching_as_it_was_measured(default: bool, given: bool | None) -> None:
    """The chart adds --no-enable-prefix-caching where its value is missing."""
    arguments = {} if given is None else {"enable-prefix-caching": given}
    served = export().manifest.model_copy(update={"arguments": arguments})
    (values,) = documents(FORMATS["production-stack"].files(export(manifest=served))["values.yaml"])
    assert values["servingEngineSpec"]["modelSpec"][0]["vllmConfig"]["enablePrefixCaching"] is default


@pytest.mark.parametrize("name", ["llm-d", "production-stack", "skypilot"])
def test_a_server_that_fetches_its_model_from_the_hub_is_allowed_to(name: str) -> None:
    bare = export().manifest.model_copy(update={"environment": {}})
    for hub, offline in ((None, True), ("example/small", False)):
        text = "".join(FORMATS[name].files(export(manifest=bare, hub=hub)).values())
        assert ("HF_HUB_OFFLINE" in text) is offline
        assert ("HF_TOKEN" in text) is not offline


@pytest.mark.parametrize("name", ["production-stack", "skypilot"])
def test_a_format_with_no_source_of_the_model_says_what_to_pass(name: str) -> None:
    with pytest.raises(RecipeError) as raised:
        FORMATS[name].files(export(repository=None))
    assert [problem.where.option for problem in raised.value.problems] == ["--repository"]


def containers() -> list[tuple[str, dict[str, Any]]]:
    found = []
    for profile in PROFILES:
        spec = kubernetes.pod(export(profile))
        found += [(f"{profile} {c['name']}", c) for c in (*spec["initContainers"], *spec["containers"])]
        template = yaml.safe_load(FORMATS["kserve"].files(export(profile))["kserve.yaml"])["spec"]["template"]
        found += [(f"{profile} kserve's {c['name']}", c) for c in template["containers"]]
    return found


@pytest.mark.parametrize(("name", "container"), containers(), ids=lambda value: value if isinstance(value, str) else "")
def test_no_pod_can_write_its_root_or_gain_rights(name: str, container: dict[str, Any]) -> None:
    context = container["securityContext"]
    assert context["readOnlyRootFilesystem"] is True
    assert context["allowPrivilegeEscalation"] is False
    assert context["capabilities"] == {"drop": ["ALL"]}
    assert "/tmp" in {mount["mountPath"] for mount in container["volumeMounts"]}


def test_no_container_runs_as_root() -> None:
    assert kubernetes.pod(export())["securityContext"]["runAsNonRoot"] is True
    (main,) = yaml.safe_load(FORMATS["kserve"].files(export())["kserve.yaml"])["spec"]["template"]["containers"]
    assert main["securityContext"]["runAsNonRoot"] is True
    assert "--user 2000:2000" in FORMATS["docker"].files(export())["docker-run.sh"]
    services = yaml.safe_load(compose.files(export())["compose.yaml"])["services"]
    assert services["vllm"]["user"] == "2000:2000"
    for name, service in services.items():
        assert not service["user"].startswith("0"), name
        assert (service["read_only"], service["cap_drop"]) == (True, ["ALL"]), name
        assert service["security_opt"] == ["no-new-privileges:true"], name


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("profile", PROFILES)
def test_no_export_holds_a_secret(name: str, profile: str) -> None:
    for text in FORMATS[name].files(export_to(name, profile)).values():
        for line in text.splitlines():
            assert not re.search(r"(VLLM_API_KEY|HF_TOKEN|PASSWORD)[=:] *['\"]?(?!null$)[A-Za-z0-9]", line), line


@pytest.mark.parametrize("name", ["compose", "systemd", "kubernetes"])
def test_a_dollar_in_a_value_reaches_vllm_as_it_is(name: str) -> None:
    joined = "\n".join(FORMATS[name].files(export("two-gpus")).values())
    expected = {
        "compose": "WARN $$HOME 100%",
        "systemd": '"NCCL_DEBUG=WARN $HOME 100%%"',
        "kubernetes": "WARN $$HOME 100%",
    }[name]
    assert expected in joined


@pytest.mark.parametrize("name", ["docker", "compose", "kubernetes", "kserve", "systemd", "ray"])
def test_the_hub_is_reached_only_where_a_draft_model_comes_from_it(name: str) -> None:
    for profile, offline in (("measured", True), ("two-gpus", False)):
        bare = select(manifest(), profile).model_copy(update={"environment": {}})
        text = "".join(FORMATS[name].files(export(profile, manifest=bare)).values())
        assert ("HF_HUB_OFFLINE" in text) is offline


def profiles_of(path: Path) -> list[Export]:
    """An export of every profile of a recipe."""
    vllm: Any = SimpleNamespace(record=lambda: SimpleNamespace(packages={"vllm": "0.32.0"}))
    r = recipe_file.load(path).recipe
    target = "cpu" if r.serve.target == "auto" else r.serve.target
    machine = Hardware(target=target, name="a machine", cores=2, memory_bytes=2**33)
    whole = serving_of(r, request_of(r, target, None), target, machine, vllm)
    names = (None, *whole.profiles)
    return [dataclasses.replace(export(), manifest=select(whole, name), profile=name or "measured") for name in names]


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_profile_that_ships_goes_into_every_format_with_all_its_flags(path: Path) -> None:
    for asked in profiles_of(path):
        holds_all_flags(asked)


# Flags that a chart, or the recipes' command builder, makes of fields of its own.
OF_THE_PLATFORM = {
    "kserve": {"served-model-name", "tensor-parallel-size"},
    "llm-d": {"served-model-name", "tensor-parallel-size", "data-parallel-size"},
    "production-stack": {"max-model-len", "dtype", "tensor-parallel-size"},
    "vllm-recipe": {"served-model-name", "tensor-parallel-size"},
}


def holds_all_flags(asked: Export) -> None:
    wanted = set(settings(asked.manifest, "model", host="", port=1)) - {"model", "host", "port"}
    assert {"max-model-len", "kv-cache-memory-bytes", *asked.manifest.arguments} <= wanted
    written = {form: FORMATS[form].files(fitted(form, asked)) for form in FORMATS}
    texts = {form: "".join(files.values()) for form, files in written.items()}
    for form in ("docker", "dockerfile", "compose", "kubernetes", "leaderworkerset", "skypilot", "systemd"):
        assert [flag for flag in wanted if f"--{flag}" not in texts[form]] == [], form
    assert set(yaml.safe_load(written["vllm"]["vllm.yaml"])) >= wanted
    for form, fields in OF_THE_PLATFORM.items():
        assert [flag for flag in wanted - fields if f"--{flag}" not in texts[form]] == [], form
    (application,) = yaml.safe_load(texts["ray"])["applications"]
    ray = application["args"]["llm_configs"][0]["engine_kwargs"]
    assert {flag.replace("_", "-") for flag in ray} >= wanted - {"served-model-name"}
    (deployment,) = (d for d in documents(written["kubernetes"]["kubernetes.yaml"]) if d["kind"] == "Deployment")
    kubernetes_validate.validate(deployment, KUBERNETES, strict=True)
    (server,) = deployment["spec"]["template"]["spec"]["containers"]
    assert int(server["resources"].get("limits", {}).get("nvidia.com/gpu", 0)) == asked.manifest.devices


# Watching

METRIC = re.compile(r"\b(?:vllm:[a-z0-9_]+|http_requests_total)")


@pytest.mark.parametrize("profile", PROFILES)
def test_every_query_uses_only_metrics_of_the_contract(profile: str) -> None:
    made = export(profile)
    rules = [rule for group in prometheus.rules(made)["groups"] for rule in group["rules"]]
    recorded = {rule["record"].partition(":")[2] for rule in rules if "record" in rule}
    texts = [*(rule["expr"] for rule in rules), *grafana.queries(made)]
    used = {name for text in texts for name in METRIC.findall(re.sub(r"job:\w+:\w+", "", text))}
    assert len(used) > 8
    assert used - recorded <= set(metrics.contract(made.manifest))


def test_every_series_is_that_of_this_server() -> None:
    for text in grafana.queries(export()):
        for selector in re.findall(r"(?:vllm:\w+|http_requests_total)(\{[^}]*\})?", text):
            assert 'job="small-gptq"' in selector, text


def test_an_objective_that_is_burnt_in_an_hour_wakes_somebody_and_a_slow_burn_does_not() -> None:
    alerts = [
        rule
        for group in prometheus.rules(export())["groups"]
        for rule in group["rules"]
        if rule.get("alert", "").endswith("BudgetBurn")
    ]
    assert len(alerts) == 9
    severities = {rule["labels"]["window"]: rule["labels"]["severity"] for rule in alerts}
    assert severities == {"1h": "page", "6h": "page", "3d": "ticket"}
    assert "> 0.144 and" in alerts[0]["expr"], "14.4 times a budget of 1 %"


def test_an_alert_says_a_share_of_what_its_histogram_counts() -> None:
    """`$value` is a share of observations: of requests, or of waits between two tokens; never of time."""
    rules = [rule for group in prometheus.rules(export())["groups"] for rule in group["rules"]]
    said = {rule["alert"]: rule["annotations"]["summary"] for rule in rules if "BudgetBurn" in rule.get("alert", "")}
    share = "{{ $labels.job }}: {{ $value | humanizePercentage }} of "
    assert said["VllmTimeToFirstTokenBudgetBurn"].startswith(
        f"{share}requests waited more than 2.5 s for the first token"
    )
    assert said["VllmInterTokenLatencyBudgetBurn"].startswith(f"{share}waits between two tokens took more than ")
    assert said["VllmE2eRequestLatencyBudgetBurn"].startswith(f"{share}requests took more than ")


def test_a_profile_that_nobody_measured_promises_nothing() -> None:
    names = [group["name"] for group in prometheus.rules(export("two-gpus"))["groups"]]
    assert names == ["small-gptq-server"]


@pytest.mark.parametrize(("profile", "there"), [("measured", False), ("two-gpus", True)])
def test_acceptance_is_watched_where_something_is_drafted(profile: str, there: bool) -> None:
    made = export(profile)
    assert ("VllmAcceptanceFallen" in json.dumps(prometheus.rules(made))) is there
    assert ("Speculative decoding" in json.dumps(grafana.dashboard(made))) is there


LONG = "meta-llama-3.1-8b-instruct-abliterated-with-a-long-name-gptq-w4a16"
NAMES = ("small-gptq", "team/small", "a__b.c", "a---b", "1b", f"{LONG}-g128", f"{LONG}-g64", "a" * 255, "b" * 52)


def named(name: str) -> Export:
    made = export().manifest
    return export(manifest=made.model_copy(update={"model": made.model.model_copy(update={"name": name})}))


def test_the_names_of_any_release_fit_each_platform_and_long_ones_stay_apart() -> None:
    made = [named(name) for name in NAMES]
    stacks = [yaml.safe_load(FORMATS["production-stack"].files(one)["values.yaml"]) for one in made]
    found = {
        "kubernetes": [name_of(one) for one in made],
        "grafana": [grafana.dashboard(one)["uid"] for one in made],
        "sky": [yaml.safe_load(FORMATS["skypilot"].files(one)["skypilot.yaml"])["name"] for one in made],
        "stack": [f"vllm-{one['servingEngineSpec']['modelSpec'][0]['name']}-engine-service" for one in stacks],
    }
    # Controllers append eleven characters to a pod's label; a dashboard's uid has at most 40.
    for platform, longest in {"kubernetes": 52, "grafana": 40, "sky": 52, "stack": 63}.items():
        names = found[platform]
        assert all(re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name) for name in names), names
        assert max(map(len, names)) <= longest, platform
        assert len(set(names)) == len(names), platform
    assert found["kubernetes"][0] == "small-gptq"
    assert found["kubernetes"][-1] == "b" * 52, "a name that fits stays as it is"


def test_objectives_of_one_indicator_are_recorded_and_alerted_apart() -> None:
    goal, *_ = export().manifest.objectives
    two = (goal, goal.model_copy(update={"threshold_seconds": 0.75, "target": 0.9}))
    made = export(manifest=export().manifest.model_copy(update={"objectives": two}))
    rules = [rule for group in prometheus.rules(made)["groups"] for rule in group["rules"]]
    series = [(rule["record"], *rule["labels"].items()) for rule in rules if "record" in rule]
    assert len(set(series)) == len(series) == 2 * len(prometheus.WINDOWS)
    asked = [rule["expr"] for rule in rules if "BudgetBurn" in rule.get("alert", "")]
    assert [sum(f'threshold="{limit}"' in text for text in asked) for limit in ("2.5", "0.75")] == [3, 3]
    (panel,) = (one for one in grafana.dashboard(made)["panels"] if one["title"] == "Time to first token")
    assert [step["value"] for step in panel["fieldConfig"]["defaults"]["thresholds"]["steps"]] == [None, 0.75, 2.5]


MIXTRAL = {
    "num_local_experts": 8, "num_experts_per_tok": 2, "hidden_size": 4096, "intermediate_size": 14336,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 32000,
}  # fmt: skip


@pytest.mark.parametrize(
    ("config", "parameters", "said"),
    [
        ({}, 8_030_261_248, {"architecture": "dense", "parameter_count": "8.03B", "active_parameters": "8.03B"}),
        # https://arxiv.org/abs/2401.04088: 47B parameters, of which 13B answer a token.
        (MIXTRAL, 46_702_792_704, {"architecture": "moe", "parameter_count": "46.7B", "active_parameters": "12.9B"}),
        ({"text_config": MIXTRAL, "vision_config": {}}, 46_702_792_704, {"architecture": "moe"}),
    ],
)
def test_a_vllm_recipe_says_what_answers_a_token(config: dict[str, Any], parameters: int, said: dict[str, str]) -> None:
    release = registry_examples.release()
    sized = release.model_copy(update={"source": release.source.model_copy(update={"parameters": parameters})})
    made = export(hub="example/small", facts=served_release.facts(config, sized))
    (recipe,) = (yaml.safe_load(text) for text in FORMATS["vllm-recipe"].files(made).values())
    assert {key: recipe["model"][key] for key in said} == said
    assert recipe["meta"]["tasks"] == ["multimodal" if "vision_config" in config else "text"]


@pytest.mark.parametrize(
    ("method", "scheme", "precision"),
    [
        *itertools.product(("gptq",), ("W4A16", "W8A16"), ("gptq",)),
        ("rtn", "W4A16", "int4"), ("rtn", "W4AFP8", "int4"), ("rtn", "W8A8", "int8"), ("rtn", "FP8_BLOCK", "fp8"),
        ("rtn", "MXFP8", "fp8"), ("rtn", "MXFP4A16", "mxfp4"), ("rtn", "NVFP4", "nvfp4"), ("none", "BF16", "bf16"),
    ],
)  # fmt: skip
def test_a_vllm_recipe_says_the_precision_in_its_own_words(method: str, scheme: str, precision: str) -> None:
    release = registry_examples.release()
    quantized = release.quantized.model_copy(update={"method": method, "scheme": scheme})
    assert served_release.facts({}, release.model_copy(update={"quantized": quantized})).precision == precision
