"""Locks on open files, by which one process tells the others that it is writing."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

_LOCK_BYTE = 2**30


def lock(descriptor: int) -> bool:
    """Lock an open file for as long as this process has it open; False if another one has it."""
    try:
        if sys.platform == "win32":
            import msvcrt

            # Windows locks bytes against reading, too: one far behind the text serves as the lock.
            position = os.lseek(descriptor, 0, os.SEEK_CUR)
            os.lseek(descriptor, _LOCK_BYTE, os.SEEK_SET)
            try:
                msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
            finally:
                os.lseek(descriptor, position, os.SEEK_SET)
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        # Some network file systems have no locks: that must not keep anybody from working.
        return error.errno not in (errno.EACCES, errno.EAGAIN, errno.EDEADLK)
    return True


def is_locked(path: Path) -> bool:
    """Whether a process, perhaps this one, has locked a file."""
    try:
        with path.open("rb") as file:
            return not lock(file.fileno())
    except OSError:
        return False
