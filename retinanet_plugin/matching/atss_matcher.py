"""Which anchors see which ground-truth boxes, by a threshold of IoU that every box sets itself."""

from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from ..box_iou import box_iou
from ..errors import UserError
from .anchor_pairs import is_inside, locations_of
from .best_boxes import BestBoxes
from .ground_truth import GroundTruth, check_devices
from .registry import MATCHER_REGISTRY, check_memory
from .targets import Targets


@MATCHER_REGISTRY.register()
class ATSSMatcher(nn.Module):
    """Adaptive Training Sample Selection (Zhang et al., arXiv 1912.02424, algorithm 1).

    The candidates of a box are, on each level, the anchors at the k locations nearest to its
    centre (L2 distance): k * A anchors where a location has A, as in the authors' code
    (github.com/sfzhang15/ATSS). The mean plus the standard deviation (of a sample, divided by
    n - 1) of their IoUs with the box is its threshold. Candidates that reach it and have their
    centre inside the box are foreground; one of several boxes goes to that of the highest IoU, the
    first of equal ones. All other anchors are background, none is ignored. Which of several
    equally near locations are candidates is left to ``torch.topk``, as in the authors' code.
    """

    needs_predictions: bool = False
    # How many pairs are foreground depends on values: no CUDA graph can hold it.
    fixed_shapes: bool = False

    @configurable
    def __init__(self, *, num_classes: int, topk: int = 9, memory_mb: float = 16) -> None:
        """
        Args:
            num_classes: K, the label of background.
            topk: k, locations of a level that are candidates.
            memory_mb: about the MiB of temporaries to work in, next to the results.

        Raises:
            UserError: topk or memory_mb is not positive.
        """
        super().__init__()
        if topk < 1:
            raise UserError(f"MODEL.RETINANET.ATSS_TOPK is {topk}: give a number from 1, such as 9")
        check_memory(memory_mb)
        self.num_classes = num_classes
        self.topk = topk
        self.memory_mb = memory_mb

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        return {
            "num_classes": cfg.MODEL.RETINANET.NUM_CLASSES,
            "topk": cfg.MODEL.RETINANET.ATSS_TOPK,
            "memory_mb": cfg.MODEL.RETINANET.MATCHER_MEMORY_MB,
        }

    def extra_repr(self) -> str:
        return f"topk={self.topk}"

    @torch.no_grad()
    def forward(self, anchors: list[Boxes], gt_instances: list[Instances]) -> Targets:
        """As :meth:`retinanet_plugin.matching.IoUMatcher.forward`."""
        check_devices(anchors, gt_instances)
        truth, num_anchors = GroundTruth(gt_instances), sum(len(boxes) for boxes in anchors)
        targets = truth.all_background(num_anchors, self.num_classes)
        if len(truth.boxes) == 0 or num_anchors == 0:
            return targets
        locations = [locations_of(boxes) for boxes in anchors]
        all_anchors, best = Boxes.cat(anchors), BestBoxes(truth, num_anchors)
        for box in self._chunks(locations, truth):
            candidates = self._candidates(locations, truth.boxes[box])
            row, anchor, iou = _foreground(truth.boxes[box], all_anchors, candidates)
            best.add(box[row], anchor, iou)

        foreground = best.in_a_pair().nonzero().squeeze(1)
        _, box = best.get(foreground)
        targets.gt_labels.view(-1)[foreground] = truth.classes[box]
        targets.matched_gt_boxes.view(-1, 4)[foreground] = truth.boxes[box]
        return targets

    def _chunks(
        self, locations: list[tuple[Tensor, int]], truth: GroundTruth
    ) -> tuple[Tensor, ...]:
        """Indices of boxes, as many at once as fit into memory."""
        # Three float32 for a distance; about 100 bytes for each candidate's IoU and test.
        distances = max(len(centers) for centers, _ in locations)
        candidates = sum(min(self.topk, len(centers)) * num for centers, num in locations)
        chunk = max(1, int(self.memory_mb * 2**20) // (12 * distances + 100 * candidates))
        return torch.arange(len(truth.boxes), device=truth.boxes.device).split(chunk)

    def _candidates(self, locations: list[tuple[Tensor, int]], boxes: Tensor) -> Tensor:
        """Indices (M, C) of each box's candidates among the R anchors."""
        box_centers = Boxes(boxes).get_centers()[:, None]
        candidates, first_anchor = [], 0
        for centers, num_anchors in locations:
            # The square orders as the distance does.
            distance = (centers[:, 0] - box_centers[..., 0]).square_()
            distance += (centers[:, 1] - box_centers[..., 1]).square_()
            nearest = distance.topk(min(self.topk, len(centers)), dim=1, largest=False).indices
            at_location = torch.arange(num_anchors, device=boxes.device)
            level = nearest[..., None] * num_anchors + at_location + first_anchor
            candidates.append(level.flatten(1))
            first_anchor += len(centers) * num_anchors
        return torch.cat(candidates, dim=1)


def _foreground(boxes: Tensor, anchors: Boxes, candidates: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Box (P,), anchor (P,) and IoU (P,) of the pairs that algorithm 1 makes positive."""
    candidate_boxes = anchors.tensor[candidates]  # (M, C, 4)
    iou = box_iou(boxes[:, None].unbind(-1), candidate_boxes.unbind(-1))
    # In float64, so that the mean of equal IoUs is that IoU and not a rounding error above it.
    precise = iou.double()
    mean = precise.mean(1, keepdim=True)
    deviations = (precise - mean).square().sum(1, keepdim=True)
    threshold = mean + (deviations / max(candidates.shape[1] - 1, 1)).sqrt()
    centers = anchors.get_centers()[candidates]  # (M, C, 2)
    positive = (precise >= threshold) & is_inside(centers, boxes[:, None])
    row, column = positive.nonzero(as_tuple=True)
    return row, candidates[row, column], iou[row, column]
