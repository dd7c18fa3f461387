"""The worker's side of the protocol: a job in, progress events and one result out.

A worker is a script that runs inside an engine's own environment, which has no qpack. This file is the only thing put
on its path, so it uses the standard library alone and no syntax newer than Python 3.9.

Events are JSON lines on the file descriptor named by QPACK_EVENTS_FD; the engine may print to stdout and stderr what it
likes (both go to the stage's log). The result is written to `result.json` in the job's `out` folder, whole or not at
all.
"""

import contextlib
import json
import os
import shutil
import sys
import traceback


def load():
    """Return the job: the JSON object in the file named by the first argument."""
    with open(sys.argv[1], encoding="utf-8") as file:
        return json.load(file)


def progress(done, total, what):
    """Tell how far the work is. `total` 0 means that nobody knows."""
    _event({"event": "progress", "done": int(done), "total": int(total), "what": str(what)})


def finish(result):
    """Hand over the result: a JSON object."""
    path = os.path.join(load()["out"], "result.json")
    with open(path + ".part", "w", encoding="utf-8") as file:
        json.dump(result, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(path + ".part", path)


def fail(what, hint="", kind="error", causes=()):
    """Report what went wrong and what to do, and end the worker. `causes` are further words, for who reads them."""
    _event({"event": "error", "what": str(what), "hint": str(hint), "kind": kind, "causes": list(causes)})
    sys.stdout.flush()
    sys.stderr.flush()
    raise SystemExit(1)


def copy_beside(source, target):
    """Copy what a server reads and quantization leaves alone: tokenizer, chat template, generation config, licence."""
    for name in sorted(os.listdir(source)):
        path = os.path.join(source, name)
        written = name in ("config.json", "model.safetensors.index.json")
        if not written and not name.endswith((".safetensors", ".bin", ".pt", ".pth", ".gguf")) and os.path.isfile(path):
            shutil.copyfile(path, os.path.join(target, name))


def main(work):
    """Run `work(job)` and finish with what it returns; every exception becomes an error event, with its causes."""
    try:
        finish(work(load()))
    except SystemExit:
        raise
    except Exception as error:
        traceback.print_exc()
        chain = _chain(error)
        fail(_words(error), kind=_disk_or_error(chain), causes=[_words(cause) for cause in chain[1:]])


def _chain(error):
    """An exception and what it came from, whether its raiser said so or not."""
    found = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found


def _words(error):
    return f"{type(error).__name__}: {error}"


def _disk_or_error(chain):
    # safetensors and other libraries in Rust raise an error of their own, with the system's words and no errno.
    full = any(getattr(error, "errno", None) == 28 or "(os error 28)" in str(error) for error in chain)
    return "disk_full" if full else "error"


def _event(event):
    descriptor = os.environ.get("QPACK_EVENTS_FD")
    line = json.dumps(event) + "\n"
    if descriptor is None:
        print(line, end="", flush=True)
        return
    # A reader that has gone away is no reason to stop: the supervisor ends this process anyway.
    with contextlib.suppress(BrokenPipeError):
        os.write(int(descriptor), line.encode("utf-8"))
