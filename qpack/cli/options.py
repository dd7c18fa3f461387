"""What several commands take, and where qpack keeps its things."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

if TYPE_CHECKING:
    from qpack.core.store import Store

N = TypeVar("N", int, float)

RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe: a YAML file.", show_default=False)]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Lay a value over the recipe; may be given again."),
]
Config = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="The model's config.json, for a hub that can't be reached."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Say more while it works.")]
PlainHttp = Annotated[bool, typer.Option("--plain-http", help="Ask an OCI registry over http, without TLS.")]
TrustRelease = Annotated[
    bool,
    typer.Option("--trust-release", help="Let the release name code, libraries and files: you trust who made it."),
]
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
    from qpack.core.store import Store

    return Store(home())


def read_config(path: Path | None) -> dict[str, Any] | None:
    """A model's config.json. Raises typer.BadParameter when it isn't one."""
    if path is None:
        return None
    from quantize.checkpoint import model_config

    found, problems = model_config.read_file(path)
    if problems:
        raise typer.BadParameter("; ".join(map(str, problems[:5])), param_hint="--config")
    return found


def numbers(text: str, kind: Callable[[str], N], option: str) -> list[N]:
    """`1,4,16` as numbers above 0. Raises typer.BadParameter naming the option."""
    try:
        found = [kind(part) for part in text.split(",") if part.strip()]
    except ValueError:
        found = []
    if (text.strip() and not found) or any(float(number) <= 0 for number in found):
        raise typer.BadParameter(f"{text!r} is not a list of numbers above 0, such as 1,4,16", param_hint=option)
    return found


def tell(message: str) -> None:
    """One line about what is being done, to stderr."""
    print(message, file=sys.stderr, flush=True)
