"""The command line: its commands, and the one place that turns errors into exit codes.

Results go to stdout (tables, or JSON with --json), everything else to stderr. With --json stdout has exactly one
document: the result, or the error where there is none.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TextIO

import typer
from typer.core import TyperGroup

from qpack.cli.commands import (
    alias,
    batch,
    bench,
    build,
    canary,
    chat,
    check,
    compare,
    demo,
    doctor,
    drift,
    envs_build,
    envs_check,
    envs_list,
    envs_remove,
    export,
    gate,
    gc,
    history,
    list_releases,
    manifest_lint,
    manifest_schema,
    plan,
    promote,
    publish,
    pull,
    remove,
    report,
    reproduce,
    rollback,
    schema,
    serve,
    show,
    sign,
    sweep,
    verify,
)
from qpack.cli.usage import Command
from qpack.core import terminal

if TYPE_CHECKING:
    from qpack.core.errors import QpackError
    from qpack.core.problems import Problem

# The base class of errors in arguments; typer gives it no name of its own.
_USAGE: Any = typer.BadParameter.__bases__[0]

# Endings of variables that hold secrets.
_SECRET = ("TOKEN", "PASSWORD", "SECRET", "CREDENTIALS")


class Commands(TyperGroup):
    """The commands."""

    def format_commands(self, _: Any, formatter: Any) -> None:
        """List the commands by group, each with its whole first sentence."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for name, command in self.commands.items():
            group = str(getattr(command, "rich_help_panel", None) or "Commands")
            groups.setdefault(group, []).append((name, command.get_short_help_str(limit=200)))
        for group, rows in groups.items():
            with formatter.section(group):
                formatter.write_dl(rows)

    def invoke(self, ctx: Any) -> Any:
        """Run the command that `ctx` names, and write what it printed."""
        _check_place()
        result = super().invoke(ctx)
        sys.stdout.flush()
        return result


def _reader_gone(stream: TextIO) -> bool:
    """Whether the reader of `stream` has gone. Output is then discarded, so that the exit doesn't fail."""
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
    from qpack.core.problems import BAD_PLACE

    try:
        places = {"the current folder": os.getcwd()}  # noqa: PTH109  (to be looked at as text)
    except OSError as error:
        raise EnvironmentFailed(
            BAD_PLACE, f"the current folder is gone: {error.strerror}", hint="Change to another folder."
        ) from None
    places |= {name: os.environ.get(name, "") for name in ("HOME", "TMPDIR")}
    places |= {name: value for name, value in os.environ.items() if name.startswith(("QPACK_", "HF_", "XDG_"))}
    for name, place in places.items():
        if not _is_utf8(place):
            raise EnvironmentFailed(BAD_PLACE, f"{name} is not UTF-8: {place!r}", hint="Use a name in UTF-8.")


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
GROUPS: dict[str, dict[str, Callable[..., None]]] = {
    "Build": {
        "build": build.build,
        "demo": demo.demo,
        "check": check.check,
        "plan": plan.plan,
        "report": report.report,
        "sweep": sweep.sweep,
        "reproduce": reproduce.reproduce,
        "schema": schema.schema,
    },
    "Look": {
        "list": list_releases.list_releases,
        "show": show.show,
        "compare": compare.compare,
        "history": history.history,
    },
    "Publish": {
        "publish": publish.publish,
        "pull": pull.pull,
        "alias": alias.alias,
        "promote": promote.promote,
        "rollback": rollback.rollback,
        "sign": sign.sign,
        "verify": verify.verify,
        "remove": remove.remove,
        "gc": gc.gc,
    },
    "Serve": {
        "serve": serve.serve,
        "chat": chat.chat,
        "batch": batch.batch,
        "canary": canary.canary,
        "drift": drift.drift,
        "bench": bench.bench,
        "export": export.export,
    },
    "Check": {"gate": gate.gate, "doctor": doctor.doctor},
}
"""The commands by what they are about, in the order of `qpack --help`."""

