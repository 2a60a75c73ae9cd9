"""Every place where Detectron2 0.6 and main differ for this package."""

from collections.abc import Callable
from typing import Any

import torch
from detectron2 import layers
from detectron2.evaluation import COCOEvaluator
from detectron2.modeling.backbone import Backbone
from detectron2.structures import ImageList
from detectron2.utils import comm, events
from torch import Tensor, distributed

# move_device_like came soon after 0.6.
_SORTS_SCORES = not hasattr(layers, "move_device_like")
# Iterations between two writings of the log by Detectron2's DefaultTrainer.
_LOG_PERIOD = 20


def batch_images(images: list[Tensor], backbone: Backbone) -> ImageList:
    """Pad and stack images (3, H, W) to the sizes that ``backbone`` accepts.

    ``Backbone.padding_constraints`` (square inputs of ViT backbones) exists since 2022.
    """
    constraints = getattr(backbone, "padding_constraints", None)
    if not constraints:
        return ImageList.from_tensors(images, backbone.size_divisibility)
    return ImageList.from_tensors(
        images, backbone.size_divisibility, padding_constraints=constraints
    )


def best_scores(scores: Tensor, max_count: int) -> tuple[Tensor, Tensor]:
    """The ``max_count`` highest of scores (C,), or all, and their indices, highest first.

    Equal scores come in stock's own order, on which NMS depends: 0.6 sorts, main takes the top k.
    A traced model takes as many as the image has that it is given, and not as many as the traced
    one had.
    """
    count: Any = scores.shape[0]  # a tensor while a model is traced
    is_traced = isinstance(count, Tensor)
    if not _SORTS_SCORES:
        return scores.topk(count.clamp(max=max_count) if is_traced else min(count, max_count))
    if not is_traced and count > max_count:
        # Unequal scores have one order, which takes less than a sort of very many candidates.
        values, order = scores.topk(max_count + 1)
        if (values.diff() < 0).all():
            return values[:max_count], order[:max_count]
    scores, order = scores.sort(descending=True)
    return scores[:max_count], order[:max_count]


def current_iteration() -> int | None:
    """The iteration of the training that runs, None outside of one.

    ``has_event_storage`` is missing before main.
    """
    try:
        return events.get_event_storage().iter
    except (AssertionError, IndexError):  # python -O removes the assertion
        return None


def log_scalar(name: str, compute: Callable[[], Tensor], device: torch.device) -> None:
    """Log what ``compute`` returns, a scalar on ``device``, where a trainer is listening.

    A GPU has to be waited for, so that a scalar there is computed only in the iterations after
    which Detectron2's trainer writes its log.
    """
    iteration = current_iteration()
    if iteration is None:
        return
    if device.type == "cpu" or (iteration + 1) % _LOG_PERIOD == 0:
        events.get_event_storage().put_scalar(name, float(compute()))


def create_local_process_group(num_local: int) -> None:
    """Tell Detectron2 which of the processes, ``num_local`` on each machine, are on this one.

    0.6 has no function for it: its ``launch`` sets the variable.
    """
    if hasattr(comm, "create_local_process_group"):
        comm.create_local_process_group(num_local)
        return
    for first in range(0, comm.get_world_size(), num_local):
        ranks = list(range(first, first + num_local))
        group = distributed.new_group(ranks)  # which all processes have to make
        if comm.get_rank() in ranks:
            comm._LOCAL_PROCESS_GROUP = group


def coco_evaluator(
    dataset_name: str,
    output_dir: str,
    detections_per_image: int,
    evaluator_type: type[COCOEvaluator] = COCOEvaluator,
) -> COCOEvaluator:
    """Detectron2's ``COCOEvaluator`` for boxes, which counts as many detections as the model keeps.

    The compiled evaluation is used where Detectron2 was compiled; 0.6 does not look itself.
    """
    return evaluator_type(
        dataset_name,
        ("bbox",),
        output_dir=output_dir,
        use_fast_impl=_is_compiled(),
        # COCO's own limits, up to 100, unless more are kept.
        max_dets_per_image=detections_per_image if detections_per_image > 100 else None,
    )


def _is_compiled() -> bool:
    try:
        from detectron2._C import COCOevalEvaluateImages  # noqa: F401
    except ImportError:
        return False
    return True
