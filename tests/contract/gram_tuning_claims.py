"""What has to hold of gram's tuning. Run as gram_claims.py is."""

import contextlib
import dataclasses
import os
import signal
import sys
from pathlib import Path

import torch
from gram_architecture_claims import MORE, model
from gram_claims import FP4, config_of, die_after, gram_of, inputs_of, main, model_of, rows_of, run_of
from torch import nn

from quantize.gram import awq, gptq, tune
from quantize.gram.checkpoint import Folder
from quantize.gram.formats import FORMATS, Stored
from quantize.gram.grid import E2M1, Grid
from quantize.gram.layer import Settings
from quantize.gram.tune import Tuning

GRIDS = [
    Grid(bits, symmetric, size, dtype, portable=portable)
    for bits in (4, 8)
    for symmetric in (True, False)
    for size in (None, 16)
    for dtype, portable in ((torch.bfloat16, False), (torch.float16, False), (torch.bfloat16, True))
]
GRIDS += [dataclasses.replace(grid, signed=True) for grid in GRIDS if grid.symmetric]
GRIDS += FP4
ASKED = Settings("awq+gptq", Grid(4, False, 32), 0.01, ("lm_head",), tuning=Tuning(iterations=24, rows=4))


def rounded(grid, rows=24):
    """A weight, what GPTQ made of it, and what can be tuned of that."""
    columns = 64 if grid.fp4 == "mx" else 48
    weight, gram = torch.randn(rows, columns), gram_of(inputs_of(400, columns))
    factored = gptq.factor(gram, 0.01)
    share = awq.clip(weight, gram, grid, factored)
    scale, zero = grid.fit(grid.grouped(weight), share)
    whole, _ = gptq.round_columns(weight, scale, zero, grid, factored)
    made = (grid.grouped(whole.float()) - zero.unsqueeze(-1)).mul_(scale.unsqueeze(-1)).flatten(1)
    stored = Stored(whole, scale, zero, grid.common(weight.abs().amax()))
    return weight, made, stored, tune.Knobs(weight, stored, share, grid)


def moved(knobs, size=0.3):
    """Somewhere else, as steps could take them."""
    with torch.no_grad():
        knobs.offset.add_(torch.rand_like(knobs.offset) - 0.5)
        for share in knobs.shares:
            share.mul_(1 + size * (torch.rand_like(share) - 0.5))
    return knobs


def claim_untouched_knobs_give_what_gptq_gave_to_the_bit(_):
    for grid in GRIDS:
        _, made, stored, knobs = rounded(grid)
        again = knobs.stored()
        assert torch.equal(again.values, stored.values), grid
        assert torch.equal(again.scale, stored.scale), grid
        assert torch.equal(again.zero, stored.zero), grid
        assert torch.equal(knobs.weight().detach(), made), grid


def claim_tuned_integers_are_on_the_grid_scales_are_stored_ones_and_weights_are_what_is_stored(_):
    for grid in GRIDS:
        _, _, _, knobs = rounded(grid)
        site = moved(knobs).stored()
        whole, scale, zero = site.values, site.scale, site.zero
        assert whole.dtype == grid.storage
        assert bool(((whole >= grid.low) & (whole <= grid.high)).all())
        assert bool(((scale != 0) if grid.signed else (scale > 0)).all())
        if not grid.fp4:
            assert torch.equal(grid.stored(scale), scale)
        elif site.common is None:
            assert bool((torch.frexp(scale)[0] == 0.5).all())
        else:
            assert torch.equal((2 * scale * site.common).to(torch.float8_e4m3fn).float() / site.common / 2, scale)
        assert not grid.fp4 or set(whole.abs().unique().tolist()) <= set(E2M1)
        assert torch.equal(zero, zero.round().clamp(grid.low, grid.high))
        made = (grid.grouped(whole.float()) - zero.unsqueeze(-1)).mul_(scale.unsqueeze(-1)).flatten(1)
        assert torch.equal(knobs.weight().detach(), made)


def claim_derivatives_are_those_of_the_formula_with_rounding_left_out(_):
    def through(exact, there):
        return exact + (there - exact).detach()

    for grid in GRIDS:
        _, made, _, knobs = rounded(grid)
        wanted = torch.randn_like(made)
        (moved(knobs).weight() * wanted).sum().backward()
        offset = knobs.offset.detach().clone().requires_grad_()
        shares = [share.detach().clone().requires_grad_() for share in knobs.shares]
        low, high = knobs._least * shares[0], knobs._most * shares[-1]
        if grid.fp4:
            exact = torch.maximum(-knobs._least, knobs._most) / 12 * shares[0]
            scale = through(exact, grid.block_scale(exact.detach(), knobs.kept.common))
            zero = torch.zeros_like(scale)
        elif grid.symmetric:
            exact = grid.spanned(knobs._least, knobs._most) * shares[0]
            scale = through(exact, grid.stored(exact))
            zero = torch.zeros_like(scale)
        else:
            exact = (high - low) / (grid.high - grid.low)
            scale = through(exact, grid.stored(exact))
            zero = grid.low - low / scale
            zero = through(zero, zero.round().clamp(grid.low, grid.high))
        s, z = scale.unsqueeze(-1), zero.unsqueeze(-1)
        free = knobs._base / s
        free = free + offset * grid.steps(free.detach())
        nearest = grid.integers(free.detach(), torch.ones(1), torch.zeros(1)) if grid.fp4 else free.round()
        whole = (through(free.clamp(grid.low, grid.high) if grid.fp4 else free, nearest) + z).clamp(grid.low, grid.high)
        (((whole - z) * s).flatten(1) * wanted).sum().backward()
        # Of offsets the sign alone is used.
        assert bool((offset.grad.sign() == knobs.offset.grad.sign()).float().mean() > 0.999), grid
        for share, expected in zip(knobs.shares, shares, strict=True):
            assert torch.allclose(share.grad, expected.grad, rtol=1e-3, atol=1e-3 * float(expected.grad.abs().max()))


