"""Memory of a model and of its running server.

A server reserves memory, so a GPU's used memory is the reservation, not the model. Weights are from the files' headers
and vLLM's log, the KV cache from vLLM's metrics (its log for versions that don't publish it), resident memory from the
kernel. A missing figure is an error that names the expected line; nothing is estimated.
"""

from __future__ import annotations

import os
import re
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

from evals.server.client import checked, unreachable
from qpack.core import jsonfile
from qpack.core.errors import EvaluateError
from qpack.core.findings import EffectiveDefaults
from qpack.core.hashing import open_regular
from qpack.core.problems import Code
from qpack.core.records import Memory

_UNREADABLE_WEIGHTS = Code("unreadable-weights", "The weights' headers or index can't be read.")
_NO_LOG_LINE = Code("no-log-line", "The server's log lacks a line that memory is read from.")
_PROCESS_MEMORY = Code("process-memory", "The memory of a process can't be read.")

_GIB = 1 << 30
# vLLM 0.26 to 0.33. A figure may be a float of GiB ("14.96") or a count with commas ("46,592").
_LOADED = re.compile(r"Model loading took (?P<gib>[\d.]+) ?GiB")
_TOKENS = re.compile(r"(?:GPU|CPU|XPU|TPU) KV cache size: (?P<tokens>[\d,]+) tokens")
_AVAILABLE = re.compile(r"Available KV cache memory: (?P<gib>[\d.]+) GiB")
_CPU_SET = re.compile(r"(?:Explicitly|Auto) set \((?P<gib>[\d.]+)/[\d.]+\) GiB for KV cache")
_METRIC = re.compile(r"^vllm:cache_config_info\{(?P<labels>.*)\} ", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


@dataclass(frozen=True)
class KvCache:
    """The KV cache: bytes per worker, and tokens of the whole server."""

    bytes: int
    tokens: int


def weights_bytes(model: Path) -> int:
    """Bytes of all tensors in the model's safetensors files, from their headers.

    Raises EvaluateError without such a file, or when a size differs from its header.
    Format: https://huggingface.co/docs/safetensors (8 bytes little-endian header size, JSON header, data).
    """
    index = model / "model.safetensors.index.json"
    files = [model / name for name in _indexed(index)] if index.is_file() else sorted(model.glob("*.safetensors"))
    if not files:
        raise EvaluateError(_UNREADABLE_WEIGHTS, f"{model} has no *.safetensors file")
    return sum(_tensor_bytes(file) for file in files)


def _indexed(index: Path) -> list[str]:
    """The files that a tensor index names, all beside it."""
    try:
        names = set(jsonfile.read_object(index, jsonfile.MAX_INDEX_BYTES)["weight_map"].values())
        if wrong := [name for name in names if not isinstance(name, str) or name == ".." or Path(name).name != name]:
            raise ValueError(f"{str(wrong[0])[:80]!r} isn't a file beside it")
        return sorted(names)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise EvaluateError(
            _UNREADABLE_WEIGHTS, f"{index} isn't a tensor index: {error}", hint="Fetch or quantize it again."
        ) from error


def _tensor_bytes(file: Path) -> int:
    try:
        with open_regular(file) as opened:
            size = os.fstat(opened.fileno()).st_size
            (header_bytes,) = struct.unpack("<Q", opened.read(8))
            if header_bytes > min(size - 8, jsonfile.MAX_INDEX_BYTES):
                raise ValueError("the header is longer than the file, or than any header")
            header = jsonfile.loads(opened.read(header_bytes))
        tensors = [entry["data_offsets"] for name, entry in header.items() if name != "__metadata__"]
        end = max((offsets[1] for offsets in tensors), default=0)
        if 8 + header_bytes + end != size:
            raise ValueError(f"the header tells of {8 + header_bytes + end} bytes, the file has {size}")
        return sum(stop - start for start, stop in tensors)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, struct.error) as error:
        raise EvaluateError(
            _UNREADABLE_WEIGHTS, f"{file} isn't a whole safetensors file: {error}", hint="Fetch or quantize it again."
        ) from error


def weights_loaded_bytes(log: str) -> int | None:
    """The weights that vLLM loaded on one device, from its log (to 0.01 GiB); the largest of several workers.

    None on a CPU, where it isn't logged. With tensor parallelism some versions log only the first worker, so there is
    no sum.
    """
    loaded = [float(match["gib"]) for match in _LOADED.finditer(log)]
    return round(max(loaded) * _GIB) if loaded else None


