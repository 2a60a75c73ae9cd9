"""Alpha for each class from how often the training data show it."""

import logging

from detectron2.config import CfgNode
from detectron2.data import get_detection_dataset_dicts

from ..errors import UserError
from ..losses.alpha import AUTO


def resolve_auto_alpha(cfg: CfgNode) -> CfgNode:
    """Replace ``MODEL.RETINANET.FOCAL_LOSS_ALPHA_PER_CLASS auto`` by numbers, and log them.

    Args:
        cfg (CfgNode): not changed. Unless that key is "auto", no data are read.

    Returns:
        CfgNode: ``cfg``, or a copy with a list of K numbers, frozen as ``cfg`` is.

    Raises:
        UserError: see :func:`count_classes` and :func:`balanced_alphas`.
    """
    if cfg.MODEL.RETINANET.FOCAL_LOSS_ALPHA_PER_CLASS != AUTO:
        return cfg
    counts = count_classes(cfg)
    alphas = balanced_alphas(counts, cfg.MODEL.RETINANET.FOCAL_LOSS_ALPHA)
    alphas = [round(alpha, 6) for alpha in alphas]
    # Detectron2 prints loggers below its own name.
    logging.getLogger(f"detectron2.{__name__}").info(
        f"MODEL.RETINANET.FOCAL_LOSS_ALPHA_PER_CLASS auto is {alphas}, from {counts} boxes of the "
        f"classes in {', '.join(cfg.DATASETS.TRAIN)}"
    )
    resolved = cfg.clone()
    resolved.defrost()
    resolved.MODEL.RETINANET.FOCAL_LOSS_ALPHA_PER_CLASS = alphas
    if cfg.is_frozen():
        resolved.freeze()
    return resolved


def count_classes(cfg: CfgNode) -> list[int]:
    """How many boxes of each class ``DATASETS.TRAIN`` has, crowds not counted.

    Returns:
        list[int]: of each of the K classes.

    Raises:
        UserError: a box has a class that ``MODEL.RETINANET.NUM_CLASSES`` has no room for.
    """
    num_classes = cfg.MODEL.RETINANET.NUM_CLASSES
    counts = [0] * num_classes
    # Images without annotations change no count; with them, a set without any is no error.
    for image in get_detection_dataset_dicts(cfg.DATASETS.TRAIN, filter_empty=False):
        for annotation in image.get("annotations", ()):
            class_id = annotation["category_id"]
            if not 0 <= class_id < num_classes:
                raise UserError(
                    f"{image['file_name']} has a box of class {class_id} (counted from 0) but "
                    f"MODEL.RETINANET.NUM_CLASSES is {num_classes}: correct that key or the data"
                )
            counts[class_id] += not annotation.get("iscrowd", 0)
    return counts


def balanced_alphas(class_counts: list[int], alpha: float) -> list[float]:
    """Alphas that are the larger, the rarer a class is.

    The odds alpha_c / (1 - alpha_c) of class c are those of ``alpha`` times mean count / count of
    c: inverse class frequency (arXiv 1708.02002, section 3.1), so that the foreground of every
    class weighs as much in sum, next to its background, as that of an average class. Classes of
    equal counts all get ``alpha``. A class without examples has nothing to balance: it gets
    ``alpha`` and does not count in the mean.

    Args:
        class_counts: examples of each class.
        alpha: of a class with an average number of examples, in (0, 1).

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
