"""Reading a file of ``torch.save`` without running what it may carry, or saying why it is none."""

import contextlib
import re
import zipfile
from collections.abc import Iterator
from typing import Any, BinaryIO

import torch
from fvcore.common.checkpoint import TORCH_VERSION

from .safe_pickle import NOT_CODE, SkippedObject, UnreadableError, numpy_globals

TOO_LARGE = (
    "asks for more memory than there is: copy it anew if it is damaged, or take a larger machine"
)


def read_checkpoint(
    path: str, *, only_header: bool = False, skip_objects: bool = False
) -> dict[str, Any]:
    """Read a file of ``torch.save`` into the memory of the CPU.

    Args:
        path: a local file.
        only_header: tensors stay on the disk until they are used, and are not checked.
        skip_objects: of other classes than those of tensors and plain values, an empty dict is in
            the place of each object, and the file is not refused.

    Raises:
        UnreadableError: it is missing, damaged, or holds more than tensors and plain values.
    """
    with open_file(path) as file:
        start = file.read(64)
        check_start(start)
    is_zip = start.startswith(b"PK")
    try:
        if is_zip and not only_header:
            _check_sums(path)
        with _known_names(path if is_zip and skip_objects else None):
            loaded = torch.load(
                path, map_location="cpu", weights_only=True, mmap=is_zip and only_header
            )
    except Exception as error:  # of a damaged file, torch and zipfile raise nearly anything
        if skip_objects:  # what cannot be skipped is named where nothing is
            return read_checkpoint(path, only_header=only_header)
        raise UnreadableError(_why_not_loaded(error)) from error
    if not isinstance(loaded, dict):
        raise UnreadableError(f"holds a {type(loaded).__name__} and no weights by name: correct it")
    return loaded


@contextlib.contextmanager
def open_file(path: str) -> Iterator[BinaryIO]:
    """Open a local file to read it.

    Raises:
        UnreadableError: it cannot be opened or read.
    """
    try:
        with open(path, "rb") as file:
            yield file
    except OSError as error:
        reason = error.strerror or str(error)
        raise UnreadableError(f"cannot be read ({reason}): correct the path") from error


def check_start(start: bytes) -> None:
    """Name what is often found in place of weights."""
    if not start:
        raise UnreadableError("is empty (0 bytes): copy or download it anew")
    if start.lstrip()[:1] == b"<":
        raise UnreadableError("is a page of the web and no weights: download the file itself")
    if start.startswith(b"version https://git-lfs"):
        raise UnreadableError("is a pointer of Git LFS and no weights: run git lfs pull")


def _check_sums(path: str) -> None:
    """Find bytes that changed: PyTorch does not look at the sums that it writes."""
    with zipfile.ZipFile(path) as archive:
        if any(entry.CRC for entry in archive.infolist()):  # writing them can be turned off
            damaged = archive.testzip()
            if damaged:
                raise UnreadableError(
                    f"is damaged (the check sum of {damaged} is another): take another checkpoint "
                    "or copy it anew"
                )


def _why_not_loaded(error: Exception) -> str:
    if isinstance(error, UnreadableError):
        return str(error)
    message = " ".join(str(error).split())
    if isinstance(error, MemoryError) or "allocate memory" in message:
        return TOO_LARGE
    foreign = re.search(r"GLOBAL ([\w.]*\w)", message)
    if foreign:
        return f"holds {foreign[1]} beside tensors, which may run code, and is not read: {NOT_CODE}"
    if "TorchScript" in message:
        return (
            "is a program of TorchScript and no weights by name: give the checkpoint that it was "
            "made from"
        )
    if isinstance(error, zipfile.BadZipFile) or "zip archive" in message:
        return "is cut off or damaged: take another checkpoint or copy it anew"
    return "is damaged, or holds no weights: take another checkpoint or copy it anew"


@contextlib.contextmanager
def _known_names(skipped_in: str | None) -> Iterator[None]:
    """What PyTorch finds beside its own: numbers of numpy, and what is skipped in a file."""
    if TORCH_VERSION < (2, 6):  # which knows no other names: such files are refused
        yield
        return
    with torch.serialization.safe_globals(numpy_globals()):
        unknown = (
            torch.serialization.get_unsafe_globals_in_checkpoint(skipped_in) if skipped_in else []
        )
        skipped: list[Any] = [(SkippedObject, name) for name in unknown]
        with torch.serialization.safe_globals(skipped):
            yield
