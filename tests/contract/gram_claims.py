"""What has to hold of quantize.gram, run by the interpreter of gram's own environment (torch isn't in qpack's).

`python gram_claims.py FOLDER` runs every claim and prints {name: null or what went wrong} as one line of JSON.
"""

import contextlib
import dataclasses
import itertools
import json
import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

from quantize.gram import awq, gptq, products, smooth, stream
from quantize.gram.allocate import Choice, TooSmall, allocate
from quantize.gram.architectures import ARCHITECTURES
from quantize.gram.checkpoint import Folder
from quantize.gram.clock import Clock
from quantize.gram.formats import FORMATS, Stored
from quantize.gram.grid import E2M1, Grid
from quantize.gram.layer import METHODS, Block, NotFinite, Settings, collect, solve
from quantize.gram.matrices import Gram, error
from quantize.gram.pack import pack, pack_zeros, unpack, unpack_zeros
from quantize.gram.stream import Run
from quantize.gram.survey import Mixed, Survey, chosen

CPU = torch.device("cpu")
# The tensors are too small to share.
torch.set_num_threads(1)
CONFIGS = {"llama": LlamaConfig, "mistral": MistralConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config}
GRIDS = [
    Grid(bits, symmetric, size, dtype)
    for bits in (4, 8)
    for symmetric in (True, False)
    for size in (None, 16, 32)
    for dtype in (torch.bfloat16, torch.float16)
]
GRIDS += [Grid(4, True, size, dtype, signed=True) for size in (None, 16) for dtype in (torch.bfloat16, torch.float16)]
FP4 = [Grid(4, True, 16, fp4="nv"), Grid(4, True, 32, fp4="mx")]
"""NVFP4A16 and MXFP4A16."""
FP4_INPUTS = [dataclasses.replace(grid, activations=True) for grid in FP4]
"""NVFP4 and MXFP4."""
W4AFP8 = Grid(4, True, 16, activations=True)
EIGHT_BITS = [Grid(8, True, None, activations=True), Grid(8, True, None, float8=True, activations=True)]
"""W8A8 and FP8_DYNAMIC."""
WRITTEN = [
    *(("compressed-tensors", grid) for grid in (*GRIDS, *EIGHT_BITS, *FP4, *FP4_INPUTS, W4AFP8)),
    *(("awq", Grid(4, False, size, portable=True)) for size in (16, 32)),
    *(("gptq", Grid(bits, True, size, portable=True)) for bits in (4, 8) for size in (None, 16, 32)),
    *(("gptq", Grid(4, True, size, portable=True, signed=True)) for size in (None, 16)),
]
"""Every format with every grid that it can hold."""


def inputs_of(tokens, channels):
    """Correlated inputs whose channels differ in size, as activations do."""
    return torch.randn(tokens, channels) @ torch.randn(channels, channels) * torch.rand(channels) ** 4


def gram_of(inputs):
    gram = Gram(inputs.shape[1], CPU)
    for batch in inputs.split(17):
        gram.add(batch)
    return gram.mean()


def config_of(kind, **more):
    shape = {
        "vocab_size": 96, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128, "initializer_range": 0.1,
    }  # fmt: skip
    return CONFIGS[kind](**{**shape, **more}, tie_word_embeddings=False, dtype="bfloat16")


def model_of(kind, **more):
    model = AutoModelForCausalLM.from_config(config_of(kind, **more)).to(torch.bfloat16).eval()
    for name, parameter in model.named_parameters():
        if "norm" in name or "bias" in name:
            parameter.data += 0.3 * torch.randn_like(parameter)
    return model


def rows_of(count, longest=40):
    draw = random.Random(1)
    return [[draw.randrange(96) for _ in range(draw.randrange(8, longest))] for _ in range(count)]


def run_of(folder, scratch, progress=lambda *_: None, settings=None, rows=None, config=None):
    settings = settings or Settings("awq+gptq", Grid(4, False, 32), 0.01, ("lm_head",))
    rows = rows_of(12) if rows is None else rows
    config = config or config_of("llama")
    return Run(Folder(folder), config, rows, settings, scratch, CPU, progress, save_every=0.0)


def claim_the_gram_score_is_the_measured_output_error(_):
    for rows, columns in ((1, 8), (24, 32), (48, 96)):
        inputs, weight = inputs_of(300, columns), torch.randn(rows, columns)
        delta = Grid(4, False, 8).rounded(weight) - weight
        measured = (inputs @ delta.T).square().sum() / len(inputs)
        assert torch.isclose(error(gram_of(inputs), delta), measured, rtol=1e-3)


def claim_gptq_with_one_column_is_rounding(_):
    for grid in (*GRIDS, *EIGHT_BITS):
        grid = dataclasses.replace(grid, group_size=None)
        weight = torch.randn(40, 1)
        scale, zero = grid.fit(grid.grouped(weight), 0.8)
        integers, _ = gptq.round_columns(weight, scale, zero, grid, gptq.factor(torch.rand(1, 1) + 0.1, 0.01))
        assert torch.equal(integers.float(), grid.integers(weight, scale, zero))


