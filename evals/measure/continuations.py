"""Greedy continuations of held-out text.

Each window is sent without its last tokens, so the true continuation is known too. Every model continues every window:
a baseline's continuations serve later artifacts, and no server is started again for the worst windows.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx

from evals.measure.eval_specs import ContinuationsSpec
from evals.measure.perplexity import WINDOW_TOO_SHORT, read_windows
from evals.server.client import authorization, post
from evals.server.codes import SERVER_ANSWER
from evals.server.session import Session
from qpack.core.errors import EvaluateError
from qpack.core.findings import Continuation, Continuations

CONCURRENCY = 4
_BEFORE = 48  # tokens before the continuation that are kept for display


def measure(session: Session, spec: ContinuationsSpec) -> Continuations:
    """Continue each window without its last tokens by as many, greedily. Raises EvaluateError."""
    workspace, model, tokens = session.workspace, session.endpoint.model, spec.tokens
    workspace.report(f"every window of held-out text continued by {tokens} tokens")
    rows = read_windows(session.texts())
    if min(map(len, rows)) <= tokens:
        raise EvaluateError(
            WINDOW_TOO_SHORT, f"a window of {min(map(len, rows))} tokens is too short to continue by {tokens}"
        )
    url, found = session.endpoint.base_url.rstrip("/"), []
    with (
        httpx.Client(timeout=workspace.limits.request, headers=authorization()) as client,
        ThreadPoolExecutor(CONCURRENCY) as pool,
    ):

        def one(row: Sequence[int]) -> Continuation:
            start = list(row[:-tokens])
            body = {"model": model, "prompt": start, "max_tokens": tokens, "temperature": 0, "return_token_ids": True}
            text, ids = continuation_of(post(client, f"{url}/v1/completions", body))
            before, follows = (
                str(post(client, f"{url}/detokenize", {"model": model, "tokens": part}).get("prompt", ""))
                for part in (start[-_BEFORE:], list(row[-tokens:]))
            )
            return Continuation(before=before, follows=follows, text=text, tokens=ids)

        for done, continuation in enumerate(pool.map(one, rows), 1):
            found.append(continuation)
            workspace.progress(done, len(rows), "continuations")
    return Continuations(tokens=tokens, windows=tuple(found))


def continuation_of(answer: Any) -> tuple[str, tuple[int, ...]]:
    """(text, token ids) of a completion. Raises EvaluateError when the answer has none."""
    try:
        choice = answer["choices"][0]
        return str(choice["text"]), tuple(int(token) for token in choice["token_ids"])
    except (LookupError, TypeError, ValueError) as error:
        raise EvaluateError(
            SERVER_ANSWER, f"the answer has no text and token ids: {str(answer)[:300]}", hint="Is this a vLLM server?"
        ) from error
