"""What vLLM's own log says of why it ended: lines as vLLM 0.32 writes them."""

from __future__ import annotations

from pathlib import Path

import pytest

from evals.server.vllm_server import cause

FALLBACK = (
    "(Worker pid=1) WARNING 11-28 17:31:06 [utils.py:597] Failed to create oneDNN linear, fallback to torch linear. "
    "Exception: could not create a primitive descriptor for the matmul primitive."
)
GEMM = "AttributeError: '_OpNamespace' '_C' object has no attribute 'cpu_gemm_wna16'"
LEFT = "[shutdown] MPClient: engine core exited unexpectedly; starting cleanup"
DEAD = "(APIServer pid=1) ERROR 11-28 17:28:06 [async_llm.py:906] vllm.v1.engine.exceptions.EngineDeadError: An issue."
WORKER = "Worker proc VllmWorker-1 died unexpectedly (exit code: -9), shutting down executor."
FLAG = "api_server.py: error: unrecognized arguments: --no-such-flag"


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ([FALLBACK, f"(Worker pid=1) ERROR 11-28 17:28:06 [x.py:1063] {GEMM}", DEAD], GEMM),
        (
            [FALLBACK, f"(APIServer pid=1) WARNING 11-28 17:37:02 [x.py:819] {LEFT}", DEAD],
            LEFT.partition("MPClient: ")[2],
        ),
        (
            [
                f"(EngineCore pid=1) ERROR 11-30 15:20:21 [x.py:315] {WORKER}",
                "(EngineCore pid=1) ERROR 11-30 15:20:26 [core.py:1512] RuntimeError: Executor failed.",
            ],
            WORKER,
        ),
        ([FLAG], FLAG),
        ([FALLBACK, "the end"], f"its last lines:\n    {FALLBACK}\n    the end"),
    ],
    ids=["kernel", "killed", "killed-worker", "flag", "nothing"],
)
def test_the_cause_is_the_first_exception_that_vllm_did_not_get_by(lines: list[str], told: str, tmp_path: Path) -> None:
    (tmp_path / "log").write_text("\n".join(lines) + "\n")
    assert cause(tmp_path / "log") == told