_SUBCOMMANDS: dict[str, tuple[str, str, dict[str, Callable[..., None]]]] = {
    "manifest": (
        "Serve",
        "Check or describe serving manifests.",
        {"lint": manifest_lint.manifest_lint, "schema": manifest_schema.manifest_schema},
    ),
    "envs": (
        "Environments",
        "List, build, check or remove engine environments.",
        {
            "list": envs_list.envs_list,
            "build": envs_build.envs_build,
            "check": envs_check.envs_check,
            "remove": envs_remove.envs_remove,
        },
    ),
}

for _group, _commands in GROUPS.items():
    for _name, _command in _commands.items():
        app.command(_name, cls=Command, rich_help_panel=_group)(_command)
for _name, (_group, _help, _commands) in _SUBCOMMANDS.items():
    _below = typer.Typer(help=_help, no_args_is_help=True, rich_markup_mode=None)
    app.add_typer(_below, name=_name, rich_help_panel=_group)
    for _sub, _command in _commands.items():
        _below.command(_sub, cls=Command)(_command)


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
    _heed_signals(_stop)
    try:
        _run()
    except _Stopped:
        _heed_signals(signal.SIG_IGN)  # a second Ctrl-C changes neither the message nor the exit code
        from qpack.core.errors import Interrupted
        from qpack.core.problems import INTERRUPTED

        if next((word for word in sys.argv[1:] if not word.startswith("-")), "") in _LEAVE_NOTHING:
            _fail(Interrupted(INTERRUPTED, "all processes were stopped"))
        _fail(Interrupted(INTERRUPTED, "finished stages are kept", hint="The same command resumes."))


def _run() -> None:
    """Run the command and exit. Only _Stopped goes through, also where it comes while an error is written."""
    try:
        for number, word in enumerate(sys.argv[1:], 1):
            if not _is_utf8(word):
                what = f"argument {number} is not UTF-8: {word!r}"
                print(f"qpack: {what}", file=sys.stderr)
                _exit(2, "usage", "usage", what)
        try:
            # Without standalone mode an error of usage arrives here, and an exit code is what is returned.
            code = app(standalone_mode=False)
        except _USAGE as error:
            error.show()
            _exit(error.exit_code, "usage", "usage", error.format_message())
        except SystemExit:
            sys.stdout.flush()
            raise
        sys.exit(code if isinstance(code, int) else 0)
    except terminal.Unwritable as error:
        from qpack.core.errors import EnvironmentFailed
        from qpack.core.problems import FILE_SYSTEM

        _fail(
            EnvironmentFailed(FILE_SYSTEM, str(error), hint="Check the disk, or the terminal, that the output goes to.")
        )
    except terminal.ReaderGone:
        # stdout is for results: once they are printed the work is done (`qpack list | head`). stderr is lost in the
        # midst of it.
        _, talk_lost = _reader_gone(sys.stdout), _reader_gone(sys.stderr)
        sys.exit(130 if talk_lost else 0)
    except Exception as error:
        from qpack.core.errors import QpackError

        _fail(error) if isinstance(error, QpackError) else _fail_otherwise(error)


def _exit(code: int, kind: str, name: str, what: str, **more: Any) -> NoReturn:
    """Exit with `code`. With --json, stdout gets the error as its one document, unless it has a result already."""
    try:
        if _wants_json() and isinstance(sys.stdout, terminal.Safe) and not sys.stdout.used:
            from qpack.cli.render.failure import failed

            failed(kind, name, code, what, **more)
        sys.stdout.flush()
    except (terminal.Unwritable, terminal.ReaderGone):
        terminal.nowhere(sys.stdout)  # nobody reads it; the exit code remains
    sys.exit(code)


def _wants_json() -> bool:
    """Whether --json is among the options. What follows `--` is none."""
    words = sys.argv[1:]
    return "--json" in (words[: words.index("--")] if "--" in words else words)


