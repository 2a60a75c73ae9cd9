"""What is measured: this package's RetinaNet, Detectron2's and torchvision's, on the same input."""

import contextlib
import functools
from dataclasses import dataclass

import torch
import torchvision
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import build_model
from detectron2.modeling.meta_arch.retinanet import permute_to_N_HWA_K
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from retinanet_plugin.config import load_config

OURS, STOCK, TORCHVISION = "retinanet_plugin", "Detectron2", "torchvision"
BFLOAT16 = ", bfloat16"


@dataclass(frozen=True)
class Workload:
    """A model's config and the input that it gets.

    ``opts`` are config options for this package's model alone; ``num_boxes`` of an image.
    """

    config_file: str
    opts: tuple
    device: str
    num_images: int
    image_size: tuple
    num_boxes: int
    num_classes: int


class Subject:
    """One implementation in one precision, ready to train and to detect.

    ``name``: OURS, STOCK or TORCHVISION, in float32, or one of them followed by BFLOAT16. In
    bfloat16, this package runs by its own switches (channels last as well), the others under
    PyTorch's autocast, as their trainers run them.
    """

    def __init__(self, name, workload):
        torch.manual_seed(0)
        self.name, self.workload = name, workload
        self.is_bfloat16 = name.endswith(BFLOAT16)
        self.kind = name[: -len(BFLOAT16)] if self.is_bfloat16 else name
        self.batch = make_batch(workload)
        if self.kind == TORCHVISION:
            self.model = _torchvision(workload)
            images, targets = _to_torchvision(self.batch)
            self.training_input, self.test_input = (images, targets), (images,)
        else:
            self.model = build_model(self._config())
            self.training_input = self.test_input = (self.batch,)
        _make_like_trained(self.model)

    def _config(self):
        workload = self.workload
        cfg = load_config(workload.config_file, workload.opts if self.kind == OURS else ())
        cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS = workload.device, ""
        cfg.MODEL.RETINANET.NUM_CLASSES = workload.num_classes
        if self.kind == STOCK:
            cfg.MODEL.META_ARCHITECTURE = "RetinaNet"
            if cfg.MODEL.FPN.TOP_BLOCK_IN_FEATURE == "res5":  # stock's builder knows no other
                cfg.MODEL.BACKBONE.NAME = "build_retinanet_resnet_fpn_backbone"
        elif self.is_bfloat16:
            cfg.MODEL.RETINANET.BFLOAT16 = cfg.MODEL.RETINANET.CHANNELS_LAST = True
        return cfg

    def autocast(self):
        if self.is_bfloat16 and self.kind != OURS:
            return torch.autocast(self.workload.device.split(":")[0], torch.bfloat16)
        return contextlib.nullcontext()

    def loss(self):
        self.model.train().zero_grad(set_to_none=True)
        with self.autocast(), EventStorage():
            return sum(self.model(*self.training_input).values())

    def train_step(self):
        self.loss().backward()

    @torch.no_grad()
    def infer(self):
        with self.autocast():
            return self.model.eval()(*self.test_input)

    @torch.no_grad()
    def predictions(self):
        """Anchors, logits and deltas of the batch; not of torchvision."""
        with self.autocast():
            model = self.model.train()
            images = model.preprocess_image(self.batch).tensor
            if self.kind == OURS:
                return model.predict(images)
            names = getattr(model, "head_in_features", None) or model.in_features
            features = model.backbone(images)
            features = [features[name] for name in names]
            return (model.anchor_generator(features), *model.head(features))

    def losses(self):
        """A function that computes both losses of given predictions, forward and backward."""
        model, instances = self.model, [x["instances"] for x in self.batch]
        anchors, logits, deltas = self.predictions()
        labels, boxes = model.label_anchors(anchors, instances)
        sizes = [model.num_classes] * len(logits) + [4] * len(deltas)

        def run():
            leaves = [x.detach().requires_grad_() for x in (*logits, *deltas)]
            views = leaves
            if self.kind == STOCK:  # from (N, A*K, Hi, Wi), as stock transposes it
                views = [permute_to_N_HWA_K(x, size) for x, size in zip(leaves, sizes)]
            with self.autocast(), EventStorage():
                losses = model.losses(
                    anchors, views[: len(logits)], labels, views[len(logits) :], boxes
                )
            sum(losses.values()).backward()

        return run

    def matching(self):
        """A function that labels the batch's anchors."""
        height, width = self.workload.image_size
        shapes = [(-(-height // s), -(-width // s)) for s in (8, 16, 32, 64, 128)]
        device = self.workload.device
        features = [torch.zeros(1, 1, *shape, device=device) for shape in shapes]
        anchors = self.model.anchor_generator(features)
        instances = [x["instances"] for x in self.batch]
        return functools.partial(self.model.label_anchors, anchors, instances)


def make_batch(workload):
    """Images of noise with random boxes, as DatasetMapper gives them; on the device already."""
    (height, width), batch = workload.image_size, []
    for _ in range(workload.num_images):
        instances = Instances((height, width))
        size = torch.tensor([width, height])
        corners = torch.rand(workload.num_boxes, 2) * size * 0.8
        extents = 8 + torch.rand(workload.num_boxes, 2) ** 2 * size * 0.2
        instances.gt_boxes = Boxes(torch.cat([corners, corners + extents], dim=1))
        instances.gt_classes = torch.randint(workload.num_classes, (workload.num_boxes,))
        image = torch.randint(256, (3, height, width), dtype=torch.uint8)
        device = workload.device
        batch.append({"image": image.to(device), "instances": instances.to(device)})
    return batch


@torch.no_grad()
def _make_like_trained(model):
    """Random statistics of frozen batch norms that keep activations moderate.

    New ones do nothing, activations grow from layer to layer, and half of all scores are 1.
    """
    for module in model.modules():
        if isinstance(module, (FrozenBatchNorm2d, torchvision.ops.FrozenBatchNorm2d)):
            module.running_var.uniform_(0.5, 2)
            module.weight.uniform_(0.3, 0.8)
            module.bias.normal_(0, 0.3)


def _torchvision(workload):
    model = torchvision.models.detection.retinanet_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=workload.num_classes,
        min_size=min(workload.image_size), max_size=max(workload.image_size),
    )  # fmt: skip
    # As Detectron2 has it, the stem and the first stage are not trained.
    for part in (model.backbone.body.conv1, model.backbone.body.layer1):
        part.requires_grad_(False)
    return model.to(workload.device)


def _to_torchvision(batch):
    images = [x["image"].float() / 255 for x in batch]
    targets = [
        {"boxes": x["instances"].gt_boxes.tensor, "labels": x["instances"].gt_classes}
        for x in batch
    ]
    return images, targets
