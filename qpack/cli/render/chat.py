"""`qpack chat`."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from qpack.serve.served_release import Reached


def conversation(
    server: Reached, prompt: str | None, system: str | None, *, max_tokens: int, temperature: float
) -> None:
    """Answer one prompt, or one after the other until the end of the input."""
    from evals.server.chat import answer
    from evals.server.client import Sampling

    messages = [{"role": "system", "content": system}] if system and server.chat else []
    terminal = prompt is None and sys.stdin.isatty()
    for text in [prompt] if prompt is not None else _typed(terminal):
        messages.append({"role": "user", "content": text})
        reply = ""
        for piece in answer(server.endpoint, messages, Sampling(max_tokens, temperature)):
            print(piece, end="", flush=True)
            reply += piece
        print(flush=True)
        messages.append({"role": "assistant", "content": reply})


def _typed(terminal: bool) -> Iterator[str]:
    """Lines of the input that hold something."""
    if terminal:
        print("Empty lines are ignored; Ctrl-D exits.", file=sys.stderr)
    while True:
        if terminal:
            print("> ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line:
            return
        if line.strip():
            yield line.strip()
