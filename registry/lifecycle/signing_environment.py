"""The environment for signatures: sigstore's library has 35 dependencies that qpack doesn't need otherwise."""

from __future__ import annotations

from pathlib import Path

from qpack.runtime.specs import Spec
from qpack.runtime.variables import SIGN

MODEL_SIGNING = Spec(
    "model-signing", Path(__file__).parent / "envs" / "model-signing", ("model_signing.signing",), inherits=(SIGN,)
)