def claim_gptq_of_independent_inputs_is_rounding(_):
    weight, grid = torch.randn(20, 160), Grid(4, True, 32)
    scale, zero = grid.fit(grid.grouped(weight))
    integers, _ = gptq.round_columns(weight, scale, zero, grid, gptq.factor(torch.diag(torch.rand(160) + 0.1), 0.01))
    nearest = grid.integers(grid.grouped(weight), scale.unsqueeze(-1), zero.unsqueeze(-1)).flatten(1)
    assert torch.equal(integers.float(), nearest)


def claim_gptq_tells_its_error_and_it_is_below_that_of_rounding(_):
    for columns in (32, 128, 288):
        gram, weight, grid = gram_of(inputs_of(600, columns)), torch.randn(64, columns), Grid(4, False, 32)
        scale, zero = grid.fit(grid.grouped(weight))
        integers, loss = gptq.round_columns(weight, scale, zero, grid, gptq.factor(gram, 0.01))
        values = (grid.grouped(integers.float()) - zero.unsqueeze(-1)) * scale.unsqueeze(-1)
        damped = gram + 0.01 * gram.diagonal().mean() * torch.eye(columns)
        delta = values.flatten(1) - weight
        assert torch.allclose(loss, ((delta @ damped) * delta).sum(1), rtol=1e-2)
        assert loss.sum() < error(damped, grid.rounded(weight) - weight)


def claim_scaling_a_factor_is_factorizing_the_scaled_matrix(_):
    gram, scales = gram_of(inputs_of(500, 64)), torch.rand(64) + 0.5
    factored = gptq.factor(gram, 0.01)
    damped = gram + 0.01 * gram.diagonal().mean() * torch.eye(64)
    scaled = factored.scaled(scales)
    whole = scaled.unit @ torch.diag(scaled.pivots) @ scaled.unit.T
    wanted = (damped / (scales.unsqueeze(1) * scales))[scaled.order][:, scaled.order]
    assert torch.allclose(whole, wanted, rtol=1e-3, atol=1e-5 * float(wanted.abs().max()))


def claim_the_chosen_scales_are_no_worse_than_none(_):
    for factored in (None, True):
        weight, gram, grid = torch.randn(48, 64), gram_of(inputs_of(400, 64)), Grid(4, True, 16)
        choice = awq.search(weight, gram, grid, gptq.factor(gram, 0.01) if factored else None, None)
        assert choice.after <= choice.before


def claim_packing_and_unpacking_are_inverse_for_every_scheme(_):
    for grid in GRIDS:
        for rows, columns in ((1, 1), (3, 7), (8, 64), (5, 100)):
            values = torch.randint(grid.low, grid.high + 1, (rows, columns)).to(torch.int8)
            assert torch.equal(unpack(pack(values, grid.bits), grid.bits, columns), values)
            assert torch.equal(unpack_zeros(pack_zeros(values, grid.bits), grid.bits, rows), values)


def stored(grid, rows, columns):
    """Any values of a grid, with scales and zero points as rounding makes them."""
    weight = torch.randn(rows, columns) * 10 ** torch.randint(-4, 2, (rows, 1)).float()
    scale, zero = grid.fit(grid.grouped(weight))
    values = grid.integers(grid.grouped(weight), scale.unsqueeze(-1), zero.unsqueeze(-1)).flatten(1)
    common = grid.common(weight.abs().amax())
    return Stored(values.to(grid.storage), scale, zero, common, common if grid.input_scaled else None)


def claim_writing_and_reading_are_inverse_for_every_format_and_scheme(_):
    for name, grid in WRITTEN:
        for rows, columns in ((8, 32), (24, 64), (40, 96)):
            layer = stored(grid, rows, columns)
            tensors = FORMATS[name].tensors(layer, grid)
            assert all(tensor.is_contiguous() for tensor in tensors.values())
            if name == "compressed-tensors":
                beyond = ("weight_shape", "input_global_scale")
                kept = [tensor for kind, tensor in tensors.items() if kind not in beyond]
                beside = 32 if grid.fp4 == "nv" else 0
                assert grid.bits_of(rows, columns) + beside == 8 * sum(tensor.nbytes for tensor in kept), grid
            again = FORMATS[name].read(tensors, grid)
            assert torch.equal(again.values.float(), layer.values.float()), (name, grid)
            assert torch.equal(again.zero, layer.zero), (name, grid)
            assert torch.equal(again.scale, layer.scale), (name, grid)
            assert torch.equal(again.weights(grid), layer.weights(grid)), (name, grid)
            assert again.inputs == layer.inputs, (name, grid)


def claim_portable_scales_are_exact_in_both_halves_and_close_to_what_was_asked(_):
    wanted = 10 ** (torch.rand(4000) * 11 - 7)
    grid = Grid(4, True, 8, portable=True)
    scale, _ = grid.fit(wanted.view(-1, 1, 1) * 7.5)
    for dtype in (torch.float16, torch.bfloat16):
        assert torch.equal(scale.to(dtype).float(), scale), dtype
    off = (scale.flatten() - wanted).abs()
    assert bool((off <= wanted * (2.0**-8 + 2.0**-11) + 2.0**-24).all())


