"""Ground truth of a batch: checked, in one piece, or padded to one of few shapes."""

from typing import Any

import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor

from ..eager import values_at_hand
from ..errors import UserError
from .targets import Targets

# Fewest boxes that ground truth is padded to.
MIN_PADDED_BOXES = 8


def read_ground_truth(batched_inputs: list[dict[str, Any]], num_classes: int) -> list[Instances]:
    """The ``instances`` of training inputs, checked while they are where the mapper made them.

    Raises:
        UserError: see :func:`check_gt_classes`; the image is named by its ``file_name``.
        ValueError: an image has no ``instances``.
    """
    names = [x.get("file_name") or _name(i) for i, x in enumerate(batched_inputs)]
    for name, x in zip(names, batched_inputs):
        if "instances" not in x:
            raise ValueError(
                f"the training input {name} has no 'instances': use a mapper with is_train=True"
            )
    gt_instances = [x["instances"] for x in batched_inputs]
    check_gt_classes(gt_instances, num_classes, names)
    return gt_instances


def check_gt_classes(
    gt_instances: list[Instances], num_classes: int, names: list[str] | None = None
) -> None:
    """Refuse classes that the model does not have; stock fails far from the cause of it.

    Args:
        gt_instances: N images with ``gt_classes``.
        num_classes: K.
        names: of the N images, for the message; None: "image 3 of the batch" and so on.

    Raises:
        UserError: a class is outside 0..K-1, in a tensor on the CPU. On CUDA the kernel that
            checks stops the program later on, with a message that has no class in it, so that
            nothing waits: check before the copy to the device where that is possible.
    """
    names = names or [_name(i) for i in range(len(gt_instances))]
    limits = f"MODEL.RETINANET.NUM_CLASSES is {num_classes} (classes 0 to {num_classes - 1})"
    remedy = "correct the annotation or set NUM_CLASSES to the number of classes of the data set"
    elsewhere: list[Tensor] = []
    for instances, name in zip(gt_instances, names):
        classes = instances.gt_classes
        if not values_at_hand(classes):
            elsewhere.append(classes)
            continue
        for value in classes.tolist():
            if not 0 <= value < num_classes:
                raise UserError(f"{name} has a box of class {value} but {limits}: {remedy}")
    if elsewhere:  # all at once: a few kernels, however many images
        classes = torch.cat(elsewhere)
        torch._assert_async(
            (classes == classes.clamp(0, num_classes - 1)).all(),
            # CUDA refuses messages of 255 bytes and more: the names of the images do not fit.
            f"a box is of an unknown class: {limits}: {remedy}",
        )


def _name(image: int) -> str:
    return f"image {image} of the batch"


def check_devices(anchors: list[Boxes], gt_instances: list[Instances]) -> None:
    """Refuse ground truth that is not where the anchors are."""
    device = anchors[0].device
    for image, instances in enumerate(gt_instances):
        for field in ("gt_boxes", "gt_classes"):
            if (found := instances.get(field).device) != device:
                raise UserError(
                    f"{field} of {_name(image)} is on {found} but the anchors are on "
                    f"{device}: give instances.to({str(device)!r})"
                )


def padded_truth(gt_instances: list[Instances]) -> tuple[Tensor, Tensor]:
    """Ground truth of a batch in one shape; few shapes are possible, so that few CUDA graphs are.

    Args:
        gt_instances: N images with ``gt_boxes`` and ``gt_classes``.

    Returns:
        boxes (N, M, 4), absolute pixels, zeros in the padding; and classes (N, M), int64, -1 in
        the padding. M is a power of two: the smallest that holds the boxes of every image, or 8.
        Boxes are float32, or float64 where those of an image are.
    """
    most = max(MIN_PADDED_BOXES, *(len(instances) for instances in gt_instances))
    shape = len(gt_instances), 1 << (most - 1).bit_length()
    precise = any(x.gt_boxes.tensor.dtype == torch.float64 for x in gt_instances)
    some_boxes = gt_instances[0].gt_boxes.tensor
    boxes = some_boxes.new_zeros(*shape, 4, dtype=torch.float64 if precise else torch.float32)
    classes = some_boxes.new_full(shape, -1, dtype=torch.int64)
    for instances, image_boxes, image_classes in zip(gt_instances, boxes, classes):
        image_boxes.narrow(0, 0, len(instances)).copy_(instances.gt_boxes.tensor)
        image_classes.narrow(0, 0, len(instances)).copy_(instances.gt_classes)
    return boxes, classes


class GroundTruth:
    """The M boxes of all N images in one piece, so that a batch is matched as one image is.

    Attributes: ``boxes`` (M, 4), float32, absolute pixels of each box's own image; ``classes``
    (M,) int64; ``image`` (M,) int64, which image a box is in; ``first_box`` (N,) int64, each
    image's first.
    """

    def __init__(self, gt_instances: list[Instances]) -> None:
        """``gt_instances``: N images with ``gt_boxes`` and ``gt_classes``."""
        self.boxes = torch.cat([instances.gt_boxes.tensor for instances in gt_instances]).float()
        self.classes = torch.cat([instances.gt_classes for instances in gt_instances]).long()
        counts = torch.tensor([len(x) for x in gt_instances], device=self.boxes.device)
        images = torch.arange(len(counts), device=self.boxes.device)
        self.image = images.repeat_interleave(counts, output_size=len(self.boxes))
        self.first_box = counts.cumsum(0) - counts

    def all_background(self, num_anchors: int, num_classes: int) -> Targets:
        """The targets of images without boxes: labels K, matched boxes all zeros."""
        shape = len(self.first_box), num_anchors
        return Targets(self.classes.new_full(shape, num_classes), self.boxes.new_zeros(*shape, 4))
