"""Every place where Detectron2 0.5, 0.6 and main differ for this package."""

import inspect

import torch
from detectron2 import layers
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import ImageList
from detectron2.utils import events
from torch import nn

# move_device_like came soon after 0.6.
_SORTS_SCORES = not hasattr(layers, "move_device_like")
# Iterations between two writings of the log by Detectron2's DefaultTrainer.
_LOG_PERIOD = 20


def batch_images(images, backbone):
    """Pad and stack images (3, H, W) to the sizes that ``backbone`` accepts.

    ``Backbone.padding_constraints`` (square inputs of ViT backbones) exists since 2022.
    """
    constraints = getattr(backbone, "padding_constraints", None)
    if not constraints:
        return ImageList.from_tensors(images, backbone.size_divisibility)
    return ImageList.from_tensors(
        images, backbone.size_divisibility, padding_constraints=constraints
    )


def norm_per_level(norm, channels, num_levels):
    """A normalisation layer for a head that is shared over ``num_levels`` feature levels.

    Batch statistics differ between levels, so batch norm keeps them per level, as stock does
    since 0.6 with ``CycleBatchNormList``; 0.5 shares them, and this package then does too.
    """
    if norm in ("BN", "SyncBN") and hasattr(layers, "CycleBatchNormList"):
        bn_class = nn.SyncBatchNorm if norm == "SyncBN" else nn.BatchNorm2d
        return layers.CycleBatchNormList(num_levels, bn_class=bn_class, num_features=channels)
    return layers.get_norm(norm, channels)


def best_scores(scores, most):
    """The ``most`` highest of scores (C,) and their indices, highest first.

    Equal scores come in stock's own order, on which NMS depends: 0.5 and 0.6 sort, main takes the
    top k.
    """
    if not _SORTS_SCORES:
        return scores.topk(min(most, len(scores)))
    if len(scores) > most:
        # Unequal scores have one order, which takes less than a sort of very many candidates.
        values, order = scores.topk(most + 1)
        if (values.diff() < 0).all():
            return values[:most], order[:most]
    scores, order = scores.sort(descending=True)
    return scores[:most], order[:most]


def put_scalar(name, value):
    """Log a scalar where a trainer is listening; ``has_event_storage`` is missing before main.

    A tensor on a GPU, which has to be waited for, is logged only in the iterations after which
    Detectron2's trainer writes its log.
    """
    try:
        storage = events.get_event_storage()
    except AssertionError:
        return
    waits = isinstance(value, torch.Tensor) and value.device.type != "cpu"
    if not waits or (storage.iter + 1) % _LOG_PERIOD == 0:
        storage.put_scalar(name, float(value))


def coco_evaluator(dataset_name, output_dir, detections_per_image):
    """Detectron2's ``COCOEvaluator`` for boxes, which counts as many detections as the model keeps.

    The compiled evaluation is used where Detectron2 was compiled; 0.5 does not look itself.
    ``max_dets_per_image`` exists since 0.6: before, COCO's limit of 100 holds.
    """
    options = {"use_fast_impl": _is_compiled()}
    knows_limit = "max_dets_per_image" in inspect.signature(COCOEvaluator).parameters
    if detections_per_image > 100 and knows_limit:
        options["max_dets_per_image"] = detections_per_image
    return COCOEvaluator(dataset_name, ("bbox",), output_dir=output_dir, **options)


def _is_compiled():
    try:
        from detectron2._C import COCOevalEvaluateImages  # noqa: F401
    except ImportError:
        return False
    return True
