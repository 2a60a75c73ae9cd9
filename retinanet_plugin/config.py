"""The config keys that Detectron2 lacks, and reading a config with errors that a user can mend."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from detectron2.config import CfgNode, get_cfg

from .config_files import read_config_file
from .config_merging import merge_content, merge_options
from .errors import UserError


def add_retinanet_config(cfg: CfgNode) -> None:
    """Add this package's keys to ``cfg``. No default of Detectron2 is changed.

    Every stock key (``MODEL.RETINANET.*``, ``MODEL.FPN.*``, ...) keeps its meaning.
    """
    _add_network(cfg.MODEL)
    _add_losses(cfg.MODEL.RETINANET)
    _add_matching(cfg.MODEL.RETINANET)
    _add_execution(cfg.MODEL.RETINANET)
    _add_data(cfg)
    _add_training(cfg)


def _add_network(model: CfgNode) -> None:
    """Keys of the network, the head and what is made of their predictions."""
    # The builder of the network under the FPN: any name in Detectron2's BACKBONE_REGISTRY.
    model.FPN.BOTTOM_UP = "build_resnet_backbone"
    # build_timm_backbone: a network by timm's name, such as "resnet50d"; "FrozenBN" freezes its
    # batch norms, "" leaves the norms that timm builds.
    model.TIMM = CfgNode({"NAME": "", "NORM": ""})
    # The feature that P6 is computed from: "res5" (C5, as in the paper) or "p5".
    model.FPN.TOP_BLOCK_IN_FEATURE = "res5"
    model.RETINANET.HEAD_NAME = "RetinaNetHead"
    # RetinaNetHead: a learned factor of each level's deltas; an IoU that is predicted for each
    # anchor, learned by MODEL.RETINANET.IOU_LOSS_WEIGHT times its cross entropy, and multiplied
    # into the scores.
    model.RETINANET.BOX_SCALES = False
    model.RETINANET.IOU_BRANCH = False
    model.RETINANET.IOU_LOSS_WEIGHT = 1.0
    # Boxes are clipped to the image before NMS, as torchvision and mmdetection do (stock: after).
    model.RETINANET.CLIP_BEFORE_NMS = False
    # Detections are averaged with the candidates that NMS takes out (PAA's score voting).
    model.RETINANET.SCORE_VOTING = False


def _add_losses(retinanet: CfgNode) -> None:
    """Keys of the losses; their names are those of the registries."""
    retinanet.CLS_LOSS_NAME = "FocalLoss"
    # One alpha for each class instead of FOCAL_LOSS_ALPHA: a list, or "auto", from class counts.
    retinanet.FOCAL_LOSS_ALPHA_PER_CLASS = None
    # FocalStarLoss: steepness and shift (the paper's table 3 has 2, 1 and 4, 0).
    retinanet.FOCAL_STAR_GAMMA = 4.0
    retinanet.FOCAL_STAR_BETA = 0.0
    # OHEMLoss: most anchors that an image gives to the minibatch.
    retinanet.OHEM_BATCH_SIZE_PER_IMAGE = 128
    # OHEMLoss: an anchor with a larger IoU than this with one of higher loss is left out.
    retinanet.OHEM_NMS_THRESH = 0.5
    # OHEMLoss: three background anchors for a foreground one.
    retinanet.OHEM_ONE_TO_THREE = False
    # QualityFocalLoss: beta, 0 or in [1, 5]. VarifocalLoss: background's alpha and gamma.
    retinanet.QUALITY_FOCAL_BETA = 2.0
    retinanet.VARIFOCAL_ALPHA = 0.75
    retinanet.VARIFOCAL_GAMMA = 2.0
    # lambda, the weight of the box loss next to the classification loss.
    retinanet.BBOX_REG_LOSS_WEIGHT = 1.0
    # What weighs the box losses of foreground anchors, which are then divided by the sum of the
    # weights: "none" (each 1, divided as the classification loss is), "quality" or "score".
    # Targets of TaskAlignedMatcher divide by the sum of their qualities, those of ATSSMatcher
    # before them by the number of foreground anchors: when it takes over, the box loss with "none",
    # and the IoU branch's, grow by their ratio (seven times at random weights).
    retinanet.BBOX_REG_LOSS_WEIGHTING = "none"
    # Losses are divided by the foreground anchors of the whole batch, whatever the number of
    # processes that share it; False: each process divides by those of its own part, as stock does.
    retinanet.SYNC_LOSS_NORMALIZER = True


def _add_matching(retinanet: CfgNode) -> None:
    """Keys of what anchors are to learn."""
    retinanet.MATCHER_NAME = "IoUMatcher"
    # About the MiB that a matcher may take next to its results (IoUMatcher on a GPU: per image).
    retinanet.MATCHER_MEMORY_MB = 16.0
    # IoUMatcher: a box that overlaps no anchor makes none foreground (stock: every one).
    retinanet.MATCHER_SKIP_UNREACHED_BOXES = False
    # IoUMatcher: a low-quality match takes the box that caused it (stock: its own best box).
    retinanet.MATCHER_LOW_QUALITY_TO_CAUSE = False
    # ATSSMatcher: k, the locations nearest to a box's centre, on each level, that are candidates.
    retinanet.ATSS_TOPK = 9
    # TaskAlignedMatcher: powers of score and IoU, most foreground anchors of a box, and the share
    # of the training, at its start, in which ATSSMatcher stands in.
    retinanet.TASK_ALIGNED_ALPHA = 1.0
    retinanet.TASK_ALIGNED_BETA = 6.0
    retinanet.TASK_ALIGNED_TOPK = 13
    retinanet.TASK_ALIGNED_ATSS_SHARE = 0.33
    # An anchor of which crowds and ignored boxes (`iscrowd`, `ignore`) cover at least this share is
    # neither foreground nor background; 0: such boxes are dropped, as Detectron2 does.
    retinanet.IGNORE_IOA_THRESH = 0.5


def _add_execution(retinanet: CfgNode) -> None:
    """Keys of how a model runs."""
    # Backbone and head compute in bfloat16 (8 significant bits) under autocast, in training and
    # inference, on devices that have instructions for it; weights, losses, matching and decoding
    # stay float32.
    retinanet.BFLOAT16 = False
    # Images, features and weights in torch.channels_last; results differ by rounding alone.
    retinanet.CHANNELS_LAST = False
    # On a CPU with AVX2 but not AVX-512, in float32, gradients of convolutions, and convolutions
    # themselves in inference, take algorithms that are faster than PyTorch's there; losses stay the
    # same, the rest differs by rounding.
    retinanet.FAST_CPU_CONV = True
    # On CUDA, the focal loss and cross entropies are one Triton kernel.
    retinanet.TRITON_LOSS = True
    # Backbone and head go through torch.compile (PyTorch 2.0); this changes more than rounding.
    retinanet.COMPILE = False
    # Train by replaying CUDA graphs, one for each of the first four shapes of batches (one GPU).
    retinanet.CUDA_GRAPH = False


def _add_data(cfg: CfgNode) -> None:
    """Keys of data sets and of what a training sees of their images."""
    # Data sets in COCO's format to register: a list of (name, annotation file, image folder).
    cfg.DATASETS.COCO_JSON = []
    # An image that cannot be read is left out, counted and named, instead of ending the training.
    cfg.DATASETS.SKIP_BAD_IMAGES = False
    # Training sees windows of this share of a resized image's width and height, each around a
    # random one of its boxes and at most twice as long as wide; 0: whole images.
    cfg.INPUT.BOX_CROP = 0.0
    # Training sees squares of the largest MIN_SIZE_TRAIN, cut from images at a random scale between
    # these two, or padded; at 1 the whole image just fits in. []: ResizeShortestEdge.
    cfg.INPUT.SCALE_JITTER = []
    # Training decodes a JPEG file at a half, a quarter or an eighth of its size where that is no
    # smaller than it is looked at.
    cfg.INPUT.JPEG_DRAFT = False


def _add_training(cfg: CfgNode) -> None:
    """Keys of the steps of a training, what is saved and shown of it, and when it ends."""
    # A step computes its SOLVER.IMS_PER_BATCH images in so many parts, one after the other, with
    # the memory of one: the weights become what they would become of all at once.
    cfg.SOLVER.ACCUMULATE_STEPS = 1
    # The IMS_PER_BATCH that learning rate, warm-up, schedule and periods are written for: with
    # another one they are scaled as Detectron2 does by REFERENCE_WORLD_SIZE; 0: they are not.
    cfg.SOLVER.REFERENCE_IMS_PER_BATCH = 0
    # "SGD" or "AdamW"; at a LAYER_DECAY below 1 each stage of the network under the FPN learns at
    # so many times the rate of the next one.
    cfg.SOLVER.OPTIMIZER = "SGD"
    cfg.SOLVER.LAYER_DECAY = 1.0
    # Of LR_SCHEDULER_NAME "WarmupStableDecayLR": over this share of the iterations, the last ones,
    # the rate falls to 0.
    cfg.SOLVER.DECAY_SHARE = 0.3
    # "ema" or "swa": a moving average or the mean of the weights of every PERIOD-th iteration once
    # the share START of them is done; evaluated and saved beside the last ones.
    cfg.SOLVER.WEIGHT_AVERAGE = CfgNode({"NAME": "", "EMA_DECAY": 0.999, "START": 0.0, "PERIOD": 1})
    # Most periodic checkpoints that are kept, the newest; 0: all.
    cfg.SOLVER.CHECKPOINT_MAX_TO_KEEP = 0
    # After each evaluation during training: the losses on DATASETS.TEST.
    cfg.TEST.VAL_LOSS = True
    # After each evaluation during training: so many of the first test set's images, always the same
    # ones, with truth and detections, for TensorBoard; 0: none.
    cfg.TEST.NUM_PICTURES = 8
    # Training ends after so many evaluations in a row without a better AP; 0: never.
    cfg.TEST.EARLY_STOP_PATIENCE = 0


def load_config(config_file: str, opts: Sequence[str] = ()) -> CfgNode:
    """Detectron2's defaults, this package's keys, then ``config_file``, then ``opts``.

    Args:
        config_file (str): a YAML file, or "" for none.
        opts (list[str]): ``[KEY, VALUE, KEY, VALUE, ...]``.

    Returns:
        CfgNode: not frozen, and not checked against data or model: see :func:`check_config`.

    Raises:
        UserError: a file that cannot be read or would run code, an unknown key, a value of the
            wrong type.
    """
    cfg = get_cfg()
    add_retinanet_config(cfg)
    if config_file:
        merge_content(cfg, read_config_file(config_file), config_file)
    merge_options(cfg, opts)
    return cfg


def is_set(key: str, config_file: str, opts: Sequence[str] = ()) -> bool:
    """Whether the arguments of :func:`load_config` give ``key`` a value, even its default."""
    if key in opts[::2]:
        return True
    section: Any = read_config_file(config_file) if config_file else {}
    for name in key.split("."):
        if not isinstance(section, dict) or name not in section:
            return False
        section = section[name]
    return True


def flattened(node: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every key below a section by its full name, with its value.

    Args:
        node: a config, or what YAML reads from the text of one.
    """
    for name, value in node.items():
        if isinstance(value, Mapping):
            yield from flattened(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def check_config(cfg: CfgNode) -> None:
    """Refuse a config that would train something other than what was meant.

    Raises:
        UserError: the config is Detectron2's default, a two-stage model, a key of two-stage
            models was set where RetinaNet's was meant, or two precisions are asked for.
    """
    default = get_cfg()
    if cfg.MODEL.META_ARCHITECTURE == default.MODEL.META_ARCHITECTURE:
        raise UserError(
            f"MODEL.META_ARCHITECTURE is {cfg.MODEL.META_ARCHITECTURE}, Detectron2's default: give "
            "--config-file a file of configs/, or set MODEL.META_ARCHITECTURE ModularRetinaNet"
        )
    for key in ("NUM_CLASSES", "SCORE_THRESH_TEST", "NMS_THRESH_TEST", "IOU_THRESHOLDS"):
        value = cfg.MODEL.ROI_HEADS[key]
        if value not in (default.MODEL.ROI_HEADS[key], cfg.MODEL.RETINANET[key]):
            raise UserError(
                f"MODEL.ROI_HEADS.{key} is set to {value} but RetinaNet does not read it: set "
                f"MODEL.RETINANET.{key} (now {cfg.MODEL.RETINANET[key]}) instead"
            )
    if cfg.MODEL.RETINANET.BFLOAT16 and cfg.SOLVER.AMP.ENABLED:
        raise UserError(
            "MODEL.RETINANET.BFLOAT16 asks for bfloat16 and SOLVER.AMP.ENABLED for float16 with "
            "loss scaling: set one of them to False"
        )
