"""What is measured: this package's RetinaNet, Detectron2's and torchvision's, on the same input."""

import contextlib
import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torchvision
from detectron2.config import CfgNode
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import build_model
from detectron2.modeling.meta_arch.retinanet import permute_to_N_HWA_K
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from retinanet_plugin.config import load_config
from retinanet_plugin.execution.cuda_graphs import CudaGraphs
from retinanet_plugin.head import Predictions
from retinanet_plugin.matching import Targets

R50 = "configs/COCO-Detection/retinanet_R_50_FPN_1x.yaml"
OURS, STOCK, TORCHVISION = "retinanet_plugin", "Detectron2", "torchvision"
BFLOAT16 = ", bfloat16"
# With this bias, gradients of the focal loss are about e^-81, the cube of a score: just above the
# smallest normal float32 (e^-87), and below it after a few layers of the head.
SATURATED_BIAS = -27.0


@dataclass(frozen=True)
class Workload:
    """A model's config and the input that it gets.

    ``opts`` are config options for this package's model alone; ``num_boxes`` of an image;
    ``saturated``: whether the model is so sure of the background that gradients are tiny.
    """

    config_file: str
    opts: tuple[str, ...]
    device: str
    num_images: int
    image_size: tuple[int, int]
    num_boxes: int
    num_classes: int
    saturated: bool = False

    def on(self, device: str) -> "Workload":
        return replace(self, device=device)


