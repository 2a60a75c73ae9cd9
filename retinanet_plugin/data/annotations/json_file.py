"""A JSON file of annotations, read without what a detector of boxes does not need."""

import json
import os
from typing import Any

from detectron2.utils.file_io import PathManager


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
        raise Unreadable("it is a folder", _name_a_file(path)) from error
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
        begins = "" if start[:1] in ("{", "[", "") else f", it begins with {start!r}"
        raise Unreadable(f"it is not JSON ({error}){begins}", "export it again") from error


def _name_a_file(folder: str) -> str:
    names = sorted(name for name in os.listdir(folder) if name.endswith(".json"))
    return f"name a file in it, such as {names[0]}" if names else "name a JSON file"


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
