"""Options that several commands have."""

import argparse
import os

from detectron2.config import CfgNode

from ..config import load_config
from ..data.annotations.coco_json import register_coco_json
from ..data.annotations.num_classes import take_num_classes
from ..engine.checks.startup_log import log_on_console
from ..errors import UserError


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """``--config-file FILE`` and ``--opts KEY VALUE ...``."""
    parser.add_argument("--config-file", required=True, metavar="FILE", help="path to config file")
    add_opts(parser)


def add_opts(parser: argparse.ArgumentParser) -> None:
    """``--opts KEY VALUE ...``."""
    help_ = "config options; write them last"
    parser.add_argument("--opts", nargs="...", default=[], metavar="KEY VALUE", help=help_)


def read_config(args: argparse.Namespace) -> CfgNode:
    """The config of :func:`add_config_arguments`, its data sets registered and classes counted.

    Raises:
        UserError: see :func:`retinanet_plugin.config.load_config`.
    """
    with log_on_console():
        cfg = load_config(args.config_file, args.opts)
        register_coco_json(cfg.DATASETS.COCO_JSON)
        take_num_classes(cfg, args.config_file, args.opts)
    return cfg


def check_mostly_readable(num_bad: int, num_images: int) -> None:
    """Refuse ``--images`` of which more than half cannot be read, all of which were told.

    Raises:
        UserError: something else is wrong than a few damaged files.
    """
    if 2 * num_bad > num_images:
        raise UserError(
            f"{num_bad:,} of {num_images:,} images of --images cannot be read (see the warnings): "
            "replace the files, or name another folder"
        )


def natural_number(text: str) -> int:
    """The type of an option that counts: 0, 1, ..."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a natural number")
    return int(text)


def positive_number(text: str) -> int:
    """The type of an option that counts: 1, 2, ..."""
    if natural_number(text) == 0:
        raise argparse.ArgumentTypeError("0 is too few")
    return int(text)


def share(text: str) -> float:
    """The type of an option from 0 to 1."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1")
    return value


def shown_path(path: str) -> str:
    """A path as a person in the current folder would write it."""
    relative = os.path.relpath(path)
    return path if relative.startswith(os.pardir) else relative
