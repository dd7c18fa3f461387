"""A live server against what it was started to be: `qpack drift`.

Version, model and metrics are asked of the server. Its arguments come from its command line when it runs on this
machine; else only what /v1/models and `vllm:cache_config_info` publish can be compared, and the rest is named.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import psutil
import yaml

from evals.client import authorization, checked, unreachable
from evals.memory import cache_config, scrape
from qpack.errors import EvaluateError

COMMAND_LINE = "its command line"

# Where a server is and from where it reads is no difference.
_PLACE = frozenset({"model", "host", "port", "config", "uds", "api-key", "root-path"})


@dataclass(frozen=True)
class Expected:
    """What the manifest says. `flags` are those of the command line, by name without dashes."""

    version: str
    model: str
    max_model_len: int
    tensor_parallel: int
    flags: Mapping[str, Any]
    metrics: Sequence[str]


@dataclass(frozen=True)
class Seen:
    """What a server says of itself. `flags` is None where its arguments can't be seen; `source` says where from."""

    version: str
    models: Mapping[str, int | None]
    fingerprint: str | None
    metrics: str
    flags: Mapping[str, Any] | None
    source: str


@dataclass(frozen=True)
class Difference:
    """One thing that isn't as the manifest says."""

    what: str
    expected: str
    found: str


@dataclass(frozen=True)
class Drift:
    """Every difference, and what could not be compared."""

    differences: tuple[Difference, ...]
    arguments_from: str
    unseen: tuple[str, ...] = field(default=())


def look(base_url: str, model: str, timeout: float = 60.0) -> Seen:
    """Ask the server. Raises EvaluateError when it doesn't answer."""
    try:
        with httpx.Client(base_url=base_url, headers=authorization(), timeout=timeout) as client:
            version = str(checked(client.get("/version")).json()["version"])
            entries = checked(client.get("/v1/models")).json()["data"]
            models = {str(entry["id"]): entry.get("max_model_len") for entry in entries}
            fingerprint = _fingerprint(client, model if model in models else next(iter(models), model))
    except httpx.HTTPError as error:
        raise unreachable(base_url, error, timeout) from error
    except (ValueError, LookupError, TypeError) as error:
        raise EvaluateError(f"{base_url} doesn't answer as a vLLM server does", hint="What is on this port?") from error
    flags = _command_line(base_url)
    source = COMMAND_LINE if flags is not None else "/metrics alone: the server doesn't run on this machine"
    return Seen(version, models, fingerprint, scrape(base_url), flags, source)


def compare(expected: Expected, seen: Seen) -> Drift:
    """What differs; pure."""
    found: list[Difference] = []

    def hold(what: str, wanted: object, there: object) -> None:
        if str(wanted) != str(there):
            found.append(Difference(what, str(wanted), str(there)))

    hold("version", expected.version, seen.version)
    if expected.model not in seen.models:
        found.append(Difference("model", expected.model, ", ".join(seen.models) or "none"))
    else:
        hold("max_model_len", expected.max_model_len, seen.models[expected.model])
    if seen.fingerprint and seen.fingerprint.startswith("vllm-"):
        parallel = f"-tp{expected.tensor_parallel}" if expected.tensor_parallel > 1 else ""
        hold("system_fingerprint", f"vllm-{expected.version}{parallel}", seen.fingerprint.rpartition("-")[0])
    there = dict(seen.flags) if seen.flags is not None else _published(seen.metrics)
    wanted = {flag: value for flag, value in expected.flags.items() if flag not in _PLACE}
    # Only a command line says what was not set; the metrics have every default too, and not every flag.
    flags = (set(wanted) | set(there)) - _PLACE if seen.source == COMMAND_LINE else set(wanted) & set(there)
    for flag in sorted(flags):
        hold(f"--{flag}", _plain(wanted.get(flag, "not set")), _plain(there.get(flag, "not set")))
    names = {line.partition("{")[0].partition(" ")[0] for line in seen.metrics.splitlines()}
    found += [Difference(f"metric {name}", "there", "missing") for name in expected.metrics if name not in names]
    unseen = () if seen.source == COMMAND_LINE else tuple(sorted(set(wanted) - set(there)))
    return Drift(tuple(found), seen.source, unseen)


def parse(words: Sequence[str]) -> dict[str, Any]:
    """Flags of a command line by name without dashes: True for a bare one, False for `--no-`, a list for several."""
    found: dict[str, Any] = {}
    flag = ""
    for word in words:
        if word.startswith("--"):
            flag, equals, value = word.removeprefix("--").partition("=")
            flag = flag.replace("_", "-")
            if equals:
                found[flag] = value
            elif flag.startswith("no-"):
                found[flag.removeprefix("no-")] = False
            else:
                found[flag] = True
        elif flag:
            before = found.get(flag)
            found[flag] = word if before is True else [*(before if isinstance(before, list) else [before]), word]
    return found


def _plain(value: Any) -> str:
    """A value as it can be compared: numbers as text, JSON with sorted keys."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            return str(value)
    if isinstance(value, list):
        return " ".join(map(_plain, value))
    return json.dumps(value, sort_keys=True) if isinstance(value, dict | bool) else str(value)


def _fingerprint(client: httpx.Client, model: str) -> str | None:
    body = {"model": model, "prompt": "a", "max_tokens": 1, "temperature": 0}
    value = checked(client.post("/v1/completions", json=body)).json().get("system_fingerprint")
    return str(value) if value else None


def _command_line(base_url: str) -> dict[str, Any] | None:
    """The flags of the process that listens on the URL's port, if it is on this machine and ours to look at."""
    address = urlsplit(base_url)
    if address.hostname not in ("127.0.0.1", "localhost", "::1"):
        return None
    try:
        sockets = [c for c in psutil.net_connections("tcp") if c.status == psutil.CONN_LISTEN]
        pids = {c.pid for c in sockets if getattr(c.laddr, "port", None) == (address.port or 80) and c.pid is not None}
        for pid in sorted(pids):
            process = psutil.Process(pid)
            line = process.cmdline()
            start = next((i for i, word in enumerate(line) if word == "serve" or word.endswith("api_server")), None)
            if start is not None:
                return _with_config(parse(line[start + 1 :]), Path(process.cwd()))
    except (psutil.Error, OSError):
        return None
    return None


def _with_config(flags: dict[str, Any], cwd: Path) -> dict[str, Any]:
    """Flags of the file named by `--config` below those of the command line, as vLLM takes them."""
    if "config" not in flags:
        return flags
    data = yaml.safe_load((cwd / str(flags["config"])).read_text("utf-8"))
    return {**{str(name).replace("_", "-"): value for name, value in data.items()}, **flags}


def _published(metrics: str) -> dict[str, Any]:
    """The flags that `vllm:cache_config_info` tells."""
    labels = cache_config(metrics)
    told = {flag: labels.get(flag.replace("-", "_")) for flag in ("kv-cache-memory-bytes", "enable-prefix-caching")}
    return {flag: value.lower() if value in ("True", "False") else value for flag, value in told.items() if value}
