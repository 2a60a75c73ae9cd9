"""A JSON file of annotations, read without what a detector of boxes does not need."""

import glob
import json
import os
import shlex
from typing import Any

from detectron2.utils.file_io import PathManager

# Files of Pascal VOC, YOLO and tables, of which a folder is known as annotations.
_ONE_PER_IMAGE = (".xml", ".txt")
_OTHER_FORMATS = (".xml", ".yaml", ".csv", ".txt")


class Unreadable(Exception):
    """A file that cannot be read: what is wrong, and the remedy."""


class DuplicateKey(ValueError):
    """An object that has a key twice, so that nobody knows which value is meant."""


def read_json(path: str) -> Any:
    """The content of a JSON file; in every object, ``segmentation`` is only whether stock keeps it.

    A list of polygons, or a run-length encoding, becomes ``True`` if Detectron2's
    ``load_coco_json`` keeps the annotation that has it, and ``False`` if not.

    Raises:
        Unreadable: (what, remedy).
    """
    try:
        with PathManager.open(path, "rb") as f:
            content = f.read()
    except IsADirectoryError as error:
        raise Unreadable(*_about_folder(path)) from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise Unreadable(
            f"it cannot be read ({reason})",
            "correct its path, or set DETECTRON2_DATASETS for Detectron2's own data sets",
        ) from error
    try:
        return json.loads(content, object_pairs_hook=_object)
    except DuplicateKey as error:
        raise Unreadable(f"it has {error}", "write every key once") from error
    except (ValueError, RecursionError) as error:
        start = content[:30].strip().decode(errors="replace")
        if start[:1] in ("{", "[", ""):
            raise Unreadable(f"it is not JSON ({error})", "export it again") from error
        # Of these, the folder is a data set, and each file is of one image.
        dataset = os.path.dirname(path) if path.lower().endswith(_ONE_PER_IMAGE) else path
        what = f"it is not JSON ({error}), it begins with {start!r}"
        raise Unreadable(what, f"export it in COCO's format, or {convert_it(dataset)}") from error


def convert_it(path: str) -> str:
    """What to do with annotations of another format."""
    command = f"python -m retinanet_plugin convert {shlex.quote(path or '.')} annotations.json"
    return f"convert it by {command}, and name that file"


def _about_folder(folder: str) -> tuple[str, str]:
    """What is wrong with naming a folder, and the remedy."""
    names = sorted(name for name in os.listdir(folder) if name.endswith(".json"))
    if names:
        return "it is a folder", f"name a file in it, such as {names[0]}"
    for suffix in _OTHER_FORMATS:
        for below in ("", "*", "*/*"):
            found = glob.glob(os.path.join(glob.escape(folder), below, f"*{suffix}"))
            if found:
                example = os.path.relpath(min(found), folder)
                return f"it is a folder with {example}, not of COCO's format", convert_it(folder)
    return "it is a folder", "name a JSON file"


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entry = dict(pairs)
    if len(entry) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise DuplicateKey(f"{twice!r} twice in one entry, which has id {entry.get('id')!r}")
    if "segmentation" in entry:  # most of such a file, and of the memory that it would fill
        entry["segmentation"] = _stock_keeps(entry["segmentation"])
    return entry


def _stock_keeps(segmentation: Any) -> bool:
    """Whether Detectron2's ``load_coco_json`` keeps an annotation with this segmentation."""
    if not segmentation:
        return True
    if isinstance(segmentation, dict):
        counts = segmentation.get("counts")
        return isinstance(counts, str) or (isinstance(counts, list) and "size" in segmentation)
    return isinstance(segmentation, list) and any(
        isinstance(polygon, list) and len(polygon) % 2 == 0 and len(polygon) >= 6
        for polygon in segmentation
    )
