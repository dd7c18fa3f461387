"""What a layer's linear modules read, and what can absorb a scale of it: observed while the layer runs, then proved.

Nothing is known of architectures. Linear modules that are called with one tensor read one input. A norm whose output
is that tensor may divide it by a scale; a linear module may if its output, row by row, is a factor of it (v_proj of
attention's output, up_proj of a gated MLP's). Whether a change can be undone is found by making it: with powers of two,
which change no rounding, everything that the layer computes has to stay what it was.

Imports torch alone, so that every engine's environment can load it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

CLOSE = 0.02
"""Largest relative change that counts as none. In bfloat16 an unchanged computation differs by less than 1 %."""

_NEAREST = 8  # linear modules before an input that are tried as its absorber
_MOST_GROUPED = 16  # query heads that share a head of keys and values
_NUMBER = re.compile(r"\d+")


@dataclass(frozen=True)
class Input:
    """Modules (`readers`, by name) that read one tensor, and the module that can divide it by a scale, "" for none.

    `offset`: the absorber is a norm that multiplies by 1 + weight. `rows`: the absorber is a linear module, and channel
    i of the input is proportional to its row rows[i].
    """

    readers: tuple[str, ...]
    absorber: str = ""
    offset: bool = False
    rows: tuple[int, ...] | None = None

    @property
    def last_rows(self) -> bool:
        """Whether `rows` are consecutive: all rows of the absorber in order, or the last ones."""
        assert self.rows is not None
        return self.rows == tuple(range(self.rows[0], self.rows[0] + len(self.rows)))


@dataclass
class _Seen:
    """What one run of the layer showed: inputs of matrices in order, outputs of norms and matrices, the result."""

    inputs: dict[str, Tensor] = field(default_factory=dict)
    outputs: dict[str, Tensor] = field(default_factory=dict)
    result: Tensor | None = None


def matrices(layer: nn.Module) -> dict[str, nn.Module]:
    """Modules below a layer that multiply by a matrix of their own (linear layers and routers), by name."""
    return {
        name: module
        for name, module in layer.named_modules()
        if (weight := module._parameters.get("weight")) is not None
        and weight.dim() == 2
        and not isinstance(module, nn.Embedding)
    }


def _vectors(layer: nn.Module) -> dict[str, nn.Module]:
    """Modules that multiply by a vector of their own: norms."""
    return {
        name: module
        for name, module in layer.named_modules()
        if (weight := module._parameters.get("weight")) is not None and weight.dim() == 1
    }


def shared_inputs(layer: nn.Module, run: Callable[[], object], fixed: Sequence[str] = ()) -> list[Input]:
    """Which modules of `layer` read one input, and the absorber of each that is proved to be one.

    `run` calls the layer with real inputs, a few tokens, and returns what it returns; the layer has its weights, on a
    device. `fixed` modules may not change: what they read gets no absorber. Weights are the same afterwards.
    """
    plain = _run(layer, run)
    groups: dict[tuple[int, int], list[str]] = {}
    for name, tensor in plain.inputs.items():
        groups.setdefault(_key(tensor), []).append(name)
    found: dict[tuple[str, ...], Input] = {}
    inputs = []
    for names in map(tuple, groups.values()):
        kind = tuple(_NUMBER.sub("#", name) for name in names)
        # Experts are alike: one of them stands for all.
        known = found.get(kind) if len(names) < len(plain.inputs) else None
        alike = _renamed(known, names) if known else None
        if alike is None or (alike.absorber and alike.absorber not in plain.outputs) or set(fixed) & set(names):
            alike = _absorbed(layer, run, plain, names, frozenset(fixed))
            found.setdefault(kind, alike)
        inputs.append(alike)
    return inputs


def _renamed(known: Input, readers: tuple[str, ...]) -> Input | None:
    """The same for readers whose names differ in numbers alone; None where the absorber's name isn't told by them."""
    if not known.absorber:
        return Input(readers)
    old, new = (_NUMBER.findall(name) for name in (known.readers[0], readers[0]))
    if _NUMBER.findall(known.absorber) != old:
        return None
    numbers = iter(new)
    return dataclasses.replace(known, readers=readers, absorber=_NUMBER.sub(lambda _: next(numbers), known.absorber))


def _key(tensor: Tensor) -> tuple[int, int]:
    """One memory is one tensor, whatever its shape; `_Seen` keeps it from being used again."""
    return tensor.data_ptr(), tensor.numel()


def _run(layer: nn.Module, run: Callable[[], object]) -> _Seen:
    seen, handles = _Seen(), []

    def entering(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
            given = next((one for one in (*args, *kwargs.values()) if isinstance(one, Tensor)), None)
            if given is not None and given.numel() and name not in seen.inputs:
                seen.inputs[name] = given

        return hook

    def leaving(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, _args: tuple[object, ...], output: object) -> None:
            if isinstance(output, Tensor) and output.numel() and name not in seen.outputs:
                seen.outputs[name] = output

        return hook

    for name, module in matrices(layer).items():
        handles.append(module.register_forward_pre_hook(entering(name), with_kwargs=True))
        handles.append(module.register_forward_hook(leaving(name)))
    handles += [module.register_forward_hook(leaving(name)) for name, module in _vectors(layer).items()]
    try:
        with torch.no_grad():
            result = run()
    finally:
        for handle in handles:
            handle.remove()
    seen.result = result[0] if isinstance(result, tuple) else result
    return seen


def _absorbed(
    layer: nn.Module, run: Callable[[], object], plain: _Seen, readers: tuple[str, ...], fixed: frozenset[str]
) -> Input:
    tensor = plain.inputs[readers[0]]
    if fixed & set(readers) or any(layer.get_submodule(name).weight.shape[1] != tensor.shape[-1] for name in readers):
        return Input(readers)
    for name, norm in _vectors(layer).items():
        # A norm over heads has fewer weights than the input has channels.
        whole = len(norm.weight) == tensor.shape[-1]
        if whole and name in plain.outputs and _key(plain.outputs[name]) == _key(tensor):
            for offset in (False, True):
                found = Input(readers, name, offset=offset)
                if undone(layer, run, found, plain):
                    return found
    order, matrix = list(plain.outputs), matrices(layer)
    first = min((order.index(name) for name in readers if name in order), default=0)
    earlier = [name for name in reversed(order[:first]) if name in matrix]
    for name in earlier[:_NEAREST]:
        if name in fixed or not isinstance(matrix[name], nn.Linear) or matrix[name].weight.shape[0] < 2:
            continue
        rows = _factors(layer, run, readers[0], name, plain)
        if rows is not None:
            found = Input(readers, name, rows=rows)
            if undone(layer, run, found, plain):
                return found
    return Input(readers)


def _factors(
    layer: nn.Module, run: Callable[[], object], reader: str, absorber: str, plain: _Seen
) -> tuple[int, ...] | None:
    """For each channel of the reader's input the row of the absorber that is a factor of it; None where there is none.

    Doubling rows doubles their channels. Which row a channel has is read bit by bit: in the k-th run those rows are
    doubled whose number has bit k.
    """
    module = layer.get_submodule(absorber)
    count = module.weight.shape[0]
    before = plain.inputs[reader].flatten(0, -2).float()

    def doubled(rows: Tensor) -> Tensor | None:
        """Which channels double [channels], NaN where they neither double nor stay."""
        with _scaled(module, torch.where(rows, 2.0, 1.0)):
            after = _run(layer, run).inputs.get(reader)
        if after is None or after.numel() != before.numel():
            return None
        after = after.flatten(0, -2).float()
        size = before.square().sum(0).sqrt().clamp(min=1e-30)
        twice = (after - 2 * before).square().sum(0).sqrt() / size < CLOSE
        once = (after - before).square().sum(0).sqrt() / size < CLOSE
        return torch.where(twice & ~once, 1.0, torch.where(once & ~twice, 0.0, torch.nan))

    number = torch.arange(count, device=module.weight.device)
    for first in _starts(count, before.shape[1]):
        every = doubled(number >= first)
        if every is not None and bool((every == 1).all()):
            break
    else:
        return None
    rows = torch.zeros(before.shape[1], dtype=torch.long, device=before.device)
    for bit in range(max(1, (count - 1).bit_length())):
        found = doubled((number >= first) & ((number >> bit) % 2 == 1))
        if found is None or bool(found.isnan().any()):
            return None
        rows += found.long() << bit
    return tuple(rows.tolist()) if bool((rows < count).all()) else None


def _starts(count: int, columns: int) -> Iterator[int]:
    """Rows from which on an absorber's rows may be factors of an input: all of them, or, of layers that are stored as
    one (q, k and v; gate and up), those of the last. Query heads may share the rows of a head, in groups.
    """
    yield 0
    if count > columns:
        yield from (count - columns // group for group in range(1, _MOST_GROUPED + 1) if columns % group == 0)


@contextlib.contextmanager
def _scaled(module: nn.Module, factors: Tensor) -> Iterator[None]:
    """The module's rows (weight and bias) times `factors`, powers of two."""
    kept = {name: parameter.data for name, parameter in module._parameters.items() if parameter is not None}
    try:
        for name in ("weight", "bias"):
            if name in kept:
                shape = (-1, *(1 for _ in kept[name].shape[1:]))
                module._parameters[name].data = kept[name] * factors.view(shape).to(kept[name])
        yield
    finally:
        for name, data in kept.items():
            module._parameters[name].data = data


