"""Online hard example mining: cross entropy on the anchors of an image with the highest loss."""

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import nms
from detectron2.structures import Boxes
from torch import Tensor

from ..errors import UserError
from .sigmoid_losses import CLS_LOSS_REGISTRY, CrossEntropyLoss
from .sigmoid_pass import dense_anchor_losses

# Anchors that are compared at once: bounds the memory of NMS, a bit for each pair on a GPU.
_BLOCK_SIZE = 1 << 14


@CLS_LOSS_REGISTRY.register()
class OHEMLoss(CrossEntropyLoss):
    """OHEM (Shrivastava et al., arXiv 1604.03540), as arXiv 1708.02002 compares it (section 5.1).

    Each anchor is scored by its cross entropy, summed over the classes; non-maximum suppression
    removes anchors that overlap a harder one; the hardest that are left are the minibatch, and
    the others are ignored. Optionally the minibatch has three background anchors for a foreground
    one, as in SSD (arXiv 1512.02325, section 2.2): the harder ones of each, and none at all from
    an image without foreground.

    Costs about twice :class:`CrossEntropyLoss`: one more pass over the logits, and a suppression
    that goes hardest first until the minibatch is full, after a few thousand anchors. Only
    ``one_to_three`` may have to go on to the easiest foreground anchor; where that is easier than
    all 201,600 anchors of an 800x1344 image, it takes as long as their whole suppression, about
    half a minute on a CPU core.
    """

    fixed_shapes = False

    @configurable
    def __init__(
        self,
        *,
        batch_size_per_image: int,
        nms_thresh: float,
        one_to_three: bool = False,
        triton: bool = True,
    ):
        """
        Args:
            batch_size_per_image: most anchors that an image gives to the minibatch.
            nms_thresh: IoU above which an anchor is suppressed, in (0, 1]; 1 suppresses
                nothing.
            one_to_three: at most a quarter of the batch size is foreground, and there are
                at most three times as many background as foreground anchors.
            triton: as in :class:`SigmoidLoss`, for the loss of the minibatch.

        Raises:
            UserError: a number is out of its range.
        """
        super().__init__(triton=triton)
        smallest = 4 if one_to_three else 1
        if batch_size_per_image < smallest:
            raise UserError(
                f"MODEL.RETINANET.OHEM_BATCH_SIZE_PER_IMAGE is {batch_size_per_image}: choose "
                f"{smallest} or more, such as the paper's 128, 256 or 512"
            )
        if not 0 < nms_thresh <= 1:
            raise UserError(
                f"MODEL.RETINANET.OHEM_NMS_THRESH is {nms_thresh}: choose a number above 0, up to "
                "1 (no suppression)"
            )
        self.batch_size_per_image = batch_size_per_image
        self.nms_thresh = nms_thresh
        self.one_to_three = one_to_three

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        return {
            **super().from_config(cfg),
            "batch_size_per_image": cfg.MODEL.RETINANET.OHEM_BATCH_SIZE_PER_IMAGE,
            "nms_thresh": cfg.MODEL.RETINANET.OHEM_NMS_THRESH,
            "one_to_three": cfg.MODEL.RETINANET.OHEM_ONE_TO_THREE,
        }

    def extra_repr(self) -> str:
        return (
            f"batch_size_per_image={self.batch_size_per_image}, nms_thresh={self.nms_thresh}, "
            f"one_to_three={self.one_to_three}"
        )

    def forward(
        self, pred_logits: list[Tensor], gt_labels: list[Tensor], anchors: list[Boxes] | None
    ) -> Tensor:
        """Arguments and result as in :meth:`SigmoidLoss.forward`."""
        return super().forward(pred_logits, self.mine(pred_logits, gt_labels, anchors), anchors)

    @torch.no_grad()
    def mine(
        self, pred_logits: list[Tensor], gt_labels: list[Tensor], anchors: list[Boxes] | None
    ) -> list[Tensor]:
        """Labels like ``gt_labels`` in which all anchors but the minibatch are ignored (-1)."""
        num_classes = pred_logits[0].shape[-1]
        losses = torch.cat(
            [
                dense_anchor_losses(logits, labels, self.loss_and_slope).flatten(1)
                for logits, labels in zip(pred_logits, gt_labels)
            ],
            dim=1,
        )
        labels = torch.cat([level.flatten(1) for level in gt_labels], dim=1)
        boxes = Boxes.cat(anchors).tensor
        mined = torch.full_like(labels, -1)
        for image_mined, image_losses, image_labels in zip(mined, losses, labels):
            valid = (image_labels >= 0).nonzero().squeeze(1)
            ranked = valid[image_losses[valid].argsort(descending=True)]
            chosen = ranked[self._choose(boxes[ranked], image_labels[ranked] < num_classes)]
            image_mined[chosen] = image_labels[chosen]
        mined = mined.split([labels[0].numel() for labels in gt_labels], dim=1)
        return [level.view(labels.shape) for level, labels in zip(mined, gt_labels)]

    def _choose(self, boxes: Tensor, is_foreground: Tensor) -> Tensor:
        """Indices (at most the batch size) into anchors (R, 4) that come hardest first.

        Whether an anchor survives depends on harder ones alone. So the survivors of the first
        blocks are the first survivors of all, and a block has to be compared with these and
        itself: stopping early changes nothing.
        """
        rank = torch.arange(len(boxes), device=boxes.device)
        survivors = chosen = rank[:0]
        start, block_size = 0, min(4 * self.batch_size_per_image, _BLOCK_SIZE)
        while start < len(boxes):
            stop = start + block_size
            block = torch.cat([survivors, rank[start:stop]])
            survivors = block[nms(boxes[block].float(), -block.float(), self.nms_thresh)]
            foreground_is_left = bool(is_foreground[stop:].any())
            chosen, is_full = self._fill(survivors, is_foreground[survivors], foreground_is_left)
            if is_full:
                break
            start, block_size = stop, min(2 * block_size, _BLOCK_SIZE)
        return chosen

    def _fill(
        self, survivors: Tensor, is_foreground: Tensor, foreground_is_left: bool
    ) -> tuple[Tensor, bool]:
        """The minibatch from the survivors known so far, and whether more cannot change it."""
        if not self.one_to_three:
            chosen = survivors[: self.batch_size_per_image]
            return chosen, len(chosen) == self.batch_size_per_image
        most_foreground = self.batch_size_per_image // 4
        foreground = survivors[is_foreground][:most_foreground]
        background = survivors[~is_foreground][: 3 * len(foreground)]
        foreground_is_full = len(foreground) == most_foreground or not foreground_is_left
        is_full = foreground_is_full and len(background) == 3 * len(foreground)
        return torch.cat([foreground, background]), is_full
