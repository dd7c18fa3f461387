"""The law of every parser: the right answer or a located error of ours, never another exception, never much memory."""

from __future__ import annotations

import os
import tracemalloc
from collections import Counter
from collections.abc import Callable
from typing import TypeVar

from hypothesis import HealthCheck, settings

from qpack.core.errors import QpackError

T = TypeVar("T")

# `make fuzz` asks for many; CI for as few as show that the frame still runs.
EXAMPLES = int(os.environ.get("QPACK_FUZZ_EXAMPLES", "20"))
# An input here is below a megabyte; what Python makes of it may be some forty times as large.
MEMORY = 64 * 2**20

fuzz = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize="QPACK_FUZZ_EXAMPLES" not in os.environ,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture],
)
# For inputs that take a server, a plot or a whole command each.
some = settings(fuzz, max_examples=max(4, EXAMPLES // 3))
few = settings(fuzz, max_examples=max(3, EXAMPLES // 20))
counted: Counter[str] = Counter()


def refused_or_read(call: Callable[[], T], *, where: str = "", also: tuple[type[Exception], ...] = ()) -> T | None:
    """What `call` gives, None where it refused.

    A refusal is one of our errors, with an exit code below 70, that names `where` (a part of the file's name or of the
    field). `also` are the exceptions that the called function documents and its caller catches. Anything else that is
    raised passes through and fails the test, and so does a call that takes more than MEMORY at its peak.
    """
    refusal: QpackError | None = None
    answer: T | None = None
    tracemalloc.start()
    try:
        answer = call()
        counted["read"] += 1
    except QpackError as error:
        refusal = error
        counted["refused"] += 1
    except also:
        counted["refused"] += 1
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < MEMORY, f"{peak / 2**20:.0f} MiB at the peak"
    if refusal:
        assert 0 < refusal.exit_code < 70 or refusal.exit_code == 130, repr(refusal)
        said = " ".join([refusal.what, refusal.hint, *map(str, refusal.problems)])
        assert where in said, f"the error does not name {where!r}: {said[:500]}"
    return answer
