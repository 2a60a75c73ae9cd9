"""Alpha, the weight of foreground entries: one number, or one for each class."""

from collections.abc import Sequence

from detectron2.config import CfgNode

from ..errors import UserError

# The value of FOCAL_LOSS_ALPHA_PER_CLASS that stands for alphas from the data set's class counts.
AUTO = "auto"

ONE = "MODEL.RETINANET.FOCAL_LOSS_ALPHA"
PER_CLASS = "MODEL.RETINANET.FOCAL_LOSS_ALPHA_PER_CLASS"


def alpha_from_config(cfg: CfgNode) -> float | list[float] | str:
    """``FOCAL_LOSS_ALPHA_PER_CLASS`` where that is set, else ``FOCAL_LOSS_ALPHA``.

    Returns:
        float or list[float] or "auto": as :class:`retinanet_plugin.losses.SigmoidLoss` takes it.

    Raises:
        UserError: neither a list of as many numbers from 0 to 1 as there are classes, nor "auto".
    """
    per_class = cfg.MODEL.RETINANET.FOCAL_LOSS_ALPHA_PER_CLASS
    num_classes = cfg.MODEL.RETINANET.NUM_CLASSES
    if per_class is None:
        return cfg.MODEL.RETINANET.FOCAL_LOSS_ALPHA
    if per_class == AUTO:
        return AUTO
    if not isinstance(per_class, (list, tuple)):
        raise UserError(
            f"{PER_CLASS} is {per_class!r}: write a list of {num_classes} numbers, or 'auto'"
        )
    if len(per_class) != num_classes:
        raise UserError(
            f"{PER_CLASS} has {len(per_class)} values but MODEL.RETINANET.NUM_CLASSES is "
            f"{num_classes}: give one value for each class"
        )
    return check_alphas(per_class)


def check_alpha(alpha: float, name: str = ONE) -> float | None:
    """``alpha``, or None, no balancing, for a negative number.

    Raises:
        UserError: it is above 1 or not a number; ``name`` says what is.
    """
    if not isinstance(alpha, (int, float)) or not alpha <= 1:
        raise UserError(
            f"{name} is {alpha}: choose a number from 0 to 1, or a negative one for no balancing"
        )
    return None if alpha < 0 else float(alpha)


def check_alphas(alphas: Sequence) -> list[float]:
    """One alpha for each class.

    Raises:
        UserError: one is not a number from 0 to 1.
    """
    for alpha in alphas:
        if not isinstance(alpha, (int, float)) or not 0 <= alpha <= 1:
            raise UserError(f"{PER_CLASS} has the value {alpha!r}: choose numbers from 0 to 1")
    return [float(alpha) for alpha in alphas]