def undone(layer: nn.Module, run: Callable[[], object], found: Input, plain: _Seen | None = None) -> bool:
    """Whether the layer computes the same when the absorber divides by scales and the readers multiply by them."""
    plain = plain or _run(layer, run)
    columns = layer.get_submodule(found.readers[0]).weight.shape[1]
    device = plain.inputs[found.readers[0]].device
    chance = torch.Generator().manual_seed(0)
    powers = torch.randint(-1, 2, (columns,), generator=chance).to(device)
    absorber = layer.get_submodule(found.absorber)
    if found.rows is not None:
        rows = torch.tensor(found.rows, device=device)
        by_row = torch.zeros(absorber.weight.shape[0], dtype=powers.dtype, device=device)
        by_row[rows] = powers
        powers = by_row[rows]
        divided = by_row
    else:
        divided = powers
    scales = torch.exp2(powers.float())
    with contextlib.ExitStack() as stack:
        if found.offset:
            stack.enter_context(_offset(absorber, scales))
        else:
            stack.enter_context(_scaled(absorber, torch.exp2(-divided.float())))
        for name in found.readers:
            stack.enter_context(_columns(layer.get_submodule(name), scales))
        after = _run(layer, run)
    return _same(plain, after, found)


@contextlib.contextmanager
def _columns(module: nn.Module, scales: Tensor) -> Iterator[None]:
    kept = module.weight.data
    try:
        module.weight.data = kept * scales.to(kept)
        yield
    finally:
        module.weight.data = kept


@contextlib.contextmanager
def _offset(module: nn.Module, scales: Tensor) -> Iterator[None]:
    """A norm that multiplies by 1 + weight, divided by scales."""
    kept = module.weight.data
    try:
        module.weight.data = ((kept.float() + 1) / scales - 1).to(kept.dtype)
        yield
    finally:
        module.weight.data = kept


def _same(plain: _Seen, after: _Seen, found: Input) -> bool:
    """Whether every matrix and the layer gave what they gave. What the absorber gives is what changed."""
    if plain.result is None or after.result is None or plain.result.shape != after.result.shape:
        return False
    pairs = [(plain.result, after.result)]
    for name in plain.inputs:
        if name == found.absorber or name not in plain.outputs:
            continue
        if name not in after.outputs or after.outputs[name].shape != plain.outputs[name].shape:
            return False
        pairs.append((plain.outputs[name], after.outputs[name]))
    return all(bool((a.float() - b.float()).norm() <= CLOSE * a.float().norm()) for a, b in pairs)
