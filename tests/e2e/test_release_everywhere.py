"""The life of a release over the command line: built, sent to all three registries, pulled, checked, served, promoted,
stopped by its gate, rolled back, rebuilt. The model is tiny, everything else is real but for the Hub (a conformance
server, see tests/contract/hub_server.py). One build for the module; each test goes on where the one before it ended.
"""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from evals.server.first_questions import request
from registry.core.protocol import PushRequest
from registry.local.registry import LocalRegistry
from tests.contract import hub_server, oci_server
from tests.patience import PATIENCE
from tests.scenarios.command import Finished, Qpack
from tests.scenarios.conftest import REAL, lay_out

pytestmark = [pytest.mark.engines, pytest.mark.slow("one release in all three registries, from build to rollback")]

# GPTQ, whose calibration draws by a seed. A short load: what is served is looked at here, not how fast.
RECIPE = (
    REAL.replace("method: rtn", "method: gptq")
    .replace("samples: 4", "samples: 20")
    .replace(
        "    source: held-out.txt\n    windows: 2\n",
        "    texts:\n      - {name: prose, source: held-out.txt}\n      - {name: code, source: held_out.py}\n"
        "    windows: 12\n    continue_tokens: 4\n",
    )
    .replace("gates:\n", "  needle: {prompts: 1, answer_tokens: 16}\ngates:\n  domain_kl_divergence: 20\n")
    .replace("quantize:\n", "calibration:\n  source: texts.txt\n  samples: 6\n  max_length: 64\nquantize:\n")
    .replace(
        "gates:\n",
        "measure:\n  concurrency: [1]\n  input_tokens: 16\n  output_tokens: 8\n  repeats: 2\ngates:\n",
    )
)
POLICY = "aliases:\n  production:\n    signed_by: [release.pub]\n    hardware: [cpu]\n"


def ok(done: Finished) -> str:
    assert done.code == 0, done
    return done.out


def said(done: Finished) -> Any:
    return json.loads(ok(done))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("everywhere")


@pytest.fixture(scope="module")
def hub() -> Iterator[hub_server.Hub]:
    with hub_server.serving() as server:
        yield server


@pytest.fixture(scope="module")
def oci(folder: Path) -> Iterator[oci_server.Server]:
    (folder / "oci").mkdir()
    with oci_server.serving(folder / "oci", more=oci_server.htpasswd(folder / "oci")) as server:
        yield server


@pytest.fixture(scope="module")
def variables(hub: hub_server.Hub, oci: oci_server.Server) -> dict[str, str]:
    """Where the Hub is, and the logins of both."""
    return {
        "HF_ENDPOINT": hub.url,
        "HF_TOKEN": hub_server.TOKEN,
        "HF_HUB_DISABLE_XET": "1",
        "QPACK_OCI_HOST": oci.host,
        "QPACK_OCI_USERNAME": oci_server.USER,
        "QPACK_OCI_PASSWORD": oci_server.PASSWORD,
    }


@pytest.fixture(scope="module")
def made(folder: Path, tiny_model: Path, engine_home: Path, variables: dict[str, str]) -> Qpack:
    """A home with a build of the tiny model, published as `tiny:1` and signed."""
    laid = lay_out(folder / "made", tiny_model, engine_home)
    (laid.cwd / "recipe.yaml").write_text(RECIPE)
    texts = (f"Text {i} says that {'number ' * i} comes after {'other words ' * (20 + i)}\n" for i in range(24))
    (laid.cwd / "texts.txt").write_text("".join(texts))
    # Words that the tiny model knows: one that only guesses gets no verdict.
    lines = (f"Line {i} is here to be read, {'word ' * (i % 5)} and then {'words ' * 20}\n" for i in range(40))
    (laid.cwd / "held-out.txt").write_text("".join(lines))
    functions = (
        f"def word_{i}(line: int) -> int:\n    # {'word words ' * 12}\n    return {i} + line\n\n\n" for i in range(40)
    )
    (laid.cwd / "held_out.py").write_text("".join(functions))
    for command in (
        ("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", "release.key"),
        ("ec", "-in", "release.key", "-pubout", "-out", "release.pub"),
    ):
        subprocess.run(["openssl", *command], cwd=laid.cwd, check=True, capture_output=True)
    qpack = Qpack(laid.home, laid.cwd, variables)
    built = qpack("build", "recipe.yaml", timeout=900)
    ok(built)
    (laid.cwd / "build.err").write_text(built.err)
    ok(qpack("sign", "tiny:1", "--key", "release.key", "--why", "reviewed"))
    return qpack


