"""The job of gram's worker; qpack and the worker both import it (see qpack_protocol).

`quantize.gram.job` says what the fields mean, and takes them as JSON.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Optional


@dataclass(frozen=True)
class Grid:
    """How the weights of a layer are rounded.

    `activations`: a server rounds them too. `fp4`: in blocks of NVFP4 or MXFP4.
    """

    bits: int
    symmetric: bool
    group_size: Optional[int]
    float8: bool
    activations: bool
    fp4: Literal["", "nv", "mx"]


@dataclass(frozen=True)
class Choice:
    """The grids that layers may get, by their place in `Mixed.grids`: those that a pattern matches, and no one before
    it.
    """

    layers: str
    grids: tuple[int, ...]


@dataclass(frozen=True)
class Mixed:
    """A budget in bits a weight, the grids to choose from (None: unquantized), which layers may get which, and how many
    GPUs share a layer. `per_token`: of the weights that a token reads.
    """

    budget: float
    grids: tuple[Optional[Grid], ...]
    choices: tuple[Choice, ...]
    shards: int
    per_token: bool


@dataclass(frozen=True)
class Job:
    """`tokens` is a file of JSON lines, {"input_ids": [...]}, None where nothing is calibrated; `scratch` is a folder
    for finished layers, from which a job that was stopped resumes.
    """

    checkpoint: str
    tokens: Optional[str]
    method: str
    grid: Grid
    format: str
    mixed: Optional[Mixed]
    ignore: tuple[str, ...]
    damping: float
    iterations: int
    trust_remote_code: bool
    scratch: str
