"""The config keys that Detectron2 lacks, and reading a config with errors that a user can mend."""

import re
from collections.abc import Sequence
from typing import Any, cast

from detectron2.config import CfgNode, downgrade_config, get_cfg, upgrade_config
from detectron2.config.compat import guess_version
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import Backbone
from torch import nn

from .config_errors import check_keys, merging, no_section
from .config_files import read_config_file
from .errors import UserError


def add_retinanet_config(cfg: CfgNode) -> None:
    """Add this package's keys to ``cfg``. No default of Detectron2 is changed.

    Every stock key (``MODEL.RETINANET.*``, ``MODEL.FPN.*``, ...) keeps its meaning.
    """
    retinanet = cfg.MODEL.RETINANET
    # Parts, by their names in this package's registries.
    retinanet.HEAD_NAME = "RetinaNetHead"
    retinanet.MATCHER_NAME = "IoUMatcher"
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
    # lambda, the weight of the box loss next to the classification loss.
    retinanet.BBOX_REG_LOSS_WEIGHT = 1.0
    # About the MiB that a matcher may take next to its results (IoUMatcher on a GPU: per image).
    retinanet.MATCHER_MEMORY_MB = 16.0
    # IoUMatcher: a box that overlaps no anchor makes none foreground (stock: every one).
    retinanet.MATCHER_SKIP_UNREACHED_BOXES = False
    # IoUMatcher: a low-quality match takes the box that caused it (stock: its own best box).
    retinanet.MATCHER_LOW_QUALITY_TO_CAUSE = False
    # ATSSMatcher: k, the locations nearest to a box's centre, on each level, that are candidates.
    retinanet.ATSS_TOPK = 9
    # Backbone and head compute in bfloat16 (8 significant bits) under autocast, in training and
    # inference; weights, losses, matching and decoding stay float32.
    retinanet.BFLOAT16 = False
    # Images, features and weights in torch.channels_last; results differ by rounding alone.
    retinanet.CHANNELS_LAST = False
    # On a CPU with AVX2 but not AVX-512, in float32, gradients of convolutions, and convolutions
    # themselves in inference, take algorithms that are faster than PyTorch's there; losses stay the
    # same, the rest differs by rounding.
    retinanet.FAST_CPU_CONV = True
    # An anchor of which crowds and ignored boxes (`iscrowd`, `ignore`) cover at least this share is
    # neither foreground nor background; 0: such boxes are dropped, as Detectron2 does.
    retinanet.IGNORE_IOA_THRESH = 0.5
    # On CUDA, the focal loss and cross entropies are one Triton kernel.
    retinanet.TRITON_LOSS = True
    # Backbone and head go through torch.compile (PyTorch 2.0); this changes more than rounding.
    retinanet.COMPILE = False
    # Train by replaying CUDA graphs, one for each of the first four shapes of batches (one GPU).
    retinanet.CUDA_GRAPH = False

    # The builder of the network under the FPN: any name in Detectron2's BACKBONE_REGISTRY.
    cfg.MODEL.FPN.BOTTOM_UP = "build_resnet_backbone"
    # The feature that P6 is computed from: "res5" (C5, as in the paper) or "p5".
    cfg.MODEL.FPN.TOP_BLOCK_IN_FEATURE = "res5"

    # Data sets in COCO's format to register: a list of (name, annotation file, image folder).
    cfg.DATASETS.COCO_JSON = []
    # An image that cannot be read is left out, counted and named, instead of ending the training.
    cfg.DATASETS.SKIP_BAD_IMAGES = False

    # Most periodic checkpoints that are kept, the newest; 0: all.
    cfg.SOLVER.CHECKPOINT_MAX_TO_KEEP = 0
    # After each evaluation during training: the losses on DATASETS.TEST.
    cfg.TEST.VAL_LOSS = True
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
        content = read_config_file(config_file)
        with merging(cfg, config_file):
            _merge_file(cfg, _with_floats(cfg, content), config_file)
    _check_opts(opts)
    source = "the options of the command line"
    check_keys(cfg, opts[::2], source)
    with merging(cfg, source):
        cfg.merge_from_list(_options_with_floats(cfg, opts))
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


