"""ModularRetinaNet: the wiring of backbone, head, matching, losses and inference. Read it first."""

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
from detectron2.structures import Boxes, ImageList
from detectron2.utils.events import get_event_storage
from fvcore.common.registry import Registry
from torch import Tensor, nn

from .compat import batch_images
from .dense_training import DenseTraining
from .errors import registered
from .execution import Execution
from .execution.transfer import tensor_to_device
from .head import RETINANET_HEAD_REGISTRY, Predictions
from .inference import RetinaNetInference
from .losses import BOX_LOSS_REGISTRY, CLS_LOSS_REGISTRY
from .matching import MATCHER_REGISTRY
from .pyramid import head_input_shapes, num_cell_anchors


@META_ARCH_REGISTRY.register()
class ModularRetinaNet(DenseTraining):
    """RetinaNet (Lin et al., arXiv 1708.02002) of parts that registries and config keys choose.

    Letters: N images in a batch, L levels, Hi and Wi the size of level i, A anchors at a location,
    R = sum(Hi * Wi * A) anchors of an image, K classes, M ground-truth boxes of an image.
    Labels: -1 ignored, 0..K-1 a class, K background.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        anchor_generator: nn.Module,
        head: nn.Module,
        inference: nn.Module,
        in_features: Sequence[str],
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        vis_period: int = 0,
        input_format: str = "BGR",
        execution: Execution | None = None,
        **training: Any,
    ) -> None:
        """
        Args:
            backbone (Backbone): images (N, 3, H, W) to a dict of features (N, C, Hi, Wi).
            anchor_generator (nn.Module): features to ``list[Boxes]`` of Hi*Wi*A anchors.
            head (nn.Module): see :class:`retinanet_plugin.head.RetinaNetHead`.
            inference (nn.Module): see :class:`retinanet_plugin.inference.RetinaNetInference`.
            in_features (list[str]): names of the backbone's features that the head reads.
            pixel_mean, pixel_std (list[float]): of each channel, to normalise images with.
            vis_period (int): iterations between pictures of truth and detections in the event
                storage; 0: none.
            input_format (str): of the images' channels, for those pictures.
            execution (Execution or None): how backbone and head run; None: its defaults.
            training: matcher, losses and their settings, see :class:`DenseTraining`.
        """
        super().__init__(**training)
        self.backbone = backbone
        self.anchor_generator = anchor_generator
        self.head = head
        self.inference = inference
        self.execution = execution or Execution()
        self.in_features = list(in_features)
        self.vis_period = vis_period
        self.input_format = input_format
        # Constants of the config, not weights: not saved, as in Detectron2.
        mean, std = torch.tensor(pixel_mean), torch.tensor(pixel_std)
        self.register_buffer("pixel_mean", mean.view(-1, 1, 1), persistent=False)
        self.register_buffer("pixel_std", std.view(-1, 1, 1), persistent=False)
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
            "sync_loss_normalizer": retinanet.SYNC_LOSS_NORMALIZER,
            "vis_period": cfg.VIS_PERIOD,
            "input_format": cfg.INPUT.FORMAT,
        }

    def extra_repr(self) -> str:
        return f"(execution): {self.execution}"

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

    def preprocess_image(self, batched_inputs: list[dict[str, Any]]) -> ImageList:
        """Normalised images, padded to one size: an :class:`ImageList` of (N, 3, H, W)."""
        images = [tensor_to_device(x["image"], self.device) for x in batched_inputs]
        images = [(image - self.pixel_mean) / self.pixel_std for image in images]
        return batch_images(images, self.backbone)

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


def _part(cfg: CfgNode, registry: Registry, key: str) -> Any:
    return registered(registry, cfg.MODEL.RETINANET[key], f"MODEL.RETINANET.{key}")
