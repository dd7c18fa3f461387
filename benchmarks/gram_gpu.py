"""gram on one GPU: seconds by phase beside the floor that the chip's measured rates set. Random weights.

    python benchmarks/gram_gpu.py --parts rates,checks,repeat,kernels,run,precision,disk --out DIR
    torchrun --nproc-per-node 2 benchmarks/gram_gpu.py --parts run --out DIR

The second shares the work out over two GPUs; its digest has to be the same as one GPU's. Needs torch, triton,
transformers and safetensors. `--shape tiny --device cpu` runs everything but the kernels anywhere. Parts: `rates`
measures the ceilings, `checks` holds the kernels against PyTorch in float32, `repeat` says whether two runs of two
layers give the same bytes, `kernels` times the column loop's launch shapes, `run` is all layers without a disk, with a
digest of what would be written, `precision` what tf32 does to time and error, `disk` the same run from and to
safetensors, `tuning` two layers, tuned: recorded as a CUDA graph, not recorded, and with recordings that fail, which
all have to give the same bytes.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import hashlib
import io
import json
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from quantize.gram import awq, gptq, tune  # noqa: E402
from quantize.gram.checkpoint import Folder, assemble, save  # noqa: E402
from quantize.gram.grid import Grid  # noqa: E402
from quantize.gram.layer import Settings  # noqa: E402
from quantize.gram.matrices import Gram  # noqa: E402
from quantize.gram.ranks import Ranks, device_of, leave, started_by_torchrun  # noqa: E402
from quantize.gram.stream import Run  # noqa: E402

SHAPES = {
    "llama3-8b": {
        "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "rope_theta": 500000.0, "max_position_embeddings": 8192,
    },
    "llama3-70b": {
        "vocab_size": 128256, "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80,
        "num_attention_heads": 64, "num_key_value_heads": 8, "rope_theta": 500000.0, "max_position_embeddings": 8192,
    },
    "tiny": {
        "vocab_size": 512, "hidden_size": 256, "intermediate_size": 640, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 1024,
    },
}  # fmt: skip


class RandomWeights:
    """Random weights of a shape, made when they are read: the same for the same seed and name."""

    def __init__(self, config: LlamaConfig) -> None:
        h, m, head = config.hidden_size, config.intermediate_size, config.hidden_size // config.num_attention_heads
        kv = config.num_key_value_heads * head
        layer = {
            "self_attn.q_proj": (h, h), "self_attn.k_proj": (kv, h), "self_attn.v_proj": (kv, h),
            "self_attn.o_proj": (h, h), "mlp.gate_proj": (m, h), "mlp.up_proj": (m, h), "mlp.down_proj": (h, m),
            "input_layernorm": (h,), "post_attention_layernorm": (h,),
        }  # fmt: skip
        self.shapes: dict[str, tuple[int, ...]] = {
            f"model.layers.{i}.{name}.weight": shape
            for i in range(config.num_hidden_layers)
            for name, shape in layer.items()
        }
        self.shapes |= {"model.embed_tokens.weight": (config.vocab_size, h), "model.norm.weight": (h,)}
        self.shapes |= {"lm_head.weight": (config.vocab_size, h)}

    def names(self) -> Iterable[str]:
        """Every tensor's full name."""
        return sorted(self.shapes)

    def read(self, names: Iterable[str], device: str) -> dict[str, Tensor]:
        """Those tensors: linear layers and embeddings normal with deviation 0.02, norms near one.

        Nothing for the CPU: what isn't in a layer goes straight from disk to disk, and a run without one skips it.
        """
        made: dict[str, Tensor] = {}
        if device == "cpu" and torch.cuda.is_available():
            return made
        for name in names:
            generator = torch.Generator(device).manual_seed(sum(map(ord, name)) * 7919 + len(name))
            value = torch.randn(self.shapes[name], generator=generator, device=device, dtype=torch.bfloat16)
            made[name] = 1 + 0.1 * value if len(self.shapes[name]) == 1 else 0.02 * value
        return made


