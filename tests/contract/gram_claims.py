"""What has to hold of quantize.gram, run by the interpreter of gram's own environment (torch isn't in qpack's).

`python gram_claims.py FOLDER` runs every claim and prints {name: null or what went wrong} as one line of JSON.
"""

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
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

from quantize.gram import awq, gptq, stream
from quantize.gram.architectures import ARCHITECTURES
from quantize.gram.checkpoint import Folder
from quantize.gram.clock import Clock
from quantize.gram.grid import Grid
from quantize.gram.layer import METHODS, Heads, NotFinite, Settings, solve
from quantize.gram.matrices import Gram, error
from quantize.gram.pack import pack, pack_zeros, unpack, unpack_zeros
from quantize.gram.stream import Run, Unsupported

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
    for grid in GRIDS:
        grid = Grid(grid.bits, grid.symmetric, None, grid.scale_dtype)
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
        assert bool((off <= scale * (0.5 + 2.0 ** (grid.bits - 8)) + 1e-6).all())


def claim_a_group_of_zeros_stays_zero(_):
    for grid in GRIDS:
        assert torch.equal(grid.rounded(torch.zeros(4, 64)), torch.zeros(4, 64))


def claim_8_bits_hardly_change_what_a_layer_computes_in_any_architecture(_):
    for kind, sites in ARCHITECTURES.items():
        model = model_of(kind)
        layer, hidden = model.model.layers[0], torch.randn(2, 12, 64).bfloat16()
        position = torch.arange(12).unsqueeze(0)
        turn = {"position_embeddings": model.model.rotary_emb(hidden, position)}
        with torch.no_grad():
            before = layer(hidden, **turn).float()
        grams = {site.name: Gram(layer.get_submodule(site.readers[0]).in_features, CPU) for site in sites}
        for gram in grams.values():
            gram.add(inputs_of(200, gram._sum.shape[0]))
        solved = solve(
            layer, "model.layers.0", sites, grams, Settings("awq+gptq", Grid(8, False, 32), 0.01, ()),
            Heads(4, 2, model.config.hidden_size // 4 if kind == "qwen2" else layer.self_attn.head_dim),
            Clock(CPU).phase,
        )  # fmt: skip
        assert any(part.record["exponent"] is not None for part in solved), kind
        with torch.no_grad():
            after = layer(hidden, **turn).float()
        change = (after - before).norm() / (before - hidden.float()).norm()
        assert change < 0.03, (kind, float(change))


def matrices_of(folder, scratch, rows):
    """The sums of the first layer's Gram matrices, {site: (tokens, sum)}."""
    run, found = run_of(folder, scratch, rows=rows), {}

    def stop(layer, prefix, sites, grams, *rest):
        found.update({name: (gram.tokens, gram._sum) for name, gram in grams.items()})
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


def claim_dead_channels_and_a_rank_deficient_matrix_give_finite_weights_and_are_told(_):
    layer = model_of("llama").model.layers[0]
    sites = ARCHITECTURES["llama"]
    grams = {}
    for site in sites:
        columns = layer.get_submodule(site.readers[0]).in_features
        inputs = torch.randn(5, columns)
        inputs[:, 3:9] = 0
        grams[site.name] = Gram(columns, CPU)
        grams[site.name].add(inputs)
    settings = Settings("awq+gptq", Grid(4, True, 16), 0.01, ())
    solved = solve(layer, "model.layers.0", sites, grams, settings, Heads(4, 2, 16), Clock(CPU).phase)
    assert [part.record["dead_channels"] for part in solved] == [6, 6, 6, 6]
    assert all(bool(torch.isfinite(parameter).all()) for parameter in layer.parameters())


def claim_nan_in_the_activations_names_the_layer(folder):
    model = model_of("llama")
    model.model.layers[1].mlp.up_proj.weight.data[5] = torch.nan
    model.save_pretrained(folder / "nan")
    said = ""
    try:
        run_of(folder / "nan", folder / "nan-scratch").run()
    except NotFinite as found:
        said = str(found)
    assert "model.layers.1.mlp.down_proj" in said, said or "NaN went through"


def claim_an_unknown_architecture_and_rows_beyond_the_window_are_refused(folder):
    model_of("mistral").save_pretrained(folder / "mistral")
    config = config_of("mistral", sliding_window=16)
    for changed in (config, type("Other", (), {"model_type": "other"})()):
        try:
            run_of(folder / "mistral", folder / "unused", config=changed)
        except Unsupported:
            continue
        raise AssertionError(changed)


def claim_every_method_and_scheme_gives_every_layer_its_tensors(folder):
    model_of("qwen2", num_hidden_layers=1).save_pretrained(folder / "every")
    for method in METHODS:
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
    whole = run_of(folder / "model", folder / "whole").run()
    child = os.fork()
    if not child:
        run_of(folder / "model", folder / "killed", die_after(2)).run()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    layers = []
    run = run_of(folder / "model", folder / "killed", lambda finished, *_: layers.append(finished))
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


def main(folder):
    outcome = {}
    for name, claim in list(globals().items()):
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
    main(Path(sys.argv[1]))
