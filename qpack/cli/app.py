"""The command line: which commands there are, and the one place that turns errors into exit codes.

Results go to stdout (tables, or JSON with --json), everything else to stderr.
"""

from __future__ import annotations

import errno
import os
import sys
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TextIO

import typer
from typer.core import TyperGroup

from qpack.cli.commands import bench, checkup, evidence, lifecycle, machine, publish, recipes, releases, serving
from qpack.core import terminal

if TYPE_CHECKING:
    from qpack.core.errors import QpackError

# Variables whose names end so hold what nobody else may see.
_SECRET = ("TOKEN", "PASSWORD", "SECRET", "CREDENTIALS")


class Commands(TyperGroup):
    """The commands."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that `ctx` names, and write what it printed."""
        _check_place()
        result = super().invoke(ctx)
        sys.stdout.flush()
        return result


def _reader_gone(stream: TextIO) -> bool:
    """Whether nobody reads `stream` any more. It then leads nowhere, so that the exit doesn't fail on the rest."""
    import select

    pipe = select.poll()
    pipe.register(stream, 0)
    gone = any(event & (select.POLLERR | select.POLLHUP) for _, event in pipe.poll(0))
    if gone:
        terminal.nowhere(stream)
    return gone


def _check_place() -> None:
    """Raise EnvironmentFailed when the current folder is gone, or a place that paths begin with isn't UTF-8: paths are
    written into results, which are.
    """
    from qpack.core.errors import EnvironmentFailed

    try:
        places = {"the current folder": os.getcwd()}  # noqa: PTH109  (to be looked at as text)
    except OSError as error:
        raise EnvironmentFailed(f"the current folder is gone: {error.strerror}", hint="Go to another one.") from None
    places |= {name: os.environ.get(name, "") for name in ("HOME", "TMPDIR")}
    places |= {name: value for name, value in os.environ.items() if name.startswith(("QPACK_", "HF_", "XDG_"))}
    for name, place in places.items():
        if not _is_utf8(place):
            raise EnvironmentFailed(f"{name} is not UTF-8: {place!r}", hint="Take a name that is.")


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


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

manifest_app = typer.Typer(help="Serving manifests: lint, schema.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(manifest_app, name="manifest")

app.command()(recipes.build)
app.command()(recipes.check)
app.command("plan")(recipes.plan)
app.command()(releases.show)
app.command()(publish.publish)
app.command()(publish.pull)
app.command()(releases.remove)
app.command("list")(releases.list_releases)
app.command()(lifecycle.alias)
app.command()(lifecycle.promote)
app.command()(lifecycle.rollback)
app.command()(lifecycle.history)
app.command()(lifecycle.sign)
app.command()(lifecycle.verify)
app.command()(lifecycle.reproduce)
app.command()(lifecycle.gc)
app.command()(recipes.report)
app.command()(evidence.gate)
app.command()(evidence.compare)
app.command()(evidence.sweep)
app.command()(bench.bench)
app.command()(serving.export)
app.command()(serving.serve)
app.command()(serving.chat)
app.command()(serving.batch)
app.command()(serving.canary)
app.command()(serving.drift)
app.command()(checkup.doctor)
app.command()(recipes.schema)
envs_app.command("list")(machine.envs_list)
envs_app.command("build")(machine.envs_build)
envs_app.command("check")(machine.envs_check)
envs_app.command("remove")(machine.envs_remove)
manifest_app.command("lint")(serving.manifest_lint)
manifest_app.command("schema")(serving.manifest_schema)


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """Turn one recipe into a quantized, measured, gated and published model."""
    if version:
        import qpack

        print(f"qpack {qpack.__version__}")
        raise typer.Exit


def main() -> None:
    """Run the command line: the only place that catches errors and turns them into exit codes."""
    terminal.protect()
    _heed_signals()
    try:
        for number, word in enumerate(sys.argv[1:], 1):
            if not _is_utf8(word):
                print(f"qpack: argument {number} is not UTF-8: {word!r}", file=sys.stderr)
                sys.exit(2)
        try:
            app()
        except SystemExit:
            sys.stdout.flush()
            raise
    except _Stopped:
        from qpack.core.errors import Interrupted

        if next((word for word in sys.argv[1:] if not word.startswith("-")), "") in _LEAVE_NOTHING:
            _fail(Interrupted("nothing was left running"))
        _fail(Interrupted("what was finished is kept", hint="The same command goes on from there."))
    except terminal.Unwritable as error:
        from qpack.core.errors import EnvironmentFailed

        _fail(EnvironmentFailed(str(error), hint="Is the disk full that it goes to, or its terminal gone?"))
    except terminal.ReaderGone:
        # stdout is for results: once they are printed the work is done (`qpack list | head`). stderr is lost in the
        # midst of it.
        _, talk_lost = _reader_gone(sys.stdout), _reader_gone(sys.stderr)
        sys.exit(130 if talk_lost else 0)
    except Exception as error:
        from qpack.core.errors import QpackError

        _fail(error) if isinstance(error, QpackError) else _fail_otherwise(error)


def _heed_signals() -> None:
    """SIGINT, SIGTERM and SIGHUP stop the work and clean up. A caller that had SIGHUP ignored (nohup) means it."""
    import signal

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _stop)


