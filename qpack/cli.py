"""The command line: parse, call, print. It decides nothing.

Results go to stdout (tables, or JSON with --json), everything else to stderr. Heavy modules are imported by the
command that needs them, so that help and completion come at once.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TextIO

import typer
from typer.core import TyperGroup

if TYPE_CHECKING:
    from qpack.errors import QpackError
    from qpack.store import Store


class Commands(TyperGroup):
    """The commands; a reader of their output that goes away (`qpack list | head`) is no error of theirs."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that `ctx` names, and write what it printed."""
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
        except BrokenPipeError as error:
            # stdout is for results: once they are printed the work is done. stderr is lost in the midst of it.
            results_lost, talk_lost = _reader_gone(sys.stdout), _reader_gone(sys.stderr)
            if not (results_lost or talk_lost):
                raise RuntimeError(f"a pipe that is not ours to the user broke: {error}") from error
            raise typer.Exit(130 if talk_lost else 0) from None
        return result


def _reader_gone(stream: TextIO) -> bool:
    """Whether nobody reads `stream` any more. It then leads nowhere, so that the exit doesn't fail on the rest."""
    import select

    pipe = select.poll()
    pipe.register(stream, 0)
    gone = any(event & (select.POLLERR | select.POLLHUP) for _, event in pipe.poll(0))
    if gone:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return gone


