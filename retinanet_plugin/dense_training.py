"""What training adds to a dense detector: targets for its anchors, losses of its predictions."""

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from .compat import log_scalar
from .errors import UserError
from .execution.transfer import instances_to_device, tensor_to_device
from .head import Predictions
from .losses import foreground_box_loss, iou_branch_loss, iou_qualities
from .losses.normalizer import NormalizedLosses
from .losses.reduction import (
    LossSum,
    box_loss_weights,
    check_box_weighting,
    class_loss_of_levels,
    needs_qualities,
)
from .matching import (
    Targets,
    check_gt_classes,
    check_ignore_threshold,
    checked_targets,
    ignore_covered,
    read_ground_truth,
    read_ignore_boxes,
)


class DenseTraining(NormalizedLosses):
    """From ground truth to targets (:meth:`matching`), and from targets to losses
    (:meth:`losses`). Letters are those of :class:`retinanet_plugin.meta_arch.ModularRetinaNet`."""

    def __init__(
        self,
        *,
        matcher: nn.Module,
        cls_loss: nn.Module,
        box_loss: nn.Module,
        num_classes: int,
        box_loss_weight: float = 1.0,
        box_loss_weighting: str = "none",
        iou_loss_weight: float = 1.0,
        box_reg_weights: Sequence[float] = (1.0, 1.0, 1.0, 1.0),
        ignore_ioa_thresh: float = 0.0,
        sync_loss_normalizer: bool = True,
    ) -> None:
        """
        Args:
            matcher (nn.Module): see :data:`retinanet_plugin.matching.MATCHER_REGISTRY`.
            cls_loss (nn.Module): see :class:`retinanet_plugin.losses.FocalLoss`.
            box_loss (nn.Module): see :class:`retinanet_plugin.losses.SmoothL1BoxLoss`.
            num_classes (int): K.
            box_loss_weight (float): lambda.
            box_loss_weighting (str): see :func:`retinanet_plugin.losses.box_loss_weights`.
            iou_loss_weight (float): of the loss of a head's IoU branch.
            box_reg_weights (list[float]): four factors, of dx, dy, dw, dh, as in Detectron2's
                ``Box2BoxTransform``, for the IoUs of predicted boxes.
            ignore_ioa_thresh (float): share of a background anchor's area from which on a region
                to ignore that covers it keeps it from being background; 0: none does.
            sync_loss_normalizer (bool): see :class:`NormalizedLosses`.
        """
        super().__init__(sync_loss_normalizer)
        check_ignore_threshold(ignore_ioa_thresh)
        self.matcher = matcher
        self.cls_loss = cls_loss
        self.box_loss = box_loss
        self.num_classes = num_classes
        self.box_loss_weight = box_loss_weight
        self.box_loss_weighting = check_box_weighting(box_loss_weighting)
        self.iou_loss_weight = iou_loss_weight
        self.box_reg_weights = tuple(box_reg_weights)
        self.ignore_ioa_thresh = ignore_ioa_thresh

    @property
    def device(self) -> torch.device:
        return self.loss_normalizer.device

    def matching(
        self, batched_inputs: list[dict[str, Any]], anchors: list[Boxes], predictions: Predictions
    ) -> Targets:
        """What each anchor of a batch is to learn, with regions to ignore.

        Args:
            batched_inputs (list[dict]): of training, see
                :meth:`retinanet_plugin.meta_arch.ModularRetinaNet.forward`.
            anchors, predictions: see :meth:`match`.
        """
        gt_instances = self.ground_truth(batched_inputs)
        targets = self.match(anchors, gt_instances, predictions)
        regions = self.regions_to_ignore(batched_inputs)
        gt_labels = self.without_ignored(targets.gt_labels, anchors, regions)
        return targets._replace(gt_labels=gt_labels)

    def ground_truth(self, batched_inputs: list[dict[str, Any]]) -> list[Instances]:
        """The ``instances`` of training inputs, on the model's device; see :meth:`forward`."""
        gt_instances = read_ground_truth(batched_inputs, self.num_classes)
        return [instances_to_device(instances, self.device) for instances in gt_instances]

    @torch.no_grad()
    def match(
        self, anchors: list[Boxes], gt_instances: list[Instances], predictions: Predictions
    ) -> Targets:
        """What each anchor is to learn.

        Args:
            anchors (list[Boxes]): of each level, Hi*Wi*A anchors.
            gt_instances (list[Instances]): N images with ``gt_boxes`` and ``gt_classes``.
            predictions (Predictions): a matcher that asks for them (``needs_predictions``) gets
                logits and deltas, without gradient.
        """
        if not getattr(self.matcher, "needs_predictions", False):
            return Targets(*self.label_anchors(anchors, gt_instances))
        logits_and_deltas = ([level.detach() for level in levels] for levels in predictions[:2])
        found = self.matcher(anchors, gt_instances, *logits_and_deltas)
        return checked_targets(found, anchors, gt_instances)

    @torch.no_grad()
    def label_anchors(
        self, anchors: list[Boxes], gt_instances: list[Instances]
    ) -> tuple[Tensor, Tensor]:
        """What a matcher without predictions gives, as Detectron2's RetinaNet returns it.

        Args:
            anchors (list[Boxes]): of each level, Hi*Wi*A anchors.
            gt_instances (list[Instances]): N images with ``gt_boxes`` and ``gt_classes``.

        Returns:
            tuple[Tensor, Tensor]: labels (N, R) and matched boxes (N, R, 4), as in
            :class:`retinanet_plugin.matching.Targets`.

        Raises:
            UserError: a ground-truth class is not one of 0..K-1.
        """
        check_gt_classes(gt_instances, self.num_classes)
        targets = checked_targets(self.matcher(anchors, gt_instances), anchors, gt_instances)
        if targets.gt_qualities is not None:
            raise UserError(
                f"{type(self.matcher).__name__} gives gt_qualities but does not ask for "
                "predictions, so nothing would read them: set needs_predictions = True in its class"
            )
        return targets.gt_labels, targets.matched_gt_boxes

    def regions_to_ignore(self, batched_inputs: list[dict[str, Any]]) -> list[Tensor]:
        """``ignore_boxes`` (I, 4) of each image, on the model's device; an empty list where no
        image has any, or the threshold is 0."""
        if self.ignore_ioa_thresh == 0:
            return []
        regions = read_ignore_boxes(batched_inputs)
        return [tensor_to_device(boxes, self.device) for boxes in regions]

    def without_ignored(
        self, gt_labels: Tensor, anchors: list[Boxes], regions: list[Tensor]
    ) -> Tensor:
        """Labels (N, R) in which background in ``regions`` of :meth:`regions_to_ignore` is -1."""
        if not regions:
            return gt_labels
        return ignore_covered(gt_labels, anchors, regions, self.ignore_ioa_thresh, self.num_classes)

    def losses(
        self, anchors: list[Boxes], predictions: Predictions, targets: Targets
    ) -> dict[str, Tensor]:
        """:meth:`summed_losses`, divided by the moving average of the number of foreground anchors
        or, where that is the loss's own weight, by its sum over the batch.

        Returns:
            dict[str, Tensor]: ``loss_cls``, ``loss_box_reg``, and ``loss_iou`` of a head with an
            IoU branch; float32 scalars.
        """
        return self.normalized(*self.summed_losses(anchors, predictions, targets))

    def summed_losses(
        self, anchors: list[Boxes], predictions: Predictions, targets: Targets
    ) -> tuple[dict[str, LossSum], Tensor]:
        """
        Args:
            anchors (list[Boxes]): of each level, Hi*Wi*A anchors.
            predictions (Predictions): for them.
            targets (Targets): what they are to learn.

        Returns:
            each loss as a sum over the batch; and the number of its foreground anchors, (), or,
            where a matcher gives qualities, their sum (TOOD, arXiv 2108.07755, section 3.2.2).

        Raises:
            UserError: a loss does not return what it is to return.
        """
        gt_labels, matched_gt_boxes, gt_qualities = targets
        foreground = self.is_foreground(gt_labels)
        # On a GPU, all anchors in fixed shapes, for which nothing has to be waited for.
        rows = foreground, predictions.pred_anchor_deltas, anchors, matched_gt_boxes
        masked = gt_labels.device.type != "cpu"
        ious = (
            iou_qualities(*rows, self.box_reg_weights, masked=masked)
            if self._needs_ious(predictions, targets)
            else None
        )
        qualities = ious if gt_qualities is None else gt_qualities

        logits = predictions.pred_logits
        loss_cls = class_loss_of_levels(self.cls_loss, logits, gt_labels, anchors, qualities)
        weights = box_loss_weights(self.box_loss_weighting, logits, qualities)
        loss_box = foreground_box_loss(self.box_loss, *rows, masked=masked, weights=weights)
        sums = {
            "loss_cls": LossSum(loss_cls),
            "loss_box_reg": LossSum(
                loss_box * self.box_loss_weight,
                None if weights is None else weights.where(foreground, 0).sum(),
            ),
        }
        if predictions.pred_ious is not None and ious is not None:
            loss_iou = iou_branch_loss(predictions.pred_ious, ious, foreground)
            sums["loss_iou"] = LossSum(loss_iou * self.iou_loss_weight)
        if gt_qualities is None:
            return sums, foreground.sum()
        return sums, gt_qualities.where(foreground, 0).sum()

    def _needs_ious(self, predictions: Predictions, targets: Targets) -> bool:
        needs_soft = needs_qualities(self.cls_loss) or self.box_loss_weighting == "quality"
        return predictions.pred_ious is not None or (needs_soft and targets.gt_qualities is None)

    def _log_foreground(self, gt_labels: Tensor) -> None:
        log_scalar(
            "num_pos_anchors",
            lambda: self.is_foreground(gt_labels).sum() / len(gt_labels),
            gt_labels.device,
        )

    def is_foreground(self, gt_labels: Tensor) -> Tensor:
        """Of labels (N, R), which are those of a class."""
        return (gt_labels >= 0) & (gt_labels < self.num_classes)
