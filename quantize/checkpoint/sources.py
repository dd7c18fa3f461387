"""Sources of models and texts: `hf://org/name@revision`, a folder or file, `pkg://distribution/path`.

`find` inspects a model without loading it: headers, config and the list of files. It reports problems before anything
starts, and lists what it could not check (an unreachable Hub) instead of guessing.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from dataclasses import replace
from importlib.metadata import PackageNotFoundError
from pathlib import Path

from qpack.core import checkpoint_files, packages
from qpack.core.errors import QuantizeError
from qpack.core.hashing import in_threads, takes_the_place_of_a_module
from qpack.core.jsonfile import NotJson
from qpack.core.problems import NO_SUCH_FILE, UNREADABLE_FILE, Code, Location, Problem
from qpack.core.records import FileRecord
from quantize.checkpoint import gguf, hub, model_config, shards
from quantize.checkpoint.headers import Tensor, bytes_of, read_safetensors
from quantize.checkpoint.model_config import ModelConfig
from quantize.checkpoint.source import Source

_NO_CHECKPOINT = Code("no-checkpoint", "The source is no checkpoint: a folder, or a GGUF.")
_NOT_SERVED = Code(
    "not-publishable", "A file of a checkpoint is a link out of its folder, a folder, or a special file."
)
_NO_PACKAGE = Code("no-package", "A Python package isn't installed.")
_NAME_IT = "Name a checkpoint's folder, or a GGUF."
_SERVED = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken", "*.py")
_LICENCES = ("LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*")

Digest = Callable[[Path], str]
"""SHA-256 of a file; the caller may cache it."""


def file_of(uri: str, base: Path) -> Path:
    """The file of a `pkg://` URI or a path. Raises QuantizeError if there is none."""
    if not uri.startswith("pkg://"):
        try:
            path = (base / Path(uri).expanduser()).absolute()
            path.stat()
        except (OSError, RuntimeError, ValueError) as error:
            # Too long, a loop of links, no permission, an unknown user's home.
            gone = isinstance(error, FileNotFoundError | NotADirectoryError)
            why = "no such file or folder." if gone else f"can't be looked at: {_reason(error)}."
            hint = f"Looked for {path}." if gone else ""
            raise QuantizeError(NO_SUCH_FILE, f"{uri}: {why}", hint=hint) from None
        return path
    name, _, wanted = uri.removeprefix("pkg://").partition("/")
    try:
        found = packages.distribution(name)
    except PackageNotFoundError:
        raise QuantizeError(
            _NO_PACKAGE,
            f"{uri}: the Python package '{name}' is not installed",
            hint="`qpack envs build demo` installs the demo's packages; any other needs `pip install --no-deps`.",
        ) from None
    for file in found.files or []:
        if file.as_posix() == wanted:
            return Path(str(file.locate())).resolve()
    like = [f.as_posix() for f in found.files or [] if f.suffix == Path(wanted).suffix][:5]
    raise QuantizeError(
        NO_SUCH_FILE,
        f"{uri}: the package '{name}' ships no such file",
        hint=f"It ships, for example: {', '.join(like)}." if like else "",
    )


def version_of(uri: str) -> str:
    """A `pkg://` URI with the package's version; other URIs unchanged."""
    if not uri.startswith("pkg://"):
        return uri
    name, _, path = uri.removeprefix("pkg://").partition("/")
    return f"pkg://{name}=={packages.distribution(name).version}/{path}"


def find(uri: str, base: Path, digest: Digest | None, *, linked: bool = False) -> tuple[Source | None, list[Problem]]:
    """Inspect a model. With `digest` None no large file is hashed, and `content` may be None. `linked`: the folder was
    made by qpack, of links to an inspected model.
    """
    if uri.startswith("hf://"):
        return hub.find(uri)
    try:
        path = file_of(uri, base)
    except QuantizeError as error:
        return None, [Problem(NO_SUCH_FILE, error.what, hint=error.hint)]
    if path.is_file():
        return _find_gguf(uri, path, digest)
    if not linked and (odd := not_served(path)):
        return None, odd
    return _find_folder(uri, path, digest)


def _reason(error: Exception) -> str:
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)


def _find_gguf(uri: str, path: Path, digest: Digest | None) -> tuple[Source | None, list[Problem]]:
    if path.suffix != ".gguf":
        what = f"{path.name}: a single file has to be a GGUF; a checkpoint is a folder"
        return None, [Problem(_NO_CHECKPOINT, what, hint="Name the folder.")]
    tensors, metadata, problems = gguf.read_gguf(path)
    if problems:
        return None, problems
    config, wrong = model_config.read(gguf.config(metadata), str(path))
    if wrong:
        return None, [replace(wrong[0], where=Location(str(path), key=("general.architecture",)))]
    license_name, licence_file = _package_licence(uri)
    declared = metadata.get("general.license")
    return Source(
        uri=uri,
        kind="gguf",
        resolved=version_of(uri),
        path=path,
        content=digest(path) if digest else None,
        tensors=tensors,
        config=config,
        license=declared if isinstance(declared, str) and declared else license_name,
        licence_file=licence_file,
    ), []


