"""The run: one decoder layer on the device at a time, its weights read ahead and its result written behind.

Every layer is calibrated on the outputs of the quantized layers before it. Two passes of the calibration rows
go through a layer: one collects Gram matrices, one with the rounded weights makes the next layer's inputs.

Rows are dealt into shares. Ranks that share the job (`ranks`) each pass their own shares through a layer, then each
matrix comes to the rank that solves for its linear layers, and their rounded weights go to all.

A killed run resumes from its scratch folder: a file of tensors for each finished layer, and the activations after one
of them, a file for each share. The same job gives the same bytes, with any number of ranks.
"""

from __future__ import annotations

import contextlib
import dataclasses
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
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PretrainedConfig

from . import tune
from .architectures import Site
from .checkpoint import Source, save
from .clock import Clock
from .experts import FUSED
from .layer import Block, Collected, NotFinite, Rounded, Settings, as_served, collect, cost, solve
from .matrices import Gram, bring
from .names import Unsupported
from .ranks import Move, Ranks
from .skeleton import Skeleton

_OBSERVED_TOKENS = 48
_TOKENS_A_BATCH = {"cpu": 4096, "cuda": 16384}
_SHARES = 8
_TOKENS_A_SHARE = 2048
"""Of a share at least: fewer keep no processor busy."""


@dataclass
class Batch:
    """Rows of equal or nearly equal length, padded at the end: `hidden` [rows, tokens, channels], `mask` or None.

    `target`, where layers are tuned: what `hidden` is in the source model. `share` is what the rows are of.
    """

    hidden: Tensor
    mask: Tensor | None
    target: Tensor | None = None
    share: int = 0