class Digest:
    """A sum over all that a run would write, in 64 bits, made where the tensors are. No order of sums matters."""

    def __init__(self) -> None:
        self.total = 0
        self._lock = threading.Lock()

    def __call__(self, tensors: dict[str, Tensor], _: Path, **__: str) -> None:
        """Add a file's tensors."""
        found = 0
        for name, tensor in tensors.items():
            words = tensor.contiguous().view(-1).view(torch.uint8)
            seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:7], "big")
            for start in range(0, len(words), 2**26):
                part = words[start : start + 2**26].to(torch.int64)
                place = torch.arange(start, start + len(part), device=part.device)
                found += int(((place * 2654435761 + seed | 1) * (part + 1)).sum())
        with self._lock:
            self.total = (self.total + found) % 2**64

    def __str__(self) -> str:
        return f"{self.total:016x}"


def sync(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def median_seconds(work: Callable[[], Any], device: torch.device, times: int = 7) -> float:
    work()
    taken = []
    for _ in range(times):
        sync(device)
        start = time.perf_counter()
        work()
        sync(device)
        taken.append(time.perf_counter() - start)
    return sorted(taken)[times // 2]


def rates(device: torch.device) -> dict[str, float]:
    """TFLOP/s of matrix products and TB/s of a copy, measured on random data."""
    n = 8192 if device.type == "cuda" else 512
    a, b = torch.randn(n, n, device=device), torch.randn(n, n, device=device)
    found = {}
    for name, precision in (("fp32", "ieee"), ("tf32", "tf32")):
        set_precision(precision)
        found[name] = 2 * n**3 / median_seconds(lambda: a @ b, device) / 1e12
    set_precision("ieee")
    a16, b16 = a.bfloat16(), b.bfloat16()
    found["bf16"] = 2 * n**3 / median_seconds(lambda: a16 @ b16, device) / 1e12
    big = torch.randn(2**30 if device.type == "cuda" else 2**22, device=device)
    other = torch.empty_like(big)
    found["copy"] = 2 * big.nbytes / median_seconds(lambda: other.copy_(big), device) / 1e12
    return found


def set_precision(precision: str) -> None:
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"


def floors(config: LlamaConfig, tokens: int, rate: dict[str, float]) -> dict[str, tuple[str, float]]:
    """Seconds below which each phase can't be, and what they are counted from."""
    h, m, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    kv = h * config.num_key_value_heads // config.num_attention_heads
    sites = {"qkv": (h + 2 * kv, h), "o": (h, h), "gate_up": (2 * m, h), "down": (h, m)}
    weights = sum(rows * columns for rows, columns in sites.values())
    forward = 2 * tokens * weights * (2 * layers - 1)
    gram = layers * sum(tokens * columns**2 for _, columns in sites.values())
    cholesky = layers * sum(columns**3 / 3 for _, columns in sites.values())
    feedback = layers * sum(rows * columns**2 for rows, columns in sites.values())
    return {
        "forward": ("2 passes in bf16 (the last layer: 1)", forward / rate["bf16"] / 1e12),
        "gram": ("X^T X, half of it, in bf16", gram / rate["bf16"] / 1e12),
        "cholesky": ("n^3/3 in fp32", cholesky / rate["fp32"] / 1e12),
        "search": ("weights read once, as float32", layers * weights * 4 / rate["copy"] / 1e12),
        "clip": ("weights read once, as float32", layers * weights * 4 / rate["copy"] / 1e12),
        "round": ("feedback products in tf32", feedback / rate["tf32"] / 1e12),
    }


def checks(device: torch.device) -> dict[str, Any]:
    """Kernels against PyTorch on the CPU in float32, and the Gram matrix against float64."""
    torch.manual_seed(int(time.time()))
    found: dict[str, Any] = {}
    inputs = (torch.randn(4096, 512) * torch.rand(512) * 3).bfloat16()
    gram = Gram(512, device)
    gram.add(inputs.to(device))
    exact = inputs.double().T @ inputs.double() / len(inputs)
    mine = gram.mean()
    found["gram, relative to float64"] = float((mine.cpu().double() - exact).norm() / exact.norm())
    symmetric = exact.float()
    fp4 = (Grid(4, True, 16, fp4="nv"), Grid(4, True, 32, fp4="mx"))
    for grid in (Grid(4, True, 128), Grid(4, True, 64, signed=True), Grid(4, False, 64), Grid(8, True, 128), *fp4):
        weight = torch.randn(640, 512)
        factored = gptq.factor(symmetric, 0.01)
        there = gptq.Factor(*(t.to(device) for t in (factored.order, factored.unit, factored.pivots)), factored.damping)
        scale, zero = grid.fit(grid.grouped(weight))
        here, loss = gptq.round_columns(weight, scale, zero, grid, factored)
        moved = (weight.to(device), scale.to(device), zero.to(device))
        other, other_loss = gptq.round_columns(*moved, grid, there)
        kind = grid.fp4 or "signed" if grid.signed or grid.fp4 else "symmetric" if grid.symmetric else "asymmetric"
        name = f"W{grid.bits} {kind} g{grid.group_size}"
        found[f"{name}: integers that differ"] = float((other.cpu() != here).float().mean())
        found[f"{name}: error, ratio of sums"] = float(other_loss.cpu().sum() / loss.sum())
        candidates = torch.rand(4, 512) + 0.5
        a = awq.scores(weight, candidates, symmetric, grid, factored)
        b = awq.scores(moved[0], candidates.to(device), symmetric.to(device), grid, there)
        found[f"{name}: scores, largest relative difference"] = float(((b.cpu() - a) / a).abs().max())
        c = awq.clip(weight, symmetric, grid, factored)
        d = awq.clip(moved[0], symmetric.to(device), grid, there)
        found[f"{name}: clippings that differ"] = float((d.cpu() != c).float().mean())
    return found


def launch_shapes(device: torch.device) -> dict[str, float]:
    """Milliseconds of one 128-column block, by rows a program and warps."""
    from quantize.gram import kernels

    grid, found = Grid(4, True, 128), {}
    for rows in (4096, 28672):
        target, values, errors = (torch.randn(128, rows, device=device) for _ in range(3))
        unit, pivots = torch.randn(128, 128, device=device) * 0.01, torch.rand(128, device=device)
        scales, zeros = torch.rand(1, rows, device=device) + 0.1, torch.zeros(1, rows, device=device)
        group = torch.zeros(128, dtype=torch.long, device=device)
        integers, loss = torch.empty(128, rows, dtype=torch.int8, device=device), torch.zeros(rows, device=device)
        for each, warps in ((4, 1), (8, 1), (16, 1), (8, 2), (16, 2), (16, 4), (32, 4), (32, 8)):
            kernels.ROUND_ROWS, kernels.ROUND_WARPS = each, warps
            work = functools.partial(
                kernels.round_block,
                target, values, unit, pivots, scales, zeros, group, grid, integers, errors, loss,
            )  # fmt: skip
            found[f"{rows} rows: {each} a program, {warps} warps"] = median_seconds(work, device, 15) * 1e3
    kernels.ROUND_ROWS, kernels.ROUND_WARPS = 8, 1
    return found


def one_run(
    options: argparse.Namespace, config: LlamaConfig, source: Any, scratch: Path, write: Any, layers: int | None = None
) -> tuple[dict[str, float], Run]:
    """All layers: seconds by phase, with `total` and `peak_gb`."""
    ranks: Ranks = options.ranks
    device = ranks.device
    layers = layers or options.layers
    if layers:
        config = LlamaConfig(**{**config.to_dict(), "num_hidden_layers": layers})
    rows = torch.randint(0, config.vocab_size, (options.samples, options.tokens), generator=torch.Generator())
    rows = torch.tensor(ranks.agreed(rows.tolist()))
    grid = Grid(4, not options.asymmetric, options.group_size, signed=not options.asymmetric)
    settings = Settings(options.method, grid, 0.01, ("lm_head",))
    settings = dataclasses.replace(settings, tuning=tune.Tuning(options.iterations))
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    quiet = lambda done, total, what: None  # noqa: E731, ARG005
    run = Run(
        source, config, rows.tolist(), settings, scratch, device, quiet,
        save_every=float("inf"), write=write, ranks=ranks,
    )  # fmt: skip
    sync(device)
    start = time.perf_counter()
    parts = run.run()
    sync(device)
    seconds = dict(run.clock.seconds)
    if write is save:
        with run.clock.phase("assemble"):
            assemble(parts, scratch.parent / "artifact")
        seconds = dict(run.clock.seconds)
    seconds["total"] = time.perf_counter() - start
    if device.type == "cuda":
        seconds["peak_gb"] = max(ranks.gathered(torch.cuda.max_memory_allocated() / 1e9))
    return seconds, run


def tuning(options: argparse.Namespace, config: LlamaConfig, source: Any, folder: Path) -> dict[str, Any]:
    """Seconds, memory and the bytes' digest of two tuned layers, by what becomes of recordings."""
    recorded = tune.Recorded._record
    options = argparse.Namespace(**{**vars(options), "iterations": options.iterations or 16})
    (folder / "artifact").mkdir(exist_ok=True)

    def refused(self: tune.Recorded, key: tuple[int, int, bool], rows: tune.Rows) -> bool:
        """The driver refuses it: in a recording nothing may be waited for."""
        step = self._step

        def waiting(rows: tune.Rows) -> None:
            step(rows)
            float(rows.hidden.sum())

        self._step = waiting
        made = recorded(self, key, rows)
        self._step = step
        return made

    found: dict[str, Any] = {}
    ways = {"recorded": recorded, "not recorded": lambda *_: False, "refused": refused, "recorded again": recorded}
    for name, way in ways.items():
        tune.Recorded._record = way  # type: ignore[method-assign]
        scratch = folder / f"tuning {name}"
        seconds, run = one_run(options, config, source, scratch, save, layers=2)
        files = [run._part(index).read_bytes() for index in range(2)]
        found[f"{name}: bytes"] = hashlib.sha256(b"".join(files)).hexdigest()[:16]
        found |= {f"{name}: {key}": seconds[key] for key in ("tune", "total", "peak_gb") if key in seconds}
    tune.Recorded._record = recorded  # type: ignore[method-assign]
    return found


def mean_error(run: Run) -> float:
    return sum(float(record["error_after"]) for record in run.records) / len(run.records)  # type: ignore[arg-type]


def table(title: str, lines: dict[str, Any]) -> None:
    print(f"\n{title}")
    for name, value in lines.items():
        print(f"  {name:58s} {value:.6g}" if isinstance(value, float) else f"  {name:58s} {value}")
    sys.stdout.flush()


def main() -> None:
    """Run the parts and print their tables; all figures also go to gram_gpu.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default="rates,checks,kernels,run,precision")
    parser.add_argument("--shape", default="llama3-8b", choices=SHAPES)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--method", default="awq+gptq")
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--group-size", type=int, default=128)
    parser.add_argument("--iterations", type=int, default=0, help="of tuning; the part of that name takes 16 for 0")
    parser.add_argument("--asymmetric", action="store_true")
    parser.add_argument("--layers", type=int, default=0, help="as many only; 0: all of the shape")
    parser.add_argument("--name", default="gram_gpu", help="of the file of figures in --out")
    parser.add_argument("--tf32", action="store_true", help="float32 products (feedback of GPTQ) in tf32")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    ranks = options.ranks = started_by_torchrun() or Ranks(
        device=device_of(0) if options.device == "cuda" else torch.device("cpu")
    )
    if not ranks.first:
        sys.stdout = io.StringIO()
    device, parts = ranks.device, options.parts.split(",")
    config = LlamaConfig(**SHAPES[options.shape], tie_word_embeddings=False, dtype="bfloat16")
    every: dict[str, Any] = {"torch": torch.__version__, "options": {k: str(v) for k, v in vars(options).items()}}
    if device.type == "cuda":
        every["device"] = torch.cuda.get_device_name()
        table("device", {"name": every["device"], "torch": torch.__version__})
    rate = rates(device)
    every["rates"] = rate
    table("rates: TFLOP/s; copy in TB/s", rate)
    if "checks" in parts:
        every["checks"] = checks(device)
        table("checks", every["checks"])
    if "kernels" in parts and device.type == "cuda":
        every["kernels"] = launch_shapes(device)
        table("column loop, ms a block of 128 columns", every["kernels"])
    set_precision("tf32" if options.tf32 else "ieee")
    source = RandomWeights(config)
    nothing = lambda *args, **kwargs: None  # noqa: E731, ARG005
    with tempfile.TemporaryDirectory(dir=options.out) as made:
        folder = ranks.agreed(made)
        # Compiles the kernels and warms the libraries up.
        one_run(options, config, source, Path(folder) / "warm", nothing, layers=2)
        if "run" in parts:
            digest = Digest()
            seconds, run = one_run(options, config, source, Path(folder) / "run", digest)
            every["run"] = {**seconds, "digest": str(digest), "processes": ranks.count}
            floor = floors(config, options.samples * options.tokens, rate)
            print(f"\nrun without a disk, random weights, {options.samples} x {options.tokens} tokens")
            print(f"  {'phase':12s} {'seconds':>9s} {'floor':>9s} {'times':>7s}")
            for name, value in sorted(seconds.items()):
                low = floor.get(name)
                more = f"{low[1]:9.3f} {value / low[1]:7.1f}   {low[0]}" if low else ""
                print(f"  {name:12s} {value:9.3f} {more}")
            print(f"  floor of all {sum(low for _, low in floor.values()):9.3f}")
            if ranks.first:
                every["run"]["mean error after"] = mean_error(run)
                table("", {name: every["run"][name] for name in ("mean error after", "digest", "processes")})
        if "repeat" in parts:
            both = [Digest(), Digest()]
            for number, each in enumerate(both):
                one_run(options, config, source, Path(folder) / f"repeat {number}", each, layers=2)
            every["repeat"] = {"equal bytes": str(both[0]) == str(both[1]), "digest": str(both[0])}
            table("two runs of two layers", every["repeat"])
        if "precision" in parts:
            found = {}
            for precision in ("ieee", "tf32"):
                set_precision(precision)
                seconds, run = one_run(options, config, source, Path(folder) / precision, nothing, layers=2)
                found |= {f"{precision}: {name}": value for name, value in seconds.items()}
                found[f"{precision}: mean relative error after"] = mean_error(run)
            every["precision"] = found
            table("precision of float32 products, 2 layers", found)
            set_precision("tf32" if options.tf32 else "ieee")
        if "tuning" in parts:
            every["tuning"] = tuning(options, config, source, Path(folder))
            table("tuning, 2 layers", every["tuning"])
        if "disk" in parts:
            every["disk"] = disk(options, config, source, Path(folder))
            table("from and to safetensors", every["disk"])
        leave()
    if options.out and ranks.first:
        (options.out / f"{options.name}.json").write_text(json.dumps(every, indent=1))


def disk(options: argparse.Namespace, config: LlamaConfig, source: RandomWeights, folder: Path) -> dict[str, float]:
    """The same run from a checkpoint of shards on the disk to an artifact on the disk (both in the page cache)."""
    checkpoint = folder / "checkpoint"
    checkpoint.mkdir()
    (folder / "artifact").mkdir(exist_ok=True)
    start = time.perf_counter()
    names: dict[str, list[str]] = {}
    for name in source.names():
        names.setdefault(name.split(".")[2] if "layers" in name else "rest", []).append(name)
    for key, inside in names.items():
        save(source.read(inside, options.device), checkpoint / f"model-{key}.safetensors")
    made = time.perf_counter() - start
    seconds, _ = one_run(options, config, Folder(checkpoint), folder / "scratch", save)
    size = sum(path.stat().st_size for path in (folder / "artifact").glob("*.safetensors")) / 1e9
    shutil.rmtree(checkpoint)
    return {**seconds, "artifact GB": size, "seconds to make the source checkpoint": made}


if __name__ == "__main__":
    main()