# Commands that have no result to go on from when they are stopped.
_LEAVE_NOTHING = ("serve", "chat", "canary", "drift")


class _Stopped(BaseException):
    """SIGINT, SIGTERM or SIGHUP. No Exception: nothing on the way out may take it for a failure of its own work."""


def _stop(*_: Any) -> NoReturn:
    raise _Stopped


def _fail(error: QpackError) -> NoReturn:
    try:
        for problem in error.problems:
            print(problem, file=sys.stderr)
            if terminal.on_github():
                file, _, line = problem.where.rpartition(":")
                place = {"file": file, "line": line} if line.isdigit() else {}
                terminal.workflow(sys.stderr, "error", f"{problem.what} {problem.hint}", **place)
        print(f"qpack: {error.title}: {error.what}", file=sys.stderr)
        if error.hint:
            print(f"       {error.hint}", file=sys.stderr)
        if error.log:
            print(f"       Log: {error.log}", file=sys.stderr)
    except (terminal.Unwritable, OSError):
        terminal.nowhere(sys.stderr)  # nobody reads it; the exit code still says it
    sys.exit(error.exit_code)


# What a system call answers when the machine is at fault, and no code.
_MACHINE = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM, errno.ESTALE),
    *(errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENXIO),
)


def _fail_otherwise(error: Exception) -> NoReturn:
    """The error of a call that the machine refused, else a bug."""
    import tempfile

    from qpack.core.errors import EnvironmentFailed

    if isinstance(error, MemoryError):
        _fail(EnvironmentFailed("qpack ran out of memory", hint="Give it more."))
    if isinstance(error, OSError) and error.errno in _MACHINE:
        where = f"{error.filename}: " if error.filename else ""
        _fail(EnvironmentFailed(f"{where}{error.strerror}", hint="`qpack doctor` looks at the machine."))
    try:
        tempfile.gettempdir()
    except OSError as none:
        _fail(EnvironmentFailed(str(none.strerror), hint="Set TMPDIR to a folder that can be written."))
    _fail_bug(error)


def _fail_bug(error: Exception) -> NoReturn:
    import platform
    import tempfile
    import traceback

    import qpack

    with tempfile.NamedTemporaryFile("w", prefix="qpack-bug-", suffix=".log", delete=False, errors="replace") as log:
        log.write(f"qpack {qpack.__version__}, Python {platform.python_version()}, {platform.platform()}\n")
        log.write(_without_secrets(f"command: {' '.join(sys.argv[1:])}\n\n"))
        log.write(_without_secrets("".join(traceback.format_exception(error))))
    print(_without_secrets(f"qpack: a bug in qpack: {type(error).__name__}: {error}"), file=sys.stderr)
    print(f"       Please report it with this file: {log.name}", file=sys.stderr)
    sys.exit(70)


def _without_secrets(text: str) -> str:
    """`text` without tokens and passwords: a report is made to be pasted. Those of variables and the one that the Hub's
    client stored go by their value, what addresses hold (logins, signed queries) by its place.
    """
    import re

    hidden = {name: value for name, value in os.environ.items() if name.upper().endswith(_SECRET)}
    if "huggingface_hub" in sys.modules:
        from huggingface_hub import get_token

        hidden["Hub token"] = get_token() or ""
    for name, value in hidden.items():
        if len(value) > 5:
            text = text.replace(value, f"[{name}]")
    text = re.sub(r"(://)[^\s/@'\"]+@", r"\1[login]@", text)
    return re.sub(r"(https?://[^\s?'\"]+\?)[^\s'\"]+", r"\1[query]", text)


if __name__ == "__main__":
    main()
