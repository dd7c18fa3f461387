"""The demo: the recipe for this machine, and its settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from qpack.core.records import Hardware

_BESIDE = (Path(__file__).parents[1] / "recipes", Path(__file__).parents[2] / "recipes")
"""Where the recipes that ship are: in an installed wheel, in a clone."""

QUICK = (
    # A hundred didn't show that the source model answers better than by guessing, so accuracy was undecided.
    "evaluate.tasks=[{task: qpack_piqa, samples: 300}]",
    "evaluate.perplexity.windows=12",
    "measure.concurrency=[4]",
)
"""The settings of a short build. Each stage still runs, and each gate is decided."""

_ON_A_GPU = (
    "evaluate.tasks=[{task: qpack_piqa, samples: 1000}, {task: qpack_openbookqa, samples: 500},"
    " {task: qpack_siqa, samples: 1000}]",
    "evaluate.perplexity.windows=100",
    "measure.concurrency=[1, 16, 64]",
    "serve.arguments.enforce-eager=false",
)


@dataclass(frozen=True)
class Demo:
    """A recipe that ships, the settings that go with it, and why it is the one for this machine."""

    recipe: Path
    settings: tuple[str, ...]
    why: str


def choose(machine: Hardware, *, avx512: bool, quick: bool) -> Demo:
    """The demo for a machine.

    vLLM serves 4-bit weights on a CPU only with AVX-512; without it the demo is 8 bits. 4 bits are made by gram, the
    fastest engine. A GPU takes more items, windows and clients.
    """
    settings: tuple[str, ...] = ()
    if machine.target != "cpu":
        name, why = "smollm2-135m-gram.yaml", f"4-bit weights: vLLM serves them on {machine.name}"
        settings = _ON_A_GPU
    elif avx512:
        name, why = "smollm2-135m-gram.yaml", "4-bit weights: vLLM serves them on this CPU (AVX-512)"
    else:
        name = "smollm2-135m-w8a8.yaml"
        why = "8-bit weights and activations: vLLM serves 4 bits on a CPU only with AVX-512"
    return Demo(shipped(name), QUICK if quick else settings, why)


def shipped(name: str, folders: Sequence[Path] = _BESIDE) -> Path:
    """The path of a recipe that comes with qpack."""
    return next(folder / name for folder in folders if (folder / name).is_file())