@pytest.fixture(scope="module")
def clean(folder: Path, made: Qpack, engine_home: Path, variables: dict[str, str]) -> Qpack:
    """An empty home beside it; of the first one it has the public key alone."""
    home = folder / "clean" / "home"
    home.mkdir(parents=True)
    (home / "envs").symlink_to(engine_home / "envs")
    (folder / "clean" / "release.pub").write_bytes((made.cwd / "release.pub").read_bytes())
    return Qpack(home, folder / "clean", variables)


def digest_of(qpack: Qpack, ref: str) -> str:
    return str(said(qpack("verify", ref, "--key", "release.pub", "--json"))["digest"])


def test_a_release_has_one_digest_and_its_signature_in_all_three_registries(
    made: Qpack, clean: Qpack, oci: oci_server.Server, hub: hub_server.Hub
) -> None:
    places = (str(clean.cwd / "shared"), f"oci://{oci.host}/org/tiny", "hf://org/tiny")
    sent = [said(made("publish", "tiny:1", "--to", place, "--json")) for place in places]
    digest = LocalRegistry(made.home / "registry").resolve("tiny:1").digest
    assert {one["digest"] for one in sent} == {digest}
    assert hub.repositories["org/tiny"].private
    # Each is pulled into a registry of its own, which knows nothing of the others.
    for number, place in enumerate(places):
        other = Qpack(clean.home, clean.cwd, {**clean.variables, "QPACK_REGISTRY": str(clean.cwd / f"from-{number}")})
        if place.startswith("/"):
            other = Qpack(clean.home, clean.cwd, {**clean.variables, "QPACK_REGISTRY": place})
        else:
            ok(other("pull", f"{place}{'@' if place.startswith('hf') else ':'}1"))
        assert digest_of(other, "tiny:1") == digest
        ok(other("pull", "tiny:1", f"files-{number}"))
    said_by = [said(other("history", "tiny", "--json"))[-1]["what"]]
    assert said_by == ["sign"]


def test_the_manifest_says_what_the_measured_server_ran_with(made: Qpack) -> None:
    serving = said(made("show", "tiny:1", "--json"))["serving"]
    assert serving["ran_with"] == {"kv_cache_dtype": "auto", "prefix_caching": True, "chunked_prefill": True}
    assert 0 < serving["probes"]["measured_start_seconds"] < serving["probes"]["startup_budget_seconds"]


def test_one_server_a_model_shows_each_domain_where_both_go_on_and_whether_the_context_is_read(made: Qpack) -> None:
    said_by = (made.cwd / "build.err").read_text()
    assert said_by.count("starting vLLM on") == 2, "one for the baseline, one for the artifact"
    release = said(made("show", "tiny:1", "--json"))["release"]
    comparison = release["comparison"]
    assert [(d["domain"], d["windows"]) for d in comparison["domains"]] == [("prose", 12), ("code", 12)]
    each = [d["kl_divergence"]["value"] for d in comparison["domains"]]
    assert sum(each) / 2 == pytest.approx(comparison["kl_divergence"]["value"])
    gates = {gate["gate"]: gate["outcome"] for gate in release["verdict"]["gates"]}
    assert gates["domain_kl_divergence[prose]"] == gates["domain_kl_divergence[code]"] == "pass"

    continued = comparison["continued"]
    assert (continued["windows"], continued["tokens"], len(continued["worst"])) == (24, 4, 5)
    for window in continued["worst"]:
        assert window["domain"] == ("prose" if window["window"] < 12 else "code")
        assert ("Line" in window["before"]) == (window["domain"] == "prose")
        assert ("def word_" in window["before"]) == (window["domain"] == "code")
        assert window["follows"].strip()
        assert window["alike"] < 4 or window["baseline"] == window["artifact"]

    needle = release["artifact"]["needle"]
    assert (needle["context_tokens"], needle["chat"], len(needle["answers"])) == (512, True, 5)
    assert 430 < needle["prompt_tokens"] <= 512 - 16
    assert needle["prompts_digest"] == release["baseline"]["needle"]["prompts_digest"]
    # Random weights find nothing, which is no fault of quantization.
    assert comparison["needle"]["no_verdict"].startswith("The baseline finds only 0 of 5 facts")
    assert "long context: The baseline finds only 0 of 5" in ok(made("show", "tiny:1"))


