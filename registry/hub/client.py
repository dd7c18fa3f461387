"""The huggingface_hub client with bounds on the size and content of answers.

The client reads, unpacks and trusts whole answers. A malicious server or proxy must not fill memory or disk.
"""

from __future__ import annotations

import contextlib
import functools
import re
import zlib
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from qpack.core.errors import RegistryError
from registry.core.codes import NOT_A_REGISTRY, TOO_LARGE

if TYPE_CHECKING:
    import httpx2
    from huggingface_hub import HfApi

MOST_BYTES = 8 * 2**20
"""The largest list or record that is read. A page of a commit's files has a thousand lines of about 300 bytes."""

_limit: ContextVar[int] = ContextVar("limit", default=MOST_BYTES)


@contextlib.contextmanager
def at_most(size_bytes: int) -> Iterator[None]:
    """Allow answers of that many bytes in the block, to download a file of known size."""
    token = _limit.set(max(size_bytes, MOST_BYTES))
    try:
        yield
    finally:
        _limit.reset(token)


def api(endpoint: str | None) -> HfApi:
    """The client. `endpoint` None is HF_ENDPOINT or huggingface.co."""
    from huggingface_hub import HfApi
    from huggingface_hub.utils.tqdm import disable_progress_bars

    # qpack shows progress itself.
    disable_progress_bars()
    _bound_all()
    return HfApi(endpoint=endpoint, library_name="qpack")


def commit_id(value: object, name: str) -> str:
    """`value` if it is a commit, else RegistryError: it becomes part of URLs."""
    if not isinstance(value, str) or not re.fullmatch(r"[0-9a-f]{40}(?:[0-9a-f]{24})?", value):
        raise unusable(name, "not a commit")
    return value


def size_of(item: Any, name: str) -> int:
    """The size of a file on the Hub, or RegistryError if it isn't a number of bytes."""
    if type(item.size) is not int or item.size < 0:
        raise unusable(name, "not a file size")
    return int(item.size)


def unusable(name: str, why: str) -> RegistryError:
    """The error for an invalid answer of the Hub."""
    return RegistryError(
        NOT_A_REGISTRY, f"hf://{name}: the Hub's answer can't be used: {why}", hint="Check HF_ENDPOINT."
    )


@functools.cache
def _bound_all() -> None:
    """Bound every answer that the client reads. Its factory is global to the process."""
    from huggingface_hub import set_client_factory
    from huggingface_hub.utils._http import default_client_factory

    def bounded() -> httpx2.Client:
        client = default_client_factory()
        client.headers["Accept-Encoding"] = "identity"
        client.max_redirects = 5
        client.event_hooks = {**client.event_hooks, "response": [*client.event_hooks["response"], _bound]}
        return client

    set_client_factory(bounded)


def _bound(response: httpx2.Response) -> None:
    """Limit how much of an answer is read. Unpacks answers that are packed although `identity` was requested."""
    packed = response.headers.pop("content-encoding", "identity").lower()
    if packed not in ("identity", "gzip", "deflate"):
        raise RegistryError(
            NOT_A_REGISTRY, f"{response.url.host} packs its answers as {packed[:40]!r}", hint="Check HF_ENDPOINT."
        )
    response.stream = _bounded_stream(response.stream, packed != "identity", _limit.get(), response.url.host)


def _bounded_stream(stream: Any, packed: bool, limit: int, host: str) -> httpx2.SyncByteStream:
    import httpx2

    class Bounded(httpx2.SyncByteStream):
        def __iter__(self) -> Iterator[bytes]:
            count = 0
            for chunk in unpacked(stream, limit) if packed else stream:
                count += len(chunk)
                if count > limit:
                    raise RegistryError(
                        TOO_LARGE, f"an answer of {host} is larger than {limit:,} bytes", hint="Check HF_ENDPOINT."
                    )
                yield chunk

        def close(self) -> None:
            stream.close()

    return Bounded()


def unpacked(stream: Iterable[bytes], most: int) -> Iterator[bytes]:
    """Unpack gzip or zlib data, in pieces of at most `most` + 1 bytes. Raises ValueError for other data."""
    unpacker = zlib.decompressobj(32 + zlib.MAX_WBITS)
    for chunk in stream:
        try:
            yield unpacker.decompress(chunk, most + 1)
        except zlib.error as error:
            raise ValueError(f"it can't be unpacked ({error})") from error
