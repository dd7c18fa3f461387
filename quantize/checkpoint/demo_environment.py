"""The packages that ship the demo's model and data, as an environment: made with the locks' hashes, never imported."""

from __future__ import annotations

from pathlib import Path

from qpack.core.packages import DEMO
from qpack.runtime.specs import Spec

PACKAGES = Spec(DEMO, Path(__file__).parent / "envs" / DEMO, ())