def test_what_was_pulled_from_the_hub_answers_with_the_tokens_that_were_measured(made: Qpack, clean: Qpack) -> None:
    ok(clean("pull", "hf://org/tiny@1"))
    measured = said(made("show", "tiny:1", "--json"))["release"]["artifact"]["canary"]["replies"]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    with clean.started("serve", "tiny:1", "--port", str(port)) as running:
        assert running.stdout is not None
        line = running.stdout.readline()
        assert line.startswith("tiny:1 answers as tiny"), running.communicate()
        url = f"http://127.0.0.1:{port}/v1/chat/completions"
        answers = []
        for reply in measured:
            body = request("tiny", reply["prompt"], chat=True, max_tokens=32)
            answers.append(httpx.post(url, json=body, timeout=PATIENCE).json()["choices"][0])
    assert [(a["message"]["content"], a["finish_reason"]) for a in answers] == [
        (reply["text"], reply["finish_reason"]) for reply in measured
    ]
    assert clean.ended()


def test_the_next_release_shares_the_weights_and_a_bad_one_is_stopped_and_taken_back(
    made: Qpack, clean: Qpack, oci: oci_server.Server
) -> None:
    """Version 2 is served otherwise, version 3 misses its gate. Nothing is measured again for either."""
    (clean.home / "registry").mkdir(exist_ok=True)
    (clean.home / "registry" / "policy.yaml").write_text(POLICY)
    (clean.home / "registry" / "release.pub").write_bytes((clean.cwd / "release.pub").read_bytes())
    if "tiny:1" not in clean("list").out:
        ok(clean("pull", f"oci://{oci.host}/org/tiny:1"))
    ok(clean("promote", "tiny:1", "production", "--why", "the first"))

    second = ("--set", "serve.profiles.narrow.arguments.max-num-seqs=2")
    assert "starting vLLM" not in made("build", "recipe.yaml", *second).err
    bad = ("--set", "gates.size_ratio=0.01")
    refused = made("build", "recipe.yaml", *bad)
    assert refused.code == 6
    assert "size_ratio" in refused.err
    assert said(made("build", "recipe.yaml", *bad, "--allow-failed-gates", "--json"))["published"]["version"] == "3"
    for version in "23":
        ok(made("sign", f"tiny:{version}", "--key", "release.key"))
        ok(made("publish", f"tiny:{version}", "--to", f"oci://{oci.host}/org/tiny"))
        ok(clean("pull", f"oci://{oci.host}/org/tiny:{version}"))
    local = LocalRegistry(clean.home / "registry")
    weights = {r.sha256 for v in "123" for r in local.contents(f"tiny:{v}").files if r.path.endswith(".safetensors")}
    assert len(weights) == 1, "the weights of all three are one blob"

    ok(clean("promote", "tiny:2", "production"))
    stopped = clean("promote", "tiny:3", "production")
    assert (stopped.code, stopped.out) == (6, "")
    assert "verdict: its verdict is 'fail': size_ratio" in stopped.err
    assert local.resolve("tiny:production").version == "2"
    assert "narrow" in json.loads(local.read("tiny:production", "serving.json"))["profiles"]
    ok(clean("rollback", "tiny", "production", "--why", "stutters"))
    assert local.resolve("tiny:production").version == "1"
    assert not json.loads(local.read("tiny:production", "serving.json"))["profiles"]
    moves = [e for e in said(clean("history", "tiny", "--json")) if e["alias"] == "production"]
    assert [(e["what"], e["version"], e["verdict"], e["note"]) for e in moves] == [
        ("promote", "1", "pass", "the first"),
        ("promote", "2", "pass", ""),
        ("rollback", "1", "pass", "stutters"),
    ]
    assert said(clean("gc", "--dry-run", "--json"))["blobs"] == []


