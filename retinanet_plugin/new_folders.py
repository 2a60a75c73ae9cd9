"""Folders and files that a command writes: new or empty, and of one process at a time."""

import contextlib
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence

from .errors import UserError
from .file_lock import InUse, only_process
from .whole_files import TEMPORARY, refuse_existing

# Is there while files are written, and after a process that was killed.
_LOCK = ".retinanet-unfinished"
# Has what is to be in the folder once all of it is written.
_UNFINISHED = ".retinanet-partial"


def check_new_folder(folder: str, remedy: str = "") -> None:
    """Refuse a folder that has files, which may be the user's own.

    Args:
        folder: need not be there.
        remedy: what to do about its files; "": name another one.

    Raises:
        UserError: it has files, is one, or has no name.
    """
    _check_name(folder)
    names = set(os.listdir(folder) if os.path.isdir(folder) else ()) - {_LOCK, _UNFINISHED}
    if names:
        remedy = remedy or f"name a new folder, such as {os.path.join(folder, 'new')}"
        raise UserError(f"{folder} has files, such as {min(names)}: {remedy}")


@contextlib.contextmanager
def new_folder(folder: str, paths: Sequence[str], remedy: str = "") -> Iterator[None]:
    """Within it, files are written into a folder that was not there or empty.

    Args:
        folder: what an earlier process left in it that was killed here is removed.
        paths: all that is written, below ``folder``. After an error none of it is there, and what
            others put there meanwhile stays.
        remedy: of :func:`check_new_folder`.

    Raises:
        UserError: it has files, cannot be made, or another process is writing into it.
    """
    _check_name(folder)
    with _only_writer(folder, _LOCK, paths, lambda: check_new_folder(folder, remedy)):
        yield


@contextlib.contextmanager
def whole_folder(folder: str) -> Iterator[str]:
    """Within it, files are written that a new or empty folder has at the end, all or none.

    Yields:
        the folder to write into: one in ``folder``, which may be a link, or a disk of its own.

    Raises:
        UserError: of :func:`new_folder`.
    """
    with new_folder(folder, ()):
        unfinished, moved = os.path.join(folder, _UNFINISHED), []
        shutil.rmtree(unfinished, ignore_errors=True)  # of a process that was killed
        try:
            os.mkdir(unfinished)
            yield unfinished
            for name in os.listdir(unfinished):
                os.rename(os.path.join(unfinished, name), os.path.join(folder, name))
                moved.append(name)
        except BaseException:
            for name in moved:
                os.rename(os.path.join(folder, name), os.path.join(unfinished, name))
            raise
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)


@contextlib.contextmanager
def new_files(*paths: str) -> Iterator[None]:
    """Within it, files of one folder are written that were not there; as :func:`new_folder`.

    Raises:
        UserError: one is there, the folder cannot be made, or another process is writing them.
    """
    folder, first = os.path.split(paths[0])
    names = [os.path.basename(path) for path in paths]
    with _only_writer(folder, f".{first}{_LOCK}", names, lambda: refuse_existing(*paths)):
        yield


@contextlib.contextmanager
def _only_writer(
    folder: str, lock_name: str, paths: Sequence[str], check: Callable[[], None]
) -> Iterator[None]:
    folder = folder or os.curdir
    made = _make(folder)
    lock = os.path.join(folder, lock_name)
    try:
        with _in_words(folder), only_process(lock) as is_left:
            try:
                if is_left:
                    _remove(folder, paths)
                check()
                try:
                    yield
                except BaseException:
                    _remove(folder, paths)
                    raise
            finally:
                with contextlib.suppress(OSError):  # it would hide the error that is told
                    os.unlink(lock)
    finally:
        for path in made:
            with contextlib.suppress(OSError):  # it has files
                os.rmdir(path)


def _check_name(folder: str) -> None:
    if not folder:
        raise UserError("the folder has no name: give it one")
    if os.path.lexists(folder) and not os.path.isdir(folder):
        raise UserError(f"{folder} is a file: name a new folder")


def _make(folder: str) -> list[str]:
    """Make a folder, and return those that were not there, the deepest first."""
    path, made = os.path.abspath(folder), []
    while not os.path.lexists(path):
        made.append(path)
        path = os.path.dirname(path)
    if not made:
        return []
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"the folder {folder} cannot be made ({reason}): name another") from error
    return made


@contextlib.contextmanager
def _in_words(folder: str) -> Iterator[None]:
    try:
        yield
    except InUse as holder:
        raise UserError(
            f"another process writes into {folder} ({holder}): name another folder, or wait until "
            "that one ends"
        ) from holder


def _remove(folder: str, paths: Sequence[str]) -> None:
    """Remove files, unfinished ones as well, and their folders where nothing else is in them."""
    for below in sorted({os.path.dirname(path) for path in paths}, reverse=True):
        place = os.path.join(folder, below)
        own = "|".join(re.escape(os.path.basename(x)) for x in paths if os.path.dirname(x) == below)
        with contextlib.suppress(OSError):  # it would hide the error that is told
            for name in os.listdir(place):
                if re.fullmatch(rf"({own})(\.\d+{re.escape(TEMPORARY)})?", name):
                    os.unlink(os.path.join(place, name))
            if below:
                os.rmdir(place)
