"""The worker's side of the protocol: a job in, progress events and one answer out.

A worker is a script that runs inside an engine's own environment, which has no qpack. Only this folder and its own are
put on its path, so it uses the standard library alone and no syntax newer than Python 3.9. Its job and its answer are
dataclasses, declared beside it in a module that qpack imports too (`qpack_protocol`).

Events are JSON lines on the file descriptor named by QPACK_EVENTS_FD; the engine may print to stdout and stderr what it
likes (both go to the stage's log). The answer is written to `result.json` in the job's folder, whole or not at all.
"""

import contextlib
import json
import os
import resource
import shutil
import sys
import traceback

from qpack_protocol import Failure, Mismatch, Order, Progress, decode, encode, read, write

LONGEST_MESSAGE = 10_000  # characters
MOST_CAUSES = 5


def load(kind):
    """The job, an instance of `kind`, from the file named by the first argument. Raises Mismatch."""
    return decode(kind, read(sys.argv[1], Order).job)


def progress(done, total, what):
    """Report how far the work is. `total` 0 means that nobody knows."""
    _event(Progress(int(done), int(total), str(what)))


def fail(what, hint="", kind="error", causes=()):
    """Report what went wrong and what to do, and end the worker. `causes` are further messages, not shown."""
    _event(Failure(_short(what), _short(hint), kind, tuple(map(_short, causes[:MOST_CAUSES]))))
    sys.stdout.flush()
    sys.stderr.flush()
    raise SystemExit(1)


def _short(what):
    """A message as an event has it. An engine's own may hold a whole tensor; all of it is in the log."""
    return str(what)[:LONGEST_MESSAGE]


def copy_beside(source, target):
    """Copy what a server reads and quantization leaves alone: tokenizer, chat template, generation config, licence."""
    for name in sorted(os.listdir(source)):
        path = os.path.join(source, name)
        written = name in ("config.json", "model.safetensors.index.json")
        if not written and not name.endswith((".safetensors", ".bin", ".pt", ".pth", ".gguf")) and os.path.isfile(path):
            shutil.copyfile(path, os.path.join(target, name))


def main(work, kind):
    """Run `work(job, out)` with a job of `kind` and hand over the answer that it returns, a dataclass. Every exception
    becomes an error event, with its causes.
    """
    try:
        out = read(sys.argv[1], Order).out
        write(os.path.join(out, "result.json"), work(load(kind), out))
    except SystemExit:
        raise
    except Mismatch as error:
        traceback.print_exc()
        fail(f"the job or the answer doesn't fit: {error}")
    except Exception as error:
        traceback.print_exc()
        chain = _chain(error)
        causes = [*_address_space(), *(_words(cause) for cause in chain[1:])]
        fail(_words(error), kind=_disk_or_error(chain), causes=causes)


def _chain(error):
    """An exception and what it came from, whether its raiser said so or not."""
    found = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found


def _address_space():
    """A cause, when the process took all the address space that it may. Where Python can't get memory for an exception
    it raises another (pickle: "SystemError: error return without exception set").
    """
    limit, taken = resource.getrlimit(resource.RLIMIT_AS)[0], 0
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as file:
            taken = sum(int(line.split()[1]) << 10 for line in file if line.startswith("VmPeak:"))
    except (OSError, ValueError):
        pass
    return ["MemoryError: no address space is left"] if limit != resource.RLIM_INFINITY and taken > 0.99 * limit else []


def _words(error):
    return f"{type(error).__name__}: {error}"


def _disk_or_error(chain):
    # safetensors and other libraries in Rust raise an error of their own, with the system's words and no errno.
    full = any(getattr(error, "errno", None) == 28 or "(os error 28)" in str(error) for error in chain)
    return "disk_full" if full else "error"


def _event(event):
    descriptor = os.environ.get("QPACK_EVENTS_FD")
    line = json.dumps(encode(event)) + "\n"
    if descriptor is None:
        print(line, end="", flush=True)
        return
    # A reader that has gone away is no reason to stop: the supervisor ends this process anyway.
    with contextlib.suppress(BrokenPipeError):
        os.write(int(descriptor), line.encode("utf-8"))
