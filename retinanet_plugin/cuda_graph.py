"""Training steps as CUDA graphs: one launch for all kernels of a forward, one for a backward."""

import torch
from detectron2.utils import comm
from torch import nn

from .errors import UserError

# Shapes of input that are captured; each graph keeps the memory of a whole step.
MOST_GRAPHS = 4


def build_cuda_graphs(cfg, parts):
    """``CudaGraphs`` if ``MODEL.RETINANET.CUDA_GRAPH`` asks for them, else None.

    Args:
        cfg (CfgNode): the model's.
        parts (iterable[nn.Module]): matcher and losses. Those that a graph can hold have a true
            attribute ``static``: none of their operations waits for values or has a shape that
            depends on them. A matcher then has ``match_padded``, as ``IoUMatcher`` does.

    Raises:
        UserError: the device is not CUDA, there are several processes, PyTorch is too old, or a
            part cannot be captured.
    """
    if not cfg.MODEL.RETINANET.CUDA_GRAPH:
        return None
    problem = "MODEL.RETINANET.CUDA_GRAPH is True but "
    if not cfg.MODEL.DEVICE.startswith("cuda"):
        raise UserError(
            f"{problem}MODEL.DEVICE is {cfg.MODEL.DEVICE}: set MODEL.DEVICE cuda, or CUDA_GRAPH "
            "False"
        )
    if comm.get_world_size() > 1:
        raise UserError(
            f"{problem}{comm.get_world_size()} processes train together, whose gradients graphs do "
            "not exchange: train with --num-gpus 1, or set CUDA_GRAPH False"
        )
    if not hasattr(torch, "get_autocast_dtype"):
        raise UserError(
            f"{problem}PyTorch is {torch.__version__}: update it to 2.4, or set CUDA_GRAPH False"
        )
    for part in parts:
        if not getattr(part, "static", False):
            raise UserError(
                f"{problem}a graph cannot hold {type(part).__name__}, in which shapes depend on "
                "the data: choose another part, or set CUDA_GRAPH False"
            )
    return CudaGraphs()


class TrainingStep(nn.Module):
    """A training step of ``ModularRetinaNet`` as a function of tensors alone, in fixed shapes."""

    def __init__(self, model):
        super().__init__()
        self.model = model
        # Of images of one size, made by the first call, which warms up: later ones read them.
        self.anchors = None

    def forward(self, images, gt_boxes, gt_classes):
        """
        Args:
            images (Tensor): (N, 3, H, W), normalised and padded, of one size in all calls.
            gt_boxes, gt_classes (Tensor): (N, M, 4) and (N, M), as
                :func:`retinanet_plugin.matching.padded_truth` makes them.

        Returns:
            tuple[Tensor, Tensor, Tensor]: as ``ModularRetinaNet.scaled_losses``.
        """
        self.anchors, pred_logits, pred_anchor_deltas = self.model.predict(images, self.anchors)
        gt_labels, matched_gt_boxes = self.model.matcher.match_padded(
            self.anchors, gt_boxes, gt_classes
        )
        return self.model.scaled_losses(
            self.anchors, pred_logits, gt_labels, pred_anchor_deltas, matched_gt_boxes, masked=True
        )


class CudaGraphs:
    """Training steps of a model, captured for the first shapes of input and then replayed.

    A graph is captured for each shape of a batch (N, H, W), number of padded boxes and type of
    autocast: the first four. Other batches, and those without gradients, run without a graph and
    with the same results; so this pays where images have one size or a few. Limits, of
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

    def __init__(self, capture=torch.cuda.make_graphed_callables):
        """``capture`` is called as ``make_graphed_callables``; another one serves tests."""
        self._capture = capture
        self._steps = {}

    def __reduce__(self):
        return CudaGraphs, (self._capture,)  # a copied or loaded model captures its own

    def __call__(self, model, images, gt_boxes, gt_classes):
        """Run the step of ``model``; arguments and results as :meth:`TrainingStep.forward`."""
        batch = images, gt_boxes, gt_classes
        if not torch.is_grad_enabled():
            return TrainingStep(model)(*batch)
        device = images.device.type
        autocast = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
        key = (*images.shape, gt_boxes.shape[1], *autocast)
        if key not in self._steps:
            if len(self._steps) == MOST_GRAPHS:
                return TrainingStep(model)(*batch)
            # Weights that the cache holds would be converted once and not in every replay.
            with torch.autocast(
                device, enabled=autocast[0], dtype=autocast[1], cache_enabled=False
            ):
                self._steps[key] = self._captured(model, batch)
        # Copies, since the next replay writes over the results.
        loss_cls, loss_box_reg, num_pos_anchors = (x.clone() for x in self._steps[key](*batch))
        for loss in (loss_cls, loss_box_reg):
            loss.register_hook(lambda _: _refuse_old_gradients(model))
        return loss_cls, loss_box_reg, num_pos_anchors

    def _captured(self, model, batch):
        # Warming up runs whole steps, which change the moving average and batch norm's statistics.
        before = [(buffer, buffer.clone()) for buffer in model.buffers()]
        step = self._capture(
            TrainingStep(model), tuple(x.clone() for x in batch), allow_unused_input=True
        )
        for buffer, value in before:
            buffer.copy_(value)
        return step


def _refuse_old_gradients(model):
    if any(parameter.grad is not None for parameter in model.parameters()):
        raise RuntimeError(
            "a parameter has a gradient before backward, which a CUDA graph would write over: "
            "call optimizer.zero_grad(set_to_none=True) in every step, or set "
            "MODEL.RETINANET.CUDA_GRAPH False"
        )
