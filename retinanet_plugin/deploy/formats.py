"""Detections as files that other programs read: COCO's results, YOLO's labels, CSV."""

import contextlib
import csv
import io
import json
import os
from collections.abc import Iterable, Sequence
from typing import Any

from ..data.annotations.coco_format import read_coco
from ..data.findings import Findings
from ..errors import UserError
from ..whole_files import write_whole_file
from .supervision_detections import name_of

# Of :class:`retinanet_plugin.deploy.journal.Journal`, with names.
Record = dict[str, Any]


def file_names(paths: Iterable[str]) -> dict[str, str]:
    """How the files that are written for inputs are called: as the input, without its end.

    Where two would be the same, all have the folders below those that all inputs are in; where they
    still are, as of a.jpg and a.png, their ends too.
    """
    paths = list(dict.fromkeys(paths))
    root = os.path.commonpath([os.path.dirname(path) for path in paths]) if paths else ""
    inside = [os.path.relpath(path, root) for path in paths]
    stems = [os.path.splitext(path)[0] for path in inside]
    candidates = [os.path.basename(stem) for stem in stems], stems, inside
    names = next(names for names in candidates if len(set(names)) == len(names))
    return dict(zip(paths, names))


def name_records(records: Sequence[Record]) -> None:
    """Give each record the ``name`` of the files that are written for it."""
    names = file_names(record["path"] for record in records)
    for record in records:
        end = "" if record["frame"] is None else f"_{record['frame']:06d}"
        record["name"] = names[record["path"]] + end


class Ids:
    """Of images and classes in COCO's format, by an annotation file or counted from 1."""

    def __init__(self, truth: str, class_names: Sequence[str]) -> None:
        """
        Args:
            truth: an annotation file in COCO's format; "": none.
            class_names: of the model, K; empty: those of the file in their order.

        Raises:
            UserError: the file cannot be read, or lacks a class of the model.
        """
        self._truth = truth
        self._image_ids: dict[str, Any] = {}
        self._category_ids: dict[int, int] = {}
        if not truth:
            return
        findings = Findings()
        coco = read_coco(truth, "", f"the annotation file {truth}", findings)
        findings.raise_errors()
        assert coco is not None
        self._image_ids = {image["file_name"]: image["image_id"] for image in coco.images}
        number_of = {name: coco.class_names.index(name) for name in coco.class_names}
        id_of = {class_id: category_id for category_id, class_id in coco.class_of.items()}
        for class_id, name in enumerate(class_names or coco.class_names):
            if name not in number_of:
                raise UserError(
                    f"{truth} has no category {name!r}, which the model detects: give the "
                    "annotation file that goes with the weights"
                )
            self._category_ids[class_id] = id_of[number_of[name]]

    def check(self, paths: Iterable[str]) -> None:
        """
        Raises:
            UserError: an image is not one of the annotation file.
        """
        for path in paths:
            if self._truth and not self.has(path):
                raise UserError(
                    f"{path} is not one of the images in {self._truth}: leave it out, or give the "
                    "annotation file of these images"
                )

    def has(self, path: str) -> bool:
        """Whether the annotation file has this image."""
        return self._known(path) is not None

    def image_id(self, number: int, record: Record) -> Any:
        return self._known(record["path"]) if self._truth else number

    def category_id(self, class_id: int) -> int:
        """
        Raises:
            UserError: the annotation file has fewer classes than weights that do not name theirs.
        """
        if self._truth and class_id not in self._category_ids:
            raise UserError(
                f"{self._truth} has {len(self._category_ids)} categories and the model detects "
                "more: give the annotation file that goes with the weights"
            )
        return self._category_ids[class_id] if self._truth else class_id + 1

    def _known(self, path: str) -> Any:
        """By the longest end of the path that is an image's file name."""
        parts = path.split(os.sep)
        ends = (os.sep.join(parts[i:]) or path for i in range(len(parts)))
        return next((self._image_ids[end] for end in ends if end in self._image_ids), None)


def write_coco(
    folder: str, records: Sequence[Record], class_names: Sequence[str], ids: Ids
) -> None:
    """``predictions.json``, a list of COCO's results, and ``annotations.json``, the same as a data
    set that annotation tools read; its ``path`` of an image is what was detected in."""
    image_ids = [ids.image_id(number, record) for number, record in enumerate(records, 1)]
    results = [
        {
            "image_id": image_id,
            **detection,
            "category_id": ids.category_id(detection["category_id"]),
        }
        for image_id, record in zip(image_ids, records)
        for detection in record["detections"]
    ]
    folders = [os.path.dirname(record["path"]) for record in records]
    root = os.path.commonpath(folders) if folders else ""
    images = [
        {
            "id": image_id,
            "file_name": os.path.relpath(record["path"], root),
            "path": record["path"],
            "width": record["width"],
            "height": record["height"],
            **({} if record["frame"] is None else {"frame": record["frame"]}),
        }
        for image_id, record in zip(image_ids, records)
    ]
    annotations = [
        {
            "id": i,
            **result,
            "area": result["bbox"][2] * result["bbox"][3],
            "iscrowd": 0,
            "segmentation": [],
        }
        for i, result in enumerate(results, 1)
    ]
    classes = {detection["category_id"] for record in records for detection in record["detections"]}
    count = len(class_names) or max(classes, default=-1) + 1
    categories = [{"id": ids.category_id(i), "name": name_of(i, class_names)} for i in range(count)]
    path = os.path.join(folder, "annotations.json")
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)  # of a run before, whose ids may be others
    _write_json(os.path.join(folder, "predictions.json"), results)
    _write_json(path, {"images": images, "annotations": annotations, "categories": categories})


def write_yolo(folder: str, records: Sequence[Record], class_names: Sequence[str]) -> None:
    """``labels/NAME.txt``: class, centre, width and height as shares of the image's, score."""
    for record in records:
        width, height = record["width"], record["height"]
        lines = []
        for detection in record["detections"]:
            x, y, w, h = detection["bbox"]
            box = ((x + w / 2) / width, (y + h / 2) / height, w / width, h / height)
            numbers = " ".join(f"{value:.6f}" for value in (*box, detection["score"]))
            lines.append(f"{detection['category_id']} {numbers}\n")
        _write(os.path.join(folder, "labels", f"{record['name']}.txt"), "".join(lines))
    _write(os.path.join(folder, "classes.txt"), "".join(f"{name}\n" for name in class_names))


def write_csv(folder: str, records: Sequence[Record], class_names: Sequence[str]) -> None:
    """``predictions.csv``: a line a detection, with corners in pixels."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["path", "frame", "class", "score", "x1", "y1", "x2", "y2"])
    for record in records:
        for detection in record["detections"]:
            x, y, w, h = detection["bbox"]
            name = name_of(detection["category_id"], class_names)
            frame = "" if record["frame"] is None else record["frame"]
            numbers = [f"{detection['score']:.6f}"]
            numbers += [f"{value:.3f}" for value in (x, y, x + w, y + h)]
            writer.writerow([record["path"], frame, name, *numbers])
    _write(os.path.join(folder, "predictions.csv"), text.getvalue())


def _write_json(path: str, content: object) -> None:
    _write(path, json.dumps(content))


def _write(path: str, text: str) -> None:
    # Names of files may have bytes that are no text.
    write_whole_file(path, lambda file: file.write(text.encode(errors="surrogateescape")))
