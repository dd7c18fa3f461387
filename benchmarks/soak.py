"""A soak: mixed load on a release that `qpack serve` runs, with cancels, wrong requests, an overload and two restarts.

    python benchmarks/soak.py REF --minutes 30 --out DIR

While it runs:

- clients ask for answers, streams and JSON, leave in the middle of a stream, and send what no server can answer; each
  request is judged (`judge`): nothing may be lost, which is to end without an answer and without an error;
- `qpack batch` answers a long file beside them, and is started again when the server was;
- the real Prometheus scrapes the server once a second with the release's own rules, whose windows and waits are
  `--scale` times shorter. An alert may begin only while its cause is planted: a queue, a server that is down;
- a third into it the server is stopped by Ctrl-C, two thirds into it its engine process is killed (SIGKILL). Requests
  that run then have to end with an error. `qpack drift` compares what was started again with the release;
- the memory of each process of qpack's and of the server's is read every ten seconds (proportional set size).

DIR gets `soak.json` with every figure, kept current, the answers of the batch, and logs. Exit code 1 when something was
lost, an alert came without its cause or a cause without its alert, or a process grew by more than `GROWTH`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import yaml

from qpack.cli import options
from qpack.serve import served_release
from registry.serving.exporters import prometheus
from registry.serving.exporters.export import Export

MIB = 2**20
GROWTH = (8 * MIB, 0.03)
"""How much larger a process may be at the end than after its first minutes: bytes and a share of its size."""
TIMEOUT = 240.0
WEIGHTS = {"answer": 30, "stream": 30, "json": 15, "cancel": 15, "wrong": 10}
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 20}, "country": {"type": "string", "maxLength": 20}},
    "required": ["city", "country"],
    "additionalProperties": False,
}
# What each planted cause may raise: its own alert, and the objectives that it breaks.
CAUSES = {"queue": "VllmQueueNeverEmpty", "down": "VllmDown"}
FOLLOWS = {
    "queue": ("VllmTimeToFirstTokenBudgetBurn", "VllmInterTokenLatencyBudgetBurn", "VllmE2eRequestLatencyBudgetBurn"),
    "down": ("VllmErrors",),
}


@dataclass(frozen=True)
class Plant:
    """A cause of alerts, in seconds since the start. `end` is None while it lasts."""

    cause: str
    begin: float
    end: float | None = None


@dataclass
class Fired:
    """An alert that fired, in seconds since the start."""

    name: str
    window: str
    begin: float
    end: float | None = None


@dataclass
class Soak:
    """What is common to all that runs, and what was found."""

    ref: str
    out: Path
    port: int
    qpack: tuple[str, ...]
    scale: float
    model: str
    context: int
    began: float = field(default_factory=time.monotonic)
    up: bool = False
    life: int = 0
    served: subprocess.Popen[bytes] | None = None
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    bad: list[str] = field(default_factory=list)
    plants: list[Plant] = field(default_factory=list)
    fired: list[Fired] = field(default_factory=list)
    memory: dict[str, list[tuple[float, int]]] = field(default_factory=dict)
    events: list[dict[str, Any]] = field(default_factory=list)

    @property
    def now(self) -> float:
        """Seconds since the start."""
        return round(time.monotonic() - self.began, 1)

    @property
    def url(self) -> str:
        """Of the server."""
        return f"http://127.0.0.1:{self.port}"

    def event(self, what: str, **more: Any) -> None:
        """Report and keep."""
        self.events.append({"at": self.now, "what": what, **more})
        print(f"[{self.now:6.0f} s] {what} {more or ''}", flush=True)

    def complain(self, what: str) -> None:
        """Report what must not happen."""
        self.bad.append(f"{self.now:.0f} s: {what}")
        print(f"[{self.now:6.0f} s] WRONG: {what}", flush=True)


# -- requests --------------------------------------------------------------------------------------------------------


def wrong_requests(model: str, context: int) -> tuple[tuple[str, bytes, int], ...]:
    """What no server can answer: a name, the body of a completion, and the status that it has to get."""
    good = {"model": model, "prompt": "a", "max_tokens": 4}

    def body(**changes: Any) -> bytes:
        return json.dumps({**good, **changes}).encode()

    schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nonsense"}}}
    return (
        ("not JSON", b'{"model": ', 400),
        ("no such model", body(model="nobody"), 404),
        ("too long", body(prompt="word " * 2 * context), 400),
        ("no tokens", body(max_tokens=-1), 400),
        ("temperature", body(temperature="hot"), 400),
        ("schema", body(response_format=schema), 400),
        ("no prompt", json.dumps({"model": model}).encode(), 400),
    )


def judge(kind: str, status: int, text: str, wanted: int = 200) -> str:
    """What is wrong with an answer; empty when it is whole: an error that says something, JSON of the schema, a text
    with an end.
    """
    if status != wanted:
        return f"{kind}: status {status} in place of {wanted}: {text[:200]}"
    try:
        found = json.loads(text)
        if wanted != 200:
            return "" if found["error"]["message"] else f"{kind}: an error without a message"
        (choice,) = found["choices"]
        if choice["finish_reason"] not in ("stop", "length"):
            return f"{kind}: finish_reason {choice['finish_reason']}"
        if kind == "json" and set(json.loads(choice["message"]["content"])) != set(SCHEMA["required"]):
            return f"json: not of the schema: {choice['message']['content'][:200]}"
    except (ValueError, LookupError, TypeError) as error:
        return f"{kind}: {type(error).__name__}: {error}: {text[:200]}"
    return ""


def judge_stream(lines: Sequence[str]) -> str:
    """What is wrong with the events of a stream that ended without an error."""
    events = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
    if not events or events[-1] != "[DONE]":
        return f"stream: lost after {len(events)} events: no [DONE]"
    reasons = [c["finish_reason"] for e in events[:-1] for c in json.loads(e)["choices"] if c["finish_reason"]]
    return "" if len(reasons) == 1 else f"stream: {len(reasons)} ends"


async def ask(soak: Soak, client: httpx.AsyncClient, kind: str, draw: random.Random, tokens: int) -> str:
    """Send one request; what is wrong with what came back."""
    chat = {"model": soak.model, "messages": [{"role": "user", "content": f"{draw.random()}: what is a tide?"}],
            "max_tokens": tokens, "temperature": 0.7}  # fmt: skip
    where = f"{soak.url}/v1/chat/completions"
    if kind == "wrong":
        name, body, wanted = draw.choice(wrong_requests(soak.model, soak.context))
        answer = await client.post(f"{soak.url}/v1/completions", content=body,
                                   headers={"content-type": "application/json"})  # fmt: skip
        return judge(name, answer.status_code, answer.text, wanted)
    if kind in ("stream", "cancel"):
        lines: list[str] = []
        stop = draw.randrange(1, 6)
        async with client.stream("POST", where, json={**chat, "stream": True, "ignore_eos": True}) as streamed:
            if streamed.status_code != 200:
                return f"{kind}: status {streamed.status_code}: {(await streamed.aread())[:200]!r}"
            async for line in streamed.aiter_lines():
                lines.append(line)
                if kind == "cancel" and len(lines) > 2 * stop:
                    return ""
        return judge_stream(lines)
    if kind == "json":
        wanted_form = {"type": "json_schema", "json_schema": {"name": "place", "schema": SCHEMA}}
        chat |= {"max_tokens": 64, "temperature": 0, "response_format": wanted_form}
    answer = await client.post(where, json=chat)
    return judge(kind, answer.status_code, answer.text)


async def attempt(soak: Soak, client: httpx.AsyncClient, kind: str, draw: random.Random, tokens: int) -> None:
    """One request, counted: answered, or ended with an error because the server was down."""
    life, was_up = soak.life, soak.up
    try:
        wrong = await asyncio.wait_for(ask(soak, client, kind, draw, tokens), TIMEOUT)
    except TimeoutError:
        soak.counts[kind, "lost"] += 1
        soak.complain(f"{kind}: neither an answer nor an error after {TIMEOUT:.0f} s")
        return
    except httpx.HTTPError as error:
        wrong = f"{kind}: {type(error).__name__}: {error}"
    if not wrong:
        soak.counts[kind, "as it should"] += 1
    elif was_up and soak.up and life == soak.life:
        soak.counts[kind, "failed"] += 1
        soak.complain(wrong)
    elif "lost" in wrong:
        soak.counts[kind, "lost"] += 1
        soak.complain(f"at a restart: {wrong}")
    else:
        soak.counts[kind, "an error while the server was down"] += 1


async def client_loop(soak: Soak, number: int, ends: float, pause: float) -> None:
    """One client: asks, waits for the answer, thinks for a while. It asks while the server is down, too."""
    draw = random.Random(number)
    async with httpx.AsyncClient(timeout=TIMEOUT + 10) as client:
        while soak.now < ends:
            (kind,) = draw.choices(list(WEIGHTS), list(WEIGHTS.values()))
            await attempt(soak, client, kind, draw, draw.randrange(8, 48))
            await asyncio.sleep(draw.expovariate(1 / pause) if soak.up else 2.0)


@contextlib.asynccontextmanager
async def planted(soak: Soak, cause: str) -> AsyncIterator[None]:
    """A cause of alerts, while the block runs."""
    soak.plants.append(Plant(cause, soak.now))
    soak.event(f"planted: {cause}")
    try:
        yield
    finally:
        soak.plants[-1] = Plant(cause, soak.plants[-1].begin, soak.now)
        soak.event(f"over: {cause}")


async def overload(soak: Soak, seconds: float, clients: int = 24) -> None:
    """More clients than the server takes at once, each asking again at once."""
    ends = soak.now + seconds

    async def one(number: int) -> None:
        draw = random.Random(1000 + number)
        async with httpx.AsyncClient(timeout=TIMEOUT + 10) as client:
            while soak.now < ends:
                await attempt(soak, client, "answer", draw, 40)

    async with planted(soak, "queue"):
        await asyncio.gather(*(one(number) for number in range(clients)))


# -- the server ------------------------------------------------------------------------------------------------------


async def start(soak: Soak, limit: float = 400.0) -> None:
    """`qpack serve`, until it answers."""
    soak.life += 1
    log = (soak.out / f"serve-{soak.life}.log").open("wb")
    begun = soak.now
    soak.served = subprocess.Popen(
        [*soak.qpack, "serve", soak.ref, "--port", str(soak.port)], stdout=log, stderr=subprocess.STDOUT
    )
    log.close()
    async with httpx.AsyncClient(timeout=5) as client:
        while soak.now < begun + limit:
            if soak.served.poll() is not None:
                raise SystemExit(f"qpack serve ended with {soak.served.returncode}: see {log.name}")
            with contextlib.suppress(httpx.HTTPError):
                if (await client.get(f"{soak.url}/health")).status_code == 200:
                    soak.up = True
                    soak.event("the server is up", seconds=round(soak.now - begun, 1))
                    return
            await asyncio.sleep(1)
    raise SystemExit(f"not up after {limit:.0f} s: see {log.name}")


async def stop(soak: Soak, *, kill: bool) -> None:
    """End the server: by Ctrl-C, or by killing its engine. Nothing may be left of it."""
    served = soak.served
    assert served is not None
    every = psutil.Process(served.pid).children(recursive=True)
    soak.up = False
    begun = soak.now
    if kill:
        (engine,) = [process for process in every if "EngineCore" in " ".join(process.cmdline())]
        engine.kill()
    else:
        served.send_signal(signal.SIGINT)
    while served.poll() is None and soak.now < begun + 120:
        await asyncio.sleep(0.2)
    _, left = psutil.wait_procs(every, timeout=10)
    wanted = 5 if kill else 0
    soak.event("killed its engine" if kill else "Ctrl-C", exit_code=served.returncode,
               seconds=round(soak.now - begun, 1), left=len(left))  # fmt: skip
    if served.returncode != wanted or left:
        soak.complain(f"exit code {served.returncode} in place of {wanted}, {len(left)} processes left")


async def restart(soak: Soak, *, kill: bool) -> None:
    """End the server, stay down for long enough that the alert has to fire, start it again, compare it."""
    async with planted(soak, "down"):
        await stop(soak, kill=kill)
        await asyncio.sleep(300 / soak.scale + 10)
        await start(soak)
    drift = [*soak.qpack, "drift", soak.url, soak.ref, "--json"]
    done = await asyncio.to_thread(subprocess.run, drift, capture_output=True, text=True, check=False)
    soak.event("qpack drift", exit_code=done.returncode)
    if done.returncode != 0:
        soak.complain(f"qpack drift: {done.returncode}: {done.stdout[-500:]}{done.stderr[-500:]}")


async def batch(soak: Soak, ends: float) -> None:
    """`qpack batch` over a file that is too long, started again after the server was; at the end it is stopped."""
    prompts, answers, log = soak.out / "prompts.jsonl", soak.out / "answers.jsonl", soak.out / "batch.log"
    lines = [{"custom_id": f"n{i}", "method": "POST", "url": "/v1/completions",
              "body": {"prompt": f"{i} is", "max_tokens": 8}} for i in range(20_000)]  # fmt: skip
    prompts.write_text("".join(json.dumps(line) + "\n" for line in lines))
    command = [*soak.qpack, "batch", soak.url, str(prompts), "-o", str(answers), "--concurrency", "1"]
    runs: list[int] = []
    while soak.now < ends:
        if not soak.up:
            await asyncio.sleep(1)
            continue
        with log.open("ab") as written:
            running = subprocess.Popen(command, stdout=written, stderr=subprocess.STDOUT)
        await watch_batch(soak, running, ends)
        runs.append(running.wait(60))
    text = answers.read_text() if answers.exists() else ""
    names = [json.loads(line)["custom_id"] for line in text.splitlines() if text.endswith("\n")]
    soak.event("qpack batch", answers=len(names), exit_codes=runs)
    if names != [f"n{i}" for i in range(len(names))] or not names:
        soak.complain("qpack batch: answers are missing or out of order")
    if any(code not in (5, 130) for code in runs):
        soak.complain(f"qpack batch ended with {runs}")


async def watch_batch(soak: Soak, running: subprocess.Popen[bytes], ends: float) -> None:
    """Read its memory until it ends, or until it is time to end it."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process, name = psutil.Process(running.pid), f"qpack batch {running.pid}"
        while running.poll() is None:
            sample(soak, process, name)
            for _ in range(20):
                await asyncio.sleep(0.5)
                if running.poll() is not None or soak.now >= ends:
                    break
            if soak.now >= ends:
                running.send_signal(signal.SIGINT)
                await asyncio.to_thread(running.wait, 60)


