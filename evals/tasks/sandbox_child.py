"""Runs a function of untrusted code on some arguments, without files, network, or other processes. See sandbox.py.

Standard input: JSON of {"code", "function", "calls": [arguments, ...]}. Standard output: a JSON list with one
{"value": ...} or {"error": ...} for each call. Started with `python -I -S`. Before the code runs, this process gives up
all system calls but those on a list: memory, time, and reading and writing what is already open.
"""

# Most are for the code alone: it may import what is imported here, for nothing can be opened later.
import bisect  # noqa: F401
import collections  # noqa: F401
import copy  # noqa: F401
import ctypes
import decimal  # noqa: F401
import fractions  # noqa: F401
import functools  # noqa: F401
import heapq  # noqa: F401
import itertools  # noqa: F401
import json
import math  # noqa: F401
import operator  # noqa: F401
import platform
import random  # noqa: F401
import re  # noqa: F401
import resource
import statistics  # noqa: F401
import string  # noqa: F401
import struct
import sys
import typing  # noqa: F401

MEMORY, SECONDS = 1 << 30, 5

# By the kernel's audit architecture: read, write, close, fstat, lseek, mmap, mprotect, munmap, brk, rt_sigaction,
# rt_sigprocmask, rt_sigreturn, mremap, madvise, getpid, exit, gettimeofday, sigaltstack, futex, clock_gettime,
# clock_nanosleep, exit_group, getrandom.
ALLOWED = {
    "x86_64": (
        0xC000003E,
        (0, 1, 3, 5, 8, 9, 10, 11, 12, 13, 14, 15, 25, 28, 39, 60, 96, 131, 202, 228, 230, 231, 318),
    ),
    "aarch64": (
        0xC00000B7,
        (63, 64, 57, 80, 62, 222, 226, 215, 214, 134, 135, 139, 216, 233, 172, 93, 169, 132, 98, 113, 115, 94, 278),
    ),
}
_LOAD, _EQUAL, _RETURN = 0x20, 0x15, 0x06
_ALLOW, _DENY = 0x7FFF0000, 0x00050001  # the second: errno EPERM
_NO_NEW_PRIVS, _SECCOMP, _FILTER, _DEATH_SIGNAL = 38, 22, 2, 1


class Program(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]


def instructions(architecture, calls):
    """A filter that allows these system calls of this architecture, and denies all others."""
    found = [(_LOAD, 0, 0, 4), (_EQUAL, 1, 0, architecture), (_RETURN, 0, 0, _DENY), (_LOAD, 0, 0, 0)]
    for place, number in enumerate(calls):
        found.append((_EQUAL, len(calls) - place, 0, number))
    return [*found, (_RETURN, 0, 0, _DENY), (_RETURN, 0, 0, _ALLOW)]


def confine():
    """Limits first, then the filter; OSError where the kernel has none."""
    for what, limit in (
        (resource.RLIMIT_AS, MEMORY),
        (resource.RLIMIT_CPU, SECONDS),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(what, (limit, limit))
    architecture, calls = ALLOWED[platform.machine()]
    program = b"".join(struct.pack("=HBBI", *each) for each in instructions(architecture, calls))
    held = ctypes.create_string_buffer(program, len(program))
    libc = ctypes.CDLL(None, use_errno=True)
    # It ends with its parent, gains no privileges, and keeps the filter.
    for call in (
        (_DEATH_SIGNAL, 9, 0, 0, 0),
        (_NO_NEW_PRIVS, 1, 0, 0, 0),
        (_SECCOMP, _FILTER, ctypes.byref(Program(len(program) // 8, ctypes.addressof(held))), 0, 0),
    ):
        if libc.prctl(*call) != 0:
            raise OSError(ctypes.get_errno(), "prctl")


def call(function, arguments):
    """One call's value, as JSON has it, or what was raised."""
    try:
        return {"value": json.loads(json.dumps(function(*arguments)))}
    except BaseException as error:
        return {"error": type(error).__name__}


def main():
    """Read, give up, run, answer."""
    job = json.loads(sys.stdin.buffer.read())
    answer, silent = sys.stdout, open("/dev/null", "w")  # noqa: SIM115
    confine()
    # What the code prints is no answer.
    sys.stdout = sys.stderr = silent
    found = {}
    try:
        exec(compile(job["code"], "reply", "exec"), found)
        function = found[job["function"]]
    except BaseException as error:
        results = [{"error": type(error).__name__}] * len(job["calls"])
    else:
        results = [call(function, arguments) for arguments in job["calls"]]
    answer.write(json.dumps(results))
    answer.flush()


if __name__ == "__main__":
    main()
