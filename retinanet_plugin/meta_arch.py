"""ModularRetinaNet: the wiring of backbone, head, matcher, losses and inference. Read it first."""

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import (
    META_ARCH_REGISTRY,
    build_anchor_generator,
    build_backbone,
    detector_postprocess,
)
from detectron2.modeling.backbone import Backbone
from detectron2.modeling.meta_arch.retinanet import RetinaNet
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils.events import get_event_storage
from fvcore.common.registry import Registry
from torch import Tensor, nn

from .compat import batch_images, log_scalar
from .eager import is_transformed
from .errors import UserError, registered
from .execution import Execution
from .execution.transfer import instances_to_device, tensor_to_device
from .head import RETINANET_HEAD_REGISTRY, Predictions
from .inference import RetinaNetInference
from .losses import (
    BOX_LOSS_REGISTRY,
    CLS_LOSS_REGISTRY,
    foreground_box_loss,
    iou_branch_loss,
    iou_qualities,
)
from .losses.reduction import (
    FIRST_LOSS_NORMALIZER,
    LossSum,
    box_loss_weights,
    check_box_weighting,
    class_loss_of_levels,
    needs_qualities,
    next_loss_normalizer,
)
from .matching import (
    MATCHER_REGISTRY,
    Targets,
    check_gt_classes,
    check_ignore_threshold,
    checked_targets,
    ignore_covered,
    read_ground_truth,
    read_ignore_boxes,
)
from .pyramid import head_input_shapes, num_cell_anchors


