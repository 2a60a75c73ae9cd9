"""Headers of images that were read before, kept on disk; good for files that did not change."""

import contextlib
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Sequence

import PIL

from .image_headers import ImageHeader

# Raised whenever an entry changes its meaning. Pillow decides what is an image at all.
_VERSION = f"1 {PIL.__version__}".encode()
# A file that changed so shortly before it was read may change again without another time.
_SETTLED_NS = 2 * 10**9

Stamp = tuple[int, int, int]
# Of each path: the stamp of the file when its header was read, and the header.
Headers = dict[str, tuple[Stamp, ImageHeader]]


def stamp(path: str) -> Stamp | None:
    """What differs once a file's content has: size, time of change, time of its entry's change.

    None: the file cannot be looked up.
    """
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def is_settled(file_stamp: Stamp) -> bool:
    """Whether a file that changes from now on gets another stamp."""
    return time.time_ns() - file_stamp[1] > _SETTLED_NS


def cache_path(name: str, files: Sequence[str]) -> str | None:
    """The file that keeps the headers of a data set's images; None: this user has no such folder.

    Args:
        name: of the data set.
        files: its images, one or more.
    """
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    if not os.path.isabs(base):
        return None
    folder = os.path.abspath(os.path.dirname(files[0]))
    key = hashlib.sha256(f"{name}\0{folder}".encode(errors="surrogateescape")).hexdigest()[:32]
    return os.path.join(base, "retinanet_plugin", f"headers-{key}.json")


def load_headers(path: str | None) -> Headers:
    """What :func:`save_headers` wrote; nothing if that is not there, damaged or outdated."""
    if path is None:
        return {}
    try:
        with open(path, "rb") as f:
            checksum, rows = f.readline().strip(), f.read()
    except OSError:
        return {}
    if checksum != _checksum(rows):
        return {}
    return {
        file: ((size, mtime, ctime), ImageHeader(*header))
        for file, size, mtime, ctime, *header in json.loads(rows)
    }


def save_headers(path: str | None, headers: Headers) -> None:
    """Write all of ``headers`` or, where nothing can be written, nothing."""
    if path is None:
        return
    rows = json.dumps(
        [[file, *file_stamp, *header] for file, (file_stamp, header) in headers.items()]
    )
    content = rows.encode()
    folder = os.path.dirname(path)
    with contextlib.suppress(OSError):
        os.makedirs(folder, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=folder, suffix=".tmp")
        try:
            with open(descriptor, "wb") as f:
                f.write(_checksum(content) + b"\n" + content)
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise


def _checksum(rows: bytes) -> bytes:
    return hashlib.sha256(_VERSION + rows).hexdigest().encode()