def claim_awq_and_gptq_words_are_as_their_own_code_reads_them(_):
    grid = Grid(4, False, 16, portable=True)
    layer = stored(grid, 16, 32)
    words = FORMATS["awq"].tensors(layer, grid)["qweight"]
    # AutoAWQ 0.2.9, awq/utils/packing_utils.py: unpack along the word, then AWQ_REVERSE_ORDER.
    nibbles = torch.stack([(words >> shift) & 15 for shift in range(0, 32, 4)], -1)
    assert torch.equal(nibbles[..., [0, 4, 1, 5, 2, 6, 3, 7]].flatten(1).T - 8, layer.values.int())
    grid = Grid(8, True, 16, portable=True)
    layer = stored(grid, 16, 32)
    tensors = FORMATS["gptq"].tensors(layer, grid)
    # AutoGPTQ, qlinear_cuda_old.py: (value - (stored zero + 1)) * scale.
    values = torch.stack([(tensors["qweight"] >> shift) & 255 for shift in range(0, 32, 8)], 1).flatten(0, 1)
    zeros = torch.stack([(tensors["qzeros"] >> shift) & 255 for shift in range(0, 32, 8)], -1).flatten(1) + 1
    groups = tensors["g_idx"].long()
    weights = (values - zeros[groups]) * tensors["scales"].float()[groups]
    assert torch.equal(weights.T, layer.weights(grid))


def claim_an_fp8_grid_has_the_nearest_value_of_e4m3(_):
    grid = EIGHT_BITS[1]
    every = torch.arange(256).to(torch.uint8).view(torch.float8_e4m3fn).float()
    every = every[torch.isfinite(every)]
    weight = torch.randn(12, 64)
    scale, zero = grid.fit(grid.grouped(weight))
    found = grid.integers(grid.grouped(weight), scale.unsqueeze(-1), zero.unsqueeze(-1)).flatten(1)
    exact = (weight / scale).clamp(-448, 448)
    assert torch.allclose((found - exact).abs(), (exact.unsqueeze(-1) - every).abs().amin(-1))


def claim_an_fp4_grid_has_the_nearest_value_of_e2m1_and_ties_go_to_the_even_one(_):
    every = torch.tensor(sorted({sign * value for value in E2M1 for sign in (-1, 1)})).float()
    for grid in FP4:
        weight = torch.randn(24, 64) * 10 ** torch.randint(-3, 2, (24, 1)).float()
        scale, zero = grid.fit(grid.grouped(weight))
        found = grid.integers(grid.grouped(weight), scale.unsqueeze(-1), zero.unsqueeze(-1)).flatten(1)
        exact = (grid.grouped(weight) / scale.unsqueeze(-1)).flatten(1).clamp(-12, 12)
        assert torch.allclose((found - exact).abs(), (exact.unsqueeze(-1) - every).abs().amin(-1))
        ties = torch.tensor([0.5, 1.5, 2.5, 3.5, 5.0, 7.0, 10.0])
        assert grid.integers(ties, torch.ones(1), torch.zeros(1)).tolist() == [0, 2, 2, 4, 4, 8, 8]
        assert grid.integers(-ties, torch.ones(1), torch.zeros(1)).tolist() == [0, -2, -2, -4, -4, -8, -8]


def claim_fp4_scales_are_what_their_formats_hold_and_span_the_weights(_):
    for grid in FP4:
        for share in grid.shares:
            weight = torch.randn(24, 96) * 10 ** torch.randint(-3, 2, (24, 1)).float()
            grouped = grid.grouped(weight)
            scale, _ = grid.fit(grouped, share)
            common = grid.common(grouped.abs().amax())
            if common is None:
                assert torch.equal(torch.frexp(scale)[0], torch.full_like(scale, 0.5))
            else:
                stored = (2 * scale * common).to(torch.float8_e4m3fn).float()
                assert torch.equal(stored / common / 2, scale)
            if share == 1.0:
                reached = grouped.abs().amax(-1) / scale
                assert bool((reached <= 12 * (1 + 2.0**-3)).all()), "the largest is clipped"
                assert common is None or bool((reached[stored > 2.0**-6] >= 12 * (1 - 2.0**-3)).all())


def claim_fp4_shares_a_scale_among_what_is_joined_and_gptq_beats_rounding(_):
    for grid in FP4:
        gram, weight = gram_of(inputs_of(600, 96)), torch.randn(48, 96)
        factored = gptq.factor(gram, 0.01)
        share = awq.clip(weight, gram, grid, factored)
        scale, zero = grid.fit(grid.grouped(weight), share)
        values, _ = gptq.round_columns(weight, scale, zero, grid, factored)
        assert set(values.abs().unique().tolist()) <= set(E2M1)
        made = Stored(values, scale, zero).weights(grid)
        assert error(gram, made - weight) < 0.6 * error(gram, grid.rounded(weight) - weight)
        nearest = grid.nearest(grid.grouped(weight), scale, zero).flatten(1) - weight
        plain = grid.rounded(weight) - weight
        pivots = factored.weights()
        assert (nearest.square().sum(0) * pivots).sum() <= (plain.square().sum(0) * pivots).sum()


