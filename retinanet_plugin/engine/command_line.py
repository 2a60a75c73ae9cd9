"""The command line of ``train_net.py``: its options, the config they make, and its errors."""

import argparse
import contextlib
import sys
from collections.abc import Iterator

from detectron2.config import CfgNode
from detectron2.engine import default_argument_parser

from ..config import load_config
from ..data.coco_json import register_coco_json
from ..errors import UserError


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


def setup_config(args: argparse.Namespace) -> CfgNode:
    """Read the config and register its data sets; returns it frozen.

    Args:
        args: of :func:`argument_parser`.

    Raises:
        UserError: see :func:`retinanet_plugin.config.load_config`.
    """
    opts = [option for option in [*(args.opts or []), *args.more_opts] if option != "--opts"]
    cfg = load_config(args.config_file, opts)
    register_coco_json(cfg.DATASETS.COCO_JSON)
    cfg.freeze()
    return cfg


@contextlib.contextmanager
def one_sentence_errors() -> Iterator[None]:
    """Print a :class:`UserError` as one line and exit with status 1, without a traceback."""
    try:
        yield
    except UserError as error:
        sys.exit(f"error: {error}")
