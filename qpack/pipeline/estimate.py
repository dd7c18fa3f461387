"""What a build would run and what it may take: from the store, from headers, and from earlier runs here.

No figure is guessed: a time is the median of what the same stage took before on this machine, and where it never ran
there is none. The artifact's size follows from shapes and bits.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass

from qpack.core import seals
from qpack.core.store import Store, envelope_of
from qpack.pipeline.plan import Plan
from quantize.checkpoint.source import Source
from quantize.engines.protocol import Request
from quantize.preflight import overrides
from quantize.schemes.schemes import SCHEMES


@dataclass(frozen=True)
class Step:
    """One step: done already or to do; `seconds` and its basis where earlier runs tell."""

    stage: str
    key: str | None
    done: bool
    seconds: float | None
    basis: str


def steps(plan: Plan, store: Store) -> list[Step]:
    """Every keyed step of the plan, in order."""
    found = []
    for name, stage in plan.stages.items():
        done = stage.key is not None and store.holds(name.rpartition(".")[2], stage.key, seals.GLANCE)
        took = earlier(store, name.rpartition(".")[2])
        basis = (
            "" if not took else f"median of {len(took)} earlier run{'s' if len(took) > 1 else ''} here, of any model"
        )
        found.append(Step(name, stage.key, done, statistics.median(took) if took else None, basis))
    return found


def earlier(store: Store, stage: str) -> list[float]:
    """Seconds that a stage took before, at most the newest twenty."""
    folders = sorted((store.home / "store" / stage).glob("*"), key=lambda path: path.lstat().st_mtime)[-20:]
    return [envelope["seconds"] for folder in folders if (envelope := envelope_of(folder)) is not None]


def artifact_bytes(plan: Plan) -> int | None:
    """Bytes of the artifact's weights, from shapes, bits and scales; None without headers (a hub that isn't reached).

    Unquantized tensors count 2 bytes a value; a group's scale 2 bytes, and half a byte for a 4-bit zero point (gptq
    stores one for symmetric schemes too). A budget is taken as spent: the artifact is that large at most.
    """
    return weights_bytes(plan.source, plan.request) if plan.source.tensors else None


def weights_bytes(source: Source, asked: Request) -> int:
    """The same for a model that has headers."""
    taken, _ = source.split(asked.ignore)
    total = source.parameters * 2.0
    for kind, request in ((kind, part.request) for part in overrides.apart(asked, taken) for kind in part.layers):
        scheme, values = SCHEMES[request.scheme], math.prod(kind.shape)
        if request.budget is not None:
            total += len(kind.names) * values * (request.budget / 8 - 2)
            continue
        rows, columns = map(float, kind.shape)
        groups = columns / request.group_size if request.group_size else 1.0
        stored = rows * columns * scheme.weight_bits / 8
        if request.scheme == "FP8_BLOCK":
            groups, rows = columns / 128, rows / 128
        zeros = request.scheme.endswith("ASYM") or request.format == "gptq"
        scale = 0 if scheme.weight_bits == 16 else 2 + (scheme.weight_bits / 8 if zeros else 0)
        total += len(kind.names) * (stored + rows * groups * scale - 2 * values)
    return round(total)
