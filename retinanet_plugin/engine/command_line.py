"""The command line of ``train_net.py``: its options, and the config they make."""

import argparse
import logging
import os

from detectron2.config import CfgNode
from detectron2.engine import default_argument_parser, default_setup
from detectron2.utils import comm

from ..config import load_config
from ..data.annotations.coco_json import register_coco_json
from ..data.annotations.num_classes import NUM_CLASSES_KEY, take_num_classes
from ..whole_files import write_whole_file
from .checks.startup_log import log_on_console
from .console_log import set_up_console

logger = logging.getLogger("detectron2.trainer")


def argument_parser() -> argparse.ArgumentParser:
    """Detectron2's options, with ``--opts KEY VALUE ...`` beside its trailing ``KEY VALUE``."""
    parser = default_argument_parser()
    parser.add_argument(
        "--opts",
        dest="more_opts",
        nargs="...",
        default=[],
        metavar="KEY VALUE",
        help="config options; write them last",
    )
    return parser


def set_up(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Detectron2's ``default_setup``, of which ``log.txt`` has all and the console a line.

    An evaluation leaves a training's ``config.yaml`` as it is.

    Args:
        cfg: of :func:`setup_config`.
        args: of :func:`argument_parser`.
    """
    path, kept = os.path.join(cfg.OUTPUT_DIR, "config.yaml"), None
    if args.eval_only and comm.is_main_process() and os.path.isfile(path):
        with open(path, "rb") as file:
            kept = file.read()
    set_up_console(cfg.OUTPUT_DIR)
    default_setup(cfg, args)
    logger.info(
        f"the log, with config and model in full: {os.path.join(cfg.OUTPUT_DIR, 'log.txt')}"
    )
    if kept is not None:
        write_whole_file(path, lambda file: file.write(kept))


def setup_config(args: argparse.Namespace) -> CfgNode:
    """Read the config and register its data sets; returns it frozen.

    Args:
        args: of :func:`argument_parser`. A number of classes that is taken from the data becomes
            one of its options, so that every process has it without reading them.

    Raises:
        UserError: see :func:`retinanet_plugin.config.load_config`.
    """
    opts = [option for option in [*(args.opts or []), *args.more_opts] if option != "--opts"]
    with log_on_console():
        cfg = load_config(args.config_file, opts)
        register_coco_json(cfg.DATASETS.COCO_JSON)
        num_classes = take_num_classes(cfg, args.config_file, opts)
    if num_classes is not None:
        args.more_opts = [*args.more_opts, NUM_CLASSES_KEY, str(num_classes)]
    cfg.freeze()
    return cfg
