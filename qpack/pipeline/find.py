"""Finding a release: in the registry, or in the work store if its build was not published."""

from __future__ import annotations

import shlex
from pathlib import Path

from qpack.core.errors import RegistryError
from qpack.core.jsonfile import JsonObject
from qpack.core.problems import Code
from qpack.core.records import Release
from qpack.core.store import Store
from registry.core import documents
from registry.core.codes import UNREADABLE_MANIFEST
from registry.core.protocol import Named, Resolved
from registry.registries import open_registry
from registry.release import release_folder

_NO_VERDICT = Code("no-verdict", "A build has no verdict yet.")


def read_release(registry: Path, ref: Named) -> tuple[Resolved, Release, JsonObject]:
    """A published release and its manifests, verified, all of one version: `ref` is resolved once.

    Raises RegistryError for one whose record another version of qpack wrote and this one can't read.
    """
    opened = open_registry("local", str(registry))
    resolved = opened.resolve(ref)
    what = f"{resolved.name}:{resolved.version}"
    release = release_folder.read(opened.read(resolved, "release.json"), what)
    try:
        serving = documents.parse(opened.read(resolved, "serving.json"))
        if not isinstance(serving, dict):
            raise TypeError("it isn't a JSON object")
    except (ValueError, TypeError) as error:
        raise RegistryError(
            UNREADABLE_MANIFEST, f"{what}: its serving manifest can't be read ({error})", hint="qpack didn't write it."
        ) from error
    return resolved, release, serving


def find_release(ref: str, settings: list[str] | None, store: Store, registry: Path) -> Release:
    """A release in the registry, or the record of a recipe's build whether it was published or not."""
    path = Path(ref)
    if path.suffix not in (".yaml", ".yml") and not path.is_file():
        return read_release(registry, ref)[1]
    from qpack.core.console import open_console
    from qpack.pipeline import plan, release_records
    from qpack.pipeline.context import Context
    from qpack.pipeline.run import from_store
    from qpack.pipeline.stages.judge import JUDGED
    from qpack.pipeline.state import Build
    from qpack.recipe import recipe_file

    planned = plan.make(recipe_file.load(path, settings), store, thorough=False)
    with open_console() as console:
        built = from_store(Build(planned, Context(store, registry, console)))
    if built.get(JUDGED) is None:
        command = shlex.join(["qpack", "build", ref, *(part for each in settings or [] for part in ("--set", each))])
        raise RegistryError(_NO_VERDICT, f"{ref}: its build has no verdict yet", hint=f"Run `{command}` first.")
    return release_records.release(built)
