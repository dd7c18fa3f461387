"""Log-likelihood of held-out text through the served model, and its top-k next-token probabilities at every position.

Perplexity here: exp of the mean negative log-likelihood (nats) over every token after the first in each window. A
window is scored alone, without context from the one before. Token ids are sent, so the server adds no BOS: a window has
one if hold_out put it there.

vLLM gives, for a prompt sent with `prompt_logprobs=k`, one entry for every token: null for the first, then {token id:
{logprob, rank}} with the k most probable tokens and the actual one. The log-probabilities are of the raw logits
(`--logprobs-mode raw_logprobs`, the default).

A whole distribution is that of the next token: the window up to the position as a prompt, one token to generate, and
`logprobs` of the vocabulary's size. vLLM decodes each of those tokens by itself, so one answer for SmolLM2's 49,152
costs its API process about a second and is 1.8 MB of JSON (docs/benchmarks/divergence.md); `prompt_logprobs` would give
that for every position of the prompt. So it is asked at a random sample of positions, the same for every model.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import httpx
import numpy as np
import numpy.typing as npt

from evals.measure.eval_specs import LanguageSpec
from evals.server.client import checked, unreachable
from evals.server.codes import SERVER_ANSWER
from evals.server.session import Session
from evals.stats.divergence_estimate import choose
from qpack.core.errors import EvaluateError
from qpack.core.problems import UNREADABLE_FILE, Code
from qpack.core.records import Language, Window

WINDOW_TOO_SHORT = Code("window-too-short", "A window has too few tokens for what is measured.")

LOGPROBS_FILE = "logprobs.npz"
VOCABULARY_FILE = "vocabulary.json"
CONCURRENCY = 4
T = TypeVar("T")
_LOWEST = -9999.0  # vLLM's value for minus infinity, which JSON can't express


def measure(session: Session, spec: LanguageSpec) -> Language:
    """Score the held-out text (two tokens or more per window) and write logprobs.npz into the workspace's folder, and
    vocabulary.json with the text of every token id in it.

    Where the model's config doesn't say its number of tokens, no whole distribution is asked for. The server needs
    --max-logprobs=-1, or of `top_k` or more without whole distributions. Raises EvaluateError with the server's own
    words.
    """
    session.workspace.report("perplexity and log-probabilities on held-out text")
    rows, out, top_k = read_windows(session.texts()), session.workspace.out, spec.top_k
    vocabulary = vocabulary_size(session.tokenizer)
    answers = asyncio.run(_ask_all(session, rows, top_k))
    at = whole_positions(rows, spec.whole_positions if vocabulary else 0)
    whole = asyncio.run(_ask_whole(session, _prompts(rows, at), vocabulary or 0))
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
            whole_at=at.astype(np.int32),
            whole=whole,
        )
    part.replace(out / LOGPROBS_FILE)
    spelling = {token: text for _, spelled in answers for token, text in spelled.items()}
    (out / VOCABULARY_FILE).write_text(json.dumps(spelling, ensure_ascii=False), encoding="utf-8")
    return Language(
        top_k=top_k,
        windows=tuple(Window(nll=n, tokens=len(row) - 1) for n, row in zip(nll, rows, strict=True)),
        text_digest=digest(rows),
        domains=spec.domains,
        whole_positions=len(at),
        vocabulary=vocabulary,
    )


def whole_positions(rows: Sequence[Sequence[int]], count: int) -> npt.NDArray[np.int64]:
    """Which positions have their whole distribution asked for: the same for every model that gets this text."""
    if count < 1:
        return np.zeros(0, dtype=np.int64)
    return choose([len(row) - 1 for row in rows], count, int(digest(rows)[:12], 16))


def _prompts(rows: Sequence[Sequence[int]], at: npt.NDArray[np.int64]) -> list[list[int]]:
    """What stands before each of the positions, in its window."""
    ends = np.cumsum([len(row) - 1 for row in rows])
    found = []
    for position in at:
        window = int(np.searchsorted(ends, position, side="right"))
        start = int(ends[window - 1]) if window else 0
        found.append(list(rows[window][: int(position) - start + 1]))
    return found


def vocabulary_size(checkpoint: Path) -> int | None:
    """How many tokens the model predicts, by its config; None where that doesn't say."""
    try:
        config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
        sizes = [part.get("vocab_size") for part in (config.get("text_config") or {}, config)]
    except (OSError, ValueError, AttributeError):
        return None
    return next((size for size in sizes if isinstance(size, int) and size > 0), None)


def read_windows(path: Path) -> list[list[int]]:
    """Each window's token ids. Raises EvaluateError when there is no window or one predicts nothing."""
    rows = [json.loads(line)["input_ids"] for line in path.read_text().splitlines() if line.strip()]
    if not rows or min(map(len, rows)) < 2:
        raise EvaluateError(
            UNREADABLE_FILE, f"{path} has no window, or one of fewer than two tokens", hint="Give longer held-out text."
        )
    return rows


def digest(rows: Sequence[Sequence[int]]) -> str:
    """SHA-256 over the token ids, window by window: equal digests mean that positions can be paired."""
    return hashlib.sha256(json.dumps([list(row) for row in rows]).encode()).hexdigest()


Parsed = tuple[list[float], npt.NDArray[np.int32], npt.NDArray[np.float32]]
"""The actual tokens' log-probabilities, then ids and log-probabilities [positions, top_k] from the most probable."""


