"""Files that are whole or not there, whatever happens while they are written."""

import contextlib
import os
import re
import tempfile
from collections.abc import Callable
from typing import BinaryIO

from .errors import UserError

# Ends the names of files that are being written; a process that was killed leaves one behind.
TEMPORARY = ".tmp"


def write_whole_file(path: str, write: Callable[[BinaryIO], object], remedy: str = "") -> None:
    """Write ``path``, or leave it as it was: what is there at any moment is a whole file.

    Args:
        path: its folder is made if it is not there. Several processes may write it at a time.
        write: writes the content into the open file that it is given.
        remedy: what else to do if it cannot be written.

    Raises:
        UserError: there is no room, or the folder cannot be written to.
    """
    temporary = f"{path}.{os.getpid()}{TEMPORARY}"
    try:
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(os.path.dirname(path) or ".")
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        reason = _reason_of_system(error)
        if reason is None:
            raise
        raise UserError(
            f"{path} could not be written ({reason}): make room, or correct the permissions"
            f"{remedy}; all older files are as they were"
        ) from error


def try_folder(folder: str) -> None:
    """Find out, without a trace, whether files can be written into a folder that may not be there.

    Args:
        folder: its absolute path.

    Raises:
        OSError: it cannot be made, or not be written to.
    """
    existing = folder
    while not os.path.lexists(existing):
        existing = os.path.dirname(existing)
    if not os.path.isdir(existing):
        raise NotADirectoryError(f"{existing} is there and no folder")
    # Permissions alone do not tell: of a read-only disk, of /sys, or of the user root.
    with tempfile.TemporaryDirectory(prefix=".retinanet-", dir=existing) as trial:
        below = os.path.relpath(folder, existing)
        os.makedirs(os.path.join(trial, below), exist_ok=True)  # each name is one that may be


def check_writable(folder: str) -> None:
    """
    Args:
        folder: need not be there.

    Raises:
        UserError: files cannot be written into it, which is better known before the work.
    """
    try:
        try_folder(os.path.abspath(folder))
    except OSError as error:
        reason = error.strerror or error
        raise UserError(
            f"the folder {folder} cannot be written to ({reason}): name another"
        ) from error


def refuse_bytes(path: str, what: str) -> None:
    """
    Args:
        what: is at ``path``, in the sentence.

    Raises:
        UserError: the path has bytes that are no text, with which libraries fail after the work.
    """
    try:
        path.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{what} {path!r} has a name that is not UTF-8: name another") from error


def refuse_existing(*paths: str) -> None:
    """
    Raises:
        UserError: one of them is there.
    """
    for path in paths:
        if os.path.lexists(path):
            raise UserError(f"{path} exists already: delete it, or name another")


def remove_leftovers(folder: str) -> None:
    """Remove the half-written checkpoints of processes that were killed."""
    for name in os.listdir(folder):
        if re.fullmatch(rf"(.*\.pth|last_checkpoint)\.\d+{re.escape(TEMPORARY)}", name):
            with contextlib.suppress(OSError):
                os.unlink(os.path.join(folder, name))


def _sync_folder(folder: str) -> None:
    """Have the new name on the disk as well; some file systems cannot, and lose nothing else."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _reason_of_system(error: BaseException | None) -> str | None:
    """What the operating system said; None if ``error`` does not come from it.

    ``torch.save`` raises a RuntimeError of its own while it handles the system's.
    """
    while error is not None:
        if isinstance(error, OSError):
            return error.strerror or str(error)
        error = error.__context__
    return None