def kv_cache(log: str, metrics: str) -> KvCache:
    """The KV cache, from `vllm:cache_config_info` if published, else from vLLM's log.

    Raises EvaluateError with the missing line.
    """
    labels = cache_config(metrics)
    tokens = _whole(labels.get("kv_cache_size_tokens"))
    if tokens is None:
        found = _TOKENS.search(log)
        if found is None:
            raise EvaluateError(
                _NO_LOG_LINE, "the server's log has no line '... KV cache size: N tokens'", hint=_OTHER_VERSION
            )
        tokens = int(found["tokens"].replace(",", ""))
    size = _whole(labels.get("kv_cache_memory_bytes"))
    if size is None:
        gib = [float(match["gib"]) for pattern in (_AVAILABLE, _CPU_SET) for match in pattern.finditer(log)]
        if not gib:
            raise EvaluateError(
                _NO_LOG_LINE,
                "the server's log has no line 'Available KV cache memory: N GiB', nor 'set (N/...) GiB for KV cache'",
                hint=_OTHER_VERSION,
            )
        size = round(min(gib) * _GIB)  # every worker has as many blocks as fit on the smallest
    return KvCache(bytes=size, tokens=tokens)


_OTHER_VERSION = "vLLM 0.26 to 0.33 write it. Is the log level above INFO, or is this another version?"


def cache_config(metrics: str) -> dict[str, str]:
    """The labels of `vllm:cache_config_info` in a Prometheus text; empty without it."""
    found = _METRIC.search(metrics)
    return dict(_LABEL.findall(found["labels"])) if found else {}


def effective_defaults(log: str, metrics: str) -> EffectiveDefaults:
    """The server's effective defaults: of the cache from its metrics, the rest from its log."""
    labels = cache_config(metrics)
    logged = {name: found[1] for name in _LOGGED if (found := re.search(rf"\b{name}=(\w+)", log))}

    def switch(text: str | None) -> bool | None:
        return {"True": True, "False": False}.get(text or "")

    return EffectiveDefaults(
        kv_cache_dtype=labels.get("cache_dtype") or logged.get("kv_cache_dtype"),
        prefix_caching=switch(labels.get("enable_prefix_caching") or logged.get("enable_prefix_caching")),
        chunked_prefill=switch(logged.get("enable_chunked_prefill")),
    )


# In the line "Initializing a V1 LLM engine (...) with config: ..." of vLLM 0.26 to 0.33.
_LOGGED = ("kv_cache_dtype", "enable_prefix_caching", "enable_chunked_prefill")


def _whole(text: str | None) -> int | None:
    """The number in a label, or None for a label that is missing or "None"."""
    return int(text) if text is not None and text.isdigit() else None


def scrape(base_url: str, timeout: float = 30.0) -> str:
    """The server's Prometheus text. Raises EvaluateError."""
    url = f"{base_url.rstrip('/')}/metrics"
    try:
        return checked(httpx.get(url, timeout=timeout)).text
    except httpx.HTTPError as error:
        raise unreachable(url, error, timeout) from error


def resident_bytes(root: int) -> int:
    """Proportional set size of process `root` and all its descendants, so that shared pages count once (Linux).

    A descendant that exits meanwhile counts nothing. Raises EvaluateError when `root` itself is gone.
    """
    try:
        parent = psutil.Process(root)
        total = int(parent.memory_full_info().pss)
        children = parent.children(recursive=True)
    except psutil.NoSuchProcess as error:
        raise EvaluateError(_PROCESS_MEMORY, f"the server's process {root} is gone", hint="See its log.") from error
    except psutil.AccessDenied as error:
        raise EvaluateError(
            _PROCESS_MEMORY, f"the memory of process {root} can't be read: /proc/{root}/smaps is denied"
        ) from error
    for child in children:
        try:
            total += int(child.memory_full_info().pss)
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
        except psutil.AccessDenied as error:
            raise EvaluateError(
                _PROCESS_MEMORY, f"the memory of process {child.pid} can't be read: its smaps is denied"
            ) from error
    return total


class Peak:
    """The largest resident memory seen so far, in bytes."""

    def __init__(self) -> None:
        self.bytes = 0

    def see(self, size: int) -> None:
        """Keep `size` if it is the largest."""
        self.bytes = max(self.bytes, size)


@contextmanager
def watch(root: int, interval: float = 2.0) -> Iterator[Peak]:
    """Sample `root`'s resident memory every `interval` seconds during the block, and once at its end.

    A sample walks the page tables (some ms per GiB), so `interval` shouldn't be short while latency is measured.
    """
    peak = Peak()
    over = threading.Event()

    def look() -> None:
        while not over.wait(interval):
            try:
                peak.see(resident_bytes(root))
            except EvaluateError:
                return  # the server's client reports its exit, with the log

    peak.see(resident_bytes(root))
    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield peak
        peak.see(resident_bytes(root))
    finally:
        over.set()
        thread.join()


def measure(*, model: Path, log: str, metrics: str, resident: int, peak_resident: int, start_seconds: float) -> Memory:
    """Memory from the folder `model`, the server's `log` and `metrics` texts, and the kernel's figures (bytes)."""
    cache = kv_cache(log, metrics)
    return Memory(
        weights_bytes=weights_bytes(model),
        weights_loaded_bytes=weights_loaded_bytes(log),
        kv_cache_bytes=cache.bytes,
        kv_cache_tokens=cache.tokens,
        resident_bytes=resident,
        peak_resident_bytes=max(resident, peak_resident),
        start_seconds=start_seconds,
    )
