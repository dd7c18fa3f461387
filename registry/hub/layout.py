"""Where the files of a release stand in a repository on the Hub. Pure."""

from __future__ import annotations

FOLDER = "qpack"
MANIFEST, CONFIG = f"{FOLDER}/manifest.json", f"{FOLDER}/config.json"
ATTACHED = f"{FOLDER}/attached"
"""Signatures and whatever else was attached to releases, of every version: `ATTACHED/SUBJECT/DIGEST`, both hex.

Each file is named by its SHA-256: the manifests that attach, and the blobs that they name.
"""

OWN = ".hub"
"""The folder, beside the files that were pulled, in which the client works."""

_TOP = ("README.md", "LICENSE")
_SCORES = ".eval_results"
_TAKEN = (*_TOP, FOLDER, _SCORES, ".git", ".gitattributes", ".gitignore")


def hub_path(path: str) -> str:
    """The place of the release's file `path`: two files never get the same, and none becomes another's folder.

    The card and the licence stand at the top, and so do the scores, where the Hub reads them, and the model's files,
    where loaders look for them. All else, and what would be in the way of another file, stands under `qpack/`.
    """
    head, _, rest = path.partition("/")
    if path in _TOP or (head == _SCORES and rest):
        return path
    first = rest.partition("/")[0]
    if head == "model" and first not in ("", *_TAKEN):
        return rest
    # Files of the release with the names of the OCI manifest and config, and of what is attached.
    aside = head in ("manifest.json", "config.json", "files", "attached")
    return f"{FOLDER}/files/{path}" if aside else f"{FOLDER}/{path}"
