"""COCO's AP of detections in some files, by Detectron2's evaluator."""

import contextlib
import io
import logging
import tempfile
from collections.abc import Sequence

from detectron2.data import MetadataCatalog
from detectron2.structures import Instances

from ..data.annotations.coco_json import register_coco_json
from ..data.annotations.truth import coco_evaluator
from ..errors import UserError
from .formats import Ids

_MOST_DETECTIONS = 100  # of an image, as COCO counts


def average_precision(
    truth: str, files: Sequence[str], found: Sequence[Instances], class_names: Sequence[str]
) -> float:
    """AP in percent.

    Args:
        truth: an annotation file in COCO's format; of its images, ``files`` alone count.
        files: paths that end in file names of ``truth``.
        found: of each file, detections in its pixels.
        class_names: of ``pred_classes``.

    Raises:
        UserError: the file cannot be read, or has other images or classes.
    """
    ids = Ids(truth, class_names)
    ids.check(files)
    image_ids = [ids.image_id(0, {"path": file}) for file in files]
    name = f"the annotation file {truth}"
    register_coco_json([(name, truth, "")])
    logger = logging.getLogger("detectron2.evaluation")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        with tempfile.TemporaryDirectory() as folder:
            evaluator = coco_evaluator(name, folder, _MOST_DETECTIONS)
            if MetadataCatalog.get(name).thing_classes != list(class_names):
                raise UserError(
                    f"{truth} has the classes {MetadataCatalog.get(name).thing_classes} and the "
                    f"model {list(class_names)}: give the annotation file of its data"
                )
            evaluator.reset()
            for image_id, instances in zip(image_ids, found):
                evaluator.process([{"image_id": image_id}], [{"instances": instances}])
            with contextlib.redirect_stdout(io.StringIO()):  # a table, by pycocotools
                return float(evaluator.evaluate(img_ids=image_ids)["bbox"]["AP"])
    finally:
        logger.setLevel(level)