def tuned(iterations, tokens=80):
    """A linear layer whose output is to come near the source's: (what tuning told, weight, knobs, rows)."""
    weight, _, _, knobs = rounded(Grid(4, False, 16))
    layer = nn.Linear(48, 24, bias=False).requires_grad_(False)

    def forward(hidden, _, weights):
        return torch.func.functional_call(layer, dict(weights), (hidden,))

    hidden = torch.stack([inputs_of(tokens, 48) for _ in range(12)])
    rows = [tune.Rows(hidden, hidden @ weight.T, None)]
    whole = tune.Layer([knobs], lambda w: {"weight": w[0]}, forward, contextlib.nullcontext, recordable=True)
    return tune.tune(whole, rows, Tuning(iterations, 4), 0), weight, knobs, rows


def claim_the_loss_is_the_measured_output_error(_):
    told, _, knobs, rows = tuned(30)
    out, target = rows[0].hidden @ knobs.kept.weights(Grid(4, False, 16)).T, rows[0].target
    measured = ((out - target).square().mean(-1) / target.square().mean(-1)).mean()
    assert torch.isclose(torch.tensor(told.tuned_error), measured, rtol=1e-4), (told, measured)
    mask = torch.rand(12, 80) < 0.7
    each = (out - target).square().mean(-1) / target.square().mean(-1)
    assert torch.isclose(tune.loss(out, target, mask), each[mask].mean(), rtol=1e-4)


def claim_tuning_lowers_the_measured_error_and_never_leaves_more_than_there_was(_):
    gains = []
    for seed in range(8):
        torch.manual_seed(seed)
        told, *_ = tuned(40)
        assert told.tuned_error <= told.untuned_error
        assert (told.kept_step == 0) == (told.tuned_error == told.untuned_error)
        gains.append(told.tuned_error / told.untuned_error)
    assert sum(gains) / len(gains) < 0.95, gains


def made(folder, name, settings, kind="llama", rows=None, **more):
    """The bytes of a run's files, and the run."""
    config = config_of(kind, **more)
    run = run_of(folder, folder.parent / name, settings=settings, rows=rows, config=config)
    return [part.read_bytes() for part in run.run()], run


def claim_no_iterations_leave_the_bytes_alone_and_equal_runs_give_equal_bytes(folder):
    model_of("llama").save_pretrained(folder / "tuned")
    plain, _ = made(folder / "tuned", "plain", dataclasses.replace(ASKED, tuning=Tuning()))
    none, _ = made(folder / "tuned", "none", dataclasses.replace(ASKED, tuning=Tuning(iterations=0, rows=2)))
    assert none == plain
    one, run = made(folder / "tuned", "one", ASKED)
    other, _ = made(folder / "tuned", "other", ASKED)
    assert one == other
    assert one != plain
    for record in run.records:
        assert record["tuned_error"] <= record["untuned_error"]


def claim_a_tuned_run_that_was_killed_goes_on_at_its_layer_to_the_same_bytes(folder):
    model_of("llama").save_pretrained(folder / "stopped")
    whole, _ = made(folder / "stopped", "unstopped", ASKED)
    child = os.fork()
    if not child:
        run_of(folder / "stopped", folder / "stopped-scratch", die_after(2), ASKED).run()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    layers = []
    run = run_of(folder / "stopped", folder / "stopped-scratch", lambda done, *_: layers.append(done), ASKED)
    assert [part.read_bytes() for part in run.run()] == whole
    assert layers in ([2, 3], [3]), layers
    assert len(run.records) == 12


def claim_every_architecture_is_tuned_and_its_tensors_read_back(folder):
    for kind in ("gemma3_text", "phi3", "qwen3_moe", "mixtral"):
        model(kind).save_pretrained(folder / kind)
        _, run = made(folder / kind, f"{kind}-tuned", ASKED, kind, rows_of(6), **MORE.get(kind, {}))
        assert all(record["tuned_error"] <= record["untuned_error"] for record in run.records)
        tensors = Folder(folder / f"{kind}-tuned")
        name = next(name for name in tensors.names() if name.endswith("weight_packed")).removesuffix(".weight_packed")
        found = tensors.read([n for n in tensors.names() if n.startswith(f"{name}.")], "cpu")
        layer = FORMATS["compressed-tensors"].read({n.rpartition(".")[2]: t for n, t in found.items()}, ASKED.grid)
        assert bool(torch.isfinite(layer.weights(ASKED.grid)).all())


if __name__ == "__main__":
    main(Path(sys.argv[1]), globals())
