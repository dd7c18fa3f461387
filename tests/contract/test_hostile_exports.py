"""Hostile texts in every format: its reader gets the same values back, or the export is refused."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from qpack.core.errors import RegistryError
from registry.serving.exporters import quoting
from registry.serving.exporters.export import Export, container_environment, flags_without, model_path, secrets, serve
from registry.serving.exporters.formats import FORMATS
from registry.serving.exporters.kserve import _OF_KSERVE
from registry.serving.serving_manifest import SAFE_PATH, Profile, ServingManifest, image_of, select
from registry.serving.serving_manifest import settings as flags_of
from tests.contract import export_readers as readers
from tests.unit.export_examples import export, manifest
from tests.unit.hostile_manifests import HOSTILE, UNSEEN, documents

COUNT = int(os.environ.get("QPACK_TEST_HOSTILE_EXPORTS", "8"))
"""Hostile manifests of each kind that go into every format."""

texts = st.sampled_from(HOSTILE) | st.sampled_from(UNSEEN) | st.text(max_size=20)


@st.composite
def unchecked(draw: st.DrawFn) -> Export:
    """An export of a manifest that nothing has read: any text stands in any field."""
    made = manifest()
    goals = tuple(
        goal.model_copy(
            update={"benchmark": goal.benchmark.model_copy(update={"server": draw(texts), "hardware": draw(texts)})}
        )
        for goal in made.objectives
    )
    arguments: dict[str, Any] = {
        "load-format": draw(texts),
        "hf-overrides": draw(st.dictionaries(texts, texts, max_size=2)),
        "logits-processors": draw(st.lists(texts, min_size=1, max_size=2)),
        "middleware": draw(st.lists(texts, min_size=1, max_size=2)),
    }
    kept = draw(st.sets(st.sampled_from(sorted(arguments))))
    update = {
        "model": made.model.model_copy(update={"name": draw(texts), "served_model_name": draw(texts)}),
        "engine": made.engine.model_copy(update={"image": draw(st.none() | texts)}),
        "probes": made.probes.model_copy(update={"health": draw(texts)}),
        "arguments": {flag: value for flag, value in arguments.items() if flag in kept},
        "environment": {"NCCL_DEBUG": draw(texts), "VLLM_PP_LAYER_PARTITION": draw(texts)},
        "objectives": goals,
    }
    # Now and then one hostile field alone, so that no other one refuses the export for it.
    one = draw(st.none() | st.sampled_from(sorted(update)))
    chosen = update if one is None else {one: update[one]}
    profile = draw(st.just("measured") | texts)
    whole = made.model_copy(update={**chosen, "profiles": {profile: Profile()}})
    return Export(select(whole, profile), "small-gptq:3", export().digest, profile, repository="registry.example.com/m")


@st.composite
def checked(draw: st.DrawFn) -> Export:
    """An export of a manifest that was read."""
    document = draw(documents())
    document["environment"] = {"NCCL_DEBUG": draw(texts)}
    document["objectives"] = json.loads(manifest().to_json())["objectives"]
    read = ServingManifest.from_json(json.dumps(document))
    return replace(export(), manifest=select(read, None))


def collected(strategy: st.SearchStrategy[Export], count: int = COUNT) -> list[Export]:
    """Exports of hostile manifests that can be made at all."""
    found: list[Export] = []

    @settings(max_examples=count, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    @given(st.data())
    def collect(data: st.DataObject) -> None:
        try:
            found.append(data.draw(strategy))
        except RegistryError:
            return

    collect()
    return found


@pytest.fixture(scope="module")
def hostile() -> list[Export]:
    """A few of every kind, each text of HOSTILE alone in a field of each format among them."""
    alone = []
    for text in (*HOSTILE, *UNSEEN):
        made = export().manifest
        goals = tuple(
            goal.model_copy(update={"benchmark": goal.benchmark.model_copy(update={"hardware": text})})
            for goal in made.objectives
        )
        more = {"arguments": {"load-format": text, "hf-overrides": {text: [text]}}, "objectives": goals}
        try:
            for update in ({"environment": {"NCCL_DEBUG": text}, **more}, {"engine": image_named(made, text)}):
                alone.append(replace(export(), manifest=made.model_copy(update=update)))
        except RegistryError:
            assert text == "\x00"
    return [*alone, *collected(unchecked()), *collected(checked())]


def image_named(made: ServingManifest, text: str) -> Any:
    return made.engine.model_copy(update={"image": text or None})


def read_all(text: str) -> list[Any]:
    """YAML as libyaml reads it, which Go's reader was made from; it is not what wrote it."""
    return list(yaml.load_all(text, yaml.CSafeLoader))


