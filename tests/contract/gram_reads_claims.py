"""What others have to make of gram: compressed-tensors of its artifacts, Triton of its kernels.

Run as gram_claims.py is, but in an environment that has compressed-tensors (llm-compressor's) or Triton (vLLM's);
claims whose library isn't there are left out. Triton's interpreter runs kernels on a CPU.
"""

import dataclasses
import importlib.util
import json
import os
import sys
from pathlib import Path

os.environ["TRITON_INTERPRET"] = "1"

import torch
from gram_claims import FP4, gram_of, inputs_of, main, model_of, rows_of
from torch.nn import functional
from transformers import AutoModelForCausalLM

from quantize.gram import awq, gptq, smooth, tune
from quantize.gram.checkpoint import Folder
from quantize.gram.formats import FORMATS, Stored
from quantize.gram.grid import Grid
from quantize.gram.job import work

HALF = torch.float16  # the interpreter doesn't round to bfloat16 as GPUs do
KERNEL_GRIDS = [Grid(4, True, 32, HALF), Grid(4, True, 32, HALF, signed=True), Grid(4, False, 32, HALF), *FP4]
READ = {
    "nv": {"bits": 4, "symmetric": True, "group_size": 16, "fp4": "nv"},
    "mx": {"bits": 4, "symmetric": True, "group_size": 32, "fp4": "mx"},
    "nv inputs": {"bits": 4, "symmetric": True, "group_size": 16, "activations": True, "fp4": "nv"},
    "mx inputs": {"bits": 4, "symmetric": True, "group_size": 32, "activations": True, "fp4": "mx"},
    "w4afp8": {"bits": 4, "symmetric": True, "group_size": 32, "activations": True},
    "signed": {"bits": 4, "symmetric": True, "group_size": 32},
}


def claim_compressed_tensors_reads_what_gram_means(folder):
    model_of("llama").save_pretrained(folder / "source")
    (folder / "rows").write_text("".join(json.dumps({"input_ids": row}) + "\n" for row in rows_of(12)))
    for name, asked in READ.items():
        out = folder / name
        job = {
            "checkpoint": str(folder / "source"), "tokens": str(folder / "rows"), "method": "awq+gptq", "grid": asked,
            "format": "compressed-tensors", "mixed": None, "ignore": ["lm_head"], "damping": 0.01, "iterations": 0,
            "scratch": str(folder / f"{name}-scratch"), "out": str(out),
        }  # fmt: skip
        assert work(job, lambda *_: None)["quantized_layers"] == 21
        model = AutoModelForCausalLM.from_pretrained(out / "checkpoint", dtype=torch.bfloat16, local_files_only=True)
        model(torch.tensor([[1, 2, 3]]))
        source = Folder(out / "checkpoint")
        tensors = source.read(source.names(), "cpu")
        for stem in [key.removesuffix(".weight_packed") for key in tensors if key.endswith(".weight_packed")]:
            mine = {key.rpartition(".")[2]: tensor for key, tensor in tensors.items() if key.startswith(f"{stem}.")}
            grid, module = Grid(**asked), model.get_submodule(stem)
            layer = FORMATS["compressed-tensors"].read(mine, grid)
            meant = layer.weights(grid).bfloat16()
            assert torch.equal(meant, module.weight), (name, stem)
            if grid.input_scaled:
                given = torch.randn(1, 7, meant.shape[1])
                given = (given * (448 * 6 / layer.inputs / given.abs().max())).bfloat16()
                served = smooth.rounded(given.float(), grid, layer.inputs).bfloat16()
                plain, mine, theirs = functional.linear(given, meant), functional.linear(served, meant), module(given)
                # Its scales are computed in 16 bits, so some blocks get the neighbouring value of E4M3.
                assert (theirs - mine).abs().mean() < 0.3 * (theirs - plain).abs().mean(), (name, stem)


def claim_triton_gives_the_integers_scores_and_clippings_of_pytorch(_):
    from quantize.gram import kernels

    def by_triton(target, *more):
        kernels.round_block(target.contiguous(), *more)

    for grid in KERNEL_GRIDS:
        weight, gram = torch.randn(24, 64), gram_of(inputs_of(500, 64))
        factored = gptq.factor(gram, 0.01)
        scale, zero = grid.fit(grid.grouped(weight))
        integers, loss = gptq.round_columns(weight, scale, zero, grid, factored)
        original, gptq._one_block = gptq._one_block, lambda *_: by_triton
        try:
            found, other = gptq.round_columns(weight, scale, zero, grid, factored)
        finally:
            gptq._one_block = original
        assert torch.equal(found, integers), grid
        assert torch.allclose(other, loss, rtol=1e-4), grid
        if grid.plain:
            scales, pivots = torch.rand(3, 64) + 0.5, factored.weights()
            expected = torch.stack([awq.score(weight, one, gram, grid, pivots) for one in scales])
            assert torch.allclose(kernels.scores(weight, scales, grid, pivots), expected, rtol=1e-4), grid
            clipped = kernels.clips(weight, grid, pivots, grid.shares)
            assert torch.equal(clipped, awq.clip(weight, gram, grid, factored)), grid


def claim_triton_tunes_as_pytorch_does(_):
    others = (Grid(8, True, 32, HALF), Grid(3, False, 24, HALF))
    for grid in (*(dataclasses.replace(one, scale_dtype=HALF) for one in KERNEL_GRIDS), *others):
        weight, gram = torch.randn(20, 96), gram_of(inputs_of(300, 96))
        factored = gptq.factor(gram, 0.01)
        share = awq.clip(weight, gram, grid, factored)
        scale, zero = grid.fit(grid.grouped(weight), share)
        values, _ = gptq.round_columns(weight, scale, zero, grid, factored)
        site = Stored(values, scale, zero, grid.common(weight.abs().amax()))
        original, both = tune._fused, []
        for by_kernels in (False, True):
            tune._fused = lambda *_, found=by_kernels: found
            both.append(tune.Knobs(weight, site, share, grid))
        tune._fused = original
        plain, fused = both
        start, wanted, rate = torch.rand_like(plain.offset) - 0.5, torch.randn(20, 96).to(HALF), torch.tensor(0.03)
        for knobs in both:
            knobs.offset.data += start
        for _ in range(3):
            out = fused.weight()
            assert out.dtype == grid.scale_dtype
            assert torch.equal(out, plain.weight().to(out.dtype)), grid
            assert torch.equal(out, fused.stored().weights(grid).to(out.dtype)), grid
            for knobs in both:
                (knobs.weight().to(out.dtype) * wanted.to(out.dtype)).sum().backward()
            for one, other in zip(plain.shares, fused.shares, strict=True):
                assert torch.allclose(one.grad, other.grad, rtol=1e-4, atol=1e-5 * float(one.grad.abs().max())), grid
            assert fused.offset.grad is None, "a gradient as large as the weights is kept"
            for knobs in both:
                knobs.step(rate)
            assert torch.allclose(plain.offset, fused.offset, atol=1e-6), grid


NEEDS = {
    "claim_compressed_tensors_reads_what_gram_means": "compressed_tensors",
    "claim_triton_tunes_as_pytorch_does": "triton",
    "claim_triton_gives_the_integers_scores_and_clippings_of_pytorch": "triton",
}

if __name__ == "__main__":
    there = {name for name, library in NEEDS.items() if importlib.util.find_spec(library)}
    main(Path(sys.argv[1]), {name: claim for name, claim in globals().items() if name in there})
