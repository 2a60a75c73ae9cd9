"""Loading weights into a model."""

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from torch import nn

from ..errors import UserError
from .changed_config import changed_model
from .checkpoint_contents import class_names_of, other_pixels
from .timm_weights import with_names_of_model
from .weight_files import read_weights
from .weight_report import WeightReport


def load_weights(
    model: nn.Module, checkpoint: dict[str, Any], source: str, path: str, cfg: CfgNode | None
) -> WeightReport:
    """Load what was read from a file, and say nothing.

    Args:
        checkpoint: of :func:`read_weights`; its ``model`` may get other names.
        source: what names the file, for the report and errors.
        path: of the file.
        cfg: what the model was built from; None: unknown.

    Returns:
        what came of it.

    Raises:
        UserError: they fit in more ways than one, or were trained on other pixels.
    """
    checkpoint["model"] = with_names_of_model(checkpoint["model"], model, cfg, path)
    pixels = other_pixels(checkpoint, cfg) if cfg else []
    # Of these loggers, a line for each name; the report has the names in short.
    with _silent("detectron2.checkpoint.c2_model_loading", "fvcore.common.checkpoint"):
        try:
            incompatible = DetectionCheckpointer(model)._load_model(checkpoint)
        except (ValueError, TypeError, AssertionError, LookupError) as error:
            raise UserError(
                f"{source} cannot be matched with the model's names ({error}): give "
                "weights of this model or of its backbone"
            ) from error
    class_names = checkpoint.get("class_names") or ()
    return WeightReport.of(source, model, incompatible, class_names, _data_classes(cfg), pixels)


def load_all_weights(cfg: CfgNode, model: nn.Module) -> None:
    """Load ``MODEL.WEIGHTS``, which are to be weights of all of ``model``, the model of ``cfg``.

    Raises:
        UserError: the file cannot be read, or see :class:`WeightReport`.
    """
    path, source = cfg.MODEL.WEIGHTS, f"MODEL.WEIGHTS {cfg.MODEL.WEIGHTS}"
    checkpoint = read_weights(path)
    report = load_weights(model, checkpoint, source, path, cfg)
    report.refuse_unless_it_fits(changed_model(checkpoint.get("config"), cfg))


def _data_classes(cfg: CfgNode | None) -> list[str]:
    if cfg is None:
        return []
    # An evaluation does not read DATASETS.TRAIN, which may be any by then.
    return class_names_of(cfg.DATASETS.TEST or cfg.DATASETS.TRAIN)


@contextlib.contextmanager
def _silent(*names: str) -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in names]
    for each in loggers:
        each.disabled = True
    try:
        yield
    finally:
        for each in loggers:
            each.disabled = False