# -- memory and alerts -----------------------------------------------------------------------------------------------


def sample(soak: Soak, process: psutil.Process, name: str) -> None:
    """The proportional set size of a process."""
    soak.memory.setdefault(name, []).append((soak.now, process.memory_full_info().pss))


async def watch_memory(soak: Soak, ends: float) -> None:
    """Every process of `qpack serve`, every ten seconds, while it is up."""
    while soak.now < ends:
        await asyncio.sleep(10)
        if not soak.up or soak.served is None:
            continue
        with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess, FileNotFoundError):
            root = psutil.Process(soak.served.pid)
            for process in (root, *root.children(recursive=True)):
                sample(soak, process, f"{named(process, root)}, server {soak.life}")
        write(soak)


def named(process: psutil.Process, root: psutil.Process) -> str:
    """What a process of the server is called in the table."""
    if process == root:
        return "qpack serve"
    line = " ".join(process.cmdline())
    for part, name in (("supervisor.py", "supervisor"), ("EngineCore", "vLLM's engine"), ("api_server", "vLLM's API"),
                       ("resource_tracker", "resource tracker")):  # fmt: skip
        if part in line:
            return name
    return line.split()[0].rpartition("/")[2] if line else "a process"


def grown(samples: Sequence[tuple[float, int]]) -> tuple[int, int] | None:
    """Bytes after the first fifth, and at the end: medians over a fifth each; None for too few samples to say."""
    fifth = len(samples) // 5
    if fifth < 4:
        return None
    sizes = [size for _, size in samples]
    return round(statistics.median(sizes[fifth : 2 * fifth])), round(statistics.median(sizes[-fifth:]))


