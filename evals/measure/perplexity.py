"""Log-likelihood of held-out text through the served model, and its top-k next-token probabilities at every position.

Perplexity here: exp of the mean negative log-likelihood (nats) over every token after the first in each window. A
window is scored alone; no context is carried over from the one before. The ids are sent as they are, so the server
adds no BOS: a window has one if its maker put it there.

vLLM gives, for a prompt sent with `prompt_logprobs=k`, one entry for every token: null for the first, then {token id:
{logprob, rank}} with the k most probable tokens and the actual one. The log-probabilities are of the raw logits
(`--logprobs-mode raw_logprobs`, the default).
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt

from evals.measure.eval_specs import LanguageSpec
from evals.server.client import checked, unreachable
from evals.server.session import Session
from qpack.core.errors import EvaluateError
from qpack.core.records import Language, Window

LOGPROBS_FILE = "logprobs.npz"
VOCABULARY_FILE = "vocabulary.json"
CONCURRENCY = 4
_LOWEST = -9999.0  # vLLM writes this for minus infinity, which JSON has no word for


def measure(session: Session, spec: LanguageSpec) -> Language:
    """Score the held-out text (two tokens or more per window) and write logprobs.npz into the workspace's folder, and
    vocabulary.json with the text of every token id in it.

    The server needs --max-logprobs of `top_k` or more. Raises EvaluateError with the server's own words.
    """
    session.workspace.tell("perplexity and log-probabilities on held-out text")
    rows, out, top_k = read_windows(session.texts()), session.workspace.out, spec.top_k
    answers = asyncio.run(_ask_all(session, rows, top_k))
    nll = [-math.fsum(parsed[0]) for parsed, _ in answers]
    out.mkdir(parents=True, exist_ok=True)
    part = out / f"{LOGPROBS_FILE}.part"
    with part.open("wb") as file:
        np.savez(
            file,
            ids=np.concatenate([parsed[1] for parsed, _ in answers]),
            logprobs=np.concatenate([parsed[2] for parsed, _ in answers]),
            window=np.repeat(np.arange(len(rows), dtype=np.int32), [len(row) - 1 for row in rows]),
            actual=np.concatenate([np.asarray(row[1:], dtype=np.int32) for row in rows]),
        )
    part.replace(out / LOGPROBS_FILE)
    vocabulary = {token: text for _, spelled in answers for token, text in spelled.items()}
    (out / VOCABULARY_FILE).write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    return Language(
        top_k=top_k,
        windows=tuple(Window(nll=n, tokens=len(row) - 1) for n, row in zip(nll, rows, strict=True)),
        text_digest=digest(rows),
        domains=spec.domains,
    )


def read_windows(path: Path) -> list[list[int]]:
    """Each window's token ids. Raises EvaluateError when there is no window or one predicts nothing."""
    rows = [json.loads(line)["input_ids"] for line in path.read_text().splitlines() if line.strip()]
    if not rows or min(map(len, rows)) < 2:
        raise EvaluateError(f"{path} has no window, or one of fewer than two tokens", hint="Give longer held-out text.")
    return rows


def digest(rows: Sequence[Sequence[int]]) -> str:
    """SHA-256 over the token ids, window by window: equal digests mean that positions can be paired."""
    return hashlib.sha256(json.dumps([list(row) for row in rows]).encode()).hexdigest()


Parsed = tuple[list[float], npt.NDArray[np.int32], npt.NDArray[np.float32]]
"""The actual tokens' log-probabilities, then ids and log-probabilities [positions, top_k] from the most probable."""


def parse(prompt_logprobs: list[Any], input_ids: Sequence[int], top_k: int) -> Parsed:
    """Take apart the `prompt_logprobs` of one prompt. Raises EvaluateError when it isn't what was asked for or isn't
    finite.

    The actual token comes on top of the k most probable ones, unless it is one of them. Ranks of tied tokens may
    repeat, so the actual token is told apart by the number of entries and not by its rank.
    """
    if len(prompt_logprobs) != len(input_ids):
        raise EvaluateError(f"the server gave log-probabilities of {len(prompt_logprobs)} tokens for {len(input_ids)}")
    actual: list[float] = []
    ids: list[list[int]] = []
    logprobs: list[list[float]] = []
    for position, (entries, token) in enumerate(zip(prompt_logprobs[1:], input_ids[1:], strict=True), start=1):
        own = entries.get(str(token)) if entries else None
        if own is None or len(entries) not in (top_k, top_k + 1):
            found = len(entries or ())
            raise EvaluateError(
                f"position {position}: {found} log-probabilities, {top_k} and the actual token's were asked for",
                hint="Start the server with --max-logprobs of that many or more.",
            )
        actual.append(own["logprob"])
        top = [(-e["logprob"], e["rank"], int(i)) for i, e in entries.items() if len(entries) == top_k or e is not own]
        top.sort()
        ids.append([i for _, _, i in top])
        logprobs.append([-x for x, _, _ in top])
    values = np.asarray(logprobs, dtype=np.float32)
    if not all(math.isfinite(x) and x > _LOWEST for x in actual) or not np.isfinite(values).all():
        raise EvaluateError(
            "the server gave log-probabilities that aren't finite",
            hint="The model overflows in its data type; look at its first replies.",
        )
    return actual, np.asarray(ids, dtype=np.int32), values


def spelled(prompt_logprobs: list[Any]) -> dict[str, str]:
    """{token id: its text} of every token that the server named; vLLM decodes each one by itself."""
    return {
        token: entry["decoded_token"]
        for entries in prompt_logprobs
        for token, entry in (entries or {}).items()
        if isinstance(entry.get("decoded_token"), str)
    }


async def _ask_all(session: Session, rows: Sequence[Sequence[int]], top_k: int) -> list[tuple[Parsed, dict[str, str]]]:
    """Every window's answer in the order of the windows, `CONCURRENCY` requests in flight."""
    url, model = f"{session.endpoint.base_url.rstrip('/')}/v1/completions", session.endpoint.model
    timeout, slots, done = session.workspace.limits.request, asyncio.Semaphore(CONCURRENCY), 0

    async with httpx.AsyncClient(timeout=timeout, limits=httpx.Limits(max_connections=CONCURRENCY)) as client:

        async def ask(row: Sequence[int]) -> tuple[Parsed, dict[str, str]]:
            nonlocal done
            body = {"model": model, "prompt": list(row), "max_tokens": 1, "temperature": 0, "prompt_logprobs": top_k}
            async with slots:
                try:
                    response = checked(await client.post(url, json=body))
                except httpx.HTTPError as error:
                    raise unreachable(url, error, timeout) from error
            values = _prompt_logprobs(response)
            answer = parse(values, row, top_k)
            done += 1
            session.workspace.progress(done, len(rows), "windows")
            return answer, spelled(values)

        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(ask(row)) for row in rows]
        except* EvaluateError as errors:
            raise errors.exceptions[0] from None
    return [task.result() for task in tasks]


def _prompt_logprobs(response: httpx.Response) -> list[Any]:
    """The field of vLLM's answer, or EvaluateError when the answer has no such field."""
    try:
        values = json.loads(response.content)["choices"][0]["prompt_logprobs"]
    except (ValueError, LookupError, TypeError):
        values = None
    if not isinstance(values, list):
        raise EvaluateError(f"the answer has no prompt_logprobs: {response.text[:300]}", hint="Is this a vLLM server?")
    return values
