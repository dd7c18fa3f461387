"""Gram matrices: G = X^T X / tokens of what a linear layer reads, accumulated in float32.

bf16 inputs multiply exactly in float32 (8 + 8 significant bits), so on a GPU the tensor cores take bf16 in and
accumulate in float32: no worse than converting first. On a CPU the inputs are converted. Only blocks on and above the
diagonal are computed.

Calibration rows come in shares. Within a share sums go on in the order of batches; shares are added pairwise, as the
leaves of a binary tree: (0 + 1) + (2 + 3) and so on. So the ranks that share a job, each with neighbouring shares,
make the same sums as one alone, to the bit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from .ranks import Move, Ranks

_SAMPLED_TOKENS = 32

Node = tuple[int, int]
"""Of the tree of shares: (level, index), the sum of the 2^level shares from index * 2^level on."""


def joined(shares: Iterable[int]) -> list[Node]:
    """The nodes that are left when these shares, in order, have been added as far as they are neighbours."""
    nodes: list[Node] = []
    for share in shares:
        nodes.append((0, share))
        while len(nodes) > 1 and _siblings(nodes[-2], nodes[-1]):
            (level, index), _ = nodes.pop(-2), nodes.pop()
            nodes.append((level + 1, index // 2))
    return nodes


def _siblings(left: Node, right: Node) -> bool:
    return left[0] == right[0] and left[1] % 2 == 0 and right[1] == left[1] + 1


class Gram:
    """Accumulates X^T X over batches of X [tokens, channels].

    With `sampled` also `largest` [channels], each channel's greatest size, and `sample` [tokens, channels], evenly
    spread tokens of every batch: what quantizing them costs isn't in X^T X.
    """

    def __init__(self, channels: int, device: torch.device, *, sampled: bool = False) -> None:
        self.tokens = 0
        self.largest = torch.zeros(channels, dtype=torch.float32, device=device)
        self._channels = channels
        self._sampled = sampled
        self._sample: list[Tensor] = []
        # Small blocks save more products, large ones run faster: a quarter saves three eighths. On a CPU 192 were the
        # fastest.
        step = max(512, -(-channels // 4)) if device.type == "cuda" else 192
        self._blocks = [(start, min(start + step, channels)) for start in range(0, channels, step)]
        self._size = sum((end - start) * (channels - start) for start, end in self._blocks)
        self._open: Tensor | None = None
        self._nodes: dict[Node, Tensor] = {}

    def _zeros(self) -> Tensor:
        return torch.zeros(self._size, dtype=torch.float32, device=self.largest.device)

    def _parts(self, flat: Tensor) -> list[Tensor]:
        """Blocks [end - start, channels - start] on and right of the diagonal."""
        shapes = [(end - start, self._channels - start) for start, end in self._blocks]
        return [part.view(shape) for part, shape in zip(flat.split([a * b for a, b in shapes]), shapes, strict=True)]

    def add(self, inputs: Tensor) -> None:
        """Add a batch [tokens, channels], of any floating type, to the share that is open."""
        self.tokens += inputs.shape[0]
        if self._sampled and inputs.shape[0]:
            self.largest = torch.maximum(self.largest, inputs.abs().amax(0).float())
            self._sample.append(inputs[:: -(-inputs.shape[0] // _SAMPLED_TOKENS)].to(torch.float32, copy=True))
        if self._open is None:
            self._open = self._zeros()
        fast = inputs.is_cuda and inputs.dtype in (torch.bfloat16, torch.float16)
        inputs = inputs if fast else inputs.float()
        for (start, end), part in zip(self._blocks, self._parts(self._open), strict=True):
            if fast:
                part += torch.mm(inputs[:, start:end].T, inputs[:, start:], out_dtype=torch.float32)
            else:
                part.addmm_(inputs[:, start:end].T, inputs[:, start:])

    def close(self, share: int) -> None:
        """End a share. They are closed in order, neighbours after each other."""
        self._nodes[0, share] = self._zeros() if self._open is None else self._open
        self._open = None
        self._merge()

    def _merge(self) -> None:
        """Add what are siblings, from the leaves on."""
        for level, index in sorted(self._nodes):
            pair = (level, index), (level, index + 1)
            if _siblings(*pair) and all(node in self._nodes for node in pair):
                left, right = (self._nodes.pop(node) for node in pair)
                self._nodes[level + 1, index // 2] = left.add_(right)
                self._merge()
                return

    @property
    def sample(self) -> Tensor:
        """[tokens, channels], float32."""
        return torch.cat(self._sample) if self._sample else self.largest.new_zeros(0, len(self.largest))

    def mean(self) -> Tensor:
        """G [channels, channels], divided by the number of tokens. Nothing can be added afterwards."""
        if self._open is not None or not self._nodes:
            self.close(1 + max((((index + 1) << level) - 1 for level, index in self._nodes), default=-1))
        # What has no sibling, from left to right.
        order = sorted(self._nodes, key=lambda node: node[1] << node[0])
        flat = self._nodes.pop(order[0])
        for node in order[1:]:
            flat.add_(self._nodes.pop(node))
        whole = torch.empty(self._channels, self._channels, dtype=torch.float32, device=flat.device)
        for (start, end), part in zip(self._blocks, self._parts(flat), strict=True):
            whole[start:end, start:] = part
            whole[end:, start:end] = part[:, end - start :].T
        return whole.div_(max(self.tokens, 1))


def bring(grams: dict[str, Gram], owners: Mapping[str, int], ranks: Ranks, shares: int) -> None:
    """Bring what each rank has of each matrix to the rank that owns it; the others keep none."""
    counts = ranks.gathered({name: [gram.tokens, len(gram.sample)] for name, gram in grams.items()})
    moves, received = [], []
    for name, gram in grams.items():
        mine = owners[name] == ranks.rank
        samples = []
        for rank, (tokens, sampled) in enumerate(count[name] for count in counts):
            here = rank == ranks.rank
            blank = gram.largest.new_empty
            sample = gram.sample if here else blank(sampled if mine else 0, gram._channels)
            largest = gram.largest if here or not mine else torch.zeros_like(gram.largest)
            samples.append((sample, largest))
            moves += [Move(part, rank, owners[name]) for part in (sample, largest) if gram._sampled]
            for node in joined(ranks.span(shares, rank)):
                if here:
                    moves.append(Move(gram._nodes[node], rank, owners[name]))
                elif mine:
                    gram._nodes[node] = gram._zeros()
                    moves.append(Move(gram._nodes[node], rank, owners[name]))
            if mine and not here:
                gram.tokens += tokens
        if mine:
            received.append((gram, samples))
    ranks.exchange(moves)
    for gram, samples in received:
        gram._merge()
        gram._sample = [sample for sample, _ in samples]
        gram.largest = torch.stack([largest for _, largest in samples]).amax(0)
    for name in [name for name in grams if owners[name] != ranks.rank]:
        del grams[name]


def error(gram: Tensor, delta: Tensor) -> Tensor:
    """tr(dW G dW^T) of dW [rows, columns]: the mean squared change of the layer's outputs, summed over its rows."""
    return (delta @ gram).mul_(delta).sum()
