"""Paths of a release's files in a repository on the Hub. Pure."""

from __future__ import annotations

FOLDER = "qpack"
MANIFEST, CONFIG = f"{FOLDER}/manifest.json", f"{FOLDER}/config.json"
ATTACHED = f"{FOLDER}/attached"
"""Attachments of all versions, such as signatures: `ATTACHED/SUBJECT/DIGEST`, both hex.

Manifests and blobs are files named by their SHA-256.
"""

OWN = ".hub"
"""The client's working folder, beside the downloaded files."""

_TOP = ("README.md", "LICENSE")
_SCORES = ".eval_results"
_TAKEN = (*_TOP, FOLDER, _SCORES, ".git", ".gitattributes", ".gitignore")


def hub_path(path: str) -> str:
    """The path on the Hub of the release's file `path`. No two files collide.

    At the top: card, licence, scores (where the Hub reads them), and the model's files (where loaders expect them).
    Everything else, and files that would collide, is in `qpack/`.
    """
    head, _, rest = path.partition("/")
    if path in _TOP or (head == _SCORES and rest):
        return path
    first = rest.partition("/")[0]
    if head == "model" and first not in ("", *_TAKEN):
        return rest
    # Files with the names of the OCI manifest, the config or the attachments.
    aside = head in ("manifest.json", "config.json", "files", "attached")
    return f"{FOLDER}/files/{path}" if aside else f"{FOLDER}/{path}"