def claim_the_error_of_rounded_inputs_is_measured_and_smoothing_lowers_the_sum(_):
    for grid in (*EIGHT_BITS, *FP4_INPUTS):
        inputs, weight = torch.randn(96, 64), torch.randn(48, 64)
        inputs[:, 5] *= 60
        matrix = Gram(64, CPU, sampled=True)
        matrix.add(inputs)
        gram = matrix.mean()
        scales = torch.rand(64) + 0.5
        delta = smooth.rounded(inputs / scales, grid) * scales - inputs
        measured = (delta @ weight.T).square().sum() / len(inputs)
        assert torch.isclose(smooth.input_error(inputs, weight, scales, grid), measured, rtol=1e-3)
        choice = smooth.search(weight, gram, matrix, grid, gptq.factor(gram, 0.01), None)
        assert choice.after <= choice.before, grid
        little = grid.float8 or grid.fp4
        assert little or choice.after < 0.5 * choice.before, "an outlier channel of the inputs isn't smoothed"
        if grid.fp4 == "nv":
            # A server knows the scale of whole tensors beforehand: what is larger than it was in calibration is cut.
            half = smooth.rounded(inputs, grid, grid.common(inputs.abs().amax() / 2))
            assert half.abs().amax() <= inputs.abs().amax() / 2
            assert torch.equal(
                smooth.rounded(inputs, grid, grid.common(inputs.abs().amax())), smooth.rounded(inputs, grid)
            )


def claim_inputs_are_rounded_as_in_the_twin_of_an_artifact(_):
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "quantize" / "emulate" / "workers" / "plugin"))
    from qpack_emulation import WAYS

    inputs = torch.randn(64, 128) * torch.exp(2 * torch.randn(64, 1))
    inputs[3] = 0
    ways = {"nvfp4": FP4_INPUTS[0], "mxfp4": FP4_INPUTS[1], "int8_token": EIGHT_BITS[0], "fp8_token": EIGHT_BITS[1]}
    for way, grid in ways.items():
        common = grid.common(inputs.abs().amax())
        found = smooth.rounded(inputs, grid, common)
        expected = WAYS[way](inputs, 1 / float(common) if common is not None else None)
        apart = (found - expected).abs() > 1e-5 * inputs.abs().amax(-1, keepdim=True)
        assert apart.float().mean() < 1e-3, (way, float(apart.float().mean()))
        assert not torch.equal(found, inputs), way


def draw_parts(draw, count):
    return [
        [Choice(draw.randrange(1, 60), draw.choice((0.0, 1.0, draw.random()))) for _ in range(draw.randrange(1, 6))]
        for _ in range(count)
    ]


def refused(parts, budget):
    """The bits that the cheapest choices take, as the refusal says."""
    try:
        allocate(parts, budget)
    except TooSmall as found:
        return found.bits
    return None


def claim_an_allocation_is_never_above_its_budget_and_more_budget_is_never_worse(_):
    draw = random.Random(3)
    for _ in range(400):
        parts = draw_parts(draw, draw.randrange(1, 12))
        least = sum(min(choice.bits for choice in part) for part in parts)
        assert refused(parts, least - 1) == least
        before = float("inf")
        for budget in sorted(draw.randrange(least, least + 300) for _ in range(12)):
            picks = allocate(parts, budget)
            assert sum(part[i].bits for part, i in zip(parts, picks, strict=True)) <= budget
            after = sum(part[i].error for part, i in zip(parts, picks, strict=True))
            assert after <= before + 1e-12
            before = after
        top = allocate(parts, 10**6)
        best = sum(min(choice.error for choice in part) for part in parts)
        assert abs(sum(part[i].error for part, i in zip(parts, top, strict=True)) - best) < 1e-9


def claim_an_allocation_is_the_best_of_all_that_cost_no_more(_):
    draw = random.Random(4)
    for _ in range(200):
        parts = draw_parts(draw, 4)
        budget = sum(max(choice.bits for choice in part) for part in parts) * draw.random()
        try:
            picks = allocate(parts, budget)
        except TooSmall:
            continue
        cost = sum(part[i].bits for part, i in zip(parts, picks, strict=True))
        error = sum(part[i].error for part, i in zip(parts, picks, strict=True))
        every = itertools.product(*parts)
        rivals = [sum(c.error for c in combo) for combo in every if sum(c.bits for c in combo) <= cost]
        assert error <= min(rivals) + 1e-9