def test_no_login_is_left_anywhere(made: Qpack, clean: Qpack, oci: oci_server.Server, hub: hub_server.Hub) -> None:
    planted = (hub_server.TOKEN.encode(), oci_server.PASSWORD.encode())
    left = {
        str(path): [secret for secret in planted if secret in path.read_bytes()]
        for top in (made.cwd, clean.cwd, oci.data)
        for path in top.rglob("*")
        if path.is_file() and "envs" not in path.parts
    }
    assert {path: found for path, found in left.items() if found} == {}
    assert not any(secret in repr((hub.repositories, hub.small)).encode() for secret in planted)


def test_a_rebuild_with_another_seed_is_the_same_as_far_as_the_margins_say(made: Qpack) -> None:
    """The release as it would be, had its calibration been drawn by a seed that nobody wrote down."""
    local, scratch = LocalRegistry(made.home / "registry"), made.cwd / "reseeded"
    local.pull("tiny:1", scratch)
    release = json.loads((scratch / "release.json").read_text())
    release["recipe"]["calibration"]["seed"] += 1
    (scratch / "release.json").write_text(json.dumps(release))
    local.push(scratch, PushRequest("reseeded", "1", "latest", actor="test"), annotations={})
    margins = ("--accuracy-margin", "0.9", "--perplexity-margin", "3")
    answer = said(made("reproduce", "reseeded", *margins, "--json", timeout=600))
    assert answer["outcome"] == "statistically the same"
    assert answer["tensors"]["differences"], "another seed, other weights"
    figures = answer["equivalence"]
    assert figures["answers"] == {"accuracy": "same", "perplexity": "same"}
    assert figures["perplexity"]["samples"] == 24
    interval = figures["perplexity"]["interval"]
    assert interval["low"] < interval["high"]
    assert figures["accuracy"]["samples"] == 20


def flip(path: Path) -> None:
    """Flip a bit in the middle of a file, and in all that is linked to it."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.chmod(0o600)
    path.write_bytes(data)


def test_a_damaged_blob_is_repaired_by_the_next_build_or_from_another_copy(made: Qpack, oci: oci_server.Server) -> None:
    local = LocalRegistry(made.home / "registry")
    record = next(r for r in local.contents("tiny:1").files if r.path.endswith(".safetensors"))
    blob = local.blob(f"sha256:{record.sha256}")
    whole = blob.read_bytes()
    blob.unlink()
    blob.write_bytes(whole)  # no link to what is in the store
    flip(blob)
    assert made("verify", "tiny:1").code == 8
    done = made("build", "recipe.yaml")
    assert done.code == 0, done.err
    assert "tiny:1: model/model.safetensors was damaged in the registry" in done.err
    assert "starting vLLM" not in done.err
    assert made("verify", "tiny:1").code == 0
    assert "was damaged" not in made("build", "recipe.yaml").err

    (stored,) = made.home.glob("store/quantize/*/checkpoint/model.safetensors")
    flip(blob)
    flip(stored)
    assert made("verify", "tiny:1").code == 8
    done = made("build", "recipe.yaml")
    assert done.code == 0, done.err
    assert f"what is stored of quantize was changed since ({stored}); it is made anew" in done.err
    assert "starting vLLM" not in done.err, "it came out the same, so what was measured of it holds"
    assert made("verify", "tiny:1").code == 0

    blob.unlink()
    blob.write_bytes(whole)
    flip(blob)
    assert made("verify", "tiny:1").code == 8
    ok(made("pull", f"oci://{oci.host}/org/tiny:1"))
    assert made("verify", "tiny:1").code == 0
