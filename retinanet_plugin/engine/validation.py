"""What is watched on test sets beside AP: detections, what anchors can reach at all, losses."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import get_detection_dataset_dicts
from detectron2.data.detection_utils import build_augmentation
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..data.anchor_reach import best_iou, foreground_iou, has_grid_of_anchors, resized, short_edge
from ..data.dataset_facts import DatasetFacts
from ..data.loader_workers import leave_signals_to_main_process
from ..data.mapper import RetinaNetMapper
from ..data.test_loader import build_test_loader
from ..execution.cuda_graphs import CudaGraphs

# One in which the models log the number of foreground anchors on a GPU too.
_LOGGED_ITERATION = 19


class DetectionCounter(DatasetEvaluator):
    """Counts detections and finds the top score; it adds nothing to the results."""

    def reset(self) -> None:
        self.num_images, self.num_detections, self.top_score = 0, 0, 0.0

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        for output in outputs:
            scores = output["instances"].scores
            self.num_images += 1
            self.num_detections += len(scores)
            if len(scores):
                self.top_score = max(self.top_score, float(scores.max()))

    def evaluate(self) -> None:
        """Sum up over the processes."""
        found = comm.all_gather((self.num_images, self.num_detections, self.top_score))
        images, detections, top_scores = zip(*found)
        self.num_images, self.num_detections = sum(images), sum(detections)
        self.top_score = max(top_scores)


def bare_model(model: nn.Module) -> nn.Module:
    """The model without what a trainer puts around it."""
    if isinstance(model, DistributedDataParallel):
        return model.module
    return model.model if isinstance(model, CudaGraphs) else model


def share_reached(cfg: CfgNode, model: nn.Module, dataset_name: str) -> float | None:
    """The share of the boxes of a test set that an anchor overlaps enough to be foreground.

    It bounds what a training can learn to find, but for low-quality matches. Crowds do not count.

    Args:
        model: the bare model.

    Returns:
        0 to 1; None where there are no boxes, or no such anchors.
    """
    records = get_detection_dataset_dicts([dataset_name], filter_empty=False)
    facts = DatasetFacts(dataset_name, dataset_name, [], records)
    threshold = foreground_iou(cfg)
    is_counted = ~facts.is_crowd & ~np.isnan(facts.sizes).any(axis=1)[facts.image_of]
    if threshold is None or not has_grid_of_anchors(model) or not is_counted.any():
        return None
    sizes = facts.sizes[facts.image_of][is_counted]
    new_sizes = resized(sizes, short_edge(cfg, is_train=False), cfg.INPUT.MAX_SIZE_TEST)
    boxes = facts.boxes[is_counted] * np.tile(new_sizes / sizes, 2)
    return float((best_iou(boxes, new_sizes, model) >= threshold).mean())


@torch.no_grad()
def validation_losses(cfg: CfgNode, model: nn.Module, dataset_name: str) -> dict[str, float]:
    """The losses of training on a test set, at its size and without augmentation.

    Batch norms use the statistics that they have gathered, as in inference. What a RetinaNet
    divides its losses by, a moving average over training batches, is here the number of foreground
    anchors of the whole set, so that the losses compare with those of training.

    Args:
        model: the bare model. It is left as it was: modes, buffers, moving average.
        dataset_name: a registered data set that has annotations.

    Returns:
        by ``val_`` and the names of the losses in training, of all processes together; for a model
        without ``loss_normalizer``, the mean over its batches. Nothing without annotations.
    """
    records = get_detection_dataset_dicts([dataset_name], filter_empty=False)
    if not any(record.get("annotations") for record in records):
        return {}
    mapper = RetinaNetMapper(cfg, True, augmentations=build_augmentation(cfg, is_train=False))
    loader = build_test_loader(cfg, dataset_name, mapper)
    loader.worker_init_fn = leave_signals_to_main_process
    sums: Counter[str] = Counter()
    num_foreground = 0.0  # or batches, of a model that does not count them
    with _losses_in_inference(model), EventStorage(_LOGGED_ITERATION) as storage:
        for inputs in loader:
            losses = model(inputs)
            if isinstance(losses, Tensor):  # as Detectron2's trainer takes them
                losses = {"total_loss": losses}
            normalizer = float(getattr(model, "loss_normalizer", 1.0))
            sums.update({name: float(loss) * normalizer for name, loss in losses.items()})
            counted = storage.latest().get("num_pos_anchors")
            num_foreground += counted[0] * len(inputs) if counted else 1
    found = comm.all_gather((sums, num_foreground))
    total = max(1.0, sum(count for _, count in found))
    means = {
        f"val_{name}": sum(losses[name] for losses, _ in found) / total
        for name in {name: None for losses, _ in found for name in losses}
    }
    return {"val_total_loss": sum(means.values()), **means}


@contextmanager
def _losses_in_inference(model: nn.Module) -> Iterator[None]:
    """``model`` returns losses, while its parts are in evaluation; afterwards it is as before."""
    modes = [(module, module.training) for module in model.modules()]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    own_average = vars(model).get("loss_normalizer")  # of Detectron2's RetinaNet, a number
    model.eval()
    model.training = True
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        for buffer, value in buffers:
            buffer.copy_(value)
        vars(model).pop("loss_normalizer", None)
        if own_average is not None:
            model.loss_normalizer = own_average
