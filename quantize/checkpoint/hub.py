"""Models and files on the Hugging Face Hub: resolved to a commit, and safetensors only.

The client reads tokens from the environment or its own store. Without a network, downloaded models still work by their
commit.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

from qpack.core import checkpoint_files, jsonfile
from qpack.core.errors import EnvironmentFailed, QuantizeError
from qpack.core.jsonfile import JsonObject
from qpack.core.problems import DISK_FULL, UNREADABLE_FILE, Code, Location, Problem
from quantize.checkpoint import model_config
from quantize.checkpoint.headers import Tensor, checked
from quantize.checkpoint.model_config import ModelConfig
from quantize.checkpoint.source import Source

# Files that servers and quantizers read; no pickled weights.
_SCALES = re.compile(r"\.(weight_scale(_2)?|scales|qzeros)$")
PATTERNS = [
    "*.safetensors",
    "*.json",
    "*.jinja",
    "*.model",
    "*.txt",
    "*.tiktoken",
    "*.py",
    "LICENSE*",
    "NOTICE*",
    "USE_POLICY*",
]


_COMMIT = re.compile(r"^[0-9a-f]{40}\Z")


@dataclass(frozen=True)
class Reference:
    """`hf://[datasets/]org/name[/file][@revision]`."""

    repository: str
    revision: str
    file: str = ""
    dataset: bool = False

    @classmethod
    def parse(cls, uri: str) -> Reference:
        """Parse a reference. Raises QuantizeError if it isn't one."""
        body, _, revision = uri.removeprefix("hf://").partition("@")
        revision = revision or "main"
        dataset = body.startswith("datasets/")
        parts = body.removeprefix("datasets/").split("/")
        # No part may lead elsewhere.
        plain = all(part not in ("", ".", "..") and part.isprintable() for part in [*parts, *revision.split("/")])
        if len(parts) < 2 or not plain or (len(parts) > 2) != dataset:
            raise QuantizeError(
                _SOURCE_ADDRESS,
                f"{uri}: not of the form hf://org/name@revision (texts: hf://datasets/org/name/file@revision)",
            )
        return cls("/".join(parts[:2]), revision, "/".join(parts[2:]), dataset)


_HUB_MODEL = Code("hub-model", "A model can't be had from the hub: no such repository or revision, or no access.")
_SOURCE_ADDRESS = Code("source-address", "An address of the Hub has another form than hf://org/name@revision.")
_NO_ACCESS = Code("no-access", "The Hub gives no access to a model or a text.")
_DOWNLOAD_FAILED = Code("download-failed", "A download from the Hub failed.")


def find(uri: str) -> tuple[Source | None, list[Problem]]:
    """Inspect a model on the Hub. If the Hub can't be reached, `unchecked` lists what that leaves open."""
    try:
        reference = Reference.parse(uri)
    except QuantizeError as error:
        return None, [Problem(_HUB_MODEL, error.what)]
    try:
        revision = _revision(reference)
    except _Unreachable as error:
        commit = _cached_commit(reference)
        if commit is None:
            unchecked = (
                f"revision, files, config, layer shapes, group size, access and licence of {uri}:"
                f" the Hub can't be reached ({error})",
            )
            return Source(uri=uri, kind="hub", resolved=uri, path=None, content=None, unchecked=unchecked), []
        revision = _Revision(commit)
    except QuantizeError as error:
        return None, [Problem(_HUB_MODEL, error.what, hint=error.hint)]
    names, commit = revision.files, revision.commit
    if names and (wrong := checkpoint_files.no_weights(names, Location(uri))):
        return None, [replace(wrong[0], hint="Look for a revision or a mirror with safetensors.")]
    try:
        config, tensors, left = _headers(reference, commit)
    except QuantizeError as error:
        return None, [Problem(_HUB_MODEL, error.what, hint=error.hint)]
    return Source(
        uri=uri,
        kind="hub",
        resolved=f"hf://{reference.repository}@{commit}",
        path=None,
        content=commit,
        tensors=tensors,
        config=config,
        license=revision.license,
        unchecked=left,
    ), []


class _Unreachable(Exception):
    """No answer from the Hub: no network, or no route."""


@dataclass(frozen=True)
class _Revision:
    """A revision on the Hub. Without a network neither files nor licence are known."""

    commit: str
    files: tuple[str, ...] = ()
    license: str | None = None


def _revision(reference: Reference) -> _Revision:
    import httpx2  # the client that huggingface_hub 2 uses; it raises its errors
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        info = HfApi().model_info(reference.repository, revision=reference.revision, timeout=10)
    except GatedRepoError as error:
        raise QuantizeError(_NO_ACCESS, _gated(reference), hint=_ACCESS.format(reference.repository)) from error
    except RepositoryNotFoundError as error:
        raise QuantizeError(
            _HUB_MODEL,
            f"hf://{reference.repository}: the Hub has no such model, or it is private",
            hint="Check the name; for a private one set HF_TOKEN.",
        ) from error
    except RevisionNotFoundError as error:
        raise QuantizeError(
            _HUB_MODEL,
            f"hf://{reference.repository}: has no revision '{reference.revision}'",
            hint="Name a branch, tag or commit.",
        ) from error
    except (OfflineModeIsEnabled, httpx2.HTTPError, OSError) as error:
        if (
            isinstance(error, HfHubHTTPError)
            and error.response is not None
            and error.response.status_code in (401, 403)
        ):
            raise QuantizeError(_NO_ACCESS, _gated(reference), hint=_ACCESS.format(reference.repository)) from error
        raise _Unreachable(type(error).__name__) from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise QuantizeError(
            _HUB_MODEL,
            f"hf://{reference.repository}: invalid name or answer of the Hub: {str(error)[:200]}",
            hint="Check the name, and HF_ENDPOINT.",
        ) from error
    if not _COMMIT.match(str(info.sha)):
        raise QuantizeError(
            _HUB_MODEL, f"hf://{reference.repository}: the Hub's answer has no commit", hint="Check HF_ENDPOINT."
        )
    if info.gated and not _token():
        raise QuantizeError(_NO_ACCESS, _gated(reference), hint=_ACCESS.format(reference.repository))
    card = info.card_data
    license_name = card.get("license") if card else None
    return _Revision(
        commit=str(info.sha),
        files=tuple(sibling.rfilename for sibling in info.siblings or []),
        license=license_name if isinstance(license_name, str) else None,
    )


