"""Data sets in COCO's format that a config lists, registered in Detectron2's catalogs."""

import os
from collections.abc import Iterable, Mapping
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.file_io import PathManager

from ...errors import UserError
from ..findings import Findings
from .coco_format import CocoFile, read_coco


def register_coco_json(
    entries: Iterable[Any] | None, called: Mapping[str, str] | None = None
) -> None:
    """Register data sets in Detectron2's catalogs, as ``DATASETS.COCO_JSON`` lists them.

    Args:
        entries: (name, annotation file, image folder), three strings each. An entry that is
            registered already with the same files is skipped.
        called: by its name, what findings call a data set whose annotation file was written from
            other files: these, which are what a user can mend. Its ids, which are not theirs, are
            not told.

    Raises:
        UserError: an entry is not such a triple, or its name stands for other data already.
    """
    for entry in entries or ():
        is_triple = isinstance(entry, (list, tuple)) and len(entry) == 3
        if not is_triple or not all(isinstance(field, str) for field in entry):
            raise UserError(
                f"DATASETS.COCO_JSON has the entry {entry!r}: write (name, annotation file, image "
                "folder), three strings"
            )
        name, json_file, image_root = entry
        if name not in DatasetCatalog.list():
            loader = CocoJson(name, json_file, image_root, (called or {}).get(name, ""))
            DatasetCatalog.register(name, loader)
            continue
        metadata = MetadataCatalog.get(name)
        known = (metadata.get("json_file"), metadata.get("image_root"))
        if known != (json_file, image_root):
            raise UserError(
                f"DATASETS.COCO_JSON names a data set {name!r}, which is registered already with "
                f"other files {known}: choose another name"
            )


def describe_source(name: str, json_file: str) -> str:
    """What findings call an annotation file."""
    return f"the annotation file {json_file} of {name}"


class CocoJson:
    """What Detectron2's catalog calls for the dataset dicts of an annotation file.

    What has been read for a check is kept for the first call, which then need not read it again.
    """

    def __init__(self, name: str, json_file: str, image_root: str, called: str = "") -> None:
        self.name, self.json_file, self.image_root = name, json_file, image_root
        self.called = called
        self._kept: tuple[Any, CocoFile, Findings] | None = None
        MetadataCatalog.get(name).set(
            json_file=json_file, image_root=image_root, evaluator_type="coco"
        )

    def __call__(self) -> list[dict[str, Any]]:
        """
        Raises:
            UserError: the file cannot be read, or an entry of it not as meant.
        """
        findings = Findings()
        coco = self.read(findings)
        findings.raise_errors()
        assert coco is not None
        self._kept = None  # its reader may change it
        return coco.images

    def read(self, findings: Findings) -> CocoFile | None:
        """The content of the file, not to be changed; None if it cannot be read.

        Args:
            findings: gets what is wrong with it.
        """
        stamp = self._stamp()
        if self._kept is None or self._kept[0] != stamp:
            self._kept = None
            found = Findings()
            coco = read_coco(self.json_file, self.image_root, self.source, found)
            if coco is None:
                findings.extend(found)
                return None
            self._kept = (stamp, coco, found)
            self._set_metadata(coco)
        findings.extend(self._kept[2])
        return self._kept[1]

    @property
    def source(self) -> str:
        """What findings call the annotation file."""
        return self.called or describe_source(self.name, self.json_file)

    def _stamp(self) -> tuple[int, ...] | None:
        """What changes with the file."""
        try:
            stat = os.stat(PathManager.get_local_path(self.json_file))
        except (OSError, ValueError):
            return None
        return stat.st_mtime_ns, stat.st_size, stat.st_ino

    def _set_metadata(self, coco: CocoFile) -> None:
        """What Detectron2's ``load_coco_json`` sets."""
        values = {
            "json_file": self.json_file,
            "image_root": self.image_root,
            "evaluator_type": "coco",
            "thing_classes": coco.class_names,
            "thing_dataset_id_to_contiguous_id": coco.class_of,
        }
        metadata = MetadataCatalog.get(self.name)
        if any(metadata.get(key, value) != value for key, value in values.items()):
            MetadataCatalog.remove(self.name)  # the file has changed; Detectron2 takes no new value
        MetadataCatalog.get(self.name).set(**values)
