"""Alpha, the weight of foreground entries: one number, or one for each class."""

import numbers
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
    return check_alpha(list(per_class))


def check_alpha(
    alpha: float | Sequence[float] | str, name: str = ONE
) -> float | list[float] | str | None:
    """Alpha as a number, a list of numbers or "auto"; None, no balancing, for a negative number.

    Args:
        alpha: as :class:`retinanet_plugin.losses.SigmoidLoss` takes it.
        name (str): of one number, for the message.

    Raises:
        UserError: a number is above 1 or not a number, or one of a list is not from 0 to 1.
    """
    if alpha == AUTO:
        return AUTO
    if isinstance(alpha, Sequence) and not isinstance(alpha, str):
        for value in alpha:
            if not isinstance(value, numbers.Real) or not 0 <= value <= 1:
                raise UserError(f"{PER_CLASS} has the value {value!r}: choose numbers from 0 to 1")
        return [float(value) for value in alpha]
    if not isinstance(alpha, numbers.Real) or not alpha <= 1:
        raise UserError(
            f"{name} is {alpha}: choose a number from 0 to 1, or a negative one for no balancing"
        )
    return None if alpha < 0 else float(alpha)