def _package_licence(uri: str) -> tuple[str | None, Path | None]:
    if not uri.startswith("pkg://"):
        return None, None
    found = packages.distribution(uri.removeprefix("pkg://").partition("/")[0])
    fields = found.metadata.json
    named = fields.get("license_expression") or fields.get("license")
    files = [f for f in found.files or [] if Path(f.as_posix()).match("LICEN[CS]E*")]
    return str(named) if named else None, Path(str(files[0].locate())) if files else None


def _find_folder(uri: str, path: Path, digest: Digest | None) -> tuple[Source | None, list[Problem]]:
    if not path.is_dir():
        return None, [Problem(_NO_CHECKPOINT, "is neither a file nor a folder", Location(str(path)), _NAME_IT)]
    try:
        names = {file.name for file in path.iterdir() if file.is_file()}
    except OSError as error:
        return None, [Problem(UNREADABLE_FILE, f"can't be looked at: {_reason(error)}", Location(str(path)))]
    weights = sorted(path / name for name in names if name.endswith(".safetensors"))
    problems: list[Problem] = []
    where = Location(str(path))
    problems += checkpoint_files.no_config(names, where)
    problems += checkpoint_files.no_tokenizer(names, where, tekken=False)
    problems += checkpoint_files.no_weights(names, where)
    problems += _missing_shards(path, names)
    config: ModelConfig = {}
    if "config.json" in names:
        config, wrong = model_config.read_file(path / "config.json")
        config = model_config.with_sidecar(config, path)
        problems += wrong
    tensors: list[Tensor] = []
    for file in weights:
        found, wrong = read_safetensors(file)
        tensors += found
        problems += wrong
    if problems:
        return None, problems
    licences = [file for pattern in _LICENCES for file in sorted(path.glob(pattern))]
    return Source(
        uri=uri,
        kind="folder",
        resolved=uri,
        path=path,
        content=_folder_digest(path, digest) if digest else None,
        tensors=tuple(tensors),
        config=config,
        licence_file=licences[0] if licences else None,
    ), []


def _missing_shards(path: Path, names: set[str]) -> list[Problem]:
    index = Location(str(path / shards.INDEX))
    if shards.INDEX not in names:
        return []
    try:
        wanted = shards.read(path / shards.INDEX)
    except NotJson as error:
        return [Problem(model_config.NOT_JSON, f"{error}.", index, "Download it again.")]
    except OSError as error:
        return [Problem(UNREADABLE_FILE, f"can't be read: {_reason(error)}.", index, "Download it again.")]
    return checkpoint_files.missing_shards(wanted, names, index)


def _folder_digest(path: Path, digest: Digest) -> str:
    whole = hashlib.sha256()
    files = sorted(served_files(path))
    # Threads: hashing lets go of the interpreter's lock, and a large model has many files.
    for file, found in zip(files, in_threads(digest, files), strict=True):
        whole.update(f"{file.name}\0{found}\n".encode())
    return whole.hexdigest()


def content_of(records: Iterable[FileRecord]) -> str:
    """The `content` of a folder with these files."""
    lines = (f"{record.path}\0{record.sha256}\n" for record in sorted(records, key=lambda record: record.path))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def served_files(path: Path) -> list[Path]:
    """The relevant files of a checkpoint folder: weights, JSON, tokenizer, templates, licence. No pickles, no caches,
    and no Python file that would shadow another module in that folder.
    """
    found = {file for pattern in (*_SERVED, *_LICENCES) for file in path.glob(pattern) if file.is_file()}
    return sorted(file for file in found if not (file.suffix == ".py" and takes_the_place_of_a_module(file.name)))


def not_served(path: Path) -> list[Problem]:
    """Entries of a checkpoint folder that can't be published: links that leave the folder, folders, special files. With
    them, the folder's author could choose which files of this machine become public.

    In the Hugging Face cache, links from `snapshots/COMMIT` into `blobs` are allowed.
    """
    root = path.resolve()
    blobs = root.parent.parent / "blobs" if root.parent.name == "snapshots" else None
    problems = []
    for name in sorted({file.name for pattern in (*_SERVED, *_LICENCES) for file in path.glob(pattern)}):
        file = path / name
        if file.is_symlink():
            target = Path(os.path.realpath(file))  # also for a link to itself
            if not target.is_relative_to(root) and (blobs is None or target.parent != blobs):
                what = f"is a link to {target}, which is outside of the model's folder."
                hint = "Put the file itself there, or name the folder that has it."
                problems.append(Problem(_NOT_SERVED, what, Location(str(file)), hint))
                continue
        if not file.exists():
            problems.append(
                Problem(_NOT_SERVED, "is a link to nothing.", Location(str(file)), "Remove it, or put the file there.")
            )
        elif not file.is_file() and any(file.match(pattern) for pattern in _SERVED):
            kind = "folder" if file.is_dir() else "special file"
            what = f"is a {kind}, named like a file of a checkpoint."
            problems.append(Problem(_NOT_SERVED, what, Location(str(file)), "Remove it."))
    return problems


def weights_bytes(tensors: tuple[Tensor, ...]) -> int:
    """Bytes of safetensors tensors."""
    return sum(bytes_of(tensor) for tensor in tensors)
