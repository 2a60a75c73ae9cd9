"""What a run of ``predict`` has found so far, so that another one goes on from there."""

import contextlib
import errno
import fcntl
import json
import os
import re
from collections.abc import Collection, Sequence
from typing import Any, BinaryIO

from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.structures import Instances

from ..errors import UserError
from ..whole_files import write_whole_file

JOURNAL = "detections.jsonl"
_PART = re.compile(r"detections-(\d+)\.jsonl")


class Journal:
    """A line of JSON for each image that is done; the first line says with what it was done.

    A record has ``path``, ``frame`` (of a video, else None), ``width``, ``height``, ``stamp`` (see
    :func:`stamp_of`) and ``detections``: ``category_id`` (the class, from 0), ``bbox`` (x, y,
    width, height in pixels) and ``score``, best first. Used as a context, which closes the file.
    """

    def __init__(
        self, folder: str, made_with: dict[str, Any], paths: Sequence[str], part: int = 0
    ) -> None:
        """
        Args:
            folder: is made if it is not there.
            made_with: what the detections depend on: weights and the options that are given.
            paths: the images and videos that are asked for.
            part: the number of a process, if several share the work; the others' journals are parts
                of that of process 0.

        Raises:
            UserError: the folder has detections that were made with something else, of other files
                or of files that have changed since; another process writes there; or it cannot be
                written.
        """
        self.path = os.path.join(folder, f"detections-{part}.jsonl" if part else JOURNAL)
        self._made_with, self._paths = made_with, paths
        head = json.dumps(made_with)
        if not os.path.exists(self.path):
            write_whole_file(self.path, lambda file: file.write(head.encode() + b"\n"))
        self._file = _opened(self.path)
        lines = self._file.read().split(b"\n")[:-1]  # what follows the last is cut off
        try:
            before, *self.records = map(json.loads, lines)
            refused = _differing(before, made_with) or _differing_files(self.records, paths)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise UserError(
                f"{self.path} is damaged, or of another program: give another --output"
            ) from error
        if refused:
            raise UserError(
                f"{folder} has detections {refused}: give another --output, or delete that folder"
            )
        self._file.seek(sum(map(len, lines)) + len(lines))
        self._file.truncate()
        if part == 0:
            self.take_in_parts()

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *error: object) -> None:
        with contextlib.suppress(OSError):  # of the rest of a record for which there was no room
            self._file.close()

    def done(self) -> set[tuple[str, int | None]]:
        """Path and frame of each image that is done."""
        return {(record["path"], record["frame"]) for record in self.records}

    def add(self, path: str, frame: int | None, found: Instances) -> None:
        """Note what was found in an image.

        Raises:
            UserError: there is no room.
        """
        height, width = found.image_size
        detections = instances_to_coco_json(found, 0)
        for detection in detections:
            del detection["image_id"]
        record = {
            "path": path,
            "frame": frame,
            "width": width,
            "height": height,
            "stamp": stamp_of(path),
            "detections": detections,
        }
        try:
            self._file.write(json.dumps(record).encode() + b"\n")
            self._file.flush()
        except OSError as error:
            raise UserError(
                f"{self.path} could not be written ({error.strerror or error}): make room, and the "
                "same command goes on"
            ) from error
        self.records.append(record)

    def take_in_parts(self) -> None:
        """Move what other processes have noted into this journal, in the order of one process."""
        folder = os.path.dirname(self.path)
        parts = [name for name in os.listdir(folder) if _PART.fullmatch(name)]
        if not parts:
            return
        place = {path: i for i, path in enumerate(self._paths)}
        records = {(record["path"], record["frame"]): record for record in self.records}
        for part in parts:
            number = int(_PART.fullmatch(part).group(1))  # type: ignore[union-attr]
            with Journal(folder, self._made_with, self._paths, number) as journal:
                records |= {(record["path"], record["frame"]): record for record in journal.records}
        self.records = sorted(
            records.values(), key=lambda record: (place[record["path"]], record["frame"] or 0)
        )
        lines = [json.dumps(x) + "\n" for x in (self._made_with, *self.records)]
        self._file.close()
        write_whole_file(self.path, lambda file: file.write("".join(lines).encode()))
        self._file = _opened(self.path)
        self._file.seek(0, os.SEEK_END)
        for part in parts:
            os.unlink(os.path.join(folder, part))


def stamp_of(path: str) -> list[int]:
    """Size and time, which change with a file; nothing of an address."""
    try:
        stat = os.stat(path)
    except OSError:
        return []
    return [stat.st_size, stat.st_mtime_ns]


def _opened(path: str) -> BinaryIO:
    """A journal, which is this process's alone until it is closed."""
    file = open(path, "r+b")  # noqa: SIM115
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):  # else files cannot be locked there
            raise UserError(
                f"another predict writes to {os.path.dirname(path)}: wait until it ends, or give "
                "another --output"
            ) from error
    return file


def _differing(before: dict[str, Any], made_with: dict[str, Any]) -> str:
    """What was another thing before; a key without a value is as good as none."""
    differences = []
    for key in {**before, **made_with}:
        old, new = before.get(key), made_with.get(key)
        if isinstance(old or new, list) and old != new:  # a stamp, which tells people nothing
            differences.append(f"another {key}")
        elif old != new:
            differences.append(f"{key} {_shown(old)}, now {_shown(new)}")
    return f"made with {', and '.join(differences)}" if differences else ""


def _shown(value: object) -> str:
    return "none" if value is None else str(value)


def _differing_files(records: Sequence[dict[str, Any]], paths: Collection[str]) -> str:
    wanted = set(paths)
    for record in records:
        if record["path"] not in wanted:
            return f"of {record['path']} too, which is not among the inputs now"
    stamps = {record["path"]: record["stamp"] for record in records}
    for path, stamp in stamps.items():
        if stamp != stamp_of(path):
            return f"of {path} as it was before it changed"
    return ""
