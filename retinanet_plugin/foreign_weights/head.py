"""Heads: how many classes and anchors weights are for, and anchors in Detectron2's order."""

from collections.abc import Sequence

from torch import Tensor

from ..errors import UserError

CLASS_HEAD, BOX_HEAD = "head.cls_score.", "head.bbox_pred."
# Both programs take three scales and three ratios, and put anchors of one ratio side by side;
# Detectron2 those of one scale.
_SCALES = _RATIOS = 3


def count_classes(weights: dict[str, Tensor], source: str) -> int:
    """K of a head.

    Args:
        weights: under this package's names.
        source: what names the file, for errors.

    Raises:
        UserError: a part is missing, there are no classes, or other anchors than 9 at a location.
    """
    for name in (f"{head}{x}" for head in (CLASS_HEAD, BOX_HEAD) for x in ("weight", "bias")):
        if name not in weights:
            raise UserError(f"{source} has nothing for {name}: give the weights of a whole model")
    outputs, box_outputs = len(weights[f"{CLASS_HEAD}weight"]), len(weights[f"{BOX_HEAD}weight"])
    if outputs == 0:
        raise UserError(f"{source} has a head for 0 classes: take the weights of a trained model")
    if box_outputs != 4 * _SCALES * _RATIOS or outputs % (_SCALES * _RATIOS):
        raise UserError(
            f"{source} has {box_outputs / 4:g} anchors at a location ({outputs} class scores), and "
            "only models with the usual 9, three sizes in three shapes, are translated"
        )
    return outputs // (_SCALES * _RATIOS)


def reorder_anchors(
    weights: dict[str, Tensor], num_classes: int, kept: Sequence[int] | None = None
) -> None:
    """Put the outputs of the head in Detectron2's order.

    Args:
        weights: under this package's names, changed.
        num_classes: K of these weights.
        kept: the classes to keep, in their new order; None: all.
    """
    classes = list(range(num_classes) if kept is None else kept)
    for prefix, size, rows in ((CLASS_HEAD, num_classes, classes), (BOX_HEAD, 4, list(range(4)))):
        for name in (f"{prefix}weight", f"{prefix}bias"):
            x = weights[name]
            grouped = x.view(_RATIOS, _SCALES, size, *x.shape[1:]).transpose(0, 1)
            weights[name] = grouped[:, :, rows].reshape(-1, *x.shape[1:])
