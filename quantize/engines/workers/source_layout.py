"""The artifact in the source's layout: its files, its tensors' names, and every tensor that nothing changed.

transformers and llm-compressor rename, fuse and split tensors when they load a model, and not all of them find the way
back. Here the way back is found in the values: a module's weight is looked up among the source's tensors, before
anything changes. What is written is the source, file by file, with quantized tensors in the place of their weights; so
whatever transformers doesn't load (layers for speculative decoding, towers) is kept too.
"""

import json
import os
import re

import torch
from safetensors import safe_open
from safetensors.torch import save_file

_GRID = 16  # values of a matrix compared along each side


class NoPlace(ValueError):
    """A tensor of the model that the source doesn't hold as one. The message names it."""


class Place:
    """Where the source holds a weight: a whole tensor (`part` None), or a part of a tensor with a matrix per expert."""

    def __init__(self, tensor, part=None):
        self.tensor, self.part = tensor, part


class Source:
    """The safetensors files of a checkpoint folder."""

    def __init__(self, folder):
        self.folder = folder
        self.files, self.shapes, self._opened = {}, {}, {}
        for name in sorted(os.listdir(folder)):
            if name.endswith(".safetensors"):
                file = self._opened[name] = safe_open(os.path.join(folder, name), "pt")
                for tensor in file.keys():  # noqa: SIM118
                    self.files[tensor] = name
                    self.shapes[tensor] = tuple(file.get_slice(tensor).get_shape())

    def read(self, name):
        """A tensor."""
        return self._opened[self.files[name]].get_tensor(name)


def places(source, weights):
    """The place of each weight, by name, and the names of those that the source doesn't hold."""
    found, lost = {}, {}
    for name, weight in weights.items():
        if source.shapes.get(name) == tuple(weight.shape) and _print(source.read(name), weight) == _print(
            weight, weight
        ):
            found[name] = Place(name)
        else:
            lost[name] = weight
    if lost:
        found |= _looked_up(source, lost, {place.tensor for place in found.values()})
    return found, [name for name in lost if name not in found]


def _looked_up(source, lost, taken):
    """Places of weights that the source has under another name."""
    kinds = {}
    for weight in lost.values():
        kinds.setdefault(tuple(weight.shape), weight)
    known = {}
    for name in sorted(set(source.shapes) - taken):
        shape = source.shapes[name]
        if shape in kinds:
            _note(known, Place(name), source.read(name), kinds[shape])
        elif len(shape) == 3:
            whole = source.read(name)
            for wanted, like in kinds.items():
                for part, matrix in _parts(whole, wanted):
                    _note(known, Place(name, part), matrix, like)
    found = {}
    for name, weight in lost.items():
        alike = known.get((tuple(weight.shape), _print(weight, weight)), [])
        if alike:
            found[name] = max(alike, key=lambda place: _likeness(place.tensor, name))
    return found


def _note(known, place, matrix, like):
    known.setdefault((tuple(like.shape), _print(matrix, like)), []).append(place)


def _parts(whole, wanted):
    """The matrices of a shape that a tensor with a matrix per expert holds: (expert, way), matrix [out, in]."""
    if len(wanted) != 2:
        return
    rows, columns = wanted
    for expert in range(whole.shape[0]):
        one = whole[expert]
        for turned, matrix in ((False, one), (True, one.T)):
            if tuple(matrix.shape) == (rows, columns):
                yield (expert, "whole", turned), matrix
            elif tuple(matrix.shape) == (2 * rows, columns):
                for way, half in _halves(matrix):
                    yield (expert, way, turned), half


def _halves(matrix):
    rows = matrix.shape[0] // 2
    return (("first", matrix[:rows]), ("last", matrix[rows:]), ("even", matrix[0::2]), ("odd", matrix[1::2]))


def _print(tensor, like):
    """Some of a tensor's values, spread over it, in the type of `like`."""
    if tensor.dim() == 0:
        return bytes(tensor.to(like.dtype).reshape(1).view(torch.uint8).numpy())
    picked = tensor
    for side in range(tensor.dim()):
        size = tensor.shape[side]
        count = min(_GRID * _GRID if tensor.dim() == 1 else _GRID, size)
        picked = picked.index_select(side, torch.linspace(0, size - 1, count).long().to(tensor.device))
    return bytes(picked.detach().to("cpu", like.dtype).contiguous().view(torch.uint8).numpy())


def _likeness(tensor, name):
    """How much of two names is the same from the end on, numbers first: equal values stand in many norms."""
    numbers = re.findall(r"\d+", tensor) == re.findall(r"\d+", name)
    same = 0
    for one, other in zip(reversed(tensor.split(".")), reversed(name.split(".")), strict=False):
        if one != other:
            break
        same += 1
    return numbers, same, -abs(len(tensor) - len(name))


def module_name(place, name):
    """What the artifact calls a module: the source's name of it, or for a part of a fused tensor an expert's own."""
    if place.part is None:
        return place.tensor.removesuffix(".weight")
    stem = place.tensor.removesuffix(".weight").rpartition(".")[0]
    stem = stem if stem.endswith("experts") else f"{stem}.experts"
    return f"{stem}.{place.part[0]}.{name.rpartition('.')[2]}"


def write(source, target, instead, changed):
    """Write the source's files with other tensors in the place of some.

    `instead` has for a tensor of the source the tensors that replace it, by name; `changed` new values of others, and
    what the source hasn't.
    """
    os.makedirs(target, exist_ok=True)
    index, total = {}, 0
    for file_name in sorted(set(source.files.values())):
        tensors = {}
        for name in sorted(name for name, file in source.files.items() if file == file_name):
            if name in instead:
                tensors |= instead[name]
            else:
                whole = source.read(name)
                tensors[name] = changed[name].to(whole.dtype) if name in changed else whole
        if not index:
            tensors |= {name: tensor for name, tensor in changed.items() if name not in source.shapes}
        # A tensor may share its memory with another; safetensors writes no such two.
        tensors = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
        save_file(tensors, os.path.join(target, file_name), {"format": "pt"})
        index |= dict.fromkeys(tensors, file_name)
        total += sum(tensor.nbytes for tensor in tensors.values())
    if len(set(index.values())) > 1:
        with open(os.path.join(target, "model.safetensors.index.json"), "w", encoding="utf-8") as file:
            json.dump({"metadata": {"total_size": total}, "weight_map": dict(sorted(index.items()))}, file, indent=1)


def write_config(source, target, quantization):
    """The source's config.json, with the quantization."""
    with open(os.path.join(source.folder, "config.json"), encoding="utf-8") as file:
        config = json.load(file)
    config["quantization_config"] = quantization
    with open(os.path.join(target, "config.json"), "w", encoding="utf-8") as file:
        json.dump(config, file, indent=2)
        file.write("\n")
