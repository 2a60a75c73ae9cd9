"""From a record of a data set to what the model takes: image, boxes, regions to ignore."""

import copy
import logging
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import DatasetMapper
from detectron2.data import transforms as T
from detectron2.data.detection_utils import transform_instance_annotations
from detectron2.structures import Boxes, BoxMode

from ...errors import UserError
from ..images.read_image import read_image
from .box_crop import BoxCrop
from .left_out import left_out_images
from .scale_jitter import with_scale_jitter

logger = logging.getLogger(f"detectron2.{__name__}")


class RetinaNetMapper(DatasetMapper):
    """Detectron2's mapper, with the pictures of
    :func:`retinanet_plugin.data.images.read_image.read_image`, boxes that are not rounded and, in
    training, the regions that are to be ignored.

    Called with a record of Detectron2's data sets, it returns what ``DatasetMapper`` does and,
    where an image has annotations with ``iscrowd`` 1, ``ignore_boxes``: their ``Boxes`` (I, 4), in
    the pixels of ``image`` and inside it. For the losses on data that is not augmented::

        RetinaNetMapper(cfg, True, augmentations=build_augmentation(cfg, is_train=False))
    """

    @configurable
    def __init__(
        self,
        is_train: bool,
        *,
        skip_bad_images: bool = False,
        enough_pixels: int = 0,
        **kwargs: Any,
    ) -> None:
        """
        Args:
            is_train: whether annotations are wanted.
            skip_bad_images: an image that cannot be read is None, counted and named in the log
                once; otherwise it is a ``UserError``.
            enough_pixels: of the longer edge, see
                :func:`retinanet_plugin.data.images.read_image.read_image`.
            kwargs: of ``DatasetMapper``.
        """
        super().__init__(is_train, **kwargs)
        self.skip_bad_images = skip_bad_images
        self.enough_pixels = enough_pixels
        if skip_bad_images:
            left_out_images()  # which loader processes are to have in common

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        arguments = super().from_config(cfg, is_train)
        if is_train and cfg.INPUT.SCALE_JITTER:
            arguments["augmentations"] = with_scale_jitter(arguments["augmentations"], cfg)
        if is_train and cfg.INPUT.BOX_CROP > 0:
            arguments["augmentations"].append(BoxCrop(cfg.INPUT.BOX_CROP))
        return {
            **arguments,
            "skip_bad_images": cfg.DATASETS.SKIP_BAD_IMAGES,
            "enough_pixels": _enough_pixels(cfg) if is_train and cfg.INPUT.JPEG_DRAFT else 0,
        }

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any] | None:
        """
        Raises:
            UserError: see :func:`retinanet_plugin.data.images.read_image.read_image`.
        """
        record = copy.deepcopy(dataset_dict)  # it is changed below
        try:
            image = read_image(record, self.image_format, self.enough_pixels)
        except UserError as error:
            if not self.skip_bad_images:
                remedy = "or set DATASETS.SKIP_BAD_IMAGES True to leave such images out"
                raise UserError(f"{error}, {remedy}") from error
            self._skip(record["file_name"], error)
            return None
        _scale_boxes(record, image.shape)
        aug_input = T.AugInput(image, boxes=_boxes(record))
        transforms = self.augmentations(aug_input)
        image = aug_input.image
        record["image"] = torch.as_tensor(np.ascontiguousarray(image.transpose(2, 0, 1)))
        if not self.is_train:
            record.pop("annotations", None)
        elif "annotations" in record:
            self._transform_annotations(record, transforms, image.shape[:2])
        return record

    def _transform_annotations(
        self, record: dict[str, Any], transforms: T.TransformList, image_shape: tuple[int, int]
    ) -> None:
        for annotation in record["annotations"]:
            # Detectron2 rounds boxes of integers down to integers again once they are resized.
            annotation["bbox"] = [float(x) for x in annotation["bbox"]]
        boxes = [
            transform_instance_annotations(
                {key: a[key] for key in ("bbox", "bbox_mode")}, transforms, image_shape
            )["bbox"]
            for a in record["annotations"]
            if a.get("iscrowd", 0) != 0  # which Detectron2 drops
        ]
        if boxes:
            regions = Boxes(torch.as_tensor(np.stack(boxes), dtype=torch.float32))
            record["ignore_boxes"] = regions[regions.nonempty()]
        super()._transform_annotations(record, transforms, image_shape)

    def _skip(self, file_name: str, error: UserError) -> None:
        number = left_out_images().number_of(file_name)
        if number is not None:
            logger.warning(f"left out, number {number}: {error}")


def _enough_pixels(cfg: CfgNode) -> int:
    """Of the longer edge, so that neither training nor evaluation makes images larger."""
    size = cfg.INPUT
    largest = max(size.MAX_SIZE_TRAIN, size.MAX_SIZE_TEST)
    if size.SCALE_JITTER:
        largest = max(largest, math.ceil(size.SCALE_JITTER[1] * max(size.MIN_SIZE_TRAIN)))
    return int(largest)


def _scale_boxes(record: dict[str, Any], shape: Sequence[int]) -> None:
    """Of an image that was decoded smaller than its annotations are for."""
    height, width = shape[:2]
    if (record["width"], record["height"]) == (width, height):
        return
    scale = np.tile([width / record["width"], height / record["height"]], 2)
    for annotation in record.get("annotations", ()):
        annotation["bbox"] = (np.asarray(annotation["bbox"], np.float64) * scale).tolist()


def _boxes(record: dict[str, Any]) -> np.ndarray:
    """Of its annotations without crowds, for augmentations that ask for them; (M, 4)."""
    boxes = [
        BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS)
        for a in record.get("annotations", ())
        if not a.get("iscrowd", 0)
    ]
    return np.array(boxes, np.float64).reshape(-1, 4)
