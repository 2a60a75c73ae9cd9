"""Alpha, the weight of foreground entries: one number, or one for each class."""

from ..errors import UserError

# The value of FOCAL_LOSS_ALPHA_PER_CLASS that stands for alphas from the data set's class counts.
AUTO = "auto"


def alpha_from_config(cfg):
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
    key = "MODEL.RETINANET.FOCAL_LOSS_ALPHA_PER_CLASS"
    if not isinstance(per_class, (list, tuple)):
        raise UserError(f"{key} is {per_class!r}: write a list of {num_classes} numbers, or 'auto'")
    if len(per_class) != num_classes:
        raise UserError(
            f"{key} has {len(per_class)} values but MODEL.RETINANET.NUM_CLASSES is {num_classes}: "
            "give one value for each class"
        )
    for alpha in per_class:
        if not isinstance(alpha, (int, float)) or not 0 <= alpha <= 1:
            raise UserError(f"{key} has the value {alpha!r}: choose numbers from 0 to 1")
    return [float(alpha) for alpha in per_class]


def balanced_alphas(class_counts, alpha):
    """Alphas that are the larger, the rarer a class is.

    The odds alpha_c / (1 - alpha_c) of class c are those of ``alpha`` times mean count / count of
    c: inverse class frequency (arXiv 1708.02002, section 3.1), so that the foreground of every
    class weighs as much in sum, next to its background, as that of an average class. Classes of
    equal counts all get ``alpha``. A class without examples has nothing to balance: it gets
    ``alpha`` and does not count in the mean.

    Args:
        class_counts (list[int]): examples of each class.
        alpha (float): of a class with an average number of examples, in (0, 1).

    Returns:
        list[float]: one alpha in (0, 1) for each class.

    Raises:
        UserError: alpha is not between 0 and 1.
    """
    if not 0 < alpha < 1:
        raise UserError(
            f"MODEL.RETINANET.FOCAL_LOSS_ALPHA is {alpha}, which cannot be balanced for each "
            "class: with FOCAL_LOSS_ALPHA_PER_CLASS auto, choose a number between 0 and 1"
        )
    present = [count for count in class_counts if count > 0]
    odds = [
        alpha / (1 - alpha) * (sum(present) / len(present) / count if count > 0 else 1)
        for count in class_counts
    ]
    return [x / (1 + x) for x in odds]
