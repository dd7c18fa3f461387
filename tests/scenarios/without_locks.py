"""qpack where flock(2) fails, as on a file system without locks: a real seccomp filter (prctl(2), seccomp(2)).

python without_locks.py COMMAND...
"""

from __future__ import annotations

import ctypes
import errno
import platform
import runpy
import struct
import sys

# AUDIT_ARCH_* of linux/audit.h, and the number of flock(2) there.
MACHINES = {"x86_64": (0xC000003E, 73), "aarch64": (0xC00000B7, 32)}
_PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS, _MODE_FILTER = 22, 38, 2
_LOAD, _IF_EQUAL, _RETURN = 0x20, 0x15, 0x06
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_char_p)]


def refuse_locks() -> None:
    """From here on flock(2) fails with ENOLCK, in this process and in those that it starts. Raises OSError."""
    architecture, flock = MACHINES[platform.machine()]
    steps = (
        (_LOAD, 0, 0, 4),  # seccomp_data.arch
        (_IF_EQUAL, 0, 3, architecture),
        (_LOAD, 0, 0, 0),  # seccomp_data.nr
        (_IF_EQUAL, 0, 1, flock),
        (_RETURN, 0, 0, _ERRNO | errno.ENOLCK),
        (_RETURN, 0, 0, _ALLOW),
    )
    code = b"".join(struct.pack("HBBI", *step) for step in steps)
    program = _Program(len(steps), code)
    libc = ctypes.CDLL(None, use_errno=True)
    for arguments in ((_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), (_PR_SET_SECCOMP, _MODE_FILTER, ctypes.byref(program), 0, 0)):
        if libc.prctl(*arguments):
            raise OSError(ctypes.get_errno(), "seccomp can't be used here")


if __name__ == "__main__":
    refuse_locks()
    sys.argv = ["qpack", *sys.argv[1:]]
    runpy.run_module("qpack.cli.app", run_name="__main__")