@META_ARCH_REGISTRY.register()
class ModularRetinaNet(nn.Module):
    """RetinaNet (Lin et al., arXiv 1708.02002) of parts that registries and config keys choose.

    Letters: N images in a batch, L levels, Hi and Wi the size of level i, A anchors at a location,
    R = sum(Hi * Wi * A) anchors of an image, K classes, M ground-truth boxes of an image.
    Labels: -1 ignored, 0..K-1 a class, K background.
    """

    pixel_mean: Tensor
    pixel_std: Tensor
    loss_normalizer: Tensor

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        anchor_generator: nn.Module,
        head: nn.Module,
        matcher: nn.Module,
        cls_loss: nn.Module,
        box_loss: nn.Module,
        inference: nn.Module,
        num_classes: int,
        in_features: Sequence[str],
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        box_loss_weight: float = 1.0,
        box_loss_weighting: str = "none",
        iou_loss_weight: float = 1.0,
        box_reg_weights: Sequence[float] = (1.0, 1.0, 1.0, 1.0),
        ignore_ioa_thresh: float = 0.0,
        vis_period: int = 0,
        input_format: str = "BGR",
        execution: Execution | None = None,
    ) -> None:
        """
        Args:
            backbone (Backbone): images (N, 3, H, W) to a dict of features (N, C, Hi, Wi).
            anchor_generator (nn.Module): features to ``list[Boxes]`` of Hi*Wi*A anchors.
            head (nn.Module): see :class:`retinanet_plugin.head.RetinaNetHead`.
            matcher (nn.Module): see :data:`retinanet_plugin.matching.MATCHER_REGISTRY`.
            cls_loss (nn.Module): see :class:`retinanet_plugin.losses.FocalLoss`.
            box_loss (nn.Module): see :class:`retinanet_plugin.losses.SmoothL1BoxLoss`.
            inference (nn.Module): see :class:`retinanet_plugin.inference.RetinaNetInference`.
            num_classes (int): K.
            in_features (list[str]): names of the backbone's features that the head reads.
            pixel_mean, pixel_std (list[float]): of each channel, to normalise images with.
            box_loss_weight (float): lambda.
            box_loss_weighting (str): see :func:`retinanet_plugin.losses.box_loss_weights`.
            iou_loss_weight (float): of the loss of a head's IoU branch.
            box_reg_weights (list[float]): four factors, of dx, dy, dw, dh, as in Detectron2's
                ``Box2BoxTransform``, for the IoUs of predicted boxes.
            ignore_ioa_thresh (float): share of a background anchor's area from which on a region
                to ignore that covers it keeps it from being background; 0: none does.
            vis_period (int): iterations between pictures of truth and detections in the event
                storage; 0: none.
            input_format (str): of the images' channels, for those pictures.
            execution (Execution or None): how backbone and head run; None: its defaults.
        """
        super().__init__()
        check_ignore_threshold(ignore_ioa_thresh)
        self.backbone = backbone
        self.anchor_generator = anchor_generator
        self.head = head
        self.matcher = matcher
        self.cls_loss = cls_loss
        self.box_loss = box_loss
        self.inference = inference
        self.execution = execution or Execution()
        self.num_classes = num_classes
        self.in_features = list(in_features)
        self.box_loss_weight = box_loss_weight
        self.box_loss_weighting = check_box_weighting(box_loss_weighting)
        self.iou_loss_weight = iou_loss_weight
        self.box_reg_weights = tuple(box_reg_weights)
        self.ignore_ioa_thresh = ignore_ioa_thresh
        self.vis_period = vis_period
        self.input_format = input_format
        # Constants of the config, not weights: not saved, as in Detectron2.
        mean, std = torch.tensor(pixel_mean), torch.tensor(pixel_std)
        self.register_buffer("pixel_mean", mean.view(-1, 1, 1), persistent=False)
        self.register_buffer("pixel_std", std.view(-1, 1, 1), persistent=False)
        # Moving average of the number of foreground anchors of a batch: saved, so that a resumed
        # run scales its losses as the interrupted one did (of several processes, all go on from
        # the first one's).
        self.register_buffer("loss_normalizer", torch.tensor(FIRST_LOSS_NORMALIZER))
        self.execution.lay_out(self)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        retinanet = cfg.MODEL.RETINANET
        backbone = build_backbone(cfg)
        input_shape = head_input_shapes(cfg, backbone)
        anchor_generator = build_anchor_generator(cfg, input_shape)
        head = _part(cfg, RETINANET_HEAD_REGISTRY, "HEAD_NAME")
        return {
            "backbone": backbone,
            "anchor_generator": anchor_generator,
            "head": head(cfg, input_shape, num_cell_anchors(anchor_generator)),
            "matcher": _part(cfg, MATCHER_REGISTRY, "MATCHER_NAME")(cfg),
            "cls_loss": _part(cfg, CLS_LOSS_REGISTRY, "CLS_LOSS_NAME")(cfg),
            "box_loss": _part(cfg, BOX_LOSS_REGISTRY, "BBOX_REG_LOSS_TYPE")(cfg),
            "inference": RetinaNetInference(cfg),
            "execution": Execution.from_config(cfg),
            "num_classes": retinanet.NUM_CLASSES,
            "in_features": retinanet.IN_FEATURES,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "box_loss_weight": retinanet.BBOX_REG_LOSS_WEIGHT,
            "box_loss_weighting": retinanet.BBOX_REG_LOSS_WEIGHTING,
            "iou_loss_weight": retinanet.IOU_LOSS_WEIGHT,
            "box_reg_weights": retinanet.BBOX_REG_WEIGHTS,
            "ignore_ioa_thresh": retinanet.IGNORE_IOA_THRESH,
            "vis_period": cfg.VIS_PERIOD,
            "input_format": cfg.INPUT.FORMAT,
        }

    def extra_repr(self) -> str:
        return f"(execution): {self.execution}"

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
        """
        Args:
            batched_inputs (list[dict]): as :class:`detectron2.data.DatasetMapper` makes them:
                ``image`` (3, H, W); for training ``instances`` with ``gt_boxes`` in the pixels of
                ``image`` and ``gt_classes``, and, optional, ``ignore_boxes``: ``Boxes`` of regions
                that are to be ignored; ``height`` and ``width`` of the output, optional.

        Returns:
            in training, ``{"loss_cls": scalar, "loss_box_reg": scalar}``; otherwise
            ``[{"instances": Instances}]`` with ``pred_boxes`` in pixels of (``height``,
            ``width``), ``scores`` and ``pred_classes``.

        Raises:
            UserError: in training, a ground-truth class is not one of 0..K-1.
            ValueError: in training, an image has no ``instances``.
        """
        images = self.preprocess_image(batched_inputs)
        features, predictions = self.backbone_and_head(images.tensor)
        anchors = self.anchor_generator(features)
        if self.training:
            if self.draws():
                self._draw(batched_inputs, images, anchors, predictions)
            targets = self.matching(batched_inputs, anchors, predictions)
            self._log_foreground(targets.gt_labels)
            return self.losses(anchors, predictions, targets)
        detections = self.inference(
            anchors, *predictions[:2], images.image_sizes, predictions.pred_ious
        )
        return [
            {"instances": detector_postprocess(found, x.get("height", h), x.get("width", w))}
            for found, x, (h, w) in zip(detections, batched_inputs, images.image_sizes)
        ]

    def backbone_and_head(self, images: Tensor) -> tuple[list[Tensor], Predictions]:
        """Run both as ``execution`` says.

        Args:
            images (Tensor): (N, 3, H, W), normalised and padded.

        Returns:
            of each level, features (N, C, Hi, Wi); and what the head predicts.
        """
        with self.execution.context(images, self.backbone, self.head) as pixels:
            features = self.backbone(pixels)
            features = [features[name] for name in self.in_features]
            outputs = self.head(features)
        return features, Predictions.of_head(outputs, self.num_classes)

    def matching(
        self, batched_inputs: list[dict[str, Any]], anchors: list[Boxes], predictions: Predictions
    ) -> Targets:
        """What each anchor of a batch is to learn, with regions to ignore.

        Args:
            batched_inputs (list[dict]): as in training, see :meth:`forward`.
            anchors, predictions: see :meth:`match`.
        """
        gt_instances = self.ground_truth(batched_inputs)
        targets = self.match(anchors, gt_instances, predictions)
        regions = self.regions_to_ignore(batched_inputs)
        gt_labels = self.without_ignored(targets.gt_labels, anchors, regions)
        return targets._replace(gt_labels=gt_labels)

    def preprocess_image(self, batched_inputs: list[dict[str, Any]]) -> ImageList:
        """Normalised images, padded to one size: an :class:`ImageList` of (N, 3, H, W)."""
        images = [tensor_to_device(x["image"], self.device) for x in batched_inputs]
        images = [(image - self.pixel_mean) / self.pixel_std for image in images]
        return batch_images(images, self.backbone)

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
        sums, num_foreground = self.summed_losses(anchors, predictions, targets)
        normalizer = self._update_loss_normalizer(num_foreground)
        return {
            # A sum of weights below 1 counts as 1, as in GFL's code.
            name: value / (normalizer if weight is None else weight.clamp(min=1))
            for name, (value, weight) in sums.items()
        }

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

    def draws(self) -> bool:
        """Whether a forward of this iteration puts pictures into the event storage."""
        return self.vis_period > 0 and get_event_storage().iter % self.vis_period == 0

    @torch.no_grad()
    def _draw(
        self,
        batched_inputs: list[dict[str, Any]],
        images: ImageList,
        anchors: list[Boxes],
        predictions: Predictions,
    ) -> None:
        detections = self.inference(
            anchors, *predictions[:2], images.image_sizes, predictions.pred_ious
        )
        # Stock's method reads nothing of a model but its input_format.
        RetinaNet.visualize_training(self, batched_inputs, detections)

    def _log_foreground(self, gt_labels: Tensor) -> None:
        log_scalar(
            "num_pos_anchors",
            lambda: self.is_foreground(gt_labels).sum() / len(gt_labels),
            gt_labels.device,
        )

    def is_foreground(self, gt_labels: Tensor) -> Tensor:
        """Of labels (N, R), which are those of a class."""
        return (gt_labels >= 0) & (gt_labels < self.num_classes)

    def _update_loss_normalizer(self, num_foreground: Tensor) -> Tensor:
        """Take ``num_foreground`` () into the average in training; return the average.

        Within transforms of ``torch.func``, which forbid it, the average that is kept stays.
        """
        if not self.training:
            return self.loss_normalizer.clone()
        average = next_loss_normalizer(self.loss_normalizer, num_foreground)
        if not is_transformed():
            # A copy of it, because autograd keeps the average while a later forward goes on.
            self.loss_normalizer.copy_(average)
        return average

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        # Checkpoints of Detectron2's RetinaNet lack the moving average: it starts as stock's does.
        state_dict.setdefault(prefix + "loss_normalizer", torch.tensor(FIRST_LOSS_NORMALIZER))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def _part(cfg: CfgNode, registry: Registry, key: str) -> Any:
    return registered(registry, cfg.MODEL.RETINANET[key], f"MODEL.RETINANET.{key}")