def claim_values_lie_from_the_lowest_bit_of_each_word(_):
    for bits in (4, 8):
        values = torch.randint(-(2 ** (bits - 1)), 2 ** (bits - 1), (3, 11)).to(torch.int8)
        for row, words in zip(values.tolist(), pack(values, bits).tolist(), strict=True):
            number = sum((value + 2 ** (bits - 1)) << (bits * i) for i, value in enumerate(row))
            wanted = [(number >> (32 * i)) & 0xFFFFFFFF for i in range(len(words))]
            assert [word & 0xFFFFFFFF for word in words] == wanted


def claim_every_rounded_weight_lies_within_half_a_step_of_it(_):
    for grid in GRIDS:
        weight = torch.randn(16, 64) * 10 ** torch.randint(-4, 3, (16, 1)).float()
        scale, _ = grid.fit(grid.grouped(weight))
        off = grid.grouped(grid.rounded(weight) - weight).abs().amax(-1)
        # A stored scale is off by its own rounding, and so is the end of the range.
        # Of signed scales the shorter end has no step for its last half, and the same again where both are as long.
        half = 1.0 if grid.signed else 0.5
        assert bool((off <= scale.abs() * (half + 2.0 ** (grid.bits - 8)) + 1e-6).all())


def claim_a_group_of_zeros_stays_zero(_):
    for grid in GRIDS:
        assert torch.equal(grid.rounded(torch.zeros(4, 64)), torch.zeros(4, 64))


def matrices_of(folder, scratch, rows):
    """The sums of the first layer's Gram matrices, {site: (tokens, sum)}."""
    run, found = run_of(folder, scratch, rows=rows), {}

    def stop(block, grams, *rest):
        found.update({name: (gram.tokens, gram.mean() * gram.tokens) for name, gram in grams.items()})
        raise InterruptedError

    original, stream.solve = stream.solve, stop
    try:
        run.run()
    except InterruptedError:
        return found
    finally:
        stream.solve = original


def claim_padding_changes_nothing(folder):
    model_of("llama").save_pretrained(folder / "padding")
    rows = [[3, 1, 4, 1, 5, 9, 2, 6], [2, 7, 1]]
    both, *alone = (matrices_of(folder / "padding", folder / "unused", part) for part in (rows, rows[:1], rows[1:]))
    for name, (tokens, total) in both.items():
        assert tokens == 11
        apart = alone[0][name][1] + alone[1][name][1]
        assert torch.allclose(total, apart, rtol=0.03, atol=0.03 * float(apart.diagonal().mean()))


class Products(TorchFunctionMode):
    """Notes the types that linear layers are multiplied in."""

    def __init__(self):
        super().__init__()
        self.types = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        out = func(*args, **kwargs or {})
        if func is functional.linear:
            self.types.append((args[0].dtype, args[1].dtype))
        return out


@contextlib.contextmanager
def cpu_that(multiplies):
    """A CPU with instructions for products of 16-bit matrices, or without."""
    original, products.native = products.native, lambda _: multiplies
    yield
    products.native = original


def claim_16_bit_products_are_made_in_float32_where_the_cpu_has_none_and_rounded_once(folder):
    for dtype in (torch.bfloat16, torch.float16):
        inputs, weight, bias = (torch.randn(*shape).to(dtype) for shape in ((3, 700, 64), (24, 64), (24,)))
        exact = inputs.double() @ weight.double().T + bias.double()
        with cpu_that(False), products.quick(inputs):
            found = functional.linear(inputs, weight, bias=bias)
            assert functional.linear(inputs[:0], weight).shape == (0, 700, 24)
            assert torch.equal(inputs @ weight.T, (inputs.float() @ weight.float().T).to(dtype))
        assert found.dtype == dtype
        assert (found.double() - exact).abs().max() < torch.finfo(dtype).eps * exact.abs().max()
    model_of("llama").save_pretrained(folder / "products")
    made = {}
    for multiplies, wanted in ((True, torch.bfloat16), (False, torch.float32)):
        with cpu_that(multiplies), Products() as seen:
            made[multiplies] = run_of(folder / "products", folder / f"products-{multiplies}")
            made[multiplies].run()
        assert set(seen.types) == {(wanted, wanted)}, set(seen.types)
    for one, other in zip(*(run.records for run in made.values()), strict=True):
        assert abs(one["error_after"] - other["error_after"]) < 0.05 * other["error_after"]


def claim_bfloat16_is_multiplied_as_such_only_where_the_cpu_is_faster_at_it(_):
    names = ("_is_avx2_supported", "_is_amx_tile_supported")
    originals = [getattr(torch.cpu, name) for name in names]
    try:
        for avx2, amx in ((True, True), (True, False)):
            torch.cpu._is_avx2_supported, torch.cpu._is_amx_tile_supported = (lambda a=avx2: a), (lambda a=amx: a)
            assert products.native(torch.bfloat16) == amx
        torch.cpu._is_avx2_supported = lambda: False  # another kind of CPU: PyTorch is asked
        assert products.native(torch.bfloat16) == torch.ops.mkldnn._is_mkldnn_bf16_supported()
        assert products.native(torch.float32)
    finally:
        for name, original in zip(names, originals, strict=True):
            setattr(torch.cpu, name, original)


