"""Ranks: processes that share one job through torch.distributed, one per GPU.

What each of them does is a function of the job and of their number, so none of them schedules anything. The result is
the same to the byte for every number: a sum over calibration rows is a tree over shares of rows (`matrices.Gram`),
whose form the rows alone decide, and everything else is computed whole by one rank.
"""

from __future__ import annotations

import datetime
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

_CPU = torch.device("cpu")
_NEVER = datetime.timedelta(days=7)
"""One rank may work for long while others wait. Whoever started the ranks ends all of them when one dies."""


@dataclass(frozen=True)
class Move:
    """A tensor that goes from one rank to another: filled on `source`, written on `target`, not looked at elsewhere."""

    tensor: Tensor
    source: int
    target: int


@dataclass(frozen=True)
class Ranks:
    """The process that it is made in, among the `count` that share a job. 1 needs no torch.distributed."""

    rank: int = 0
    count: int = 1
    device: torch.device = _CPU

    @property
    def first(self) -> bool:
        """Whether this is the one that reads and writes what all need once."""
        return self.rank == 0

    def span(self, things: int, rank: int | None = None) -> range:
        """Which of `things` a rank (this one) takes: neighbours, as evenly as possible."""
        which = self.rank if rank is None else rank
        return range(-(-things * which // self.count), -(-things * (which + 1) // self.count))

    def owners(self, costs: Sequence[float]) -> list[int]:
        """A rank for each cost: the largest first, each to the rank that has least."""
        loads = [0.0] * self.count
        found = [0] * len(costs)
        for index in sorted(range(len(costs)), key=lambda i: -costs[i]):
            found[index] = loads.index(min(loads))
            loads[found[index]] += costs[index]
        return found

    def gathered(self, value: Any) -> list[Any]:
        """Each rank's value, in the order of ranks. What JSON can hold."""
        if self.count == 1:
            return [value]
        text = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8).to(self.device)
        sizes = [torch.zeros(1, dtype=torch.int64, device=self.device) for _ in range(self.count)]
        dist.all_gather(sizes, torch.tensor([len(text)], device=self.device))
        most = max(int(size) for size in sizes)
        texts = [text.new_zeros(most) for _ in range(self.count)]
        dist.all_gather(texts, torch.nn.functional.pad(text, (0, most - len(text))))
        return [json.loads(bytes(one[: int(size)].cpu().numpy())) for one, size in zip(texts, sizes, strict=True)]

    def agreed(self, value: Any) -> Any:
        """The first rank's value, on all."""
        return self.gathered(value if self.first else None)[0]

    def summed(self, tensor: Tensor) -> Tensor:
        """The sum over ranks of tensors of which no two are other than zero at one place, so that no order matters."""
        if self.count > 1:
            dist.all_reduce(tensor)
        return tensor

    def spread(self, tensors: Sequence[Tensor], owners: Sequence[int]) -> None:
        """Write each owner's tensor into those of the others."""
        if self.count > 1:
            for work in [
                dist.broadcast(_bytes(tensor), owner, async_op=True)
                for tensor, owner in zip(tensors, owners, strict=True)
            ]:
                work.wait()

    def exchange(self, moves: Sequence[Move]) -> None:
        """Make the moves, all at once."""
        steps = []
        for move in moves:
            if move.source == move.target or not move.tensor.numel():
                continue
            if self.rank == move.source:
                steps.append(dist.P2POp(dist.isend, _bytes(move.tensor), move.target))
            elif self.rank == move.target:
                steps.append(dist.P2POp(dist.irecv, _bytes(move.tensor), move.source))
        if steps:
            for work in dist.batch_isend_irecv(steps):
                work.wait()


def _bytes(tensor: Tensor) -> Tensor:
    """The same memory as bytes: not every library moves every type."""
    return tensor.detach().view(-1).view(torch.uint8)


def device_of(local: int) -> torch.device:
    """The device of the process that is number `local` on this machine."""
    return torch.device("cuda", local) if torch.cuda.is_available() else torch.device("cpu")


def join(rank: int, count: int, device: torch.device, where: str) -> Ranks:
    """Meet the other ranks at `where` (an `init_method` of torch.distributed). `leave` has to follow."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
        dist.init_process_group("nccl", where, _NEVER, count, rank, device_id=device)
    else:
        dist.init_process_group("gloo", where, _NEVER, count, rank)
    return Ranks(rank, count, device)


def started_by_torchrun() -> Ranks | None:
    """The ranks that torchrun, or another launcher that sets its variables, has started. None: it hasn't."""
    if "WORLD_SIZE" not in os.environ:
        return None
    rank, count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    return join(rank, count, device_of(int(os.environ.get("LOCAL_RANK", rank))), "env://")


def leave() -> None:
    """Part from the others, when all are done."""
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()