_ACCESS = (
    "Accept its terms on the model's page, then set HF_TOKEN to a token with read access, or run `hf auth login` ({})."
)


def _gated(reference: Reference) -> str:
    return f"hf://{reference.repository}: this model is gated, and there is no token with access"


def _token() -> str | None:
    from huggingface_hub import get_token

    return get_token()


def _cached_commit(reference: Reference) -> str | None:
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=reference.repository, repo_type="model")
    if len(reference.revision) == 40 and (folder / "snapshots" / reference.revision).is_dir():
        return reference.revision
    try:
        commit = (folder / "refs" / reference.revision).read_text().strip()
    except (OSError, ValueError):
        return None
    return commit if _COMMIT.match(commit) else None


def _headers(reference: Reference, commit: str) -> tuple[ModelConfig, tuple[Tensor, ...], tuple[str, ...]]:
    """Config and tensor shapes. Reads safetensors headers with range requests: a few hundred kilobytes per model."""
    from huggingface_hub import HfApi, hf_hub_download

    try:
        file = Path(hf_hub_download(reference.repository, "config.json", revision=commit))
    except Exception as error:
        return {}, (), (f"config and layer shapes of hf://{reference.repository} ({type(error).__name__})",)
    config, problems = model_config.read_file(file)
    if problems:
        place = f"hf://{reference.repository}@{commit}/config.json"
        raise QuantizeError(UNREADABLE_FILE, f"{place}: {problems[0].text}", hint="Use another revision of the model.")
    try:
        metadata = HfApi().get_safetensors_metadata(reference.repository, revision=commit)
    except Exception as error:
        return config, (), (f"layer shapes of hf://{reference.repository} ({type(error).__name__})",)
    tensors: list[Tensor] = []
    for header in metadata.files_metadata.values():
        for name, info in header.tensors.items():
            tensor = checked(name, info.dtype, info.shape, None)
            if isinstance(tensor, str):
                raise QuantizeError(
                    UNREADABLE_FILE, f"hf://{reference.repository}@{commit}: {tensor}", hint="Use another revision."
                )
            tensors.append(tensor)
    return _with_sidecar(config, tensors, reference, commit), tuple(tensors), ()


def _with_sidecar(config: ModelConfig, tensors: list[Tensor], reference: Reference, commit: str) -> ModelConfig:
    """The config with the quantization config of a file of its own, which is asked for only where tensors have scales
    that config.json doesn't explain.
    """
    from huggingface_hub import hf_hub_download

    if config.get("quantization_config") is not None or not any(_SCALES.search(tensor.name) for tensor in tensors):
        return config

    def read(name: str) -> JsonObject:
        try:
            return jsonfile.read_object(Path(hf_hub_download(reference.repository, name, revision=commit)))
        except Exception:
            return {}

    return checkpoint_files.with_sidecar(config, read)


def download(resolved: str) -> Path:
    """Download a pinned model (safetensors, config, tokenizer, licence) and return its snapshot folder."""
    from huggingface_hub import snapshot_download

    reference = Reference.parse(resolved)
    try:
        return Path(snapshot_download(reference.repository, revision=reference.revision, allow_patterns=PATTERNS))
    except Exception as error:
        _raise(error, resolved)


def download_file(uri: str) -> Path:
    """Download one file of a data set."""
    from huggingface_hub import hf_hub_download

    reference = Reference.parse(uri)
    try:
        return Path(
            hf_hub_download(reference.repository, reference.file, revision=reference.revision, repo_type="dataset")
        )
    except Exception as error:
        _raise(error, uri)


def _raise(error: Exception, uri: str) -> NoReturn:
    from huggingface_hub.errors import GatedRepoError

    if isinstance(error, GatedRepoError):
        reference = Reference.parse(uri)
        raise QuantizeError(_NO_ACCESS, _gated(reference), hint=_ACCESS.format(reference.repository)) from error
    if isinstance(error, OSError) and error.errno == 28:
        raise EnvironmentFailed(
            DISK_FULL, f"{uri}: no space left on the disk", hint="Free some space, or set HF_HOME to a larger disk."
        ) from error
    endpoint = os.environ.get("HF_ENDPOINT")
    raise EnvironmentFailed(
        _DOWNLOAD_FAILED,
        f"{uri}: can't be downloaded: {error}",
        hint=f"HF_ENDPOINT is {endpoint}."
        if endpoint
        else "Check the network, then run the command again: it resumes the download.",
    ) from error