def claim_scales_are_centred_and_channels_that_are_dead_keep_one(_):
    for seed in range(20):
        torch.manual_seed(seed)
        inputs, weights = torch.rand(48) * 3, torch.rand(48) + 0.01
        inputs[torch.rand(48) < seed / 19] = 0  # the last has no channel that is live
        live = inputs > 0
        for scales in (awq.candidates(inputs, weights), smooth.candidates(inputs, weights)):
            assert scales.shape == (1 + awq.CANDIDATES, 48)
            assert bool((scales[0] == 1).all())
            assert bool((scales[:, ~live] == 1).all())
            if bool(live.any()):
                ends = scales[:, live].amax(1) * scales[:, live].amin(1)
                assert torch.allclose(ends, torch.ones_like(ends), rtol=1e-4)


def claim_the_pass_that_collects_ends_at_the_last_input_and_sees_what_a_whole_one_sees(folder):
    model_of("llama").save_pretrained(folder / "ending")
    ended = matrices_of(folder / "ending", folder / "unused", rows_of(12))
    collecting = stream.Run._collected

    def collected(*more, **named):
        seen.types.clear()  # Those of watching what the layers read.
        return collecting(*more, **named)

    stream.Run._collected = collected
    try:
        with Products() as seen:
            matrices_of(folder / "ending", folder / "unused", rows_of(12))
    finally:
        stream.Run._collected = collecting
    # 12 rows are one batch; the seventh linear layer is down_proj.
    assert len(seen.types) == 6, len(seen.types)
    original, stream.collect = stream.collect, lambda *more, **named: collect(*more, **{**named, "ending": False})
    try:
        whole = matrices_of(folder / "ending", folder / "unused", rows_of(12))
    finally:
        stream.collect = original
    assert set(ended) == set(whole)
    assert all(torch.equal(ended[name][1], whole[name][1]) for name in whole)


