"""Detectron2's DefaultTrainer with evaluators, and everything that is checked before it starts."""

import contextlib
import os
import sys

import torch
from detectron2.engine import DefaultTrainer, default_argument_parser
from detectron2.evaluation import PascalVOCDetectionEvaluator
from detectron2.modeling import (
    ANCHOR_GENERATOR_REGISTRY,
    BACKBONE_REGISTRY,
    META_ARCH_REGISTRY,
)
from detectron2.utils.file_io import PathManager

from .compat import coco_evaluator
from .config import check_config, load_config
from .data.checks import check_datasets, check_evaluator_type
from .data.class_alphas import resolve_auto_alpha
from .data.coco_json import register_coco_json
from .errors import UserError, registered


class Trainer(DefaultTrainer):
    """Detectron2's trainer; evaluates in COCO's or Pascal VOC's way, as the data set asks."""

    def __init__(self, cfg):
        """
        Args:
            cfg (CfgNode): ``MODEL.RETINANET.FOCAL_LOSS_ALPHA_PER_CLASS auto`` becomes numbers here,
                from the training data, which evaluation does not need.
        """
        super().__init__(resolve_auto_alpha(cfg))

    @classmethod
    def build_evaluator(cls, cfg, dataset_name, output_folder=None):
        if check_evaluator_type(dataset_name) == "pascal_voc":
            return PascalVOCDetectionEvaluator(dataset_name)
        return coco_evaluator(
            dataset_name,
            output_folder or inference_folder(cfg, dataset_name),
            cfg.TEST.DETECTIONS_PER_IMAGE,
        )


def inference_folder(cfg, dataset_name):
    """Where the evaluation of a data set leaves its detections: ``coco_instances_results.json``."""
    return os.path.join(cfg.OUTPUT_DIR, "inference", dataset_name)


def argument_parser():
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


def setup_config(args):
    """Read the config, register its data sets; returns it frozen.

    Args:
        args (Namespace): of :func:`argument_parser`.

    Raises:
        UserError: see :func:`retinanet_plugin.config.load_config`.
    """
    opts = [option for option in [*(args.opts or []), *args.more_opts] if option != "--opts"]
    cfg = load_config(args.config_file, opts)
    register_coco_json(cfg.DATASETS.COCO_JSON)
    cfg.freeze()
    return cfg


def check_before_training(cfg, args):
    """Find what would fail, or train something else than meant, before any long work starts.

    Args:
        cfg (CfgNode): of :func:`setup_config`.
        args (Namespace): of :func:`argument_parser`.

    Raises:
        UserError: from the config, the devices, the data sets, the weights or the model.
    """
    check_config(cfg)
    _check_devices(cfg, args)
    check_datasets(cfg, args.eval_only)
    # A run that is resumed reads its own checkpoint, wherever its first weights are by now.
    resumes = args.resume and PathManager.isfile(os.path.join(cfg.OUTPUT_DIR, "last_checkpoint"))
    if not resumes:
        check_weights(cfg.MODEL.WEIGHTS, required=args.eval_only)
    check_model(cfg)


def check_model(cfg):
    """Build the model and drop it: that takes a second, and its parts say what does not fit.

    Raises:
        UserError: a part is not registered, or cannot be built with these keys.
    """
    model = cfg.MODEL
    build = registered(META_ARCH_REGISTRY, model.META_ARCHITECTURE, "MODEL.META_ARCHITECTURE")
    registered(BACKBONE_REGISTRY, model.BACKBONE.NAME, "MODEL.BACKBONE.NAME")
    anchor_generator = model.ANCHOR_GENERATOR.NAME
    registered(ANCHOR_GENERATOR_REGISTRY, anchor_generator, "MODEL.ANCHOR_GENERATOR.NAME")
    try:
        build(cfg)
    except UserError:
        raise
    except (AssertionError, KeyError, TypeError, ValueError, ArithmeticError) as error:
        # What Detectron2's own parts raise.
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}".rstrip(": ")
        raise UserError(
            f"the model cannot be built from the keys under MODEL ({reason}): correct them"
        ) from error


@contextlib.contextmanager
def one_sentence_errors():
    """Print a :class:`UserError` as one line and exit with status 1, without a traceback."""
    try:
        yield
    except UserError as error:
        sys.exit(f"error: {error}")


def _check_devices(cfg, args):
    num_gpus = args.num_gpus
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(
            f"MODEL.DEVICE is {cfg.MODEL.DEVICE} but PyTorch finds no CUDA device here: "
            "add --opts MODEL.DEVICE cpu, or install a PyTorch build that fits the GPU's driver"
        )
    if num_gpus > 1 and num_gpus > torch.cuda.device_count():
        raise UserError(
            f"--num-gpus is {num_gpus} but PyTorch finds {torch.cuda.device_count()} CUDA devices "
            "here: lower --num-gpus (Detectron2 trains on the CPU in one process)"
        )
    num_processes = max(1, num_gpus) * args.num_machines
    if cfg.SOLVER.IMS_PER_BATCH % num_processes:
        raise UserError(
            f"SOLVER.IMS_PER_BATCH is {cfg.SOLVER.IMS_PER_BATCH}, which {num_processes} processes "
            "cannot share evenly: choose a multiple of their number"
        )


def check_weights(path, required=False):
    """Refuse weights that are not there.

    Args:
        path (str): ``MODEL.WEIGHTS``; "" is none.
        required (bool): whether none would be a mistake.

    Raises:
        UserError: the file does not exist or cannot be fetched, or none is given but required.
    """
    if not path:
        if required:
            raise UserError(
                "MODEL.WEIGHTS is empty, which would evaluate random weights: set it to a trained "
                "model, such as OUTPUT_DIR/model_final.pth"
            )
        return
    try:
        # Files of the web are fetched into the cache, once and not by every process.
        found = PathManager.isfile(PathManager.get_local_path(path))
    except OSError as error:
        raise UserError(
            f"MODEL.WEIGHTS {path} cannot be fetched ({error}): download the file and set "
            "MODEL.WEIGHTS to its path, or to '' to start from random weights"
        ) from error
    if not found:
        raise UserError(
            f"the weights file {path} does not exist: correct MODEL.WEIGHTS, or set it to '' to "
            "start from random weights"
        )
