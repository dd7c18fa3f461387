"""What has to hold of passes through a model and of names found by values. Runs where torch is.

    PYTHON passes_claims.py WORKERS FOLDER

Prints a JSON object: for each claim what is wrong, or null.
"""

import json
import sys
import threading
import traceback
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn


class Layer(nn.Module):
    """Adds what it and its neighbours saw of a row: any state of another row would show."""

    def __init__(self, width, *, spoils=False, fails=False):
        super().__init__()
        self.linear, self.spoils, self.fails = nn.Linear(width, width), spoils, fails

    def forward(self, hidden, seen):
        if self.fails:
            raise ValueError("a layer that can't")
        seen["sum"] = seen.get("sum", 0) + hidden.sum()
        out = hidden + self.linear(hidden) + seen["sum"]
        if self.spoils:
            hidden.mul_(0)
        return out


class Model(nn.Module):
    """Layers in a list, called in a way that only the model knows: in turns, with a state of each row."""

    def __init__(self, layers):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, row):
        hidden, seen = row * 2, {}
        for layer in self.layers:
            hidden = layer(hidden + 1, seen=dict(seen))
            seen["sum"] = hidden.mean()
        return hidden


def passed(model, rows):
    """What hooks on linear layers see in passes: by layer, an input for each row; the layer runs twice."""
    import layer_passes

    seen, handles = {}, []
    for number, layer in enumerate(model.layers):

        def hook(_, args, number=number):
            seen.setdefault(number, []).append(args[0].clone())

        handles.append(layer.linear.register_forward_pre_hook(hook))
    layers = layer_passes.decoder_layers(model, {f"layers.{i}.linear" for i in range(len(model.layers))})
    with layer_passes.Passes(model, layers, [{"row": row} for row in rows]) as passes:
        layer = passes.advance()
        while layer is not None:
            for keep in (False, True):
                for _ in passes.run(layer, keep):
                    pass
            layer = passes.advance()
    for handle in handles:
        handle.remove()
    return seen


def expected(model, rows):
    seen, handles = {}, []
    for number, layer in enumerate(model.layers):

        def hook(_, args, number=number):
            seen.setdefault(number, []).append(args[0].clone())

        handles.append(layer.linear.register_forward_pre_hook(hook))
    with torch.no_grad():
        for row in rows:
            model(row)
    for handle in handles:
        handle.remove()
    return seen


def raised_by(model, rows):
    """The exception of passes."""
    try:
        passed(model, rows)
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


def rows_of(count, width=8):
    return [torch.randn(1, 3 + i % 4, width) for i in range(count)]


def claim_layers_get_what_the_model_gives_them_also_those_that_write_into_it(_):
    for spoils in (False, True):
        model = Model([Layer(8, spoils=spoils and i == 1) for i in range(4)])
        rows = rows_of(7)
        wanted, found = expected(model, [row.clone() for row in rows]), passed(model, rows)
        for number, inputs in wanted.items():
            # First all rows with hooks on, then all again.
            assert len(found[number]) == 2 * len(rows)
            for once in (found[number][: len(rows)], found[number][len(rows) :]):
                assert all(torch.equal(one, other) for one, other in zip(inputs, once, strict=True)), number


def claim_threads_end_with_the_passes_and_after_an_error(_):
    import layer_passes

    before, forwards = threading.active_count(), torch.get_num_threads()
    passed(Model([Layer(8) for _ in range(3)]), rows_of(5))
    assert (threading.active_count(), torch.get_num_threads()) == (before, forwards)
    failing = Model([Layer(8), Layer(8, fails=True), Layer(8)])
    assert isinstance(raised_by(failing, rows_of(5)), ValueError)
    assert threading.active_count() == before
    assert all("forward" not in layer.__dict__ for layer in failing.layers)

    class Broken(Model):
        def forward(self, row):
            self.layers[0](row, seen={})
            raise KeyError("between layers")

    error = raised_by(Broken([Layer(8)]), rows_of(3))
    assert isinstance(error, layer_passes.PassFailed)
    assert isinstance(error.__cause__, KeyError)
    assert threading.active_count() == before


def claim_weights_are_found_by_their_values_whatever_they_are_called(folder):
    import source_layout

    experts = torch.randn(3, 2 * 6, 4)
    turned, ones = torch.randn(2, 4, 5), torch.ones(4)
    plain = {"text.layers.0.q.weight": torch.randn(6, 4), "text.layers.0.norm.weight": ones,
             "text.layers.1.norm.weight": ones, "text.layers.0.moe.input_linear.weight": experts,
             "text.layers.0.moe.experts.down_proj": turned}  # fmt: skip
    save_file({name: tensor.bfloat16() for name, tensor in plain.items()}, folder / "model.safetensors")
    held = load_file(folder / "model.safetensors")
    source = source_layout.Source(str(folder))
    whole = held["text.layers.0.moe.input_linear.weight"]
    wanted = {
        "model.layers.0.attn.q.weight": held["text.layers.0.q.weight"],
        "model.layers.1.norm.weight": held["text.layers.1.norm.weight"],
        "model.layers.0.moe.experts.2.gate_proj.weight": whole[2, :6],
        "model.layers.0.moe.experts.2.up_proj.weight": whole[2, 6:],
        "model.layers.0.moe.experts.1.down_proj.weight": held["text.layers.0.moe.experts.down_proj"][1].T.contiguous(),
        "model.layers.0.made_up.weight": torch.randn(6, 4).bfloat16(),
    }
    found, lost = source_layout.places(source, wanted)
    assert lost == ["model.layers.0.made_up.weight"]
    names = {name: source_layout.module_name(place, name.removesuffix(".weight")) for name, place in found.items()}
    assert list(names.values()) == [
        "text.layers.0.q", "text.layers.1.norm", "text.layers.0.moe.experts.2.gate_proj",
        "text.layers.0.moe.experts.2.up_proj", "text.layers.0.moe.experts.1.down_proj",
    ], names  # fmt: skip


def main(workers, folder):
    """Run every claim."""
    sys.path.insert(0, workers)
    found = {}
    for name, claim in list(globals().items()):
        if name.startswith("claim_"):
            torch.manual_seed(0)
            try:
                claim(Path(folder))
                found[name] = None
            except Exception:
                found[name] = traceback.format_exc()[-1500:]
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
