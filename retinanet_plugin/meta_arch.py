"""ModularRetinaNet: the wiring of backbone, head, matcher, losses and inference. Read it first."""

import torch
from detectron2.config import configurable
from detectron2.modeling import (
    META_ARCH_REGISTRY,
    build_anchor_generator,
    build_backbone,
    detector_postprocess,
)
from detectron2.modeling.meta_arch.retinanet import RetinaNet
from detectron2.utils.events import get_event_storage
from torch import nn

from .compat import batch_images, put_scalar
from .cuda_graph import build_cuda_graphs
from .errors import UserError, registered
from .execution import Execution
from .head import RETINANET_HEAD_REGISTRY
from .inference import RetinaNetInference
from .losses import BOX_LOSS_REGISTRY, CLS_LOSS_REGISTRY, foreground_box_loss
from .matching import MATCHER_REGISTRY, padded_truth


@META_ARCH_REGISTRY.register()
class ModularRetinaNet(nn.Module):
    """RetinaNet (Lin et al., arXiv 1708.02002) of parts that registries and config keys choose.

    Letters: N images in a batch, L levels, Hi and Wi the size of level i, A anchors at a location,
    R = sum(Hi * Wi * A) anchors of an image, K classes, M ground-truth boxes of an image.
    Labels: -1 ignored, 0..K-1 a class, K background.
    """

    @configurable
    def __init__(
        self,
        *,
        backbone,
        anchor_generator,
        head,
        matcher,
        cls_loss,
        box_loss,
        inference,
        num_classes,
        in_features,
        box_loss_weight,
        pixel_mean,
        pixel_std,
        vis_period=0,
        input_format="BGR",
        execution=None,
        cuda_graphs=None,
    ):
        """
        Args:
            backbone (Backbone): images (N, 3, H, W) to a dict of features (N, C, Hi, Wi).
            anchor_generator (nn.Module): features to ``list[Boxes]`` of Hi*Wi*A anchors.
            head (nn.Module): see :class:`retinanet_plugin.head.RetinaNetHead`.
            matcher (nn.Module): see :class:`retinanet_plugin.matching.IoUMatcher`.
            cls_loss (nn.Module): see :class:`retinanet_plugin.losses.FocalLoss`.
            box_loss (nn.Module): see :class:`retinanet_plugin.losses.SmoothL1BoxLoss`.
            inference (nn.Module): see :class:`retinanet_plugin.inference.RetinaNetInference`.
            num_classes (int): K.
            in_features (list[str]): names of the backbone's features that the head reads.
            box_loss_weight (float): lambda.
            pixel_mean, pixel_std (list[float]): of each channel, to normalise images with.
            vis_period (int): iterations between pictures of truth and detections in the event
                storage; 0: none.
            input_format (str): of the images' channels, for those pictures.
            execution (nn.Module): see :class:`retinanet_plugin.execution.Execution`; None: in
                float32, neither channels last nor compiled.
            cuda_graphs (CudaGraphs or None): replays of training steps, see ``cuda_graph.py``.
        """
        super().__init__()
        self.backbone = backbone
        self.anchor_generator = anchor_generator
        self.head = head
        self.matcher = matcher
        self.cls_loss = cls_loss
        self.box_loss = box_loss
        self.inference = inference
        self.execution = execution or Execution()
        self.num_classes = num_classes
        self.in_features = in_features
        self.box_loss_weight = box_loss_weight
        self.vis_period = vis_period
        self.input_format = input_format
        self.cuda_graphs = cuda_graphs
        # Constants of the config, not weights: not saved, as in Detectron2.
        mean, std = torch.tensor(pixel_mean), torch.tensor(pixel_std)
        self.register_buffer("pixel_mean", mean.view(-1, 1, 1), persistent=False)
        self.register_buffer("pixel_std", std.view(-1, 1, 1), persistent=False)
        # Moving average of the number of foreground anchors of a batch: saved, so that a resumed
        # run scales its losses as the interrupted one did (of several processes, all go on from
        # the first one's). 100 is stock's start.
        self.register_buffer("loss_normalizer", torch.tensor(100.0))
        self.execution.prepare(self)

    @classmethod
    def from_config(cls, cfg):
        retinanet = cfg.MODEL.RETINANET
        backbone = build_backbone(cfg)
        input_shape = _feature_shapes(cfg, backbone)
        anchor_generator = build_anchor_generator(cfg, input_shape)
        head = _part(cfg, RETINANET_HEAD_REGISTRY, "HEAD_NAME")
        training_parts = {
            "matcher": _part(cfg, MATCHER_REGISTRY, "MATCHER_NAME")(cfg),
            "cls_loss": _part(cfg, CLS_LOSS_REGISTRY, "CLS_LOSS_NAME")(cfg),
            "box_loss": _part(cfg, BOX_LOSS_REGISTRY, "BBOX_REG_LOSS_TYPE")(cfg),
        }
        return {
            "backbone": backbone,
            "anchor_generator": anchor_generator,
            "head": head(cfg, input_shape, _num_cell_anchors(anchor_generator)),
            **training_parts,
            "inference": RetinaNetInference(cfg),
            "execution": Execution(cfg),
            "num_classes": retinanet.NUM_CLASSES,
            "in_features": retinanet.IN_FEATURES,
            "box_loss_weight": retinanet.BBOX_REG_LOSS_WEIGHT,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "vis_period": cfg.VIS_PERIOD,
            "input_format": cfg.INPUT.FORMAT,
            "cuda_graphs": build_cuda_graphs(cfg, training_parts.values()),
        }

    @property
    def device(self):
        return self.pixel_mean.device

    def forward(self, batched_inputs):
        """
        Args:
            batched_inputs (list[dict]): as :class:`detectron2.data.DatasetMapper` makes them:
                ``image`` (3, H, W); for training ``instances`` with ``gt_boxes`` in the pixels of
                ``image`` and ``gt_classes``; ``height`` and ``width`` of the output, optional.

        Returns:
            in training, ``{"loss_cls": scalar, "loss_box_reg": scalar}``; otherwise
            ``[{"instances": Instances}]`` with ``pred_boxes`` in pixels of (``height``,
            ``width``), ``scores`` and ``pred_classes``.
        """
        images = self.preprocess_image(batched_inputs)
        if self.training:
            gt_instances = [self._ground_truth(x) for x in batched_inputs]
            draws = self.vis_period > 0 and get_event_storage().iter % self.vis_period == 0
            if self.cuda_graphs is not None and not draws:
                truth = padded_truth(gt_instances)
                return self._logged(*self.cuda_graphs(self, images.tensor, *truth))
        anchors, pred_logits, pred_anchor_deltas = self.predict(images.tensor)
        if self.training:
            gt_labels, matched_gt_boxes = self.label_anchors(anchors, gt_instances)
            if draws:
                with torch.no_grad():
                    detections = self.inference(
                        anchors, pred_logits, pred_anchor_deltas, images.image_sizes
                    )
                # Stock's method reads nothing of a model but its input_format.
                RetinaNet.visualize_training(self, batched_inputs, detections)
            return self.losses(
                anchors, pred_logits, gt_labels, pred_anchor_deltas, matched_gt_boxes
            )
        detections = self.inference(anchors, pred_logits, pred_anchor_deltas, images.image_sizes)
        return [
            {"instances": detector_postprocess(found, x.get("height", h), x.get("width", w))}
            for found, x, (h, w) in zip(detections, batched_inputs, images.image_sizes)
        ]

    def preprocess_image(self, batched_inputs):
        """Normalised images, padded to one size: an :class:`ImageList` of (N, 3, H, W)."""
        images = [x["image"].to(self.device) for x in batched_inputs]
        images = [(image - self.pixel_mean) / self.pixel_std for image in images]
        return batch_images(images, self.backbone)

    def predict(self, images, anchors=None):
        """Anchors and what the head says of them.

        Args:
            images (Tensor): (N, 3, H, W), normalised and padded, of :meth:`preprocess_image`.
            anchors (list[Boxes] or None): those of an earlier call with images of this size, to
                be used again.

        Returns:
            tuple: of each level, anchors (Boxes, Hi*Wi*A), class logits (N, Hi, Wi, A, K) and
            box deltas (N, Hi, Wi, A, 4); three lists.
        """
        features, pred_logits, pred_anchor_deltas = self.execution(
            self.backbone, self.head, self.in_features, images
        )
        anchors = anchors or self.anchor_generator(features)
        return (
            anchors,
            [_split_anchors(logits, self.num_classes) for logits in pred_logits],
            [_split_anchors(deltas, 4) for deltas in pred_anchor_deltas],
        )

    def label_anchors(self, anchors, gt_instances):
        """
        Args:
            anchors (list[Boxes]): of each level, Hi*Wi*A anchors.
            gt_instances (list[Instances]): N images with ``gt_boxes`` and ``gt_classes``.

        Returns:
            tuple[Tensor, Tensor]: labels (N, R) and matched boxes (N, R, 4), as in
            :meth:`retinanet_plugin.matching.IoUMatcher.forward`.
        """
        return self.matcher(anchors, gt_instances)

    def losses(self, anchors, pred_logits, gt_labels, pred_anchor_deltas, matched_gt_boxes):
        """Both losses, divided by the moving average of the number of foreground anchors.

        Args:
            anchors (list[Boxes]): of each level, Hi*Wi*A anchors.
            pred_logits (list[Tensor]): of each level, (N, Hi, Wi, A, K).
            gt_labels (Tensor): (N, R).
            pred_anchor_deltas (list[Tensor]): of each level, (N, Hi, Wi, A, 4).
            matched_gt_boxes (Tensor): (N, R, 4).

        Returns:
            dict[str, Tensor]: ``loss_cls`` and ``loss_box_reg``, float32 scalars.
        """
        masked = gt_labels.device.type != "cpu"
        return self._logged(
            *self.scaled_losses(
                anchors, pred_logits, gt_labels, pred_anchor_deltas, matched_gt_boxes, masked
            )
        )

    def scaled_losses(
        self, anchors, pred_logits, gt_labels, pred_anchor_deltas, matched_gt_boxes, masked
    ):
        """:meth:`losses`, which says what the arguments are, in tensors alone.

        ``masked`` (bool) is whether the box loss runs on all anchors, so that shapes are fixed
        and nothing waits for a GPU, or on the foreground ones.

        Returns:
            tuple[Tensor, Tensor, Tensor]: loss_cls, loss_box_reg and the foreground anchors of an
            image on average; float32 scalars.
        """
        labels_of_levels = gt_labels.split([len(boxes) for boxes in anchors], dim=1)
        labels_of_levels = [
            labels.reshape(logits.shape[:-1])
            for labels, logits in zip(labels_of_levels, pred_logits)
        ]
        loss_cls = self.cls_loss(pred_logits, labels_of_levels, anchors)
        foreground = (gt_labels >= 0) & (gt_labels < self.num_classes)
        loss_box_reg = foreground_box_loss(
            self.box_loss, foreground, pred_anchor_deltas, anchors, matched_gt_boxes, masked
        )
        num_foreground = foreground.sum()
        normalizer = self._update_loss_normalizer(num_foreground)
        return (
            loss_cls / normalizer,
            loss_box_reg * self.box_loss_weight / normalizer,
            num_foreground / len(gt_labels),
        )

    def _logged(self, loss_cls, loss_box_reg, num_pos_anchors):
        put_scalar("num_pos_anchors", num_pos_anchors)
        return {"loss_cls": loss_cls, "loss_box_reg": loss_box_reg}

    def _update_loss_normalizer(self, num_foreground):
        """Take ``num_foreground`` () into the average in training; return a copy of the average.

        A copy, because autograd keeps it while a later forward changes the buffer.
        """
        if self.training:
            self.loss_normalizer.lerp_(num_foreground.clamp(min=1).to(self.loss_normalizer), 0.1)
        return self.loss_normalizer.clone()

    def _ground_truth(self, inputs):
        if "instances" not in inputs:
            raise ValueError(
                f"training input {inputs.get('file_name', '')} has no 'instances': use a mapper "
                "with is_train=True"
            )
        return inputs["instances"].to(self.device)

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs):
        # Checkpoints of Detectron2's RetinaNet lack the moving average: keep the present one.
        state_dict.setdefault(prefix + "loss_normalizer", self.loss_normalizer)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def _split_anchors(x, size):
    """A view (N, Hi, Wi, A, size) of head outputs (N, A*size, Hi, Wi), in any memory layout."""
    n, channels, h, w = x.shape
    return x.view(n, channels // size, size, h, w).permute(0, 3, 4, 1, 2)


def _part(cfg, registry, key):
    return registered(registry, cfg.MODEL.RETINANET[key], f"MODEL.RETINANET.{key}")


def _feature_shapes(cfg, backbone):
    """Shapes of the head's features; refuses features or anchors that do not fit the backbone."""
    shapes = backbone.output_shape()
    in_features = cfg.MODEL.RETINANET.IN_FEATURES
    for name in in_features:
        if name not in shapes:
            raise UserError(
                f"MODEL.RETINANET.IN_FEATURES has {name!r}, which the backbone "
                f"{cfg.MODEL.BACKBONE.NAME} does not make: choose from {list(shapes)}"
            )
    for key in ("SIZES", "ASPECT_RATIOS"):
        num_levels = len(cfg.MODEL.ANCHOR_GENERATOR[key])
        if num_levels not in (1, len(in_features)):
            raise UserError(
                f"MODEL.ANCHOR_GENERATOR.{key} has {num_levels} levels but "
                f"MODEL.RETINANET.IN_FEATURES has {len(in_features)} ({', '.join(in_features)}): "
                "give one list for each level, or one for all"
            )
    return [shapes[name] for name in in_features]


def _num_cell_anchors(anchor_generator):
    """A, which a head that is shared over the levels needs to be one number."""
    counts = set(anchor_generator.num_cell_anchors)
    if len(counts) != 1:
        raise UserError(
            f"MODEL.ANCHOR_GENERATOR gives {sorted(counts)} anchors at a location, depending on "
            "the level: give every level as many SIZES and ASPECT_RATIOS"
        )
    return counts.pop()