def read_yaml(text: str) -> Any:
    (document,) = read_all(text)
    return document


def files_of(form: str, exports: list[Export]) -> list[tuple[Export, Any]]:
    """What could be written; what couldn't says which field it is for."""
    found, told = [], Counter[bool]()
    for asked in exports:
        try:
            found.append((asked, FORMATS[form].files(asked)))
        except RegistryError as error:
            told[bool(error.problems) and error.problems[0].where.file == "serving.json"] += 1
    assert set(told) <= {True}
    assert len(found) > len(exports) / 4, told
    return found


def test_a_shell_reads_the_docker_script(hostile: list[Export], tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    for number, (asked, files) in enumerate(files_of("docker", hostile)):
        script = tmp_path / f"{number}.sh"
        script.write_bytes(files["docker-run.sh"].encode())
        words = readers.shell_words(script, tmp_path, "m")
        wanted = [image_of(asked.manifest), *serve(asked, model_path(asked))[1:]]
        assert words[-len(wanted) :] == wanted
        options = words[: -len(wanted)]
        assert options[0] == "run"
        given = [options[at + 1] for at, word in enumerate(options) if word == "--env"]
        wanted_env = [f"{name}={value}" for name, value in sorted(container_environment(asked).items())]
        assert given == [*wanted_env, *secrets(asked)]
        assert options.count("--user") == options.count("--read-only") == 1
        assert "--privileged" not in options
        assert len(options) == 22 + 2 * (len(given) + (asked.manifest.devices > 0))
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix != ".sh") == ["bin", "m"]


