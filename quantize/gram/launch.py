"""Starts the ranks of one machine: `torch.multiprocessing.start_processes`, and what became of them.

Several machines need a launcher that reaches them all: `torchrun ... -m gram JOB.json`, see `__main__`.
"""

from __future__ import annotations

import json
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import multiprocessing

from .job import Impossible
from .ranks import Ranks, device_of, join, leave

_WORTH = 4 * 2**30
"""Bytes of weights from which on more than one process is worth its start."""


class RankDied(RuntimeError):
    """A process ended before its work was done. The message says which, and how; `signal` is the one that ended it."""

    def __init__(self, what: str, by: int | None = None) -> None:
        super().__init__(what)
        self.signal = by


def processes(checkpoint: Path) -> int:
    """How many share the work on a checkpoint: one per GPU that is visible; for a small model, or on a CPU, one."""
    size = sum(path.stat().st_size for path in checkpoint.glob("*.safetensors"))
    return max(1, torch.cuda.device_count()) if size >= _WORTH else 1


def launch(count: int, entry: Callable[..., None], *arguments: Any) -> Any:
    """`entry(rank, count, folder, *arguments)` in `count` processes: what the first one's work returns.

    `entry` and the arguments are pickled; `entry` has to be importable by its module's name, and to call `run_rank`.
    When a process ends before its time the others are ended too. Raises Impossible and OSError where a process does,
    and RankDied.
    """
    with tempfile.TemporaryDirectory(prefix="gram-") as name:
        folder = Path(name)
        started = multiprocessing.start_processes(
            entry, (count, folder, *arguments), count, join=False, start_method="spawn"
        )
        try:
            while not started.join():
                pass
        except (multiprocessing.ProcessExitedException, multiprocessing.ProcessRaisedException) as error:
            raise _reason(error, [process.exitcode for process in started.processes], folder) from error
        return json.loads((folder / "result.json").read_text())


def run_rank(rank: int, count: int, folder: Path, work: Callable[[Ranks], Any]) -> None:
    """Meet the other processes and work; JSON can hold what `work` returns."""
    ranks = join(rank, count, device_of(rank), f"file://{folder}/meet")
    try:
        result = work(ranks)
    except Impossible as error:
        (folder / f"impossible-{rank}.json").write_text(json.dumps([str(error), error.hint]))
        raise
    except OSError as error:
        (folder / f"system-{rank}.json").write_text(json.dumps([error.errno, str(error)]))
        raise
    if ranks.first:
        (folder / "result.json").write_text(json.dumps(result))
    leave()


def _reason(error: Exception, codes: list[int], folder: Path) -> Exception:
    """What went wrong first. Where one process is gone others fail too, as their connections break."""
    for path in sorted(folder.glob("impossible-*.json")):
        return Impossible(*json.loads(path.read_text()))
    for path in sorted(folder.glob("system-*.json")):
        return OSError(*json.loads(path.read_text()))
    for rank, code in enumerate(codes):
        # SIGTERM is what the others get when one has failed.
        if code < 0 and code != -signal.SIGTERM:
            return RankDied(f"process {rank + 1} of {len(codes)} was ended by {signal.Signals(-code).name}", -code)
    # PyTorch's message ends with the process's traceback.
    return RankDied(f"one of {len(codes)} processes failed: {str(error).strip().splitlines()[-1]}")
