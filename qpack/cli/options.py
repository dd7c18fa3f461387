"""Options and arguments that several commands take, and where qpack keeps its files."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from qpack.core.errors import UsageError, invalid_option

if TYPE_CHECKING:
    from qpack.core.store import Store
    from qpack.pipeline.context import Context
    from quantize.checkpoint.model_config import ModelConfig
    from registry.lifecycle.promotion import Demands
    from registry.lifecycle.signing import Signatures
    from registry.local.registry import LocalRegistry

N = TypeVar("N", int, float)

RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe: a YAML file.", show_default=False)]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a recipe value. Repeatable."),
]
Config = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="The model's config.json, when the hub is unreachable."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Print more details.")]
PlainHttp = Annotated[bool, typer.Option("--plain-http", help="Use http for an OCI registry.")]
TrustRelease = Annotated[
    bool,
    typer.Option("--trust-release", help="Allow code, libraries and files that the release names."),
]
Ref = Annotated[
    str, typer.Argument(metavar="REF", help="A release: name, name:version or name:alias.", show_default=False)
]

Alias = Annotated[str, typer.Argument(metavar="ALIAS", help="The alias, such as production.", show_default=False)]

Why = Annotated[str, typer.Option("--why", metavar="TEXT", help="Reason, recorded in the history.", show_default=False)]

Names = Annotated[
    list[str] | None,
    typer.Argument(metavar="NAME", help="Environments (default: all).", show_default=False),
]

Variant = Annotated[str | None, typer.Option("--variant", help="cpu or cuda (default: detected).", show_default=False)]

Profile = Annotated[
    str | None,
    typer.Option("--profile", help="Serving profile (default: the measured one).", show_default=False),
]

Target = Annotated[
    str,
    typer.Argument(
        metavar="REF|URL",
        help="A release to serve, or a running server's URL.",
        show_default=False,
    ),
]

MaxTokens = Annotated[int, typer.Option("--max-tokens", min=1, help="Maximum tokens per answer.")]

Temperature = Annotated[float, typer.Option("--temperature", min=0.0, help="Sampling temperature (0: greedy).")]

Port = Annotated[int, typer.Option("--port", min=1, max=65535, help="The server's port.")]


def home() -> Path:
    """Where qpack keeps its work."""
    from qpack.core import home as place

    return place.home()


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


@contextmanager
def context(store: Store | None = None, *, verbose: bool = False) -> Iterator[Context]:
    """Store, local registry and console of this command."""
    from qpack.core.console import open_console
    from qpack.core.store import Store
    from qpack.pipeline.context import Context

    with open_console(verbose=verbose) as console:
        yield Context(store or Store(home()), registry_folder(), console)


def read_config(path: Path | None) -> ModelConfig | None:
    """A model's config.json. Raises UsageError when it isn't one."""
    if path is None:
        return None
    from quantize.checkpoint import model_config

    found, problems = model_config.read_file(existing(path, "--config"))
    if problems:
        raise UsageError.of(problems)
    return found


def existing(path: Path, option: str, hint: str = "") -> Path:
    """A file or a folder that an option names. Raises UsageError where there is none."""
    if not path.exists():
        raise invalid_option(option, f"{path} doesn't exist", hint)
    return path


def numbers(text: str, kind: Callable[[str], N], option: str) -> list[N]:
    """`1,4,16` as numbers above 0. Raises UsageError naming the option."""
    try:
        found = [kind(part) for part in text.split(",") if part.strip()]
    except ValueError:
        found = []
    if (text.strip() and not found) or any(float(number) <= 0 for number in found):
        raise invalid_option(option, f"{text!r} is not a list of numbers above 0, such as 1,4,16")
    return found


def matching(text: str | None, pattern: str, option: str) -> str | None:
    """The text of an option. Raises UsageError if it doesn't match the pattern."""
    if text is not None and not re.fullmatch(pattern, text, re.ASCII):
        raise invalid_option(option, f"{text!r} does not match {pattern}")
    return text


def report(message: str) -> None:
    """Print a line of progress to stderr."""
    print(message, file=sys.stderr, flush=True)


def local_registry() -> LocalRegistry:
    """The local registry."""
    from registry.local.registry import LocalRegistry

    return LocalRegistry(registry_folder())


def alias_demands(local: LocalRegistry, *named: Path) -> Demands:
    """The registry's own policy and those that are named, with checks of signatures and figures."""
    from qpack.pipeline.rejudge import rejudge
    from registry.lifecycle import promotion
    from registry.local import alias_policy as policy

    own = policy.of_registry(local.root)
    policies = (*([own] if own else []), *map(policy.load, named))
    return promotion.Demands(policies, signatures(local).by_rule, rejudge)


def signatures(local: LocalRegistry) -> Signatures:
    """Signatures of the registry's releases."""
    from registry.lifecycle.signing import Signatures

    return Signatures(local, home(), lambda text: print(text, file=sys.stderr, flush=True))


def examine_machine(*, as_json: bool) -> None:
    """Check this machine: Python, uv, disk, accelerators, environments."""
    from qpack.cli.render import doctor_machine as present
    from qpack.doctor import machine

    checked = machine.examine(home(), registry_folder())
    present.examined(checked, as_json=as_json)
    if any(each.problem and each.problem.severity == "error" for each in checked):
        raise typer.Exit(3)
