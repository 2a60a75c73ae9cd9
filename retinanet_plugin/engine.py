"""Detectron2's DefaultTrainer with evaluators, and everything that is checked before it starts."""
import contextlib
import os
import sys

import torch
from detectron2.data import MetadataCatalog
from detectron2.engine import DefaultTrainer, default_argument_parser
from detectron2.evaluation import PascalVOCDetectionEvaluator
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.utils.file_io import PathManager

from .compat import coco_evaluator
from .config import check_config, load_config
from .data.class_alphas import resolve_auto_alpha
from .data.coco_json import check_datasets, register_coco_json
from .errors import UserError


class Trainer(DefaultTrainer):
    """Detectron2's trainer; evaluates in COCO's or Pascal VOC's way, as the data set asks."""

    def __init__(self, cfg):
        """
        Args:
            cfg (CfgNode): ``MODEL.RETINANET.FOCAL_LOSS_ALPHA_PER_CLASS auto`` becomes numbers here,
                where the training data are read anyway; evaluation needs neither.
        """
        super().__init__(resolve_auto_alpha(cfg))

    @classmethod
    def build_evaluator(cls, cfg, dataset_name, output_folder=None):
        evaluator_type = MetadataCatalog.get(dataset_name).get("evaluator_type")
        if evaluator_type == "coco":
            return coco_evaluator(
                dataset_name,
                output_folder or inference_folder(cfg, dataset_name),
                cfg.TEST.DETECTIONS_PER_IMAGE,
            )
        if evaluator_type == "pascal_voc":
            return PascalVOCDetectionEvaluator(dataset_name)
        raise UserError(
            f"the data set {dataset_name} has the evaluator type {evaluator_type!r}, but this "
            "trainer knows 'coco' and 'pascal_voc': set MetadataCatalog.get(name).evaluator_type"
        )


def inference_folder(cfg, dataset_name):
    """Where the evaluation of a data set leaves its detections: ``coco_instances_results.json``."""
    return os.path.join(cfg.OUTPUT_DIR, "inference", dataset_name)


def argument_parser():
    """Detectron2's options, with ``--opts KEY VALUE ...`` beside its trailing ``KEY VALUE``."""
    parser = default_argument_parser()
    _add_opts(parser)
    return parser


def add_config_arguments(parser):
    """The options of a command that reads a config."""
    parser.add_argument("--config-file", required=True, metavar="FILE", help="path to config file")
    _add_opts(parser)


def config_options(args):
    """``[KEY, VALUE, ...]`` of :func:`argument_parser` or :func:`add_config_arguments`."""
    return [*(getattr(args, "opts", None) or []), *args.more_opts]


def _add_opts(parser):
    parser.add_argument(
        "--opts",
        dest="more_opts",
        nargs="...",
        default=[],
        metavar="KEY VALUE",
        help="config options; write them last",
    )


def setup_config(args):
    """Read the config, register its data sets; returns it frozen.

    Args:
        args (Namespace): of :func:`argument_parser`.

    Raises:
        UserError: see :func:`retinanet_plugin.config.load_config`.
    """
    cfg = load_config(args.config_file, config_options(args))
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
    _check_devices(cfg, args.num_gpus)
    check_datasets(cfg, args.eval_only)
    check_weights(cfg.MODEL.WEIGHTS)
    # Built and dropped: that takes a second, and the parts say themselves what does not fit.
    META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)(cfg)


@contextlib.contextmanager
def one_sentence_errors():
    """Print a :class:`UserError` as one line and exit with status 1, without a traceback."""
    try:
        yield
    except UserError as error:
        sys.exit(f"error: {error}")


def _check_devices(cfg, num_gpus):
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


def check_weights(path):
    if not path:
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
