"""Drift: how a running server differs from its release (`qpack drift`).

Version, model and metrics are requested from the server. Arguments, variables and files are read from its process if it
runs on this machine; else only what /v1/models and `vllm:cache_config_info` publish is compared, and the rest is listed
as not compared.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import urlsplit

import httpx
import psutil
import yaml

from evals.server.client import authorization, checked, decoded, unreachable
from evals.server.codes import NOT_A_SERVER
from evals.server.memory import cache_config, scrape
from qpack.core.errors import EvaluateError
from qpack.core.hashing import sha256
from qpack.core.records import FileRecord

Flags: TypeAlias = Mapping[str, Any]
"""Flags by name without dashes: True for a bare one, False for `--no-`, a list for several values."""

COMMAND_LINE = "its command line"

# A server's address and the location of its files are no drift.
_PLACE = frozenset({"model", "host", "port", "config", "uds", "api-key", "root-path"})


@dataclass(frozen=True)
class Expected:
    """What the manifest says. `flags` are those of the command line, by name without dashes; `environment` the
    variables that it sets (others are ignored). `defaults` are flags that it doesn't set, with the effective values of
    the measured server.
    """

    version: str
    model: str
    max_model_len: int
    flags: Flags
    metrics: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    defaults: Flags = field(default_factory=dict)


@dataclass(frozen=True)
class Seen:
    """What a server reports. `flags` is None where its arguments aren't visible; `source` says where they are from.
    `environment` is None where its variables aren't visible, `folder` (the model's) where its files aren't.
    """

    version: str
    models: Mapping[str, int | None]
    fingerprint: str | None
    metrics: str
    flags: Flags | None
    source: str
    environment: Mapping[str, str] | None = None
    folder: Path | None = None


@dataclass(frozen=True)
class Difference:
    """One difference from the manifest."""

    what: str
    expected: str
    found: str


@dataclass(frozen=True)
class Drift:
    """All differences, and what wasn't compared."""

    differences: tuple[Difference, ...]
    arguments_from: str
    unseen: tuple[str, ...] = field(default=())


def read_server(base_url: str, model: str, timeout: float = 60.0) -> Seen:
    """Query the server. Raises EvaluateError when it doesn't respond."""
    try:
        with httpx.Client(base_url=base_url, headers=authorization(), timeout=timeout) as client:
            version = str(decoded(checked(client.get("/version")))["version"])
            entries = decoded(checked(client.get("/v1/models")))["data"]
            models = {str(entry["id"]): entry.get("max_model_len") for entry in entries}
            fingerprint = _fingerprint(client, model if model in models else next(iter(models), model))
    except httpx.HTTPError as error:
        raise unreachable(base_url, error, timeout) from error
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise EvaluateError(NOT_A_SERVER, f"{base_url} isn't a vLLM server", hint="Check host and port.") from error
    flags, environment, cwd = _process(base_url)
    folder = cwd / str(flags["model"]) if flags is not None and cwd is not None and "model" in flags else None
    source = COMMAND_LINE if flags is not None else "/metrics alone: the server doesn't run on this machine"
    return Seen(version, models, fingerprint, scrape(base_url), flags, source, environment, folder)


def compare(expected: Expected, seen: Seen) -> Drift:
    """Compare. Pure."""
    found: list[Difference] = []

    def hold(what: str, wanted: object, there: object) -> None:
        if str(wanted) != str(there):
            found.append(Difference(what, str(wanted), str(there)))

    hold("version", expected.version, seen.version)
    if expected.model not in seen.models:
        found.append(Difference("model", expected.model, ", ".join(seen.models) or "none"))
    else:
        hold("max_model_len", expected.max_model_len, seen.models[expected.model])
    if seen.fingerprint and (wanted_print := _expected_fingerprint(expected)) is not None:
        custom = expected.flags.get("fingerprint-mode") == "custom"
        # The last part is a hash of vLLM's configuration, model path included: it depends on the location.
        hold("system_fingerprint", wanted_print, seen.fingerprint if custom else seen.fingerprint.rpartition("-")[0])
    there = dict(seen.flags) if seen.flags is not None else _published(seen.metrics)
    wanted = {flag: value for flag, value in expected.flags.items() if flag not in _PLACE}
    # Only a command line shows which flags are not set; the metrics have defaults too, and not every flag.
    if seen.source != COMMAND_LINE:
        wanted = {**{flag: value for flag, value in expected.defaults.items() if flag in there}, **wanted}
    flags = (set(wanted) | set(there)) - _PLACE if seen.source == COMMAND_LINE else set(wanted) & set(there)
    for flag in sorted(flags):
        hold(f"--{flag}", _plain(wanted.get(flag, "not set")), _plain(there.get(flag, "not set")))
    if seen.environment is not None:
        for name, value in sorted(expected.environment.items()):
            hold(name, value, seen.environment.get(name, "not set"))
    names = {line.partition("{")[0].partition(" ")[0] for line in seen.metrics.splitlines()}
    found += [Difference(f"metric {name}", "there", "missing") for name in expected.metrics if name not in names]
    unseen = [] if seen.source == COMMAND_LINE else sorted(set(wanted) - set(there))
    if seen.environment is None:
        unseen += sorted(expected.environment)
    return Drift(tuple(found), seen.source, tuple(unseen))


