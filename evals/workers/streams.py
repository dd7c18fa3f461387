"""Whether a stream says what a whole answer says: one judgement, for the first questions and for the canary.

Kernels round by the batch that a request is in and by how much of its prompt is cached, so where two tokens are about
as likely, a greedy answer differs from one request to the next. That is no fault of the stream. Standard library alone:
qpack and the canary's worker both import it.
"""

from __future__ import annotations

from collections.abc import Callable

ROUNDS = 3


def agree(whole: Callable[[], str], streamed: Callable[[], str], rounds: int = ROUNDS) -> tuple[bool, str, str]:
    """Ask for the whole answer and the streamed one, at most `rounds` times, until a stream equals a whole answer of
    this or an earlier round. Returns (whether one does, the first whole answer, the last streamed one).
    """
    answers: list[str] = []
    stream = ""
    for _ in range(rounds):
        answers.append(whole())
        stream = streamed()
        if stream in answers:
            return True, answers[0], stream
    return False, answers[0], stream
