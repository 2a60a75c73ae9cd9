"""Training steps as CUDA graphs: one launch for all kernels of a forward, one for a backward."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from detectron2.config import CfgNode
from detectron2.structures import Boxes
from torch import Tensor, nn

from ..errors import UserError
from ..losses.reduction import LOSS_NAMES
from ..matching import padded_regions, padded_truth

if TYPE_CHECKING:
    from ..meta_arch import ModularRetinaNet

# Shapes of input that are captured; each graph keeps the memory of a whole step.
MAX_GRAPHS = 4
_PROBLEM = "MODEL.RETINANET.CUDA_GRAPH is True but "


def check_cuda_graphs(cfg: CfgNode, num_processes: int) -> None:
    """Refuse ``MODEL.RETINANET.CUDA_GRAPH`` where no graph can be captured.

    Raises:
        UserError: the device is not CUDA, or there are several processes.
    """
    if not cfg.MODEL.RETINANET.CUDA_GRAPH:
        return
    if not cfg.MODEL.DEVICE.startswith("cuda"):
        raise UserError(
            f"{_PROBLEM}MODEL.DEVICE is {cfg.MODEL.DEVICE}: set MODEL.DEVICE cuda, or CUDA_GRAPH "
            "False"
        )
    if num_processes > 1:
        raise UserError(
            f"{_PROBLEM}{num_processes} processes train together, whose gradients graphs do not "
            "exchange: train with --num-gpus 1, or set CUDA_GRAPH False"
        )


class TrainingStep(nn.Module):
    """``ModularRetinaNet.forward`` in training as a function of tensors alone, in fixed shapes."""

    def __init__(self, model: "ModularRetinaNet") -> None:
        super().__init__()
        self.model: Any = model
        # Of images of one size, made by the first call, which warms up: later ones read them.
        self.anchors: list[Boxes] | None = None

    def forward(
        self,
        images: Tensor,
        gt_boxes: Tensor,
        gt_classes: Tensor,
        ignore_boxes: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """
        Args:
            images (Tensor): (N, 3, H, W), normalised and padded, of one size in all calls.
            gt_boxes, gt_classes (Tensor): (N, M, 4) and (N, M), as
                :func:`retinanet_plugin.matching.padded_truth` makes them.
            ignore_boxes (Tensor or None): (N, I, 4), of
                :func:`retinanet_plugin.matching.padded_regions`; None: no image has a region to
                ignore.

        Returns:
            tuple[Tensor, ...]: the losses in the order of ``LOSS_NAMES``.
        """
        model = self.model
        features, predictions = model.backbone_and_head(images)
        if self.anchors is None:
            self.anchors = model.anchor_generator(features)
        targets = model.matcher.match_padded(self.anchors, gt_boxes, gt_classes)
        regions = [] if ignore_boxes is None else list(ignore_boxes)
        gt_labels = model.without_ignored(targets.gt_labels, self.anchors, regions)
        losses = model.losses(self.anchors, predictions, targets._replace(gt_labels=gt_labels))
        return tuple(losses[name] for name in LOSS_NAMES if name in losses)


class CudaGraphs(nn.Module):
    """A ``ModularRetinaNet`` whose training steps are captured for the first shapes of input and
    then replayed; everything else is left to it.

    A graph is captured for each shape of a batch (N, H, W), number of padded boxes and of padded
    regions to ignore, and type of autocast: the first four. Other batches, those of pictures and
    those without gradients, run without a graph and with the same results; so this pays where
    images have one size or a few. ``num_pos_anchors`` is not logged. Limits, of
    ``torch.cuda.make_graphed_callables`` and of graphs as such:

    - One process: that function wants to capture before the model is wrapped for several, and here
      shapes are known only later.
    - Parameters keep their memory: weights may be changed or loaded in place, but not be moved,
      replaced, or frozen once training has begun.
    - Gradients are not accumulated: a replay writes over those of the last one, which
      ``Parameter.grad`` may be (github.com/pytorch/pytorch/issues/181723). Backward refuses to run
      where a parameter has a gradient still; ``zero_grad()`` sets them to None.
    - The backward of a batch comes before the forward of the next one, at most once.
    - Parts must not wait for the GPU: backbones and heads of one's own cannot be checked before
      the capture, which fails then. Module hooks inside the model run in a capture only.
    - Each graph has the memory of a whole step for itself. Autocast cannot keep converted weights
      for a second use in the step.
    """

    def __init__(
        self, model: "ModularRetinaNet", capture: Callable = torch.cuda.make_graphed_callables
    ) -> None:
        """
        Args:
            model (ModularRetinaNet): whose matcher and losses have ``fixed_shapes``: no operation
                of theirs waits for values or has a shape that depends on them. The matcher then has
                ``match_padded``, as ``IoUMatcher`` does.
            capture (callable): called as ``make_graphed_callables``; another one serves tests.

        Raises:
            UserError: a part cannot be captured.
        """
        super().__init__()
        for part in (model.matcher, model.cls_loss, model.box_loss):
            if not getattr(part, "fixed_shapes", False):
                raise UserError(
                    f"{_PROBLEM}a graph cannot hold {type(part).__name__}, in which shapes depend "
                    "on the data: choose another part, or set CUDA_GRAPH False"
                )
        self.model: Any = model
        self._capture = capture
        self._steps: dict[tuple, Callable] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_steps": {}}  # a copied or loaded model captures its own

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
        """Arguments and results as :meth:`retinanet_plugin.ModularRetinaNet.forward` has."""
        model = self.model
        if not model.training or not torch.is_grad_enabled() or model.draws():
            return model(batched_inputs)
        images = model.preprocess_image(batched_inputs).tensor
        truth = padded_truth(model.ground_truth(batched_inputs))
        regions = model.regions_to_ignore(batched_inputs)
        losses = self._step(images, *truth, *([padded_regions(regions)] if regions else []))
        return dict(zip(LOSS_NAMES, losses))

    def _step(self, *batch: Tensor) -> list[Tensor]:
        device = batch[0].device.type
        autocast = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
        key = (*(x.shape for x in batch), *autocast)
        if key not in self._steps:
            if len(self._steps) == MAX_GRAPHS:
                return list(TrainingStep(self.model)(*batch))
            # Weights that the cache holds would be converted once and not in every replay.
            with torch.autocast(
                device, enabled=autocast[0], dtype=autocast[1], cache_enabled=False
            ):
                self._steps[key] = self._captured(batch)
        # Copies, since the next replay writes over the results.
        losses = [loss.clone() for loss in self._steps[key](*batch)]
        for loss in losses:
            loss.register_hook(lambda _: _refuse_old_gradients(self.model))
        return losses

    def _captured(self, batch: tuple[Tensor, ...]) -> Callable:
        # Warming up runs whole steps, which change the moving average and batch norm's statistics.
        before = [(buffer, buffer.clone()) for buffer in self.model.buffers()]
        step = self._capture(
            TrainingStep(self.model), tuple(x.clone() for x in batch), allow_unused_input=True
        )
        for buffer, value in before:
            buffer.copy_(value)
        return step


def _refuse_old_gradients(model: nn.Module) -> None:
    if any(parameter.grad is not None for parameter in model.parameters()):
        raise RuntimeError(
            "a parameter has a gradient before backward, which a CUDA graph would write over: "
            "call optimizer.zero_grad(set_to_none=True) in every step, or set "
            "MODEL.RETINANET.CUDA_GRAPH False"
        )