def sites_of_llama():
    """With 4 query heads of 16 channels on 2 key-value heads."""
    rows = {"o": tuple(head // 2 * 16 + i for head in range(4) for i in range(16)), "down": None}
    found = []
    for site in ARCHITECTURES["llama"].sites:
        wide = model_of("llama").model.layers[0].get_submodule(site.readers[0]).in_features
        found.append(dataclasses.replace(site, rows=rows.get(site.name) or (None if site.norm else tuple(range(wide)))))
    return found


def claim_dead_channels_and_a_rank_deficient_matrix_give_finite_weights_and_are_told(_):
    layer = model_of("llama").model.layers[0]
    sites = sites_of_llama()
    grams = {}
    for site in sites:
        columns = layer.get_submodule(site.readers[0]).in_features
        inputs = torch.randn(5, columns)
        inputs[:, 3:9] = 0
        grams[site.name] = Gram(columns, CPU)
        grams[site.name].add(inputs)
    settings = Settings("awq+gptq", Grid(4, True, 16), 0.01, ())
    solved = solve(Block(layer, "model.layers.0", sites, settings, Clock(CPU).phase), grams)
    assert [part.record["dead_channels"] for part in solved] == [6, 6, 6, 6]
    assert all(bool(torch.isfinite(parameter).all()) for parameter in layer.parameters())


def claim_nan_and_infinities_name_the_layer_that_has_them(folder):
    nan = {"model.layers.1.mlp.up_proj.weight": (torch.nan, "model.layers.1.mlp.up_proj: its weights hold")}
    huge = {"model.layers.1.post_attention_layernorm.weight": (torch.inf, "model.layers.1.mlp.gate_proj: its inputs")}
    dying = {"model.layers.0.self_attn.v_proj.weight": (3e38, "model.layers.0.self_attn.o_proj")}
    table = {"model.embed_tokens.weight": (torch.nan, "the embedding of the calibration rows")}
    for number, (name, (value, wanted)) in enumerate((nan | huge | dying | table).items()):
        model = model_of("llama")
        model.get_parameter(name).data.fill_(value)
        model.save_pretrained(folder / f"broken-{number}")
        for method in ("gptq", "awq"):
            said, settings = "", Settings(method, Grid(4, True, 32), 0.01, ("lm_head",))
            try:
                run_of(folder / f"broken-{number}", folder / "broken-scratch", settings=settings).run()
            except NotFinite as found:
                said = str(found)
            assert wanted in said, (name, said or "it went through")


def claim_every_method_and_scheme_gives_every_layer_its_tensors(folder):
    model_of("qwen2", num_hidden_layers=1).save_pretrained(folder / "every")
    for method in METHODS[:4]:
        for grid in (Grid(4, True, 16), Grid(4, False, None), Grid(8, True, None), Grid(8, False, 32)):
            scratch = folder / f"every-{method}-{grid.bits}-{grid.symmetric}"
            settings = Settings(method, grid, 0.01, ("lm_head",))
            rows = [] if method == "rtn" else rows_of(3)
            config = config_of("qwen2", num_hidden_layers=1)
            part, _ = run_of(folder / "every", scratch, settings=settings, rows=rows, config=config).run()
            tensors = Folder(part.parent)
            found = tensors.read([name for name in tensors.names() if "down_proj" in name], "cpu")
            kinds = {name.rpartition(".")[2]: tuple(tensor.shape) for name, tensor in found.items()}
            groups = 96 // (grid.group_size or 96)
            zeros = {} if grid.symmetric else {"weight_zero_point": (64 * grid.bits // 32, groups)}
            packed = {"weight_packed": (64, 96 * grid.bits // 32), "weight_scale": (64, groups), "weight_shape": (2,)}
            assert kinds == {**packed, **zeros}, (method, grid, kinds)


def claim_8_bit_activations_get_one_value_a_byte_and_the_model_says_nearly_the_same(folder):
    model = model_of("llama", num_hidden_layers=2)
    model.save_pretrained(folder / "eight")
    config = config_of("llama", num_hidden_layers=2)
    for grid in EIGHT_BITS:
        for method in ("rtn", "gptq", "smoothquant"):
            settings = Settings(method, grid, 0.01, ("lm_head",))
            rows = [] if method == "rtn" else rows_of(6)
            run = run_of(folder / "eight", folder / "eight-scratch", settings=settings, rows=rows, config=config)
            part = run.run()[0]
            found = Folder(part.parent).read(["model.layers.0.mlp.up_proj.weight"], "cpu").popitem()[1]
            assert found.dtype == grid.storage
            if method != "rtn":
                assert all(record["error_after"] < 0.01 for record in run.records), run.records
            if method == "smoothquant":
                assert any(record["exponent"] is not None for record in run.records)


def claim_fp4_inputs_have_the_scale_that_calibration_saw_and_later_layers_see_them_rounded(folder):
    model_of("llama").save_pretrained(folder / "inputs")
    plain, served = (Grid(4, True, 16, fp4="nv", activations=given) for given in (False, True))
    seen = {}
    for grid, method in itertools.product((plain, served), ("rtn", "gptq", "awq+gptq")):
        settings = Settings(method, grid, 0.01, ("lm_head",))
        run = run_of(folder / "inputs", folder / f"inputs {method} {grid.activations}", settings=settings)
        hidden, largest = seen.setdefault((method, grid.activations), []), {}

        def collected(index, batches, original=run._collected, hidden=hidden, largest=largest, **named):
            hidden += [batch.hidden for batch in batches[:1]]
            grams = original(index, batches, **named)
            largest.update({(index, name): gram.largest for name, gram in grams.items()})
            return grams

        run._collected = collected
        made = Folder(run.run()[0].parent)
        tensors = made.read(made.names(), "cpu")
        scales = {name: tensor for name, tensor in tensors.items() if name.endswith("input_global_scale")}
        assert len(scales) == (21 if grid.activations else 0), (method, len(scales))
        for (index, name), channels in largest.items() if grid.activations else ():
            (site,) = [one for one in run.sites[index] if one.name == name]
            found = {float(scales[f"model.layers.{index}.{reader}.input_global_scale"]) for reader in site.readers}
            assert len(found) == 1, "layers that servers join have scales of their own"
            if method != "awq+gptq":
                assert torch.isclose(torch.tensor(found.pop()), 448 * 6 / channels.amax())
    for method in ("gptq", "awq+gptq"):
        (first, second, _), (as_first, rounded, _) = seen[method, False], seen[method, True]
        assert torch.equal(first, as_first)
        assert not torch.equal(second, rounded)


def claim_layers_that_servers_join_share_a_scale_without_data_too(folder):
    model_of("llama", num_hidden_layers=1).save_pretrained(folder / "joined")
    settings = Settings("rtn", FP4[0], 0.01, ("lm_head",))
    config = config_of("llama", num_hidden_layers=1)
    part, _ = run_of(folder / "joined", folder / "joined-scratch", settings=settings, rows=[], config=config).run()
    made = Folder(part.parent)
    common = {
        name.split(".")[-2]: float(tensor)
        for name, tensor in made.read(made.names(), "cpu").items()
        if name.endswith("weight_global_scale")
    }
    assert len(common) == 7
    assert common["q_proj"] == common["k_proj"] == common["v_proj"], common
    assert common["gate_proj"] == common["up_proj"], common
    assert len(set(common.values())) == 4, common


def claim_mixed_precision_keeps_its_budget_joins_what_servers_join_and_resumes(folder):
    model_of("llama").save_pretrained(folder / "mixed")
    grids = tuple(Grid(bits, True, size) for bits in (4, 8) for size in (64, 32, 16))
    settings = Settings("awq+gptq", Grid(4, True, None), 0.01, ("lm_head",))
    errors = []
    for budget in (4.8, 5.5, 7.0, 9.0):
        mixed = Mixed(budget, grids)
        run = survey_of(folder / "mixed", folder / f"survey-{budget}", settings, mixed)
        run.run()
        picks = chosen(run.records, mixed)
        # 96 channels aren't divided by 64.
        assert all(picks[f"model.layers.{i} down"].group_size != 64 for i in range(3))
        costs = {
            (r["layer"], r["site"]): (r["bits"][grids.index(grid)], r["errors"][grids.index(grid)])
            for r in run.records
            for grid in (picks[f"{r['layer']} {r['site']}"],)
        }
        assert sum(bits for bits, _ in costs.values()) <= budget * sum(r["weights"] for r in run.records)
        errors.append(sum(error for _, error in costs.values()))
    assert errors == sorted(errors, reverse=True)
    assert len(set(errors)) == 4
    again = survey_of(folder / "mixed", folder / "survey-killed", settings, Mixed(5.5, grids))
    child = os.fork()
    if not child:
        again.progress = die_after(2)
        again.run()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    layers = []
    again = survey_of(folder / "mixed", folder / "survey-killed", settings, Mixed(5.5, grids))
    again.progress = lambda finished, *_: layers.append(finished)
    again.run()
    assert layers in ([2, 3], [3]), layers
    whole = survey_of(folder / "mixed", folder / "survey-5.5", settings, Mixed(5.5, grids))
    whole.run()
    assert again.records == whole.records


def survey_of(folder, scratch, settings, mixed):
    return Survey(
        Folder(folder), config_of("llama"), rows_of(12), settings, scratch, CPU, lambda *_: None, 0.0, mixed=mixed
    )


def claim_ignored_layers_keep_their_weights_and_others_are_packed(folder):
    model = model_of("llama")
    model.save_pretrained(folder / "some")
    settings = Settings(
        "gptq", Grid(4, True, 32), 0.01, ("lm_head", "re:.*self_attn.*", "model.layers.2.mlp.down_proj")
    )
    parts = run_of(folder / "some", folder / "some-scratch", settings=settings).run()
    tensors = {name for part in parts for name in Folder(part.parent).names()}
    assert "model.layers.0.mlp.down_proj.weight_packed" in tensors
    assert {"model.layers.2.mlp.down_proj.weight", "model.layers.0.self_attn.q_proj.weight"} <= tensors
    kept = Folder(parts[0].parent).read(["model.layers.0.self_attn.q_proj.weight"], "cpu")
    assert torch.equal(*kept.values(), model.model.layers[0].self_attn.q_proj.weight)


def claim_a_killed_run_goes_on_at_its_layer_to_the_same_bytes(folder):
    model_of("llama").save_pretrained(folder / "model")
    ignore = ("lm_head",)
    mixed = {f"model.layers.{i} down": Grid(8, True, 16) for i in (0, 2)}
    for number, settings in enumerate(
        (
            Settings("awq+gptq", Grid(4, False, 32), 0.01, ignore),
            Settings("awq+gptq", Grid(4, False, 32, portable=True), 0.01, ignore, "awq"),
            Settings("gptq", Grid(4, True, None, portable=True), 0.01, ignore, "gptq"),
            Settings("awq+gptq", Grid(4, True, 32), 0.01, ignore, chosen=mixed),
            *(Settings("smoothquant", grid, 0.01, ignore) for grid in EIGHT_BITS),
        )
    ):
        whole = run_of(folder / "model", folder / f"whole-{number}", settings=settings).run()
        killed = folder / f"killed-{number}"
        child = os.fork()
        if not child:
            run_of(folder / "model", killed, die_after(2), settings).run()
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        layers = []
        run = run_of(folder / "model", killed, lambda finished, *_, into=layers: into.append(finished), settings)
        parts = run.run()
        assert layers in ([2, 3], [3]), layers
        assert [part.read_bytes() for part in parts] == [part.read_bytes() for part in whole]
        assert len(run.records) == 12


def claim_what_another_job_left_is_not_used(folder):
    model_of("llama").save_pretrained(folder / "model2")
    scratch = folder / "shared"
    run_of(folder / "model2", scratch).run()
    settings = Settings("awq+gptq", Grid(4, True, 32), 0.01, ("lm_head",))
    parts = run_of(folder / "model2", scratch, settings=settings).run()
    alone = run_of(folder / "model2", folder / "alone", settings=settings).run()
    assert [part.read_bytes() for part in parts] == [part.read_bytes() for part in alone]


def die_after(layers):
    def progress(done, *_):
        if done >= layers:
            os.kill(os.getpid(), signal.SIGKILL)

    return progress


def main(folder, claims):
    """Run every claim of a module."""
    outcome = {}
    for name, claim in list(claims.items()):
        if name.startswith("claim_"):
            torch.manual_seed(0)
            started = time.monotonic()
            try:
                claim(folder)
                outcome[name] = None
            except Exception:
                outcome[name] = traceback.format_exc()[-1500:]
            print(f"{time.monotonic() - started:6.2f} s  {name}", file=sys.stderr)
    print(json.dumps(outcome))


if __name__ == "__main__":
    main(Path(sys.argv[1]), globals())
