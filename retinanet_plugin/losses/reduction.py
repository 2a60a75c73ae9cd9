"""From what a classification loss is given to one number, and what losses are divided by."""

from detectron2.structures import Boxes
from torch import Tensor, nn

from ..errors import UserError, described

# Foreground anchors of a batch before any was seen, as in Detectron2's RetinaNet.
FIRST_LOSS_NORMALIZER = 100.0
_NEW_SHARE = 0.1  # of a batch in the moving average, as there


def class_loss_of_levels(
    cls_loss: nn.Module, pred_logits: list[Tensor], gt_labels: Tensor, anchors: list[Boxes]
) -> Tensor:
    """The classification loss, summed over all anchors of a batch.

    Args:
        cls_loss: see :class:`retinanet_plugin.losses.FocalLoss`.
        pred_logits: of each level, (N, Hi, Wi, A, K).
        gt_labels: (N, R).
        anchors: of each level, Hi*Wi*A anchors.

    Raises:
        UserError: ``cls_loss``, which others can write, returns no scalar.
    """
    levels = gt_labels.split([len(boxes) for boxes in anchors], dim=1)
    labels = [level.reshape(logits.shape[:-1]) for level, logits in zip(levels, pred_logits)]
    loss = cls_loss(pred_logits, labels, anchors)
    if not isinstance(loss, Tensor) or loss.dim():
        raise UserError(
            f"{type(cls_loss).__name__} returns {described(loss)}: return the sum over all "
            "anchors, a scalar"
        )
    return loss


def next_loss_normalizer(average: Tensor, num_foreground: Tensor) -> Tensor:
    """The moving average of the number of foreground anchors of a batch, with one more batch.

    Args:
        average: (), of the batches before.
        num_foreground: (), of this batch; none count as one.
    """
    return average.lerp(num_foreground.clamp(min=1).to(average), _NEW_SHARE)