def parse(prompt_logprobs: list[Any], input_ids: Sequence[int], top_k: int) -> Parsed:
    """Parse the `prompt_logprobs` of one prompt. Raises EvaluateError when its shape is wrong or a value isn't finite.

    The actual token is added to the k most probable ones, unless it is one of them. Tied tokens may share a rank, so
    the number of entries shows whether it was added.
    """
    if len(prompt_logprobs) != len(input_ids):
        raise EvaluateError(
            SERVER_ANSWER, f"the server gave log-probabilities of {len(prompt_logprobs)} tokens for {len(input_ids)}"
        )
    actual: list[float] = []
    ids: list[list[int]] = []
    logprobs: list[list[float]] = []
    for position, (entries, token) in enumerate(zip(prompt_logprobs[1:], input_ids[1:], strict=True), start=1):
        own = entries.get(str(token)) if entries else None
        if own is None or len(entries) not in (top_k, top_k + 1):
            found = len(entries or ())
            raise EvaluateError(
                SERVER_ANSWER,
                f"position {position}: {found} log-probabilities instead of {top_k} and the actual token's",
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
            SERVER_ANSWER,
            "the server gave log-probabilities that aren't finite",
            hint="The model overflows in its data type: see its first replies, and try another dtype.",
        )
    return actual, np.asarray(ids, dtype=np.int32), values


def spelled(prompt_logprobs: list[Any]) -> dict[str, str]:
    """{token id: text} of every token in the answer; vLLM decodes each one alone."""
    return {
        token: entry["decoded_token"]
        for entries in prompt_logprobs
        for token, entry in (entries or {}).items()
        if isinstance(entry.get("decoded_token"), str)
    }


async def _ask_all(session: Session, rows: Sequence[Sequence[int]], top_k: int) -> list[tuple[Parsed, dict[str, str]]]:
    """Every window's answer in the order of the windows."""

    def read(number: int, response: httpx.Response) -> tuple[Parsed, dict[str, str]]:
        values = _prompt_logprobs(response)
        return parse(values, rows[number], top_k), spelled(values)

    bodies = [{"prompt": list(row), "prompt_logprobs": top_k} for row in rows]
    return await _ask_each(session, bodies, read, "windows")


async def _ask_whole(session: Session, prompts: Sequence[Sequence[int]], vocabulary: int) -> npt.NDArray[np.float32]:
    """The log-probability of every token after each prompt, [prompts, vocabulary]."""
    bodies = [
        {"prompt": list(prompt), "logprobs": vocabulary, "return_tokens_as_token_ids": True} for prompt in prompts
    ]
    found = await _ask_each(session, bodies, lambda _, answer: parse_whole(answer, vocabulary), "whole distributions")
    return np.stack(found) if found else np.zeros((0, vocabulary), dtype=np.float32)


async def _ask_each(
    session: Session, bodies: Sequence[dict[str, Any]], read: Callable[[int, httpx.Response], T], what: str
) -> list[T]:
    """What `read` makes of each answer, in the order of the requests; `CONCURRENCY` of them in flight."""
    url, model = f"{session.endpoint.base_url.rstrip('/')}/v1/completions", session.endpoint.model
    timeout, slots, done = session.workspace.limits.request, asyncio.Semaphore(CONCURRENCY), 0

    async with httpx.AsyncClient(timeout=timeout, limits=httpx.Limits(max_connections=CONCURRENCY)) as client:

        async def ask(number: int, body: dict[str, Any]) -> T:
            nonlocal done
            asked = {"model": model, "max_tokens": 1, "temperature": 0, **body}
            async with slots:
                try:
                    response = checked(await client.post(url, json=asked))
                except httpx.HTTPError as error:
                    raise unreachable(url, error, timeout) from error
            answer = read(number, response)
            done += 1
            session.workspace.progress(done, len(bodies), what)
            return answer

        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(ask(number, body)) for number, body in enumerate(bodies)]
        except* EvaluateError as errors:
            raise errors.exceptions[0] from None
    return [task.result() for task in tasks]


_TOKEN = "token_id:"


def parse_whole(response: httpx.Response, vocabulary: int) -> npt.NDArray[np.float32]:
    """The log-probability of every token, [vocabulary], of a completion of one token.

    Raises EvaluateError when the answer hasn't exactly one finite number for each token.
    """
    try:
        (entries,) = json.loads(response.content)["choices"][0]["logprobs"]["top_logprobs"]
        values = {int(token.removeprefix(_TOKEN)): float(value) for token, value in entries.items()}
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise EvaluateError(
            SERVER_ANSWER,
            f"the answer has no log-probabilities by token id: {response.text[:300]}",
            hint="Is this a vLLM server?",
        ) from error
    if len(values) != vocabulary or min(values) != 0 or max(values) != vocabulary - 1:
        raise EvaluateError(
            SERVER_ANSWER,
            f"{len(values):,} log-probabilities for a vocabulary of {vocabulary:,} tokens",
            hint="Start the server with --max-logprobs=-1, or set evaluate.perplexity.whole_positions to 0.",
        )
    found = np.empty(vocabulary, dtype=np.float32)
    found[list(values)] = list(values.values())
    if not np.isfinite(found).all():
        raise EvaluateError(
            SERVER_ANSWER,
            "the server gave log-probabilities that aren't finite",
            hint="The model overflows in its data type; look at its first replies.",
        )
    return found


def _prompt_logprobs(response: httpx.Response) -> list[Any]:
    """The field of vLLM's answer, or EvaluateError when the answer has no such field."""
    try:
        values = json.loads(response.content)["choices"][0]["prompt_logprobs"]
    except (ValueError, LookupError, TypeError):
        values = None
    if not isinstance(values, list):
        raise EvaluateError(
            SERVER_ANSWER, f"the answer has no prompt_logprobs: {response.text[:300]}", hint="Is this a vLLM server?"
        )
    return values
