"""Which anchors see which boxes, by how well they score and place them already."""

import logging
import math
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.structures import Boxes, Instances
from detectron2.utils.logger import log_first_n
from torch import Tensor, nn

from ..box_iou import box_iou
from ..compat import current_iteration
from ..errors import UserError
from .anchor_pairs import highest_of_each, pairs_inside
from .atss_matcher import ATSSMatcher
from .best_boxes import BestBoxes
from .ground_truth import GroundTruth, check_devices
from .registry import MATCHER_REGISTRY, check_memory
from .targets import Targets

_TAKES_OVER = (
    "task-aligned targets from here on, which divide losses by the sum of their qualities: the "
    "losses are higher, and not to be compared with those before"
)


@MATCHER_REGISTRY.register()
class TaskAlignedMatcher(nn.Module):
    """Task alignment learning (TOOD, Feng et al., arXiv 2108.07755, section 3.2).

    For a box and an anchor whose centre is inside it, ``t = s^alpha u^beta``: s is the anchor's
    score for the box's class, u the IoU of its decoded prediction with the box. The m anchors of
    each box with the highest t > 0, over all levels, are foreground; one of several boxes goes to
    that of the highest IoU u, the first of equal ones; all other anchors are background. Their
    quality is t, scaled so that the best anchor of a box has the highest u of the box's anchors
    (section 3.2.2). In the first iterations :class:`ATSSMatcher` stands in, whose targets have no
    qualities: predictions mean nothing yet.
    """

    needs_predictions: bool = True
    fixed_shapes: bool = False

    @configurable
    def __init__(
        self,
        *,
        num_classes: int,
        box2box_transform: Box2BoxTransform,
        alpha: float = 1.0,
        beta: float = 6.0,
        topk: int = 13,
        memory_mb: float = 16,
        first_matcher: ATSSMatcher | None = None,
        first_iterations: int = 0,
    ) -> None:
        """
        Args:
            num_classes: K, the label of background.
            box2box_transform: from deltas to boxes.
            alpha, beta: powers of score and IoU, not negative. At a beta of 0 anchors whose
                prediction misses the box have a t of 0, too.
            topk: m, most foreground anchors of a box.
            memory_mb: about the MiB of temporaries to work in, next to the results and one decoded
                box of every anchor of an image.
            first_matcher: takes the place of this one in the first ``first_iterations`` of a
                training, as its event storage counts them.

        Raises:
            UserError: a number is out of its range.
        """
        super().__init__()
        for name, value, least in (("ALPHA", alpha, 0), ("BETA", beta, 0), ("TOPK", topk, 1)):
            if not least <= value < math.inf:
                raise UserError(
                    f"MODEL.RETINANET.TASK_ALIGNED_{name} is {value}: give a number from {least}, "
                    "such as the paper's alpha 1, beta 6 and top 13"
                )
        check_memory(memory_mb)
        self.num_classes = num_classes
        self.box2box_transform = box2box_transform
        self.alpha = alpha
        self.beta = beta
        self.topk = topk
        self.memory_mb = memory_mb
        self.first_matcher = first_matcher
        self.first_iterations = first_iterations

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        retinanet = cfg.MODEL.RETINANET
        share = retinanet.TASK_ALIGNED_ATSS_SHARE
        if not 0 <= share <= 1:
            raise UserError(
                f"MODEL.RETINANET.TASK_ALIGNED_ATSS_SHARE is {share}: give the share of the "
                "training in which ATSS matches, from 0 to 1"
            )
        return {
            "num_classes": retinanet.NUM_CLASSES,
            "box2box_transform": Box2BoxTransform(weights=retinanet.BBOX_REG_WEIGHTS),
            "alpha": retinanet.TASK_ALIGNED_ALPHA,
            "beta": retinanet.TASK_ALIGNED_BETA,
            "topk": retinanet.TASK_ALIGNED_TOPK,
            "memory_mb": retinanet.MATCHER_MEMORY_MB,
            "first_matcher": ATSSMatcher(cfg),
            "first_iterations": round(share * cfg.SOLVER.MAX_ITER),
        }

    def extra_repr(self) -> str:
        return (
            f"alpha={self.alpha}, beta={self.beta}, topk={self.topk}, "
            f"first_iterations={self.first_iterations}"
        )

    @torch.no_grad()
    def forward(
        self,
        anchors: list[Boxes],
        gt_instances: list[Instances],
        pred_logits: list[Tensor],
        pred_anchor_deltas: list[Tensor],
    ) -> Targets:
        """
        Args:
            anchors: of each level, Hi*Wi*A boxes, absolute pixels; R in all.
            gt_instances: N images with ``gt_boxes``, absolute pixels, and ``gt_classes``.
            pred_logits: of each level, (N, Hi, Wi, A, K).
            pred_anchor_deltas: of each level, (N, Hi, Wi, A, 4).

        Returns:
            Targets: with ``gt_qualities``, 0 where there is no foreground.
        """
        iteration = current_iteration()
        if self.first_matcher and iteration is not None and iteration < self.first_iterations:
            return self.first_matcher(anchors, gt_instances)
        if iteration and iteration == self.first_iterations:
            log_first_n(logging.INFO, _TAKES_OVER, name="detectron2.matching")
        check_devices(anchors, gt_instances)
        truth, num_anchors = GroundTruth(gt_instances), sum(len(boxes) for boxes in anchors)
        targets = truth.all_background(num_anchors, self.num_classes)
        qualities = targets.matched_gt_boxes.new_zeros(targets.gt_labels.shape)
        targets = targets._replace(gt_qualities=qualities)
        if len(truth.boxes) == 0 or num_anchors == 0:
            return targets
        predictions = Predictions(anchors, pred_logits, pred_anchor_deltas, self.box2box_transform)
        best = BestBoxes(truth, num_anchors)
        for box, anchor in pairs_inside(anchors, truth.boxes, self.memory_mb):
            position = truth.image[box] * num_anchors + anchor
            u, t = self._alignment(predictions, position, truth, box)
            chosen = highest_of_each(t, box, self.topk)
            best.add(box[chosen], anchor[chosen], u[chosen])
        self._write_foreground(best, truth, predictions, targets)
        return targets

    def _alignment(
        self, predictions: "Predictions", position: Tensor, truth: GroundTruth, box: Tensor
    ) -> tuple[Tensor, Tensor]:
        """u, float32, and t, float64, of pairs of anchors at ``position`` (P,) and boxes (P,)."""
        u = box_iou(predictions.boxes[position].unbind(-1), truth.boxes[box].unbind(-1))
        # The sixth power of a small IoU, times a small score, can be less than float32 has.
        s = predictions.logits_at(position, truth.classes[box]).double().sigmoid()
        closeness = u.double().pow(self.beta) if self.beta else (u > 0).double()
        return u, s.pow(self.alpha) * closeness

    def _write_foreground(
        self, best: BestBoxes, truth: GroundTruth, predictions: "Predictions", targets: Targets
    ) -> None:
        position = best.in_a_pair().nonzero().squeeze(1)
        _, box = best.get(position)
        u, t = self._alignment(predictions, position, truth, box)
        most_t, most_u = t.new_zeros(2, len(truth.boxes))
        most_t.scatter_reduce_(0, box, t, "amax")
        most_u.scatter_reduce_(0, box, u.double(), "amax")
        targets.gt_labels.view(-1)[position] = truth.classes[box]
        targets.matched_gt_boxes.view(-1, 4)[position] = truth.boxes[box]
        qualities = targets.gt_qualities
        assert qualities is not None
        qualities.view(-1)[position] = (t / most_t[box] * most_u[box]).float()