def test_systemd_reads_the_unit(hostile: list[Export], tmp_path: Path) -> None:
    library = readers.systemd_library()
    analyze = shutil.which("systemd-analyze")
    written = []
    for number, (asked, files) in enumerate(files_of("systemd", hostile)):
        ((_, unit),) = files.items()
        found = readers.systemd_settings(unit)
        (start,) = found["ExecStart"]
        words = [readers.undoubled(word, "$") for word in readers.systemd_words(library, start)]
        name = model_path(asked).removeprefix("/models/")
        wanted = serve(asked, f"/var/lib/qpack/{name}/model", host="127.0.0.1")
        assert words == ["/opt/vllm/bin/vllm", *wanted[1:]]
        given = [readers.systemd_words(library, value) for value in found["Environment"]]
        assert {f"{key}={value}" for key, value in asked.manifest.environment.items()} <= {word for (word,) in given}
        assert not {"ExecStartPre", "ExecStartPost", "ExecStopPost", "User"} & set(found)
        assert (
            len(found["Environment"]) == len({*asked.manifest.environment, "HF_HUB_OFFLINE", "VLLM_NO_USAGE_STATS"}) + 2
        )
        path = tmp_path / f"u{number}.service"
        path.write_bytes(unit.replace("/opt/vllm/bin/vllm", sys.executable).encode())
        written.append(path)
    if analyze is None:
        pytest.skip("systemd-analyze is not here (Debian package systemd)")
    command = [analyze, "verify", "--man=no", *map(str, written)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    # It looks for the documentation of other units too; of ours it has nothing to say.
    assert [line for line in (done.stdout + done.stderr).splitlines() if str(tmp_path) in line] == []


def test_compose_reads_the_file(hostile: list[Export]) -> None:
    podman_compose = pytest.importorskip("podman_compose", reason="podman-compose is not here (dev group)")
    outside = {"MODEL": "/m", "GRAFANA_ADMIN_PASSWORD_FILE": "/p", "HOME": "WRONG", "name": "WRONG"}

    def interpolated(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: interpolated(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [interpolated(inner) for inner in value]
        # Its reader takes a millisecond for every text; one without a dollar is as it is.
        return podman_compose.rec_subs(value, outside) if isinstance(value, str) and "$" in value else value

    plain = read_yaml(FORMATS["compose"].files(export())["compose.yaml"])
    own = plain["services"]["vllm"]["healthcheck"]["test"][:-1]
    for asked, files in files_of("compose", hostile):
        server = interpolated(read_yaml(files["compose.yaml"])["services"]["vllm"])
        assert server["image"] == image_of(asked.manifest)
        assert [*server["entrypoint"], *server["command"]] == [
            *("vllm", "serve"),
            *serve(asked, model_path(asked))[2:],
        ]
        wanted = [f"{name}={value}" for name, value in sorted(container_environment(asked).items())]
        assert server["environment"] == [*wanted, *secrets(asked)]
        *code, address = server["healthcheck"]["test"]
        assert address == f"http://127.0.0.1:{asked.port}{asked.manifest.probes.health}"
        assert code == own


def expanded(container: dict[str, Any]) -> tuple[list[str], dict[str, str]]:
    """Arguments and variables of a container as kubelet sets them."""
    variables: dict[str, str] = {}
    for entry in container["env"]:
        if "value" in entry:
            variables[entry["name"]] = readers.kubelet(entry["value"], variables)
    return [readers.kubelet(word, variables) for word in container.get("args", ())], variables


def test_kubelet_reads_the_pod(hostile: list[Export]) -> None:
    for asked, files in files_of("kubernetes", hostile):
        (deployment,) = (d for d in read_all(files["kubernetes.yaml"]) if d["kind"] == "Deployment")
        (container,) = deployment["spec"]["template"]["spec"]["containers"]
        words, variables = expanded(container)
        assert words == serve(asked, model_path(asked))[2:]
        assert variables == container_environment(asked)
        assert container["image"] == image_of(asked.manifest)
        assert container["livenessProbe"]["httpGet"]["path"] == asked.manifest.probes.health
        for document in read_all(files["monitoring.yaml"]):
            assert document["metadata"]["annotations"]["org.qpack.release"] == asked.reference


def test_kserves_shell_reads_the_service(hostile: list[Export]) -> None:
    for asked, files in files_of("kserve", hostile):
        service = readers.go_templated(read_yaml(files["kserve.yaml"]))
        (container,) = service["spec"]["template"]["containers"]
        _, variables = expanded(container)
        assert readers.evaluated(variables.pop("VLLM_ADDITIONAL_ARGS")) == flags_without(asked, *_OF_KSERVE)
        assert variables == container_environment(asked)
        assert service["spec"]["model"]["name"] == asked.manifest.model.served_model_name


def test_vllms_file_and_variables_are_read_back(hostile: list[Export], tmp_path: Path) -> None:
    for asked, files in files_of("vllm", hostile):
        flags = read_yaml(files["vllm.yaml"])
        assert flags == flags_of(asked.manifest, "model", host="127.0.0.1", port=asked.port)
        # vLLM makes words of a command line of it.
        for value in flags.values():
            for word in value if isinstance(value, list) else [value]:
                assert isinstance(word, dict | int) or not str(word).startswith("-")
        (tmp_path / "vllm.env").write_bytes(files["vllm.env"].encode())
        seen = readers.sourced(tmp_path / "vllm.env")
        wanted = {**asked.manifest.environment, SAFE_PATH: "1"}
        assert {name: seen.get(name) for name in wanted} == wanted
        assert set(seen) - set(wanted) <= {"PATH", "PWD", "SHLVL", "_", "OLDPWD"}


def test_ray_and_grafana_get_the_same_values(hostile: list[Export]) -> None:
    for asked, files in files_of("ray", hostile):
        (config,) = read_yaml(files["serve.yaml"])["applications"][0]["args"]["llm_configs"]
        assert config["model_loading_config"]["model_id"] == asked.manifest.model.served_model_name
        variables = config["runtime_env"]["env_vars"]
        assert variables.items() >= asked.manifest.environment.items()
        expand = os.path.expandvars
        assert {name: expand(value) for name, value in variables.items()} == variables, "what Ray does with them"
        flags = flags_of(asked.manifest, "model", host="", port=0)
        assert {
            flag.replace("_", "-"): value for flag, value in config["engine_kwargs"].items()
        }.items() <= flags.items()
    for asked, files in files_of("grafana", hostile):
        board = json.loads(files["dashboard.json"])
        assert board["title"] == f"vLLM: {asked.manifest.model.name}"
        assert "$" not in board["title"] + board["description"]
        assert "[[" not in board["title"] + board["description"]


def promtool() -> str:
    found = shutil.which("promtool")
    if found is None:
        pytest.skip("promtool is not here (Debian package prometheus)")
    return found


def descriptions(files: dict[str, str]) -> list[str]:
    rules = [rule for group in read_yaml(files["rules.yml"])["groups"] for rule in group["rules"]]
    return [rule["annotations"]["description"] for rule in rules if "BudgetBurn" in rule.get("alert", "")]


def test_prometheus_says_what_the_benchmark_says(hostile: list[Export], tmp_path: Path) -> None:
    templates, wanted = [], []
    for asked, files in files_of("prometheus", hostile):
        for goal, said in zip(asked.manifest.objectives, descriptions(files)[::3], strict=True):
            templates.append(said)
            where = f"{goal.benchmark.server} on {goal.benchmark.hardware}"
            assert said.endswith(f" out, {quoting.go_template(where)}).")
            wanted.append(said.removesuffix(f"{quoting.go_template(where)}).") + f"{where}).")
    assert len(wanted) > COUNT
    assert "SUCCESS" in readers.alerts_that_say(templates, wanted, tmp_path, promtool())


@pytest.mark.parametrize("text", [*HOSTILE, *(mark for mark in UNSEEN if mark != "\x00")])
def test_gos_templates_say_a_quoted_text_as_it_is(text: str) -> None:
    assert readers.go_templated(quoting.go_template(f"a{text}b")) == f"a{text}b"


def test_gos_own_engine_says_quoted_texts_as_they_are(tmp_path: Path) -> None:
    plain = [f"{text}{more}" for text in HOSTILE for more in ("", "{", "{{ .x }}", "`}}")]
    quoted = [quoting.go_template(text) for text in plain]
    assert "SUCCESS" in readers.alerts_that_say(quoted, plain, tmp_path, promtool())
    assert "SUCCESS" not in readers.alerts_that_say(["{{ 1 }}"], ["{{ 1 }}"], tmp_path, promtool())


@pytest.mark.parametrize(
    ("text", "expected"),
    # Cases of third_party/forked/golang/expansion/expand_test.go.
    [
        ("$(VAR_A)", "A"), ("___$(VAR_B)___", "___B___"), ("$(VAR_A)-$(VAR_B)", "A-B"), ("$$(VAR_A)", "$(VAR_A)"),
        ("$$$(VAR_A)", "$A"), ("$$$$(VAR_A)", "$$(VAR_A)"), ("$VAR_A", "$VAR_A"), ("$", "$"),
        ("f000-$$VAR_A", "f000-$VAR_A"),
        ("$(VAR_A", "$(VAR_A"), ("$()", "$()"), ("$(VAR_X)", "$(VAR_X)"), ("foo$(", "foo$("), ("foo$", "foo$"),
    ],
)  # fmt: skip
def test_the_expansion_is_that_of_kubelet(text: str, expected: str) -> None:
    assert readers.kubelet(text, {"VAR_A": "A", "VAR_B": "B"}) == expected


def test_what_no_format_can_hold_is_refused() -> None:
    made = export().manifest
    for update in (
        {"environment": {"A\nB": "x"}},
        {"environment": {"A": "\x00"}},
        {"environment": {"A": "\ud800"}},
        {"arguments": {"seed\n": 1}},
        {"arguments": {"--seed": 1}},
    ):
        with pytest.raises(RegistryError):
            replace(export(), manifest=made.model_copy(update=update))


WRITES: dict[str, Callable[[], Any]] = {
    "ray": lambda: {"environment": {"A": "${HOME}"}},
    "kserve": lambda: {"model": export().manifest.model.model_copy(update={"served_model_name": '$(id)"'})},
    "docker": lambda: {"engine": export().manifest.engine.model_copy(update={"image": "--privileged"})},
    "grafana": lambda: {"model": export().manifest.model.model_copy(update={"name": "$source"})},
    "systemd": lambda: {"environment": {"A": "\x1b"}},
    "vllm": lambda: {"arguments": {"load-format": "--trust-remote-code"}},
}


@pytest.mark.parametrize("form", WRITES)
def test_a_format_that_can_not_hold_a_text_says_which(form: str) -> None:
    asked = replace(export(), manifest=export().manifest.model_copy(update=WRITES[form]()))
    with pytest.raises(RegistryError) as caught:
        FORMATS[form].files(asked)
    assert caught.value.exit_code == 8
    where = caught.value.problems[0].where
    assert (caught.value.problems[0].code.name, where.file) == ("unwritable", "serving.json")
