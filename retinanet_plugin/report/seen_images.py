"""Images as a training sees them: augmented, with the anchors that learn their boxes."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from detectron2.data.detection_utils import convert_image_to_rgb
from torch import nn

from ..data.anchor_reach import has_grid_of_anchors


@dataclass
class SeenImage:
    """An input of a model; coordinates are pixels of ``picture``."""

    file_name: str
    picture: np.ndarray  # (H, W, 3) uint8, RGB
    boxes: np.ndarray  # (M, 4), (x1, y1, x2, y2)
    classes: np.ndarray  # (M,) int
    regions: np.ndarray  # (I, 4), to ignore
    anchors: np.ndarray | None  # (F, 4), foreground; None: not known
    has_anchor: np.ndarray  # (M,) bool: whether an anchor is foreground for the box
    at_first: bool = False  # whether anchors are of the first iterations, later others


def seen_images(
    batches: Iterable[list[dict[str, Any]]], model: nn.Module, image_format: str
) -> Iterator[SeenImage]:
    """What a model is given, image after image.

    Args:
        batches: of training inputs, as the trainer's loader makes them; an image is padded to its
            batch, and so are its anchors.
        model: with any weights. Which anchors are foreground is known of those with
            ``label_anchors``, where anchors are a grid and the matcher, or the one that stands in
            for it at first, needs no predictions.
        image_format: ``INPUT.FORMAT``.
    """
    label, at_first = _labelling(model)
    for batch in batches:
        labelled = _label_anchors(model, batch, label) if label else None
        for i, sample in enumerate(batch):
            truth = sample["instances"]
            boxes, classes = truth.gt_boxes.tensor, truth.gt_classes
            anchors, has_anchor = None, torch.ones(len(boxes), dtype=torch.bool)
            if labelled is not None:
                anchors, labels, matched = labelled[i]
                is_its = (labels[:, None] == classes) & (matched[:, None] == boxes).all(dim=2)
                has_anchor = is_its.any(dim=0)
            picture = convert_image_to_rgb(sample["image"].permute(1, 2, 0), image_format)
            regions = sample["ignore_boxes"].tensor if "ignore_boxes" in sample else boxes[:0]
            yield SeenImage(
                sample["file_name"],
                np.ascontiguousarray(picture).round().clip(0, 255).astype(np.uint8),
                boxes.numpy(),
                classes.numpy(),
                regions.numpy(),
                None if anchors is None else anchors.numpy(),
                has_anchor.numpy(),
                at_first,
            )


def _labelling(model: nn.Module) -> tuple[Callable[..., Any] | None, bool]:
    """What gives labels and matched boxes of anchors without predictions, if anything does, and
    whether it does so in the first iterations alone."""
    if not has_grid_of_anchors(model) or not hasattr(model, "label_anchors"):
        return None, False
    labels, matcher = cast(Callable[..., Any], model.label_anchors), getattr(model, "matcher", None)
    if not getattr(matcher, "needs_predictions", False):
        return labels, False
    is_replaced = getattr(matcher, "first_iterations", 0) > 0
    return getattr(matcher, "first_matcher", None) if is_replaced else None, True


@torch.no_grad()
def _label_anchors(
    model: Any, batch: list[dict[str, Any]], label: Callable[..., Any]
) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Of each image the foreground anchors (F, 4), their labels (F,) and matched boxes (F, 4).

    Anchors depend on the sizes of the features alone, so that no backbone has to run.
    """
    height, width = model.preprocess_image(batch).tensor.shape[-2:]
    nothing = torch.empty(1, 1, 1, 1)
    features = [
        nothing.expand(1, 1, -(-height // stride), -(-width // stride))
        for stride in model.anchor_generator.strides
    ]
    anchors = model.anchor_generator(features)
    all_labels, all_matched = label(anchors, [x["instances"] for x in batch])[:2]
    every = torch.cat([boxes.tensor for boxes in anchors])
    return [
        (every[is_foreground], labels[is_foreground], matched[is_foreground])
        for labels, matched in zip(all_labels, all_matched)
        for is_foreground in [(labels >= 0) & (labels < model.num_classes)]
    ]