def _heed_signals(action: Any) -> None:
    """Set what SIGINT, SIGTERM and SIGHUP do. A SIGHUP that the caller ignores (nohup) stays ignored."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, action)


# Commands that don't resume.
_LEAVE_NOTHING = ("serve", "chat", "canary", "drift")


class _Stopped(BaseException):
    """SIGINT, SIGTERM or SIGHUP. Not an Exception: no handler on the way out may treat it as a failure."""


def _stop(*_: Any) -> NoReturn:
    """Stop the work and clean up."""
    raise _Stopped


def _fail(error: QpackError) -> NoReturn:
    try:
        for problem in error.problems:
            print(problem, file=sys.stderr)
            if terminal.on_github():
                place = {"file": problem.where.file, "line": str(problem.where.line)} if problem.where.line else {}
                kind = "notice" if problem.severity == "note" else problem.severity
                terminal.workflow(sys.stderr, kind, _beside_its_place(problem), **place)
        # Problems have codes of their own, and an interruption is one thing.
        code = "" if error.problems or error.code.name == error.title else f"[{error.code}]"
        print(f"qpack: {error.title}{code}: {error.what}", file=sys.stderr)
        if error.hint:
            print(f"       {error.hint}", file=sys.stderr)
        if error.log:
            print(f"       Log: {error.log}", file=sys.stderr)
    except (terminal.Unwritable, OSError):
        terminal.nowhere(sys.stderr)  # nobody reads it; the exit code remains
    more = {"hint": error.hint, "log": error.log, "problems": error.problems}
    _exit(error.exit_code, error.title, error.code.name, error.what, **more)


def _beside_its_place(problem: Problem) -> str:
    """A problem without the file and the line that an annotation has."""
    return replace(problem, where=replace(problem.where, file="", line=None)).text


# What a system call answers when the machine is at fault, and no code.
_MACHINE = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM, errno.ESTALE),
    *(errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENXIO),
)


def _fail_otherwise(error: Exception) -> NoReturn:
    """Exit with an environment error if the operating system refused a call, else with a bug report."""
    import tempfile

    from qpack.core.errors import EnvironmentFailed
    from qpack.core.problems import FILE_SYSTEM, OUT_OF_MEMORY

    if isinstance(error, MemoryError):
        _fail(EnvironmentFailed(OUT_OF_MEMORY, "qpack ran out of memory", hint="Run it with more memory."))
    if isinstance(error, OSError) and error.errno in _MACHINE:
        where = f"{error.filename}: " if error.filename else ""
        _fail(EnvironmentFailed(FILE_SYSTEM, f"{where}{error.strerror}", hint="`qpack doctor` checks the machine."))
    try:
        tempfile.gettempdir()
    except OSError as none:
        _fail(EnvironmentFailed(FILE_SYSTEM, str(none.strerror), hint="Set TMPDIR to a folder that can be written."))
    _fail_bug(error)


def _fail_bug(error: Exception) -> NoReturn:
    import platform
    import tempfile
    import traceback

    import qpack
    from qpack.core.errors import QpackError

    with tempfile.NamedTemporaryFile("w", prefix="qpack-bug-", suffix=".log", delete=False, errors="replace") as log:
        log.write(f"qpack {qpack.__version__}, Python {platform.python_version()}, {platform.platform()}\n")
        log.write(_without_secrets(f"command: {' '.join(sys.argv[1:])}\n\n"))
        log.write(_without_secrets("".join(traceback.format_exception(error))))
    what, hint = _without_secrets(f"{type(error).__name__}: {error}"), f"Please report it with this file: {log.name}"
    print(f"qpack: a bug in qpack: {what}", file=sys.stderr)
    print(f"       {hint}", file=sys.stderr)
    _exit(QpackError.exit_code, "bug", "bug", what, hint=hint, log=log.name)


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
