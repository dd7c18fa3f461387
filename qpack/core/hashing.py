"""Files and folders by their content."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import stat
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import TypeVar

from qpack.core.errors import QuantizeError
from qpack.core.problems import FILE_SYSTEM, NOT_A_FILE, NOT_A_FOLDER
from qpack.core.records import FileRecord

T = TypeVar("T")
U = TypeVar("U")

# Python and pytest import these by themselves, from wherever they find them.
_BY_ITSELF = frozenset(("__init__", "__main__", "conftest", "sitecustomize", "usercustomize"))
_STANDARD = frozenset(module.casefold() for module in sys.stdlib_module_names)
# What every engine's environment imports first.
_ENGINES = frozenset(
    (
        *("torch", "numpy", "transformers", "tokenizers", "safetensors", "huggingface_hub", "vllm", "accelerate"),
        *("datasets", "pydantic", "fastapi", "uvicorn", "requests", "httpx", "yaml", "jinja2", "regex", "tqdm", "six"),
        *("packaging", "filelock", "scipy", "sentencepiece", "tiktoken", "google", "openai", "ray", "psutil", "uvloop"),
        *("compressed_tensors", "llmcompressor", "gptqmodel", "awq", "auto_gptq", "triton", "typing_extensions"),
        *("cloudpickle", "msgspec", "zmq", "prometheus_client", "starlette", "anyio", "idna", "certifi", "urllib3"),
    )
)


_TICK_NS = 50_000_000  # the kernel's clock for files moves every 1 to 10 ms
_COARSE_NS = 2_000_000_000  # file systems that keep whole seconds
# What this process has read, by the file's state: an artifact of 100 GB is digested, sealed and laid out.
_read: dict[tuple[int, ...], str] = {}


def open_regular(path: Path) -> io.BufferedReader:
    """Open a file to read its bytes. Raises OSError for anything but a regular file, without waiting: a pipe has no end
    until somebody writes to it, and a device may have none at all.
    """
    # Looked at before it is opened, which may do something to a device, and again once nobody can exchange it.
    _regular(path.stat(), path)
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        _regular(os.fstat(descriptor), path)
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def _regular(state: os.stat_result, path: Path) -> None:
    if stat.S_ISDIR(state.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(state.st_mode):
        raise OSError(errno.EINVAL, "it is a pipe, a device or a socket, and no regular file", str(path))


def sha256(path: Path) -> str:
    """The SHA-256 of a regular file's content, as hex."""
    with open_regular(path) as file:
        before, now = os.fstat(file.fileno()), time.time_ns()
        found = hashlib.file_digest(file, "sha256").hexdigest()
        if settled(before, now) and _state(before) == _state(os.fstat(file.fileno())):
            _read[_state(before)] = found
    return found


def sha256_once(path: Path) -> str:
    """The same, from memory where this process has read the file and it wasn't touched since."""
    return _read.get(_state(path.stat())) or sha256(path)


def settled(state: os.stat_result, now_ns: int) -> bool:
    """Whether a change of the file from `now_ns` on would show in its time of change."""
    tick = _COARSE_NS if state.st_ctime_ns % 1_000_000_000 == 0 else _TICK_NS
    return state.st_ctime_ns + tick < now_ns


def _state(state: os.stat_result) -> tuple[int, ...]:
    return (state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns)


def takes_the_place_of_a_module(name: str) -> bool:
    """Whether a Python file of this name, in the folder that Python was started in, is imported for another module: of
    the standard library, of an engine, or one that Python and pytest look for by themselves.
    """
    module = name.removesuffix(".py").casefold()
    return module in _BY_ITSELF or module in _ENGINES or module in _STANDARD


def in_threads(work: Callable[[T], U], items: Iterable[T]) -> tuple[U, ...]:
    """`work` on every item, in order. Hashing and copying let go of the interpreter lock, so threads help."""
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        return tuple(pool.map(work, items))


def digest_tree(folder: Path, *, links: bool = True) -> tuple[tuple[FileRecord, ...], str]:
    """Every file below `folder`, sorted by path, and the digest of them all.

    The digest is the SHA-256 (hex) over the lines `path NUL sha256 LF`, sorted by path; sizes and times don't count.
    Links to files count as the files, unless `links` forbids them. Raises QuantizeError when `folder` can't be read or
    holds what isn't a file.
    """
    try:
        paths = _walk(folder, links)
        digests = in_threads(lambda path: sha256(folder / path), paths)
        sizes = [(folder / path).stat().st_size for path in paths]
    except OSError as error:
        raise QuantizeError(
            FILE_SYSTEM,
            f"{error.filename or folder}: {error.strerror}",
            hint="Check that the folder and its files can be read.",
        ) from error
    records = tuple(
        FileRecord(path=path, size_bytes=size, sha256=digest)
        for path, size, digest in zip(paths, sizes, digests, strict=True)
    )
    return records, digest_of(records)


def digest_of(records: tuple[FileRecord, ...]) -> str:
    """The digest of a folder with these files; see `digest_tree`."""
    lines = (f"{record.path}\0{record.sha256}\n" for record in sorted(records, key=lambda record: record.path))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _walk(folder: Path, links: bool) -> tuple[str, ...]:
    if not folder.is_dir():
        raise QuantizeError(
            NOT_A_FOLDER, f"{folder} is not a folder", hint="Run the same command again: the stage is made anew."
        )
    found = []
    for parent, folders, files in os.walk(folder, onerror=_raise):
        here = Path(parent)
        if odd := [name for name in folders if (here / name).is_symlink()]:
            raise QuantizeError(
                NOT_A_FILE, f"{here / odd[0]} is a link to a folder", hint="Put the folder itself there."
            )
        for name in files:
            if not links and (here / name).is_symlink():
                raise QuantizeError(NOT_A_FILE, f"{here / name} is a link", hint="Put the file itself there.")
            if not (here / name).is_file():
                raise QuantizeError(NOT_A_FILE, f"{here / name} is a broken link or a special file", hint="Remove it.")
            found.append(PurePosixPath((here / name).relative_to(folder)).as_posix())
    return tuple(sorted(found))


def _raise(error: OSError) -> None:
    raise error
