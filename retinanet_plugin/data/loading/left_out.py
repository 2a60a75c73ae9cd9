"""Images that are left out of a training: each is counted once, whichever process meets it."""

import fcntl
import functools
import hashlib
import os

_SIZE = 8  # bytes of a name's hash


class LeftOutImages:
    """The names of images that this process or one that it has forked has met.

    Loaders begin anew with each evaluation, in processes that can report nothing: what they know
    together is in a file of the memory, which they inherit open.
    """

    def __init__(self) -> None:
        self._file = os.memfd_create("left_out_images")

    def number_of(self, file_name: str) -> int | None:
        """The how many-th image this is, from 1; None: it was counted before."""
        name = hashlib.blake2b(os.fsencode(file_name), digest_size=_SIZE).digest()
        fcntl.lockf(self._file, fcntl.LOCK_EX)
        try:
            size = os.fstat(self._file).st_size
            known = os.pread(self._file, size, 0)
            if name in (known[i : i + _SIZE] for i in range(0, size, _SIZE)):
                return None
            os.pwrite(self._file, name, size)
            return size // _SIZE + 1
        finally:
            fcntl.lockf(self._file, fcntl.LOCK_UN)


@functools.cache
def left_out_images() -> LeftOutImages:
    """Those of this process; to be asked for before others are forked."""
    return LeftOutImages()