def changed_files(folder: Path | None, records: Sequence[FileRecord]) -> Drift:
    """How the files in the server's model folder differ from the release's: small ones by digest, large ones by size (a
    running server has read its weights already, and hashing them takes minutes).
    """
    if folder is None or not folder.is_dir():
        return Drift((), COMMAND_LINE, ("the model's files",))
    found = []
    for record in records:
        path = folder / record.path
        size = path.stat().st_size if path.is_file() else None
        if size is None:
            found.append(Difference(f"model/{record.path}", "there", "missing"))
        elif size != record.size_bytes:
            found.append(Difference(f"model/{record.path}", f"{record.size_bytes} bytes", f"{size} bytes"))
        elif size <= SMALL and (digest := sha256(path)) != record.sha256:
            found.append(Difference(f"model/{record.path}", f"sha256:{record.sha256}", f"sha256:{digest}"))
    return Drift(tuple(found), COMMAND_LINE)


SMALL = 64 * 2**20
"""Bytes up to which a file is hashed."""

# In this order, each if above 1 (vllm/entrypoints/serve/utils/fingerprint.py of 0.32).
_PARALLEL = {"tp": "tensor-parallel-size", "pp": "pipeline-parallel-size", "dp": "data-parallel-size"}


def _expected_fingerprint(expected: Expected) -> str | None:
    """`system_fingerprint` without its hash; None where the manifest disables it."""
    mode = expected.flags.get("fingerprint-mode", "full")
    if mode == "none":
        return None
    if mode == "custom":
        return str(expected.flags.get("fingerprint-value"))
    parts = [f"vllm-{expected.version}"]
    if mode == "full":
        sizes = {short: str(expected.flags.get(flag, 1)) for short, flag in _PARALLEL.items()}
        parts += [short + size for short, size in sizes.items() if size != "1"]
        parts += ["ep"] if expected.flags.get("enable-expert-parallel") is True else []
    return "-".join(parts)


def parse(words: Sequence[str]) -> Flags:
    """The flags of a command line."""
    found: dict[str, Any] = {}
    flag = ""
    for word in words:
        if word.startswith("--"):
            flag, equals, value = word.removeprefix("--").partition("=")
            flag = flag.replace("_", "-")
            if equals:
                before = found.get(flag)
                several = [*(before if isinstance(before, list) else [before]), value]
                found[flag] = value if before is None else several
            elif flag.startswith("no-"):
                found[flag.removeprefix("no-")] = False
            else:
                found[flag] = True
        elif flag:
            before = found.get(flag)
            found[flag] = word if before is True else [*(before if isinstance(before, list) else [before]), word]
    return found


def _plain(value: Any) -> str:
    """A value in comparable form: numbers as text, JSON with sorted keys."""
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
    value = decoded(checked(client.post("/v1/completions", json=body))).get("system_fingerprint")
    return str(value) if value else None


def _process(base_url: str) -> tuple[Flags | None, Mapping[str, str] | None, Path | None]:
    """Flags, variables at start, and working directory of the process that listens on the URL's port, if it is on this
    machine and readable.
    """
    address = urlsplit(base_url)
    if address.hostname not in ("127.0.0.1", "localhost", "::1"):
        return None, None, None
    try:
        sockets = [c for c in psutil.net_connections("tcp") if c.status == psutil.CONN_LISTEN]
        pids = {c.pid for c in sockets if getattr(c.laddr, "port", None) == (address.port or 80) and c.pid is not None}
        for pid in sorted(pids):
            process = psutil.Process(pid)
            line = process.cmdline()
            start = next((i for i, word in enumerate(line) if word == "serve" or word.endswith("api_server")), None)
            if start is not None:
                cwd = Path(process.cwd())
                return _with_config(parse(line[start + 1 :]), cwd), process.environ(), cwd
    except (psutil.Error, OSError, ValueError, OverflowError, RecursionError, yaml.YAMLError):
        # How it was started isn't known, e.g. because its flags file was overwritten.
        return None, None, None
    return None, None, None


def _with_config(flags: Flags, cwd: Path) -> Flags:
    """Flags of the `--config` file, overridden by those of the command line, as in vLLM."""
    if "config" not in flags:
        return flags
    data = yaml.safe_load((cwd / str(flags["config"])).read_text("utf-8"))
    if not isinstance(data, dict):
        raise ValueError(f"{flags['config']} has no flags")
    return {**{str(name).replace("_", "-"): value for name, value in data.items()}, **flags}


_LABELS = {
    "kv-cache-memory-bytes": "kv_cache_memory_bytes",
    "enable-prefix-caching": "enable_prefix_caching",
    "kv-cache-dtype": "cache_dtype",
}


def _published(metrics: str) -> Flags:
    """The flags in `vllm:cache_config_info`."""
    labels = cache_config(metrics)
    found = {flag: labels.get(label) for flag, label in _LABELS.items()}
    return {flag: value.lower() if value in ("True", "False") else value for flag, value in found.items() if value}
