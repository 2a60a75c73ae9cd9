"""What tells whether a training that goes on sees the data that it saw before."""

import hashlib
import itertools
import os
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from detectron2.data import MetadataCatalog


def fingerprint(names: Sequence[str], records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Plain values that describe the data; a second or two for COCO.

    Args:
        names: of the data sets.
        records: theirs, in Detectron2's format, in the order in which they are indexed.

    Returns:
        dict: ``data_sets`` and ``classes`` (lists of names), ``num_images``, and hashes: ``files``
        of the file names without their folders, in order, and ``annotations`` of boxes and classes.
    """
    annotations = [record.get("annotations", ()) for record in records]
    every = list(itertools.chain.from_iterable(annotations))
    return {
        "data_sets": list(names),
        "classes": [str(name) for name in MetadataCatalog.get(names[0]).get("thing_classes", ())],
        "num_images": len(records),
        "files": _hash("\n".join(os.path.basename(r["file_name"]) for r in records).encode()),
        "annotations": _hash(
            _numbers(len(x) for x in annotations),
            _numbers(itertools.chain.from_iterable(a.get("bbox", ()) for a in every)),
            _numbers(a.get("category_id", -1) for a in every),
            _numbers(a.get("iscrowd", 0) for a in every),
        ),
    }


def _numbers(values: Iterable[float]) -> bytes:
    return np.fromiter(values, np.float64).tobytes()


def _hash(*parts: bytes) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(part)
    return digest.hexdigest()
