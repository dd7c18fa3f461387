"""Where qpack keeps its work."""

from __future__ import annotations

import os
from pathlib import Path

from platformdirs import user_cache_path


def home() -> Path:
    """The folder with environments, store and logs: QPACK_HOME, or the user's cache folder."""
    given = os.environ.get("QPACK_HOME")
    return Path(given).expanduser().absolute() if given else user_cache_path("qpack")