class Predictions:
    """What a model predicts for the anchors of a batch; that of image n is at n * R + r."""

    def __init__(
        self,
        anchors: list[Boxes],
        pred_logits: list[Tensor],
        pred_anchor_deltas: list[Tensor],
        box2box_transform: Box2BoxTransform,
    ) -> None:
        """Arguments as of the matcher. ``boxes`` (N * R, 4): decoded, absolute pixels."""
        self.pred_logits = pred_logits
        sizes = torch.tensor([len(level) for level in anchors], device=pred_logits[0].device)
        self.num_anchors, self.level_ends = int(sizes.sum()), sizes.cumsum(0)
        self.boxes = torch.cat(
            [
                box2box_transform.apply_deltas(
                    deltas.reshape(-1, 4).float(), level.tensor.repeat(len(deltas), 1)
                ).view(len(deltas), -1, 4)
                for deltas, level in zip(pred_anchor_deltas, anchors)
            ],
            dim=1,
        ).view(-1, 4)

    def logits_at(self, position: Tensor, cls: Tensor) -> Tensor:
        """Logits (P,) of anchors at ``position`` (P,) for classes ``cls`` (P,)."""
        image, anchor = position // self.num_anchors, position % self.num_anchors
        levels = torch.bucketize(anchor, self.level_ends, right=True)
        found = position.new_empty(position.shape, dtype=self.pred_logits[0].dtype)
        first = 0
        for level, logits in enumerate(self.pred_logits):
            _, _, width, num_at_location, _ = logits.shape
            here = (levels == level).nonzero().squeeze(1)
            rest = anchor[here] - first
            location, a = rest // num_at_location, rest % num_at_location
            index = image[here], location // width, location % width, a, cls[here]
            found[here] = logits[index]
            first = int(self.level_ends[level])
        return found