def head_input_shapes(cfg: CfgNode, backbone: Backbone) -> list[ShapeSpec]:
    """Shapes of the features that the head reads.

    Raises:
        UserError: the backbone does not make them, or the anchors have another number of levels.
    """
    shapes = backbone.output_shape()
    in_features = cfg.MODEL.RETINANET.IN_FEATURES
    for name in in_features:
        if name not in shapes:
            raise UserError(
                f"MODEL.RETINANET.IN_FEATURES has {name!r}, which the backbone "
                f"{cfg.MODEL.BACKBONE.NAME} does not make: choose from {list(shapes)}"
            )
    for key in ("SIZES", "ASPECT_RATIOS"):
        num_levels = len(cfg.MODEL.ANCHOR_GENERATOR[key])
        if num_levels not in (1, len(in_features)):
            raise UserError(
                f"MODEL.ANCHOR_GENERATOR.{key} has {num_levels} levels but "
                f"MODEL.RETINANET.IN_FEATURES has {len(in_features)} ({', '.join(in_features)}): "
                "give one list for each level, or one for all"
            )
    return [shapes[name] for name in in_features]


def num_cell_anchors(anchor_generator: nn.Module) -> int:
    """A, which a head that is shared over the levels needs to be one number.

    Raises:
        UserError: it depends on the level.
    """
    counts = set(cast(list[int], anchor_generator.num_cell_anchors))
    if len(counts) != 1:
        raise UserError(
            f"MODEL.ANCHOR_GENERATOR gives {sorted(counts)} anchors at a location, depending on "
            "the level: give every level as many SIZES and ASPECT_RATIOS"
        )
    return counts.pop()


def _check_opts(opts: Sequence[str]) -> None:
    for option in opts[::2]:
        joined = re.fullmatch(r"([A-Z][A-Z0-9_.]*)=(.*)", option, re.DOTALL)
        if joined:
            raise UserError(
                f"the config option {option} has no space: write {' '.join(joined.groups())}, "
                'without the "="'
            )
    for option in opts:
        if option.startswith("--"):
            raise UserError(
                f"{option} stands after the config options and would be read as a key or a value "
                "of them: move it before --opts"
            )
    if len(opts) % 2:
        raise UserError(
            f"the config option {opts[-1]} has no value: write --opts KEY VALUE KEY VALUE ..."
        )


def _with_floats(cfg: CfgNode, content: dict[str, Any]) -> dict[str, Any]:
    """``content`` with floats for whole numbers where ``cfg`` has floats: yacs takes no int."""
    return {
        key: _with_floats(cfg[key], value)
        if isinstance(value, dict) and isinstance(cfg.get(key), CfgNode)
        else _as_float(value, cfg.get(key))
        for key, value in content.items()
    }


def _options_with_floats(cfg: CfgNode, opts: Sequence[Any]) -> list[Any]:
    """As :func:`_with_floats`, of ``[KEY, VALUE, ...]`` with known keys."""
    changed = list(opts)
    for i, (key, value) in enumerate(zip(opts[::2], opts[1::2])):
        usual: Any = cfg
        for name in key.split("."):
            usual = usual[name]
        if isinstance(usual, float) and re.fullmatch(r"[+-]?\d{1,15}", str(value)):
            changed[2 * i + 1] = float(value)
    return changed


def _as_float(value: Any, usual: Any) -> Any:
    is_whole = type(value) is int and abs(value) < 10**15
    return float(value) if is_whole and isinstance(usual, float) else value


def _merge_file(cfg: CfgNode, content: dict[str, Any], path: str) -> None:
    """As ``CfgNode.merge_from_file``, which would run code in the file."""
    for key, value in content.items():
        if isinstance(cfg.get(key), CfgNode) and not isinstance(value, dict):
            raise no_section(cfg, key, value, path)
    loaded = CfgNode(content)
    version = loaded.get("VERSION") or guess_version(loaded, path)
    if version == cfg.VERSION:
        cfg.merge_from_other_cfg(loaded)
        return
    if version != 1:
        raise UserError(f"{path} has VERSION {version!r}: write VERSION: {cfg.VERSION}")
    old = downgrade_config(cfg, to_version=version)
    old.merge_from_other_cfg(loaded)
    cfg.update(upgrade_config(old))
