"""Files that one process holds at a time; the system lets go of them when it ends, however."""

import contextlib
import errno
import fcntl
import os
import socket
import time
from collections.abc import Iterator

_POLL_S = 0.2


class InUse(Exception):
    """Another process holds the file; the text says which one."""


@contextlib.contextmanager
def only_process(path: str) -> Iterator[bool]:
    """Hold a file, which is made if it is not there. Where files cannot be locked, none is held.

    Args:
        path: in a folder that exists.

    Yields:
        bool: whether another process held the file before and did not remove it.

    Raises:
        InUse: another process holds it.
    """
    file = _held(path)
    if file is None:
        yield False
        return
    try:
        is_left = os.fstat(file).st_size > 0
        with contextlib.suppress(OSError):  # it is for the message alone
            os.ftruncate(file, 0)
            os.pwrite(file, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
        yield is_left
    finally:
        os.close(file)


def check_free(path: str, patience_s: float = 0.0) -> None:
    """
    Args:
        path: need not be there.
        patience_s: seconds for which to wait until another process lets go of it.

    Raises:
        InUse: another process holds it.
    """
    file = _opened(path)
    if file is None:
        return
    end = time.monotonic() + patience_s
    try:
        while True:
            try:
                return _lock(file, fcntl.LOCK_SH)  # shared: several may be asking
            except InUse:
                if time.monotonic() >= end:
                    raise
            time.sleep(_POLL_S)
    finally:
        os.close(file)


def _held(path: str) -> int | None:
    while (file := _opened(path, os.O_CREAT)) is not None:
        try:
            _lock(file, fcntl.LOCK_EX)
            if os.fstat(file).st_nlink:
                return file
        except BaseException:
            os.close(file)
            raise
        os.close(file)  # it was removed by the one that held it: others would make a new one
    return None


def _opened(path: str, flags: int = 0) -> int | None:
    try:
        return os.open(path, os.O_RDWR | flags, 0o666)
    except OSError:  # none is there, or the folder is not of this machine
        return None


def _lock(file: int, kind: int) -> None:
    try:
        # Not flock: processes that load data would inherit it, and live a while longer.
        fcntl.lockf(file, kind | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EAGAIN):
            return
        raise InUse(os.pread(file, 200, 0).decode(errors="replace") or "a process") from error
