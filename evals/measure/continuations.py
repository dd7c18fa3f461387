"""How a model goes on from held-out text: greedy continuations, and where two models part.

Each window is sent without its last tokens, so that what really stands there is known too. Every window is continued
by every model: a baseline's are there for whatever artifact comes later, and no server is started a second time for
the windows that turn out to be the worst.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import takewhile
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from evals.measure.divergence import TopK, flips_by_position, kl_by_position
from evals.measure.perplexity import read_windows
from evals.server.client import Progress, authorization, nothing, post
from qpack.core.errors import EvaluateError
from qpack.core.findings import Continuation, Continuations, Continued, ContinuedWindow, TextDomain

WORST = 5
_BEFORE = 48  # tokens of the beginning that are kept to be shown


def measure(
    *,
    base_url: str,
    model: str,
    windows: Path,
    tokens: int,
    concurrency: int = 4,
    timeout: float = 600.0,
    progress: Progress = nothing,
) -> Continuations:
    """Continue each window (JSON lines of {"input_ids": [...]}) without its last `tokens` by as many, greedily.

    `timeout` is seconds for one request. Raises EvaluateError with the server's own words.
    """
    rows = read_windows(windows)
    if min(map(len, rows)) <= tokens:
        raise EvaluateError(f"a window of {min(map(len, rows))} tokens has no beginning to continue by {tokens}")
    url, found = base_url.rstrip("/"), []
    with (
        httpx.Client(timeout=timeout, headers=authorization()) as client,
        ThreadPoolExecutor(concurrency) as pool,
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
            progress(done, len(rows), "continuations")
    return Continuations(tokens=tokens, windows=tuple(found))


def continuation_of(answer: Any) -> tuple[str, tuple[int, ...]]:
    """(text, token ids) of a completion. Raises EvaluateError when the answer has none."""
    try:
        choice = answer["choices"][0]
        return str(choice["text"]), tuple(int(token) for token in choice["token_ids"])
    except (LookupError, TypeError, ValueError) as error:
        raise EvaluateError(
            f"the answer has no text and token ids: {str(answer)[:300]}", hint="Is this a vLLM server?"
        ) from error


def compare(
    baseline: Continuations,
    artifact: Continuations,
    before: TopK,
    after: TopK,
    domains: Sequence[TextDomain] = (),
    count: int = WORST,
) -> Continued:
    """Hold continuations against one another; the worst windows are those with the largest mean divergence.

    Raises EvaluateError when the two continued other windows.
    """
    pairs = list(zip(baseline.windows, artifact.windows, strict=False))
    asked = [(len(c.windows), c.tokens, [(x.before, x.follows) for x in c.windows]) for c in (baseline, artifact)]
    if asked[0] != asked[1]:
        raise EvaluateError("baseline and artifact continued other windows", hint="Evaluate both again.")
    kl, flips = kl_by_position(before, after), flips_by_position(before, after)
    means = [float(kl[before.window == window].mean()) for window in range(len(pairs))]
    alike = [
        len(list(takewhile(lambda two: two[0] == two[1], zip(b.tokens, a.tokens, strict=False)))) for b, a in pairs
    ]
    order = sorted(range(len(pairs)), key=lambda window: (-means[window], window))
    return Continued(
        tokens=baseline.tokens,
        windows=len(pairs),
        same=sum(b.tokens == a.tokens for b, a in pairs),
        alike=float(np.mean(alike)) if alike else 0.0,
        worst=tuple(
            ContinuedWindow(
                window=window,
                domain=domain_of(window, domains),
                kl=means[window],
                flips=float(flips[before.window == window].mean()),
                before=pairs[window][0].before,
                follows=pairs[window][0].follows,
                baseline=pairs[window][0].text,
                artifact=pairs[window][1].text,
                alike=alike[window],
            )
            for window in order[:count]
        ),
    )


def domain_of(window: int, domains: Sequence[TextDomain]) -> str:
    """The name of a window's domain; empty where there are none."""
    end = 0
    for domain in domains:
        end += domain.windows
        if window < end:
            return domain.name
    return ""