@dataclass
class Run:
    """A job: the model's config and weights, calibration rows, settings.

    Of several `ranks` the first one writes, and has the `records`.
    """

    source: Source
    config: PretrainedConfig
    rows: list[list[int]]
    settings: Settings
    scratch: Path
    device: torch.device
    progress: Callable[[int, int, str], None]
    save_every: float = 30.0
    write: Callable[..., None] = save
    ranks: Ranks = field(default_factory=Ranks)
    records: list[dict[str, object]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.clock = Clock(self.device)
        # Each held by a thread beside this one while it uses the device, both while a step of tuning is recorded.
        self._reading, self._writing = threading.Lock(), threading.Lock()
        self.model = Skeleton(self.config, self.device, self.source.names())
        self.layers, self.prefix = self.model.layers, self.model.prefix
        # Known once a layer's inputs were observed.
        self.sites: list[tuple[Site, ...]] = [() for _ in self.layers]
        self.owners: list[list[int]] = [[] for _ in self.layers]
        self.shares = dealt(self.rows)

    @property
    def rounds_inputs(self) -> bool:
        """Whether what quantizing inputs costs has to be known."""
        return self.settings.rounds_inputs

    def run(self) -> list[Path]:
        """Quantize every layer; returns the files of tensors that make up the artifact, in order."""
        with deterministic(self.device, strict=False):
            return self._run()

    def _run(self) -> list[Path]:
        self.scratch.mkdir(parents=True, exist_ok=True)
        start = self.ranks.agreed(self._resumable() if self.ranks.first else None)
        batches = self._batches(start)
        names = self._names()
        rest = self.scratch / "rest.safetensors"
        with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as writer:
            ahead = self._ahead(reader, names, start)
            written = writer.submit(self._write_rest, names[-1] if self.ranks.first else None, rest)
            saved = time.monotonic()
            for index in range(start, len(self.layers)):
                with self.clock.phase("read"):
                    tensors = self._arrived(ahead)
                ahead = self._ahead(reader, names, index + 1)
                result = self._layer(index, tensors, batches)
                with self.clock.phase("write"):
                    written.result()
                    if self.ranks.first:
                        written = writer.submit(self._beside, self._writing, self._write_layer, index, result)
                    due = index + 1 < len(self.layers) and time.monotonic() - saved >= self.save_every
                    if self.ranks.agreed(due):
                        written.result()
                        self._checkpoint(index + 1, batches)
                        saved = time.monotonic()
                if self.ranks.first:
                    self.progress(index + 1, len(self.layers), "layers")
            with self.clock.phase("write"):
                written.result()
        return [*(self._part(index) for index in range(len(self.layers))), rest]

    def _layer(self, index: int, tensors: dict[str, Tensor], batches: list[Batch]) -> dict[str, Tensor]:
        """What is written of a layer; nothing but on the first rank."""
        layer, prefix = self._loaded(index, tensors), f"{self.prefix}.{index}"
        self._observe(index, batches)
        phase = self.clock.phase
        block = Block(layer, prefix, self.sites[index], self.settings, phase, self.ranks, self.owners[index])
        tuned = None
        if self.tunes:
            with self.clock.phase("forward"):
                for batch in batches:
                    assert batch.target is not None
                    batch.target = self.model.forward(index, batch.target, batch.mask)
            tuned = functools.partial(self._tuned, index, block, batches)
        grams = self._collected(index, batches)
        solved = solve(block, grams, tuned)
        if batches and index + 1 < len(self.layers):
            with phase("forward"), as_served(block):
                for batch in batches:
                    batch.hidden = self.model.forward(index, batch.hidden, batch.mask)
                    self._finite(batch.hidden, f"the output of {prefix}")
        whole = {f"{name}.weight" for one in solved for name in one.quantized}
        kept = {name: tensor for name, tensor in layer.state_dict().items() if name not in whole}
        packed = {name: tensor for one in solved for name, tensor in one.tensors.items()}
        self.records += [one.record for one in solved] if self.ranks.first else []
        for experts in self.model.experts[index].values():
            counts = self.ranks.gathered(experts.routed)
            for one in solved:
                if found := re.match(r"expert_(\d+)_", str(one.record.get("site"))):
                    one.record["routed_tokens"] = sum(count[int(found[1])] for count in counts)
        result = self._stored(index, kept, packed)
        layer.to("meta")
        return result

    @property
    def calibrates(self) -> bool:
        """Whether rows go through the layers, be it on this rank or on others."""
        return bool(self.rows and self.settings.needs_data)

    @property
    def tunes(self) -> bool:
        """Whether layers are tuned."""
        return self.calibrates and self.settings.tuning.iterations > 0

    def _observe(self, index: int, batches: list[Batch]) -> None:
        """What the layer's linear layers read, as the first rank sees it, and which rank solves for each site."""
        if not self.calibrates:
            sites = self.model.alone(index, self.settings.ignores, joined=self.settings.grid.fp4 == "nv")
        elif self.ranks.first:
            few = batches[0].hidden[:1, :_OBSERVED_TOKENS]
            with self.clock.phase("observe"):
                sites = self.model.sites(index, few, self.settings.ignores)
        else:
            sites = ()
        if self.calibrates and self.ranks.count > 1:
            told = self.ranks.agreed([dataclasses.asdict(site) for site in sites])
            sites = tuple(
                Site(**{**one, "readers": tuple(one["readers"]), "rows": one["rows"] and tuple(one["rows"])})
                for one in told
            )
        self.sites[index] = sites
        self.owners[index] = self.ranks.owners([cost(self.layers[index], site) for site in sites])

    def _stored(self, index: int, kept: dict[str, Tensor], packed: dict[str, Tensor]) -> dict[str, Tensor]:
        """A layer's tensors by the checkpoint's names."""
        prefix, names = f"{self.prefix}.{index}", self.model.names
        found = {names.source.get(f"{prefix}.{name}", f"{prefix}.{name}"): tensor for name, tensor in kept.items()}
        for name, tensor in packed.items():
            module, _, kind = name.rpartition(".")
            found[f"{names.module(f'{prefix}.{module}')}.{kind}"] = tensor
        return {name: tensor.detach() for name, tensor in sorted(found.items())}

    def _tuned(self, index: int, block: Block, batches: list[Batch], rounded: Sequence[Rounded]) -> None:
        """Move what was rounded so that the layer's output comes nearer to the source's. One rank does it for all."""
        with self.clock.phase("exchange"):
            whole = self._everyones(batches)
        if not self.ranks.first or not rounded:
            return
        layer, dtype = self.layers[index], self.settings.grid.scale_dtype
        sizes = [[layer.get_submodule(name).out_features for name in one.names] for one in rounded]

        def names(weights: Sequence[Tensor]) -> dict[str, Tensor]:
            return {
                f"{name}.weight": part
                for one, size, weight in zip(rounded, sizes, weights, strict=True)
                for name, part in zip(one.names, weight.to(dtype).split(size), strict=True)
            }

        with self.clock.phase("tune"), deterministic(self.device, strict=not self.model.experts[index]):
            for name in (name for site in self.sites[index] for name in site.readers):
                reader = layer.get_submodule(name)
                reader.weight.data = reader.weight.data.to(dtype)
            tuning = tune.Layer(
                [one.knobs() for one in rounded],
                names,
                functools.partial(self.model.forward, index),
                self._alone,
                recordable=not self.model.experts[index],
            )
            rows = [tune.Rows(batch.hidden, batch.target, batch.mask) for batch in whole if batch.target is not None]
            with as_served(block):
                outcome = tune.tune(tuning, rows, self.settings.tuning, index)
            for one, knobs in zip(rounded, tuning.knobs, strict=True):
                one.whole, one.tuned = knobs.kept, outcome

    def _everyones(self, batches: list[Batch]) -> list[Batch]:
        """On the first rank the batches of all, in the order of shares; on the others their own."""
        if self.ranks.count == 1:
            return batches
        moves: list[Move] = []
        whole: list[Batch] = []
        for rank in range(self.ranks.count):
            if rank == self.ranks.rank:
                mine = batches
            elif self.ranks.first:
                mine = [blank(batches[0], share, ids, mask) for share, ids, mask in self._ids(rank)]
            else:
                continue
            whole += mine
            states = [state for batch in mine for state in (batch.hidden, batch.target) if state is not None]
            moves += [Move(state, rank, 0) for state in states]
        self.ranks.exchange(moves)
        return whole

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """In the block no other thread uses the device."""
        with self._reading, self._writing:
            yield

    def _loaded(self, index: int, tensors: dict[str, Tensor]) -> nn.Module:
        """The layer with its weights. Raises Unsupported where the checkpoint lacks some."""
        layer = self.layers[index]
        own = self.model.tensors(index, tensors)
        if lacking := sorted(set(layer.state_dict()) - set(own)):
            raise Unsupported(f"the checkpoint has no {self.prefix}.{index}.{lacking[0]}, which the architecture needs")
        layer.load_state_dict(own, assign=True)
        self.model.materialize_layer(index)
        return layer.requires_grad_(False)

    def _collected(self, index: int, batches: list[Batch], *, onwards: bool = False) -> dict[str, Gram]:
        """Gram matrices by site, of one pass of the rows; with `onwards` what comes out is what goes in next."""
        if not self.calibrates:
            return {}
        passing: list[Batch] = []
        layer, experts, sampled = self.layers[index], self.model.experts[index], self.rounds_inputs
        # The last product's result is what comes out. Experts' inputs come in as many parts as there are experts.
        ending = not experts and not onwards
        grams, handles = collect(
            layer, self.sites[index], lambda: passing[-1].mask, self.clock.phase, sampled=sampled, ending=ending
        )
        for one in experts.values():
            one.counting = True
        for share in self.ranks.span(len(self.shares)):
            with self.clock.phase("forward"):
                for batch in (batch for batch in batches if batch.share == share):
                    passing[:] = [batch]
                    with contextlib.suppress(Collected):
                        out = self.model.forward(index, batch.hidden, batch.mask)
                        if onwards:
                            batch.hidden = out
            with self.clock.phase("gram"):
                for gram in grams.values():
                    gram.close(share)
        for handle in handles:
            handle.remove()
        for one in experts.values():
            one.counting = False
        owners = {site.name: owner for site, owner in zip(self.sites[index], self.owners[index], strict=True)}
        with self.clock.phase("exchange"):
            bring(grams, owners, self.ranks, len(self.shares))
        return grams

    def _resumable(self) -> int:
        """The layer that a killed run's scratch folder allows to go on with; 0, and an empty folder, if none."""
        found = {int(path.stem.split("-")[1]) for path in self.scratch.glob("hidden-*-*.safetensors")}
        for index in sorted(found, reverse=True):
            with contextlib.suppress(OSError, ValueError, KeyError, SafetensorError):
                records = [json.loads(self._part(i).with_suffix(".json").read_text()) for i in range(index)]
                states = [self._states(index, share) for share in range(len(self.shares))]
                same = all(_metadata(path)["job"] == self.digest for path in states)
                if same and all(self._part(i).exists() for i in range(index)):
                    self.records = [record for part in records for record in part]
                    for i, part in enumerate(records):
                        self.sites[i] = tuple(Site(record["site"], tuple(record["linears"])) for record in part)
                    return index
        for path in self.scratch.glob("*.*"):
            path.unlink()
        return 0

    def _batches(self, start: int) -> list[Batch]:
        """What goes into layer `start`, of this rank's shares: from the scratch folder, or embedded."""
        if not self.calibrates:
            return []
        batches: list[Batch] = []
        with self._outside():
            if self.tunes and self.ranks.first:
                # It tunes with the rows of all.
                for rank in range(self.ranks.count):
                    for _, ids, _ in self._ids(rank):
                        self.model.capture_inputs(ids)
            stored: dict[str, Tensor] = {}
            for share, ids, mask in self._ids(self.ranks.rank):
                self.model.capture_inputs(ids)
                if not batches:
                    self.model.capture_inputs(ids[:1, :_OBSERVED_TOKENS])
                number = sum(batch.share == share for batch in batches)
                if start:
                    if not number:
                        stored = load_file(self._states(start, share), device=str(self.device))
                    batches.append(Batch(stored[str(number)], mask, stored.get(f"target-{number}"), share))
                else:
                    hidden = self.model.begin(ids)
                    self._finite(hidden, "the embedding of the calibration rows")
                    batches.append(Batch(hidden, mask, hidden if self.tunes else None, share))
        return batches

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

    def _ids(self, rank: int) -> Iterator[tuple[int, Tensor, Tensor | None]]:
        """A rank's batches: the share, token ids [rows, tokens] of rows from long to short, and which are real (None:
        all).
        """
        limit = _TOKENS_A_BATCH[self.device.type]
        for share in self.ranks.span(len(self.shares), rank):
            rows = self.shares[share]
            while rows:
                count = max(1, limit // len(rows[0]))
                taken, rows = rows[:count], rows[count:]
                lengths = torch.tensor([len(row) for row in taken], device=self.device)
                ids = nn.utils.rnn.pad_sequence([torch.tensor(row) for row in taken], batch_first=True).to(self.device)
                full = len(taken[0]) == len(taken[-1])
                mask = None if full else torch.arange(ids.shape[1], device=self.device) < lengths.unsqueeze(1)
                yield share, ids, mask

    def _finite(self, hidden: Tensor, what: str) -> None:
        if not bool(torch.isfinite(hidden).all()):
            raise NotFinite(f"{what} holds NaN or infinite values")

    def matrices(self) -> list[str]:
        """The checkpoint's matrices that are no tables of embeddings."""
        held: list[str] = getattr(self.source, "matrices", list)()
        tables = {
            f"{name}.weight" for name, module in self.model.model.named_modules() if isinstance(module, nn.Embedding)
        }
        return [name for name in held if self.model.names.model.get(name, name) not in tables]

    def _names(self) -> list[list[str]]:
        """Full names of each layer's tensors, and last those of the rest."""
        mine = [
            {*layer.state_dict(), *(f"{block}.{own}" for block in experts for own in FUSED)}
            for layer, experts in zip(self.layers, self.model.experts, strict=True)
        ]
        names: list[list[str]] = [[] for _ in range(len(mine) + 1)]
        for source in self.source.names():
            name = self.model.names.model.get(source, source)
            index, _, below = name.removeprefix(self.prefix + ".").partition(".")
            inside = name.startswith(self.prefix + ".") and index.isdigit() and int(index) < len(mine)
            names[int(index) if inside and below in mine[int(index)] else -1].append(source)
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

    def _write_rest(self, names: list[str] | None, path: Path) -> None:
        if names is not None and not path.exists():
            self.write(self.source.read(names, "cpu"), path)

    def _part(self, index: int) -> Path:
        return self.scratch / f"layer-{index:05}.safetensors"

    def _states(self, index: int, share: int) -> Path:
        return self.scratch / f"hidden-{index:05}-{share}.safetensors"

    def _checkpoint(self, index: int, batches: list[Batch]) -> None:
        """Keep the activations that go into layer `index`; older ones aren't needed any more."""
        for share in self.ranks.span(len(self.shares)):
            mine = [batch for batch in batches if batch.share == share]
            tensors = {str(i): batch.hidden for i, batch in enumerate(mine)}
            tensors |= {f"target-{i}": batch.target for i, batch in enumerate(mine) if batch.target is not None}
            save(tensors, self._states(index, share), job=self.digest)
        # Not before all ranks have written theirs.
        self.ranks.gathered(None)
        if self.ranks.first:
            for older in self.scratch.glob("hidden-*.safetensors"):
                if int(older.stem.split("-")[1]) != index:
                    older.unlink()

    @property
    def digest(self) -> str:
        """Digest of the job that the scratch folder belongs to."""
        settings = {**vars(self.settings), "grid": str(self.settings.grid)}
        whole = [self.config.to_dict(), settings, self.rows, sorted(self.source.names()), self.device.type]
        return hashlib.sha256(json.dumps(whole, sort_keys=True, default=str).encode()).hexdigest()


def blank(like: Batch, share: int, ids: Tensor, mask: Tensor | None) -> Batch:
    """A batch that another rank has, before it is here."""
    hidden, target = (like.hidden.new_empty(*ids.shape, like.hidden.shape[-1]) for _ in range(2))
    return Batch(hidden, mask, target, share)


def dealt(rows: Sequence[list[int]]) -> list[list[list[int]]]:
    """Rows from long to short in shares of neighbours with about as many tokens: 8, or fewer if they would be small,
    one at least.

    How many there are, and what is in them, decides in which order sums over rows are made.
    """
    rows = sorted(rows, key=len, reverse=True)
    tokens = sum(map(len, rows))
    count = max(1, min(_SHARES, tokens // _TOKENS_A_SHARE))
    shares: list[list[list[int]]] = [[] for _ in range(count)]
    before = 0
    for row in rows:
        # By the middle of the row, which lies inside of the whole.
        shares[(2 * before + len(row)) * count // (2 * tokens)].append(row)
        before += len(row)
    return [share for share in shares if share] or [[]]


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
