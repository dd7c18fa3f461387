"""What several commands take, and where qpack keeps its things."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

if TYPE_CHECKING:
    from qpack.store import Store

N = TypeVar("N", int, float)

RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe: a YAML file.", show_default=False)]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Lay a value over the recipe; may be given again."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Say more while it works.")]
Ref = Annotated[
    str, typer.Argument(metavar="REF", help="A release: name, name:version or name:alias.", show_default=False)
]


def home() -> Path:
    """Where qpack keeps its work: QPACK_HOME, or the user's cache folder."""
    from platformdirs import user_cache_path

    given = os.environ.get("QPACK_HOME")
    return Path(given).expanduser().absolute() if given else user_cache_path("qpack")


def registry_folder() -> Path:
    """The local registry: QPACK_REGISTRY, else QPACK_HOME/registry, else the user's data folder."""
    from platformdirs import user_data_path

    given = os.environ.get("QPACK_REGISTRY")
    if given:
        return Path(given).expanduser().absolute()
    return home() / "registry" if os.environ.get("QPACK_HOME") else user_data_path("qpack") / "registry"


def store() -> Store:
    """The work store."""
    from qpack.store import Store

    return Store(home())


def numbers(text: str, kind: Callable[[str], N], option: str) -> list[N]:
    """`1,4,16` as numbers above 0. Raises typer.BadParameter naming the option."""
    try:
        found = [kind(part) for part in text.split(",") if part.strip()]
    except ValueError:
        found = []
    if (text.strip() and not found) or any(float(number) <= 0 for number in found):
        raise typer.BadParameter(f"{text!r} is not a list of numbers above 0, such as 1,4,16", param_hint=option)
    return found
