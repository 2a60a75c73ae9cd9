"""What is watched on test sets beside AP: detections, what anchors can reach at all, losses."""

import itertools
import os
from collections import Counter
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import get_detection_dataset_dicts
from detectron2.data.detection_utils import build_augmentation
from detectron2.evaluation import DatasetEvaluator, inference_context
from detectron2.utils import comm
from torch import distributed, nn

from ..data.dataset_facts import DatasetFacts
from ..data.loading.mapper import RetinaNetMapper
from ..data.loading.test_loader import build_test_loader
from ..data.resized_boxes import resized_boxes
from ..meta_arch import ModularRetinaNet

_WEIGHT = "weight of "


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


def inference_folder(cfg: CfgNode, dataset_name: str, of_average: bool = False) -> str:
    """Where the evaluation of a data set leaves its detections: ``coco_instances_results.json``.

    Args:
        of_average: those of the averaged weights.
    """
    name = f"{dataset_name}_averaged" if of_average else dataset_name
    return os.path.join(cfg.OUTPUT_DIR, "inference", name)


def share_statistics(model: nn.Module) -> None:
    """Let all processes evaluate with the statistics of batch norms that the first one has.

    In training each gathers its own, and checkpoints have those of the first.

    Args:
        model: the bare model.
    """
    if comm.get_world_size() > 1:
        for name, buffer in model.named_buffers():
            if name != "loss_normalizer":  # which may be an average of each
                distributed.broadcast(buffer, 0)


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
    are_reached = resized_boxes(cfg, facts, model, is_train=False).are_reached
    return None if are_reached is None or not are_reached.size else float(are_reached.mean())


@torch.no_grad()
def validation_losses(cfg: CfgNode, model: ModularRetinaNet, dataset_name: str) -> dict[str, float]:
    """The losses of training on a test set, at its size and without augmentation.

    The model is in evaluation: batch norms use the statistics that they have gathered. The losses
    are divided by the number of foreground anchors of the whole set, and not by the moving average
    over training batches, which stays as it is; so they compare with those of training.

    Args:
        model: the bare model.
        dataset_name: a registered data set; nothing is computed of one without annotations.

    Returns:
        by ``val_`` and the names of the losses in training, of all processes together.
    """
    records = get_detection_dataset_dicts([dataset_name], filter_empty=False)
    if not any(record.get("annotations") for record in records):
        return {}
    mapper = RetinaNetMapper(cfg, True, augmentations=build_augmentation(cfg, is_train=False))
    loader = build_test_loader(cfg, dataset_name, mapper)
    with inference_context(model):
        losses = [_summed_losses(model, inputs) for inputs in loader]
    totals: Counter[str] = Counter()
    # In the order of the images, so that the sums are those of one process to the last bit.
    for of_image in itertools.chain(*comm.all_gather(losses)):
        totals.update(of_image)
    means = {
        f"val_{name}": totals[name] / max(1.0, totals[_WEIGHT + name])
        for name in totals
        if not name.startswith(_WEIGHT)
    }
    return {"val_total_loss": sum(means.values()), **means}


def _summed_losses(model: ModularRetinaNet, inputs: list[dict[str, Any]]) -> dict[str, float]:
    """The losses of a batch, summed over its anchors, and what each is to be divided by.

    As ``forward`` in training, but of a model in evaluation: there that returns detections.
    """
    images = model.preprocess_image(inputs)
    features, predictions = model.backbone_and_head(images.tensor)
    anchors = model.anchor_generator(features)
    targets = model.matching(inputs, anchors, predictions)
    losses, num_foreground = model.summed_losses(anchors, predictions, targets)
    return {
        key: float(number)
        for name, (value, weight) in losses.items()
        for key, number in (
            (name, value),
            (_WEIGHT + name, num_foreground if weight is None else weight),
        )
    }