class Subject:
    """One implementation in one precision, ready to train and to detect.

    ``name``: OURS, STOCK or TORCHVISION, in float32, or one of them followed by BFLOAT16. In
    bfloat16, this package runs by its own switches (channels last as well), the others under
    PyTorch's autocast, as their trainers run them.
    """

    def __init__(self, name: str, workload: Workload) -> None:
        torch.manual_seed(0)
        self.name, self.workload = name, workload
        self.is_bfloat16 = name.endswith(BFLOAT16)
        self.kind = name[: -len(BFLOAT16)] if self.is_bfloat16 else name
        self.batch = make_batch(workload)
        if self.kind == TORCHVISION:
            self.model: Any = _torchvision(workload)
            self.trained: Any = self.model
            images, targets = _to_torchvision(self.batch)
            self.training_input: tuple[Any, ...] = (images, targets)
            self.test_input: tuple[Any, ...] = (images,)
        else:
            cfg = self._config()
            self.model = build_model(cfg)
            # What a trainer calls.
            self.trained = CudaGraphs(self.model) if _has_graphs(cfg) else self.model
            self.training_input = self.test_input = (self.batch,)
        make_like_trained(self.model)
        if workload.saturated:
            nn.init.constant_(self.model.head.cls_score.bias, SATURATED_BIAS)

    def _config(self) -> CfgNode:
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

    def autocast(self, of_all: bool = False) -> contextlib.AbstractContextManager:
        if self.is_bfloat16 and (of_all or self.kind != OURS):
            return torch.autocast(self.workload.device.split(":")[0], torch.bfloat16)
        return contextlib.nullcontext()

    def loss(self) -> Tensor:
        self.trained.train().zero_grad(set_to_none=True)
        with self.autocast(), EventStorage():
            return sum(self.trained(*self.training_input).values())

    def train_step(self) -> None:
        self.loss().backward()

    @torch.no_grad()
    def infer(self) -> Any:
        with self.autocast():
            return self.model.eval()(*self.test_input)

    def head_outputs(self) -> list[Tensor]:
        """Run the model's own forward in training up to its head; logits, then deltas, by level."""

        def stop(module: nn.Module, args: Any, outputs: Any) -> None:
            raise _HeadDone(outputs)

        hook = self.model.head.register_forward_hook(stop)
        try:
            self.loss()
        except _HeadDone as done:
            logits, deltas = done.outputs
            return [*logits, *deltas]
        finally:
            hook.remove()
        raise RuntimeError("the model has not called its head")

    @torch.no_grad()
    def predictions(self) -> tuple[list[Boxes], list[Tensor], list[Tensor]]:
        """Of each level, anchors, logits (N, A*K, Hi, Wi) and deltas (N, A*4, Hi, Wi) of the batch;
        not of torchvision."""
        model = self.model.train()
        names = getattr(model, "head_in_features", None) or model.in_features
        with self.autocast(of_all=True):
            features = model.backbone(model.preprocess_image(self.batch).tensor)
            features = [features[name] for name in names]
            logits, deltas = model.head(features)
        return model.anchor_generator(features), logits, deltas

    def losses(self) -> Callable[[], None]:
        """A function that computes both losses of given predictions, forward and backward."""
        model, instances = self.model, [x["instances"] for x in self.batch]
        anchors, logits, deltas = self.predictions()
        labels, boxes = model.label_anchors(anchors, instances)

        def run() -> None:
            # As each model's forward views (N, A*K, Hi, Wi): stock copies, this package does not.
            leaves = [[x.detach().requires_grad_() for x in levels] for levels in (logits, deltas)]
            if self.kind == STOCK:
                pred_logits = [permute_to_N_HWA_K(x, model.num_classes) for x in leaves[0]]
                pred_deltas = [permute_to_N_HWA_K(x, 4) for x in leaves[1]]
                arguments = anchors, pred_logits, labels, pred_deltas, boxes
            else:
                predictions = Predictions.of_head(leaves, model.num_classes)
                arguments = anchors, predictions, Targets(labels, boxes)
            with self.autocast(), EventStorage():
                losses = model.losses(*arguments)
            sum(losses.values()).backward()

        return run

    def matching(self) -> Callable[[], Any]:
        """A function that labels the batch's anchors."""
        height, width = self.workload.image_size
        shapes = [(-(-height // s), -(-width // s)) for s in (8, 16, 32, 64, 128)]
        device = self.workload.device
        features = [torch.zeros(1, 1, *shape, device=device) for shape in shapes]
        anchors = self.model.anchor_generator(features)
        instances = [x["instances"] for x in self.batch]
        return functools.partial(self.model.label_anchors, anchors, instances)


class _HeadDone(Exception):
    """Ends a forward behind the head."""

    def __init__(self, outputs: Any) -> None:
        self.outputs = outputs


def make_batch(workload: Workload) -> list[dict[str, Any]]:
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


def make_train_step(name: str, workload: Workload) -> Callable[[], None]:
    return Subject(name, workload).train_step


def make_infer(name: str, workload: Workload) -> Callable[[], Any]:
    return Subject(name, workload).infer


def make_losses(name: str, workload: Workload) -> Callable[[], None]:
    return Subject(name, workload).losses()


def make_matching(name: str, workload: Workload) -> Callable[[], Any]:
    return Subject(name, workload).matching()


def _has_graphs(cfg: CfgNode) -> bool:
    return cfg.MODEL.RETINANET.CUDA_GRAPH and cfg.MODEL.META_ARCHITECTURE == "ModularRetinaNet"


@torch.no_grad()
def make_like_trained(model: nn.Module) -> None:
    """Random statistics of frozen batch norms that keep activations moderate.

    New ones do nothing, activations grow from layer to layer, and half of all scores are 1.
    """
    for module in model.modules():
        if isinstance(module, (FrozenBatchNorm2d, torchvision.ops.FrozenBatchNorm2d)):
            module.running_var.uniform_(0.5, 2)
            module.weight.uniform_(0.3, 0.8)
            module.bias.normal_(0, 0.3)


def _torchvision(workload: Workload) -> nn.Module:
    model = torchvision.models.detection.retinanet_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=workload.num_classes,
        min_size=min(workload.image_size), max_size=max(workload.image_size),
    )  # fmt: skip
    # As Detectron2 has it, the stem and the first stage are not trained.
    for part in (model.backbone.body.conv1, model.backbone.body.layer1):
        part.requires_grad_(False)
    return model.to(workload.device)


def _to_torchvision(batch: list[dict[str, Any]]) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    images = [x["image"].float() / 255 for x in batch]
    targets = [
        {"boxes": x["instances"].gt_boxes.tensor, "labels": x["instances"].gt_classes}
        for x in batch
    ]
    return images, targets
