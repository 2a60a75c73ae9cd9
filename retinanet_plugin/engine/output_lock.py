"""One training at a time in an OUTPUT_DIR: two would write over each other's checkpoints."""

import contextlib
import errno
import fcntl
import os
import socket
import time
from collections.abc import Iterator

from detectron2.utils import comm

from ..errors import UserError

_NAME = ".training.lock"
_POLL_S = 0.2


@contextlib.contextmanager
def only_training_in(output_dir: str) -> Iterator[None]:
    """Hold a folder for a training; the system lets go of it when the process ends, however.

    The first process holds it for all. Where files cannot be locked, nothing is held.

    Args:
        output_dir: ``OUTPUT_DIR``, which exists.

    Raises:
        UserError: another training holds it.
    """
    if not comm.is_main_process() or (file := _opened(output_dir, os.O_CREAT)) is None:
        yield
        return
    try:
        _lock(file, fcntl.LOCK_EX, output_dir)
        with contextlib.suppress(OSError):  # it is for the message alone
            os.ftruncate(file, 0)
            os.pwrite(file, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
        yield
    finally:
        os.close(file)


def refuse_if_in_use(output_dir: str, patience_s: float = 0.0) -> None:
    """
    Args:
        patience_s: seconds for which to wait for the end of the other training.

    Raises:
        UserError: a training holds the folder, of another process.
    """
    file = _opened(output_dir)
    if file is None:
        return
    end = time.monotonic() + patience_s
    try:
        while True:
            try:
                return _lock(file, fcntl.LOCK_SH, output_dir)  # shared: several may be asking
            except UserError:
                if time.monotonic() >= end:
                    raise
            time.sleep(_POLL_S)
    finally:
        os.close(file)


def _opened(output_dir: str, flags: int = 0) -> int | None:
    try:
        return os.open(os.path.join(output_dir, _NAME), os.O_RDWR | flags, 0o666)
    except OSError:  # none is there, or the folder is not of this machine
        return None


def _lock(file: int, kind: int, output_dir: str) -> None:
    try:
        # Not flock: processes that load data would inherit it, and live a while longer.
        fcntl.lockf(file, kind | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EAGAIN):
            return
        holder = os.pread(file, 200, 0).decode(errors="replace") or "a process"
        raise UserError(
            f"OUTPUT_DIR {output_dir} is in use by another training ({holder}): set another "
            "OUTPUT_DIR, or wait until that one ends"
        ) from error
