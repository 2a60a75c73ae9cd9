"""All boxes that a training learns, as its loader resizes them."""

from dataclasses import dataclass

import numpy as np
from detectron2.config import CfgNode

from ..errors import UserError
from .checks import check_datasets
from .resized_boxes import corners_after_resizing


@dataclass(frozen=True)
class TrainingBoxes:
    """The M boxes of ``DATASETS.TRAIN``, without crowds."""

    corners: np.ndarray  # (M, 4), (x1, y1, x2, y2) in pixels of the resized images
    image_sizes: np.ndarray  # (M, 2), width and height of each box's resized image
    classes: np.ndarray  # (M,), 0 to K - 1
    class_names: list[str]  # K


def training_boxes(cfg: CfgNode) -> TrainingBoxes:
    """Read and resize the boxes of ``DATASETS.TRAIN``; those of ``TEST`` are not read.

    Raises:
        UserError: from the data, see :func:`retinanet_plugin.data.checks.check_datasets`; there are
            no boxes.
    """
    cfg = cfg.clone()
    cfg.DATASETS.TEST = ()
    facts = list(check_datasets(cfg).values())
    found = [corners_after_resizing(cfg, each, is_train=True) for each in facts]
    classes = [each.classes[chosen] for each, (_, _, chosen) in zip(facts, found)]
    boxes = TrainingBoxes(
        np.concatenate([corners for corners, _, _ in found]),
        np.concatenate([sizes for _, sizes, _ in found]),
        np.concatenate(classes),
        facts[0].class_names,
    )
    if not len(boxes.corners):
        raise UserError(
            f"{', '.join(cfg.DATASETS.TRAIN)} has no boxes: name annotated data in DATASETS.TRAIN"
        )
    return boxes
