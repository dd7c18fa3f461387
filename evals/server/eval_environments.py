"""The environments of the evaluation: the server and its clients."""

from __future__ import annotations

from pathlib import Path

from qpack.runtime.specs import Spec
from qpack.runtime.variables import CLUSTER, NETWORK, RAY_LOGIN, SERVE

_HERE = Path(__file__).parents[1] / "envs"

VLLM = Spec(
    "vllm",
    _HERE / "vllm",
    ("vllm", "vllm.entrypoints.openai.api_server"),
    {"VLLM_NO_USAGE_STATS": "1", "NO_COLOR": "1"},
)
# It also checks remote servers, which may need a key.
CANARY = Spec("canary", _HERE / "canary", ("openai", "instructor"), inherits=(NETWORK, SERVE))
LM_EVAL = Spec("lm-eval", _HERE / "lm-eval", ("lm_eval", "lm_eval.models.openai_completions"))
GUIDELLM = Spec("guidellm", _HERE / "guidellm", ("guidellm",))
INFERENCE_PERF = Spec("inference-perf", _HERE / "inference-perf", ("inference_perf",))
"""Load generators, created on first use."""
RAY = Spec("ray", _HERE / "ray", ("ray",), {"RAY_USAGE_STATS_ENABLED": "0"}, inherits=(CLUSTER, RAY_LOGIN))
"""For sweeps on a Ray cluster; created on first use."""
