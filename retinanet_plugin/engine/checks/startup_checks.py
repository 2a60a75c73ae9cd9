"""What is checked before a model is trained or evaluated, so that a mistake costs seconds."""

import argparse
import logging
import os

from detectron2.config import CfgNode
from detectron2.utils.file_io import PathManager
from torch import nn

from ...data.checks import check_datasets
from ...data.images.image_files import check_image_files
from ...errors import UserError
from ...weights.building import check_model
from ...weights.changed_config import changed_model
from ...weights.weight_files import without_query
from ...weights.weight_report import FROM_RANDOM_WEIGHTS, frozen_weights
from ..checkpoints.checkpointer import Checkpointer
from ..checkpoints.earlier_checkpoints import (
    FoundCheckpoint,
    find_checkpoint,
    refuse_weights_of_earlier_training,
)
from ..checkpoints.file_names import FINAL_WEIGHTS
from ..output_lock import refuse_if_in_use
from .config_checks import check_values
from .device_checks import check_devices, check_processes, check_trained, num_processes
from .expected_results import check_expected_results
from .output_dir import check_output_dir
from .startup_log import log_on_console

logger = logging.getLogger("detectron2.checkpointer")


def check_before_training(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Find what would fail, or train something else than meant, before any long work starts.

    Args:
        cfg: of :func:`retinanet_plugin.engine.setup_config`.
        args: of :func:`retinanet_plugin.engine.argument_parser`.

    Raises:
        UserError: from the config, the devices, the data sets, the weights or the model.
    """
    with log_on_console():
        check_values(cfg, not args.eval_only, num_processes(args))
        check_devices(cfg, args)
        check_processes(cfg, args)
        check_output_dir(cfg.OUTPUT_DIR)
        if not args.eval_only:
            refuse_if_in_use(cfg.OUTPUT_DIR)
        model = check_model(cfg)
        if not args.eval_only:
            check_trained(cfg, model)
        datasets = check_datasets(cfg, args.eval_only)
        check_expected_results(cfg, datasets)
        check_image_files(datasets, cfg)
        # A run that is resumed reads its own checkpoint, wherever its first weights are by now.
        checkpoint = find_checkpoint(cfg.OUTPUT_DIR, quiet=True) if args.resume else None
        if args.resume and not checkpoint:
            logger.warning(
                f"--resume was given but OUTPUT_DIR {cfg.OUTPUT_DIR} has no checkpoint: "
                f"{'MODEL.WEIGHTS is evaluated' if args.eval_only else 'training starts anew'}; if "
                "that is not meant, correct OUTPUT_DIR"
            )
        if not checkpoint:
            check_weights(cfg.MODEL.WEIGHTS, required=args.eval_only)
        check_weights_fit(cfg, model, checkpoint, args.eval_only)
        if not checkpoint and not args.eval_only:
            refuse_weights_of_earlier_training(cfg.MODEL.WEIGHTS, cfg.OUTPUT_DIR)


def check_weights_fit(
    cfg: CfgNode, model: nn.Module, checkpoint: FoundCheckpoint | None, eval_only: bool
) -> None:
    """Refuse weights with which training or evaluation would not be what was meant.

    Args:
        cfg: with the data sets read, so that their classes are known.
        model: of ``cfg``, whose weights are lost.
        checkpoint: what a resumed run goes on from; None: it starts from ``MODEL.WEIGHTS``.
        eval_only: whether all of the model is to be in the file.

    Raises:
        UserError: the file cannot be read, or see :class:`WeightReport`.
    """
    if checkpoint:
        report, more = Checkpointer(model, cfg=cfg).load_model(checkpoint, "the checkpoint")
        report.refuse_unless_it_fits(changed_model(more.get("config"), cfg))
    elif cfg.MODEL.WEIGHTS:
        report, more = Checkpointer(model, cfg=cfg).load_model(cfg.MODEL.WEIGHTS)
        changed = changed_model(more.get("config"), cfg)
        report.refuse_unless_it_fits(changed) if eval_only else report.refuse_for_training(model)
    elif frozen_weights(model):
        raise UserError(
            "MODEL.WEIGHTS is empty, but layers are frozen (MODEL.BACKBONE.FREEZE_AT is "
            f"{cfg.MODEL.BACKBONE.FREEZE_AT}, MODEL.RESNETS.NORM {cfg.MODEL.RESNETS.NORM}) and "
            f"would stay as they are at random: set MODEL.WEIGHTS, or {FROM_RANDOM_WEIGHTS}"
        )


def check_weights(
    path: str,
    required: bool = False,
    key: str = "MODEL.WEIGHTS",
    without: str = FROM_RANDOM_WEIGHTS,
) -> None:
    """Refuse weights that are not there.

    Args:
        path: ``MODEL.WEIGHTS``; "" is none.
        required: whether none would be a mistake.
        key: what a user sets to the path.
        without: how to train without weights, in words.

    Raises:
        UserError: the file does not exist or cannot be fetched, or none is given but required.
    """
    if not path:
        if required:
            raise UserError(
                "MODEL.WEIGHTS is empty, which would evaluate random weights: set it to a trained "
                f"model, such as OUTPUT_DIR/{FINAL_WEIGHTS}"
            )
        return
    try:
        # Files of the web are fetched into the cache, once and not by every process.
        found = PathManager.isfile(PathManager.get_local_path(without_query(path)[0]))
    except OSError as error:
        raise UserError(
            f"{key} {path} cannot be fetched ({error}): download the file and set {key} to its "
            f"path, or {without}"
        ) from error
    if os.path.isdir(path):
        raise UserError(
            f"{key} {path} is a folder: name a file in it, such as {path}/{FINAL_WEIGHTS}"
        )
    if not found:
        raise UserError(f"the weights file {path} does not exist: correct {key}, or {without}")
