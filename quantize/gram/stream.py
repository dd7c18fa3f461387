"""The run: one decoder layer on the device at a time, its weights read ahead and its result written behind.

Every layer is calibrated on the outputs of the quantized layers before it. Two passes of the calibration rows
go through a layer: one collects Gram matrices, one with the rounded weights makes the next layer's inputs.

A killed run resumes from its scratch folder: a file of tensors for each finished layer, and the
activations after one of them. The same job gives the same bytes.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PretrainedConfig

from . import tune
from .checkpoint import Source, save
from .clock import Clock
from .layer import Collected, Heads, NotFinite, Rounded, Settings, collect, solve
from .matrices import Gram
from .skeleton import Skeleton, Unsupported

_TOKENS_A_BATCH = {"cpu": 4096, "cuda": 16384}


@dataclass
class Batch:
    """Rows of equal or nearly equal length, padded at the end: `hidden` [rows, tokens, channels], `mask` or None.

    `target`, where layers are tuned: what `hidden` is in the source model.
    """

    hidden: Tensor
    mask: Tensor | None
    target: Tensor | None = None


@dataclass
class Run:
    """A job: the model's config and weights, calibration rows, settings; `parts` is what it has written so far."""

    source: Source
    config: PretrainedConfig
    rows: list[list[int]]
    settings: Settings
    scratch: Path
    device: torch.device
    progress: Callable[[int, int, str], None]
    save_every: float = 30.0
    write: Callable[..., None] = save
    records: list[dict[str, object]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.clock = Clock(self.device)
        # Each held by a thread beside this one while it uses the device, both while a step of tuning is recorded.
        self._reading, self._writing = threading.Lock(), threading.Lock()
        self.model = Skeleton(self.config, self.settings.method, self.device)
        self.layers, self.prefix, self.sites = self.model.layers, self.model.prefix, self.model.sites
        heads = getattr(self.config, "num_attention_heads", 1)
        size = getattr(self.config, "head_dim", None) or self.config.hidden_size // heads
        self.heads = Heads(heads, getattr(self.config, "num_key_value_heads", None) or heads, size)

    def run(self) -> list[Path]:
        """Quantize every layer; returns the files of tensors that make up the artifact, in order."""
        self.scratch.mkdir(parents=True, exist_ok=True)
        batches, start = self._start()
        names = self._names()
        rest = self.scratch / "rest.safetensors"
        with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as writer:
            ahead = self._ahead(reader, names, start)
            written = writer.submit(self._write_rest, names[-1], rest)
            saved = time.monotonic()
            for index in range(start, len(self.layers)):
                with self.clock.phase("read"):
                    tensors = self._arrived(ahead)
                ahead = self._ahead(reader, names, index + 1)
                result = self._layer(index, tensors, batches)
                with self.clock.phase("write"):
                    written.result()
                    written = writer.submit(self._beside, self._writing, self._write_layer, index, result)
                    last = index + 1 == len(self.layers)
                    if not last and time.monotonic() - saved >= self.save_every:
                        written.result()
                        self._checkpoint(index + 1, batches)
                        saved = time.monotonic()
                self.progress(index + 1, len(self.layers), "layers")
            with self.clock.phase("write"):
                written.result()
        return [*(self._part(index) for index in range(len(self.layers))), rest]

    def _layer(self, index: int, tensors: dict[str, Tensor], batches: list[Batch]) -> dict[str, Tensor]:
        layer, prefix = self._loaded(index, tensors), f"{self.prefix}.{index}"
        tuned = None
        if batches and self.settings.tuning.iterations:
            with self.clock.phase("forward"):
                for batch in batches:
                    assert batch.target is not None
                    batch.target = self.model.forward(index, batch.target, batch.mask)
            tuned = functools.partial(self._tuned, index, batches)
        grams = self._collected(index, batches)
        solved = solve(layer, prefix, self.sites[index], grams, self.settings, self.heads, self.clock.phase, tuned)
        if batches and index + 1 < len(self.layers):
            with self.clock.phase("forward"):
                for batch in batches:
                    batch.hidden = self.model.forward(index, batch.hidden, batch.mask)
                    self._finite(batch.hidden, f"the output of {prefix}")
        packed = {name: tensor for part in solved for name, tensor in part.tensors.items()}
        whole = {f"{name}.weight" for part in solved for name in part.quantized}
        kept = {name: tensor for name, tensor in layer.state_dict().items() if name not in whole}
        self.records += [part.record for part in solved]
        if (experts := self.model.experts[index]) is not None:
            for part in solved:
                if found := re.match(r"expert_(\d+)_", str(part.record["site"])):
                    part.record["routed_tokens"] = experts.routed[int(found[1])]
        result = {f"{prefix}.{name}": tensor.detach() for name, tensor in sorted({**kept, **packed}.items())}
        layer.to("meta")
        return result

    def _tuned(self, index: int, batches: list[Batch], rounded: Sequence[Rounded]) -> None:
        """Tune the rounding so that the layer's output is closer to the source's."""
        layer, dtype = self.layers[index], self.settings.grid.scale_dtype
        if not rounded:
            return
        sizes = [[layer.get_submodule(name).out_features for name in one.names] for one in rounded]

        def names(weights: Sequence[Tensor]) -> dict[str, Tensor]:
            return {
                f"{name}.weight": part
                for one, size, weight in zip(rounded, sizes, weights, strict=True)
                for name, part in zip(one.names, weight.to(dtype).split(size), strict=True)
            }

        with self.clock.phase("tune"), deterministic(self.device, strict=self.model.experts[index] is None):
            for name in (name for site in self.sites[index] for name in site.readers):
                reader = layer.get_submodule(name)
                reader.weight.data = reader.weight.data.to(dtype)
            whole = tune.Layer(
                [one.knobs() for one in rounded],
                names,
                functools.partial(self.model.forward, index),
                self._alone,
                recordable=self.model.experts[index] is None,
            )
            rows = [tune.Rows(batch.hidden, batch.target, batch.mask) for batch in batches if batch.target is not None]
            told = tune.tune(whole, rows, self.settings.tuning, index)
            for one, knobs in zip(rounded, whole.knobs, strict=True):
                one.whole, one.tuned = knobs.stored(), told

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """In the block no other thread uses the device."""
        with self._reading, self._writing:
            yield

    def _loaded(self, index: int, tensors: dict[str, Tensor]) -> nn.Module:
        """The layer with its weights. Raises Unsupported where the checkpoint lacks some."""
        layer, prefix = self.layers[index], f"{self.prefix}.{index}."
        if lacking := sorted(set(layer.state_dict()) - {name.removeprefix(prefix) for name in tensors}):
            raise Unsupported(f"the checkpoint has no {prefix}{lacking[0]}, which the architecture needs")
        layer.load_state_dict({name.removeprefix(prefix): t for name, t in tensors.items()}, assign=True)
        for module in layer.modules():
            self.model.materialize_buffers(module)
        return layer.requires_grad_(False)

    def _collected(self, index: int, batches: list[Batch], *, onwards: bool = False) -> dict[str, Gram]:
        """Gram matrices by site, of one pass of the rows; with `onwards` what comes out is what goes in next."""
        if not batches:
            return {}
        passing: list[Batch] = []
        layer, experts, sampled = self.layers[index], self.model.experts[index], self.settings.grid.activations
        # The last product's result is the output. Experts' inputs come in one part per expert.
        ending = self.model.known and experts is None and not onwards
        grams, handles = collect(
            layer, self.sites[index], lambda: passing[-1].mask, self.clock.phase, sampled=sampled, ending=ending
        )
        if experts is not None:
            experts.counting = True
        with self.clock.phase("forward"):
            for batch in batches:
                passing[:] = [batch]
                with contextlib.suppress(Collected):
                    out = self.model.forward(index, batch.hidden, batch.mask)
                    if onwards:
                        batch.hidden = out
        for handle in handles:
            handle.remove()
        if experts is not None:
            experts.counting = False
        return grams

    def _start(self) -> tuple[list[Batch], int]:
        """The activations to begin with, and the layer: from the scratch folder, or embedded."""
        for path in sorted(self.scratch.glob("hidden-*.safetensors"), reverse=True):
            index = int(path.stem.removeprefix("hidden-"))
            with contextlib.suppress(OSError, ValueError, KeyError):
                records = [json.loads(self._part(i).with_suffix(".json").read_text()) for i in range(index)]
                if _metadata(path)["job"] == self.digest and all(self._part(i).exists() for i in range(index)):
                    self.records = [record for part in records for record in part]
                    stored = load_file(path, device=str(self.device))
                    found = list(self._batches())
                    masks = [mask for _, mask in found]
                    with self._outside():
                        for ids, _ in found:
                            self.model.capture_inputs(ids)
                    return [
                        Batch(stored[str(i)], mask, stored.get(f"target-{i}")) for i, mask in enumerate(masks)
                    ], index
        for path in self.scratch.glob("*.*"):
            path.unlink()
        if not self.rows or not self.settings.needs_data:
            return [], 0
        with self._outside():
            batches = [Batch(self.model.begin(ids), mask) for ids, mask in self._batches()]
            if self.settings.tuning.iterations:
                batches = [Batch(batch.hidden, batch.mask, batch.hidden) for batch in batches]
        for batch in batches:
            self._finite(batch.hidden, "the embedding of the calibration rows")
        return batches, 0

    @contextlib.contextmanager
    def _outside(self) -> Iterator[None]:
        """The weights before the layers are loaded in the block."""
        self.model.load(lambda names: self.source.read(self._have(names), str(self.device)))
        yield
        self.model.unload()

    def _have(self, names: list[str]) -> list[str]:
        if lacking := sorted(set(names) - set(self.source.names())):
            raise Unsupported(f"the checkpoint has no {lacking[0]}, which the architecture needs")
        return names

    def _batches(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Token ids [rows, tokens] of rows from long to short, and which are real (None: all)."""
        rows = sorted(self.rows, key=len, reverse=True)
        limit = _TOKENS_A_BATCH[self.device.type]
        while rows:
            count = max(1, limit // len(rows[0]))
            taken, rows = rows[:count], rows[count:]
            lengths = torch.tensor([len(row) for row in taken], device=self.device)
            ids = nn.utils.rnn.pad_sequence([torch.tensor(row) for row in taken], batch_first=True).to(self.device)
            full = len(taken[0]) == len(taken[-1])
            yield ids, None if full else torch.arange(ids.shape[1], device=self.device) < lengths.unsqueeze(1)

    def _finite(self, hidden: Tensor, what: str) -> None:
        if not bool(torch.isfinite(hidden).all()):
            raise NotFinite(f"{what} holds NaN or infinite values")

    def _names(self) -> list[list[str]]:
        """Full names of each layer's tensors, and last those of the rest."""
        mine = [set(layer.state_dict()) for layer in self.layers]
        names: list[list[str]] = [[] for _ in range(len(mine) + 1)]
        for name in self.source.names():
            index, _, below = name.removeprefix(self.prefix + ".").partition(".")
            inside = name.startswith(self.prefix + ".") and index.isdigit() and int(index) < len(mine)
            names[int(index) if inside and below in mine[int(index)] else -1].append(name)
        return names

    def _ahead(self, reader: ThreadPoolExecutor, names: list[list[str]], index: int) -> Future[dict[str, Tensor]]:
        wanted: Iterable[str] = names[index] if index < len(self.layers) else ()
        return reader.submit(self._beside, self._reading, self.source.read, wanted, str(self.device))

    def _arrived(self, ahead: Future[dict[str, Tensor]]) -> dict[str, Tensor]:
        tensors = ahead.result()
        for tensor in tensors.values():
            if tensor.is_cuda:
                # Allocated on the reader's stream: its memory isn't free before this stream is done with it.
                tensor.record_stream(torch.cuda.current_stream(self.device))
        return tensors

    def _beside(self, using: threading.Lock, work: Callable[..., Any], *arguments: Any) -> Any:
        """In another thread, on its own stream, so that copies don't wait for the computing layer."""
        if self.device.type != "cuda":
            return work(*arguments)
        with using, torch.cuda.stream(torch.cuda.Stream(self.device)):
            found = work(*arguments)
            torch.cuda.current_stream(self.device).synchronize()
            return found

    def _write_layer(self, index: int, result: dict[str, Tensor]) -> None:
        # Not in the tensors' file: safetensors doesn't order metadata, and equal runs have to give equal bytes.
        records = [record for record in self.records if record["layer"] == f"{self.prefix}.{index}"]
        self._part(index).with_suffix(".json").write_text(json.dumps(records))
        self.write(result, self._part(index))

    def _write_rest(self, names: list[str], path: Path) -> None:
        if not path.exists():
            self.write(self.source.read(names, "cpu"), path)

    def _part(self, index: int) -> Path:
        return self.scratch / f"layer-{index:05}.safetensors"

    def _checkpoint(self, index: int, batches: list[Batch]) -> None:
        """Save the activations before layer `index`, and delete older ones."""
        path = self.scratch / f"hidden-{index:05}.safetensors"
        tensors = {str(i): batch.hidden for i, batch in enumerate(batches)}
        tensors |= {f"target-{i}": batch.target for i, batch in enumerate(batches) if batch.target is not None}
        save(tensors, path, job=self.digest)
        for older in self.scratch.glob("hidden-*.safetensors"):
            if older != path:
                older.unlink()

    @property
    def digest(self) -> str:
        """Digest of the job that the scratch folder belongs to."""
        settings = {**vars(self.settings), "grid": str(self.settings.grid)}
        whole = [self.config.to_dict(), settings, self.rows, sorted(self.source.names()), self.device.type]
        return hashlib.sha256(json.dumps(whole, sort_keys=True, default=str).encode()).hexdigest()


@contextlib.contextmanager
def deterministic(device: torch.device, *, strict: bool) -> Iterator[None]:
    """In the block a GPU gives the same bits on every run, for derivatives too; without `strict`, where it can."""
    if device.type != "cuda":
        yield
        return
    before, warned = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    filled = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=not strict)
    torch.utils.deterministic.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warned)
        torch.utils.deterministic.fill_uninitialized_memory = filled


def _metadata(path: Path) -> dict[str, str]:
    """The metadata of a safetensors file."""
    with safe_open(path, "pt") as file:
        return file.metadata() or {}
