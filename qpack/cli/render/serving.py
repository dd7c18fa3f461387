"""`qpack serve`, `chat`, `batch`, `canary`, `drift`, `export` and `manifest lint`."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from qpack.cli.render.text import emit, table
from qpack.core.errors import EvaluateError, Problem, RegistryError
from qpack.core.records import Proof
from qpack.serve.served_release import Linted, Reached, Served
from registry.serving.serving_manifest import command

if TYPE_CHECKING:
    from evals.server.batch import Done
    from evals.server.drift import Drift
    from evals.server.vllm_server import Server


def exported(served: Served, files: Mapping[str, str], folder: Path | None, *, as_json: bool) -> None:
    """Write the files of an export into `folder`; to stdout when there is one file and no folder."""
    if folder is not None:
        _write(files, folder)
    if as_json:
        emit({"release": served.reference, "profile": served.profile, "files": dict(files)})
    elif folder is not None:
        for name in files:
            print(folder / name)
    elif len(files) == 1:
        sys.stdout.write(next(iter(files.values())))
    else:
        names = ", ".join(files)
        raise RegistryError(f"these are {len(files)} files: {names}", hint="Name a folder for them with --output.")


def linted(checked: Sequence[Linted], *, as_json: bool) -> None:
    """What is wrong with each profile, and what wasn't judged."""
    if as_json:
        emit(
            [
                {
                    "release": each.served.reference,
                    "profile": each.served.profile,
                    "problems": [dataclasses.asdict(problem) for problem in each.problems],
                    "unchecked": list(each.unchecked),
                }
                for each in checked
            ]
        )
        return
    for each in checked:
        fine = "" if each.problems else "no problem found" if each.unchecked else "fine"
        print(f"{each.served.reference}, profile {each.served.profile}: {fine}".rstrip())
        for problem in each.problems:
            print(f"  {problem}")
        for left in each.unchecked:
            print(f"  not checked: {left}")


def _write(files: Mapping[str, str], folder: Path) -> None:
    try:
        for name, text in files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            if text.startswith("#!"):
                path.chmod(0o755)
    except OSError as error:
        raise RegistryError(
            f"{error.filename or folder}: {error.strerror}", hint="Name another folder with --output."
        ) from error


def command_of(served: Served, model: Path, port: int) -> None:
    """The command that would be run."""
    print(command(served.manifest, str(model), host="127.0.0.1", port=port))


def serving(served: Served, server: Server) -> None:
    """A server that is ready."""
    print(f"{served.reference} answers as {server.model} at {server.base_url}/v1 (vLLM {server.version})", flush=True)
    print("Ctrl-C stops it. Its log:", file=sys.stderr, flush=True)


def conversation(
    server: Reached, prompt: str | None, system: str | None, *, max_tokens: int, temperature: float
) -> None:
    """Answer one prompt, or one after the other until the end of the input."""
    from evals.server.chat import answer
    from evals.server.client import Sampling

    messages = [{"role": "system", "content": system}] if system and server.chat else []
    terminal = prompt is None and sys.stdin.isatty()
    for text in [prompt] if prompt is not None else _typed(terminal):
        messages.append({"role": "user", "content": text})
        reply = ""
        for piece in answer(server.endpoint, messages, Sampling(max_tokens, temperature)):
            print(piece, end="", flush=True)
            reply += piece
        print(flush=True)
        messages.append({"role": "assistant", "content": reply})


def _typed(terminal: bool) -> Iterator[str]:
    """Lines of the input that hold something."""
    if terminal:
        print("Empty lines are ignored; Ctrl-D exits.", file=sys.stderr)
    while True:
        if terminal:
            print("> ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line:
            return
        if line.strip():
            yield line.strip()


def answered(done: Done, output: Path, *, as_json: bool) -> None:
    """How a batch ended."""
    if as_json:
        emit({**dataclasses.asdict(done), "output": str(output.absolute())})
        return
    print(f"{output}: {done.total} answers, {done.before} reused, {done.failed} refused by the server")


def proved(server: Reached, proof: Proof, *, as_json: bool) -> None:
    """What a server keeps of its promises. Raises EvaluateError when a check failed."""
    checks = proof.checks
    if as_json:
        results = [check.model_dump() for check in checks]
        emit({"server": server.base_url, "model": server.model, "clients": proof.clients, "checks": results})
    else:
        table(("check", "outcome", "why"), ((check.name, check.outcome, check.why) for check in checks))
    if missed := [check for check in checks if check.outcome == "fail"]:
        count = "1 check" if len(missed) == 1 else f"{len(missed)} checks"
        raise EvaluateError(
            f"{count} failed: {', '.join(check.name for check in missed)}",
            problems=tuple(Problem(f"{check.claim} {check.why}", check.name) for check in missed),
        )


def drifted(served: Served, url: str, drift: Drift, *, as_json: bool) -> None:
    """How a server differs from its release. Raises EvaluateError when it does."""
    if as_json:
        emit({"release": served.reference, "profile": served.profile, "server": url, **dataclasses.asdict(drift)})
    elif drift.differences:
        table(("what", served.reference, url), ((d.what, d.expected, d.found) for d in drift.differences))
    else:
        print(f"{url} is {served.reference}, profile {served.profile}; its arguments were read from "
              f"{drift.arguments_from}")  # fmt: skip
    if drift.unseen and not as_json:
        print(f"not visible, not compared: {', '.join(drift.unseen)} (arguments from {drift.arguments_from})",
              file=sys.stderr)  # fmt: skip
    if drift.differences:
        names = ", ".join(difference.what for difference in drift.differences)
        raise EvaluateError(f"{url} differs from {served.reference}: {names}")
