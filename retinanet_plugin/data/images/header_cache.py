"""Headers of images that were read before, kept on disk; good for files that did not change."""

import contextlib
import hashlib
import json
import os
import re
import time
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import PIL

from ...errors import UserError
from ...whole_files import write_whole_file
from .image_headers import BadImage, ImageHeader, read_header
from .many_files import each_of

# Raised whenever an entry changes its meaning. Pillow decides what is an image at all.
_VERSION = f"2 {PIL.__version__}".encode()
# A file that changed so shortly before it was read may change again without another time.
_SETTLED_NS = 2 * 10**9
# Headers of fewer images are read sooner than found in a cache.
_MIN_FILES = 50
_REMOTE = re.compile(r"[a-zA-Z][\w+.-]*://")

Stamp = tuple[int, int, int]


def read_headers(files: Sequence[str]) -> list[ImageHeader | BadImage | None]:
    """The headers of image files, in their order; of files that did not change, from a cache.

    Args:
        files: paths; those with a scheme (``s3://...``) are not looked at: None.
    """
    headers: dict[str, ImageHeader | BadImage] = {}
    local = list(dict.fromkeys(file for file in files if not _REMOTE.match(file)))
    # Stamps come first: a file that changes after this does not have the stamp that is kept.
    stamps = dict(zip(local, each_of(stamp, local, "looking up images")))
    caches = [HeaderCache(folder) for folder in large_folders(local)]
    for cache in caches:
        headers.update(cache.headers_of(stamps))
    new = [file for file in local if file not in headers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Pillow, about sizes, and EXIF that it cannot read
        headers.update(zip(new, each_of(read_header, new, "reading headers of images")))
    for cache in caches:
        cache.add(stamps, {file: headers[file] for file in new})
    return [headers.get(file) for file in files]


def stamp(path: str) -> Stamp | None:
    """What differs once a file's content has: size, time of change, time of its entry's change.

    None: the file cannot be looked up.
    """
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def large_folders(files: Iterable[str]) -> list[str]:
    """The folders that hold enough of the files for a cache."""
    counts = Counter(map(os.path.dirname, files))
    return [folder for folder, count in counts.items() if count >= _MIN_FILES]


class HeaderCache:
    """The cache of the images of one folder, a file in the user's own folder of caches.

    Each entry has the stamp of its file: where the file's is another one, the entry is not used.
    """

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._path = _cache_path(folder)
        self._entries = self._load()

    def headers_of(self, stamps: Mapping[str, Stamp | None]) -> dict[str, ImageHeader]:
        """The headers of those files that are known and have not changed.

        Args:
            stamps: of each file, now.
        """
        return {
            file: header
            for file, (known, header) in self._entries.items()
            if stamps.get(file) == known
        }

    def add(
        self, stamps: Mapping[str, Stamp | None], headers: Mapping[str, ImageHeader | BadImage]
    ) -> None:
        """Keep headers of files of this folder, where the cache can be written.

        Args:
            stamps: of each file, looked up before it was read.
            headers: those of files elsewhere are not kept, nor those of bad images: permissions
                are mended without another stamp.
        """
        new = {
            file: (file_stamp, header)
            for file, header in headers.items()
            if isinstance(header, ImageHeader)
            and (file_stamp := stamps[file]) is not None
            and time.time_ns() - file_stamp[1] > _SETTLED_NS
            and os.path.dirname(file) == self._folder
        }
        if new:
            self._entries.update(new)
            self._save()

    def _load(self) -> dict[str, tuple[Stamp, ImageHeader]]:
        """What :meth:`_save` wrote; nothing if that is not there, damaged or outdated."""
        if self._path is None:
            return {}
        try:
            with open(self._path, "rb") as f:
                checksum, rows = f.readline().strip(), f.read()
        except OSError:
            return {}
        if checksum != _checksum(rows):
            return {}
        return {
            os.path.join(self._folder, name): ((size, mtime, ctime), ImageHeader(*header))
            for name, size, mtime, ctime, *header in json.loads(rows)
        }

    def _save(self) -> None:
        if self._path is None:
            return
        rows = [
            [os.path.basename(file), *file_stamp, *header]
            for file, (file_stamp, header) in self._entries.items()
        ]
        content = json.dumps(rows).encode()
        content = _checksum(content) + b"\n" + content
        with contextlib.suppress(OSError, UserError):
            write_whole_file(self._path, lambda file: file.write(content))


def _cache_path(folder: str) -> str | None:
    """Where the headers of a folder's images are kept; None: this user has no place for caches."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    if not os.path.isabs(base):
        return None
    key = hashlib.sha256(os.path.abspath(folder).encode(errors="surrogateescape")).hexdigest()
    return os.path.join(base, "retinanet_plugin", "image-headers", key[:32])


def _checksum(rows: bytes) -> bytes:
    return hashlib.sha256(_VERSION + rows).hexdigest().encode()
