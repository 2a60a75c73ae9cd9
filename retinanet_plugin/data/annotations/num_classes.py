"""The number of classes, where the config leaves it out."""

import logging
from collections.abc import Sequence

from detectron2.config import CfgNode

from ...config import is_set
from ...errors import UserError
from ..checks import num_classes_of

NUM_CLASSES_KEY = "MODEL.RETINANET.NUM_CLASSES"
logger = logging.getLogger("detectron2.config")


def take_num_classes(cfg: CfgNode, config_file: str, opts: Sequence[str]) -> int | None:
    """Set ``MODEL.RETINANET.NUM_CLASSES`` to what the data have, unless it was given; and say so.

    Args:
        cfg: of ``load_config(config_file, opts)``, its data sets registered. It is changed.

    Returns:
        the number that was taken; None: it was given, or the data do not tell.
    """
    if is_set(NUM_CLASSES_KEY, config_file, opts):
        return None
    try:
        found = num_classes_of(cfg)
    except UserError:  # of the data: their check is what says it
        return None
    if found is None:
        return None
    num_classes, name = found
    cfg.MODEL.RETINANET.NUM_CLASSES = num_classes
    logger.info(
        f"{NUM_CLASSES_KEY} is left out of the config: {num_classes}, the categories of {name}"
    )
    return num_classes