app = typer.Typer(
    name="qpack",
    cls=Commands,
    help="Turn one recipe into a quantized, measured, gated and published model.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
envs_app = typer.Typer(
    help="Engine environments: list, build, check, remove.", no_args_is_help=True, rich_markup_mode=None
)
app.add_typer(envs_app, name="envs")

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


def _store() -> Store:
    from qpack.store import Store

    return Store(home())


@app.command()
def build(
    recipe: RecipeFile,
    settings: Settings = None,
    allow_failed_gates: Annotated[
        bool, typer.Option("--allow-failed-gates", help="Publish all the same, and mark the release so.")
    ] = False,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Run every stage of RECIPE that isn't finished, and publish the release if its gates pass."""
    from qpack import plan, present
    from qpack.build import run
    from qpack.console import open_console
    from qpack.recipe import load
    from qpack.work import Build

    store = _store()
    store.sweep()
    planned = plan.make(load(recipe, settings), store, thorough=True)
    with open_console(verbose=verbose) as console:
        built = run(Build(planned, store, console, registry_folder(), allow_failed_gates))
    present.built(built, as_json=as_json)


@app.command()
def check(recipe: RecipeFile, settings: Settings = None, as_json: AsJson = False) -> None:
    """Check RECIPE against its model and this machine, without running anything."""
    from qpack import plan, present
    from qpack.recipe import load

    present.checked(plan.make(load(recipe, settings), _store(), thorough=False), as_json=as_json)


@app.command("plan")
def plan_command(recipe: RecipeFile, settings: Settings = None, as_json: AsJson = False) -> None:
    """Show what a build of RECIPE would run, what is done already, and what it may take."""
    from qpack import estimate, plan, present
    from qpack.recipe import load

    store = _store()
    planned = plan.make(load(recipe, settings), store, thorough=False)
    present.planned(planned, estimate.steps(planned, store), as_json=as_json)


@app.command()
def show(ref: Ref, as_json: AsJson = False) -> None:
    """Show a release: its figures, gates and files."""
    from qpack import present

    resolved, release, serving = present.read_release(registry_folder(), ref)
    present.shown(resolved, release, serving, as_json=as_json)


@app.command()
def pull(
    ref: Ref,
    folder: Annotated[Path, typer.Argument(help="A folder that is absent or empty.", show_default=False)],
    as_json: AsJson = False,
) -> None:
    """Write a release's files to FOLDER, verified: all of them or nothing."""
    from qpack import present
    from registry.registries import open_registry

    present.pulled(open_registry("local", str(registry_folder())).pull(ref, folder), folder, as_json=as_json)


@app.command("list")
def list_command(
    name: Annotated[str | None, typer.Argument(help="Only this release.", show_default=False)] = None,
    as_json: AsJson = False,
) -> None:
    """List the releases in the local registry."""
    from qpack import present
    from registry.registries import open_registry

    present.listed(open_registry("local", str(registry_folder())).list(name), as_json=as_json)


@app.command()
def report(
    ref: Annotated[
        str,
        typer.Argument(
            metavar="REF|RECIPE", help="A release, or a recipe whose build has been judged.", show_default=False
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="The file to write; the default is NAME-report.html here.", show_default=False
        ),
    ] = None,
    settings: Settings = None,
    as_json: AsJson = False,
) -> None:
    """Write a one-file HTML report with tables and plots, of a release or of a build that was not published."""
    from qpack import present

    release = present.find_release(ref, settings, _store(), registry_folder())
    present.reported(release, output, as_json=as_json)


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Look at this machine: Python, uv, disk, accelerators, environments."""
    from qpack import machine, present

    findings = machine.examine(home(), registry_folder())
    present.examined(findings, as_json=as_json)
    if any(finding.severity == "error" for finding in findings):
        raise typer.Exit(3)


@app.command()
def schema() -> None:
    """Print the JSON Schema of recipes, for editors."""
    import json

    from qpack.recipe import schema as generate

    print(json.dumps(generate(), indent=2))


Names = Annotated[
    list[str] | None,
    typer.Argument(metavar="[NAME]...", help="Environments; all of them if none is named.", show_default=False),
]
Variant = Annotated[
    str | None, typer.Option("--variant", help="cpu or cuda; the default is what this machine has.", show_default=False)
]


@envs_app.command("list")
def envs_list(as_json: AsJson = False) -> None:
    """List the environments and whether they are made."""
    from qpack import machine, present

    present.environments(machine.environments(home()), as_json=as_json)


@envs_app.command("build")
def envs_build(names: Names = None, variant: Variant = None) -> None:
    """Make environments from their locks."""
    from qpack import envs, machine

    for environment in machine.selected(home(), names, variant):
        envs.ensure(environment, home(), lambda message: print(message, file=sys.stderr, flush=True))
        print(f"{environment.name} ({environment.variant}) is ready in {environment.folder}")


@envs_app.command("check")
def envs_check(names: Names = None, variant: Variant = None) -> None:
    """Import each engine in its environment."""
    from qpack import envs, machine

    made = machine.selected(home(), names, variant, made=True)
    if not made:
        print("No environment is made yet. `qpack envs build` makes them.")
    for environment in made:
        took = envs.check(environment, home() / "logs" / f"check-{environment.name}.log")
        print(f"{environment.name} ({environment.variant}) works; its imports took {took:.1f} s")


@envs_app.command("remove")
def envs_remove(names: Names = None, variant: Variant = None) -> None:
    """Delete environments. They are made again when a build needs them."""
    from qpack import envs, machine

    for environment in machine.selected(home(), names, variant, made=True):
        envs.remove(environment.folder)
        print(f"removed {environment.folder}")


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """Turn one recipe into a quantized, measured, gated and published model."""
    if version:
        import qpack

        print(f"qpack {qpack.__version__}")
        raise typer.Exit


def main() -> None:
    """Run the command line: the only place that catches errors and turns them into exit codes."""
    import signal

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    try:
        app()
    except _Stopped:
        from qpack.errors import Interrupted

        _fail(Interrupted("what was finished is kept", hint="The same command goes on from there."))
    except Exception as error:
        from qpack.errors import QpackError

        if isinstance(error, QpackError):
            _fail(error)
        _fail_bug(error)


class _Stopped(BaseException):
    """SIGINT or SIGTERM. No Exception: nothing on the way out may take it for a failure of its own work."""


def _stop(*_: Any) -> NoReturn:
    raise _Stopped


def _fail(error: QpackError) -> NoReturn:
    on_github = os.environ.get("GITHUB_ACTIONS") == "true"
    for problem in error.problems:
        print(problem, file=sys.stderr)
        if on_github:
            file, _, line = problem.where.rpartition(":")
            place = f" file={file},line={line}" if line.isdigit() else ""
            print(f"::error{place}::{problem.what} {problem.hint}", file=sys.stderr)
    print(f"qpack: {error.title}: {error.what}", file=sys.stderr)
    if error.hint:
        print(f"       {error.hint}", file=sys.stderr)
    if error.log:
        print(f"       Log: {error.log}", file=sys.stderr)
    sys.exit(error.exit_code)


def _fail_bug(error: Exception) -> NoReturn:
    import platform
    import tempfile
    import traceback

    import qpack

    with tempfile.NamedTemporaryFile("w", prefix="qpack-bug-", suffix=".log", delete=False) as log:
        log.write(f"qpack {qpack.__version__}, Python {platform.python_version()}, {platform.platform()}\n")
        log.write(f"command: {' '.join(sys.argv[1:])}\n\n")
        traceback.print_exception(error, file=log)
    print(f"qpack: a bug in qpack: {type(error).__name__}: {error}", file=sys.stderr)
    print(f"       Please report it with this file: {log.name}", file=sys.stderr)
    sys.exit(70)


if __name__ == "__main__":
    main()
