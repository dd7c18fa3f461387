"""The environment that signs: sigstore's library brings 35 packages, none of which qpack needs otherwise."""

from __future__ import annotations

from pathlib import Path

from qpack.runtime.specs import Spec
from qpack.runtime.variables import SIGN

MODEL_SIGNING = Spec(
    "model-signing", Path(__file__).parent / "envs" / "model-signing", ("model_signing.signing",), inherits=(SIGN,)
)