def shortened(rules: Mapping[str, Any], scale: float) -> dict[str, Any]:
    """The rules with every window and wait `scale` times shorter. Names of recorded series keep theirs."""
    units = {"s": 1, "m": 60, "h": 3600, "d": 86400}

    def shorter(found: re.Match[str]) -> str:
        return f"{found[1]}{max(1, round(int(found[2]) * units[found[3]] / scale))}s{found[4]}"

    made: dict[str, Any] = json.loads(json.dumps(rules))
    for rule in (rule for group in made["groups"] for rule in group["rules"]):
        rule["expr"] = re.sub(r"(\[)(\d+)([smhd])(\])", shorter, rule["expr"])
        if "for" in rule:
            rule["for"] = re.sub(r"^()(\d+)([smhd])()$", shorter, rule["for"])
    return made


@contextlib.contextmanager
def watching(soak: Soak, export: Export) -> Any:
    """Prometheus with the release's rules."""
    program = shutil.which("prometheus")
    if program is None:
        raise SystemExit("prometheus is not here (Debian package prometheus)")
    port, folder = free_port(), soak.out
    whole = prometheus.configuration(export, f"127.0.0.1:{soak.port}")
    whole["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    (folder / "prometheus.yml").write_text(yaml.safe_dump(whole))
    (folder / "rules.yml").write_text(yaml.safe_dump(shortened(prometheus.rules(export), soak.scale)))
    command = [program, f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data",
               f"--web.listen-address=127.0.0.1:{port}"]  # fmt: skip
    with (folder / "prometheus.log").open("wb") as log:
        running = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        yield f"http://127.0.0.1:{port}/api/v1"
    finally:
        running.terminate()
        running.wait(30)


async def watch_alerts(soak: Soak, api: str, ends: float) -> None:
    """Note when each alert begins and ends to fire."""
    firing: dict[tuple[str, str], Fired] = {}
    async with httpx.AsyncClient(timeout=10) as client:
        while soak.now < ends:
            await asyncio.sleep(1)
            with contextlib.suppress(httpx.HTTPError):
                found = (await client.get(f"{api}/alerts")).json()["data"]["alerts"]
                now = {(a["labels"]["alertname"], a["labels"].get("window", ""))
                       for a in found if a["state"] == "firing"}  # fmt: skip
                for key in now - set(firing):
                    firing[key] = Fired(*key, soak.now)
                    soak.fired.append(firing[key])
                    soak.event(f"fires: {' '.join(key)}")
                for key in set(firing) - now:
                    firing.pop(key).end = soak.now


def unplanted(fired: Sequence[Fired], plants: Sequence[Plant], scale: float) -> list[str]:
    """Alerts that began without their cause. What follows from a cause may begin while the longest short window of a
    burn rate (six hours) still sees it.
    """

    def caused(one: Fired) -> bool:
        return any(
            plant.begin <= one.begin and one.begin <= (plant.end or float("inf")) + after
            for plant in plants
            for names, after in (((CAUSES[plant.cause],), 10.0), (FOLLOWS[plant.cause], 21600 / scale))
            if one.name in names
        )  # fmt: skip

    return [f"{one.name} {one.window} at {one.begin:.0f} s" for one in fired if not caused(one)]


def unnoticed(fired: Sequence[Fired], plants: Sequence[Plant]) -> list[str]:
    """Causes that no alert of theirs began in."""
    return [
        f"{plant.cause} from {plant.begin:.0f} s"
        for plant in plants
        if not any(
            one.name == CAUSES[plant.cause] and plant.begin <= one.begin <= (plant.end or float("inf")) + 10
            for one in fired
        )
    ]


# -- the whole -------------------------------------------------------------------------------------------------------


def write(soak: Soak) -> None:
    """Everything that is known, to `soak.json`."""
    kinds = sorted({kind for kind, _ in soak.counts})
    found = {
        "ref": soak.ref,
        "seconds": soak.now,
        "scale": soak.scale,
        "requests": {k: {o: n for (kind, o), n in sorted(soak.counts.items()) if kind == k} for k in kinds},
        "plants": [asdict(plant) for plant in soak.plants],
        "alerts": [asdict(one) for one in soak.fired],
        "events": soak.events,
        "memory_mib": {name: [(at, round(size / MIB, 1)) for at, size in s] for name, s in soak.memory.items()},
        "wrong": soak.bad,
    }
    part = soak.out / "soak.json.part"
    part.write_text(json.dumps(found, indent=1))
    part.replace(soak.out / "soak.json")


def table(soak: Soak) -> str:
    """What was found, as Markdown."""
    lines = ["| Requests | " + " | ".join(sorted({o for _, o in soak.counts})) + " |"]
    outcomes = sorted({o for _, o in soak.counts})
    lines.append("| --- |" + " --- |" * len(outcomes))
    lines += [f"| {kind} | " + " | ".join(str(soak.counts[kind, o]) for o in outcomes) + " |" for kind in WEIGHTS]
    lines += ["", "| Process | after its first fifth, MiB | at the end, MiB | minutes |", "| --- | --- | --- | --- |"]
    for name, samples in soak.memory.items():
        if (pair := grown(samples)) is not None:
            before, after = (f"{size / MIB:,.1f}" for size in pair)
            lines.append(f"| {name} | {before} | {after} | {(samples[-1][0] - samples[0][0]) / 60:.0f} |")
    return "\n".join(lines)


async def run(soak: Soak, export: Export, minutes: float, clients: int, pause: float) -> None:
    """The whole of it. The clock starts when the server is up for the first time."""
    await start(soak)
    soak.began, soak.events = time.monotonic(), []
    ends = minutes * 60
    queue = 2 * 300 / soak.scale + 20
    with watching(soak, export) as api:
        background = [
            asyncio.create_task(watch_memory(soak, ends)),
            asyncio.create_task(watch_alerts(soak, api, ends + 5)),
            asyncio.create_task(batch(soak, ends)),
            *(asyncio.create_task(client_loop(soak, number, ends, pause)) for number in range(clients)),
        ]
        try:
            await until(soak, ends / 8)
            await overload(soak, queue)
            for share, kill in ((1 / 3, False), (2 / 3, True)):
                await until(soak, ends * share)
                await restart(soak, kill=kill)
            await until(soak, ends)
            await asyncio.gather(*background)
        finally:
            for task in background:
                task.cancel()
            if soak.served is not None and soak.served.poll() is None:
                await stop(soak, kill=False)
            write(soak)
    soak.bad += [f"an alert without a cause: {what}" for what in unplanted(soak.fired, soak.plants, soak.scale)]
    soak.bad += [f"no alert: {what}" for what in unnoticed(soak.fired, soak.plants)]
    for name, samples in soak.memory.items():
        if (pair := grown(samples)) is not None and pair[1] > pair[0] + max(GROWTH[0], GROWTH[1] * pair[0]):
            soak.bad.append(f"{name} grew from {pair[0] / MIB:.1f} to {pair[1] / MIB:.1f} MiB")


async def until(soak: Soak, moment: float) -> None:
    """Wait until `moment`, unless the server ends by itself."""
    while soak.now < moment:
        if soak.served is not None and soak.served.poll() is not None:
            soak.complain(f"qpack serve ended by itself with {soak.served.returncode}")
            raise SystemExit(1)
        await asyncio.sleep(0.5)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main() -> int:
    """Run it and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ref")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--clients", type=int, default=3)
    parser.add_argument("--pause", type=float, default=1.5, help="mean seconds between an answer and the next request")
    parser.add_argument("--scale", type=float, default=20.0, help="how much shorter the windows of the alerts are")
    asked = parser.parse_args()
    out = asked.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    release = served_release.find(options.registry_folder(), asked.ref, None)
    export = Export(release.manifest, release.reference, release.resolved.digest, release.profile)
    qpack = shutil.which("qpack", path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}")
    soak = Soak(asked.ref, out, free_port(), (qpack or "qpack",), asked.scale,
                release.manifest.model.served_model_name, release.manifest.max_model_len)  # fmt: skip
    # A shell's background job ignores SIGINT, and so would what it starts.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    asyncio.run(run(soak, export, asked.minutes, asked.clients, asked.pause))
    write(soak)
    print(table(soak))
    for what in soak.bad:
        print(f"WRONG: {what}")
    return 1 if soak.bad else 0


if __name__ == "__main__":
    sys.exit(main())
