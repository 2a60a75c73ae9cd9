"""What each key of a config may be: values that would fail later, or do something else than meant.

Keys whose values only Detectron2 can judge, such as names, are in ``config_probes.py``; keys that
do not go together in ``config_conflicts.py``; keys of the model's parts are judged by the parts.
"""

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

from detectron2.config import CfgNode

from ...config import flattened, load_config

_Check = Callable[[Any], bool]


def _is_number(value: Any) -> bool:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number and math.isfinite(value)


def _whole(low: int, high: float = math.inf) -> _Check:
    return lambda value: isinstance(value, int) and _is_number(value) and low <= value <= high


def _within(low: float, high: float = math.inf) -> _Check:
    return lambda value: _is_number(value) and low <= value <= high


def _above(low: float, high: float = math.inf) -> _Check:
    return lambda value: _is_number(value) and low < value <= high


def _between(low: float, high: float) -> _Check:
    return lambda value: _is_number(value) and low < value < high


def _from_below(low: float, high: float) -> _Check:
    return lambda value: _is_number(value) and low <= value < high


def _list_of(check: _Check, fewest: int = 0, most: float = math.inf) -> _Check:
    return lambda value: (
        isinstance(value, (list, tuple))
        and fewest <= len(value) <= most
        and all(check(element) for element in value)
    )


def _either(*checks: _Check) -> _Check:
    return lambda value: any(check(value) for check in checks)


def _is_none(value: Any) -> bool:
    return value is None


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value != ""


# Of COCO's evaluation of boxes, in which AP-NAME is of one class.
COCO_METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
VOC_METRICS = COCO_METRICS[:3]


def _is_expected_result(value: Any) -> bool:
    """[task, metric, value, tolerance], as Detectron2's ``verify_results`` reads it."""
    return (
        isinstance(value, (list, tuple))
        and len(value) == 4
        and value[0] == "bbox"
        and _is_text(value[1])
        and (value[1] in COCO_METRICS or value[1].startswith("AP-"))
        and all(map(_is_number, value[2:]))
    )


def _rises(value: Any) -> bool:
    return _list_of(_whole(1))(value) and all(a < b for a, b in itertools.pairwise(value))


def _is_range_or_off(value: Any) -> bool:
    return _list_of(_above(0), most=2)(value) and (
        len(value) == 0 or (len(value) == 2 and value[0] <= value[1])
    )


_POSITIVES = _list_of(_above(0), fewest=1)


def _of_levels(check: _Check) -> _Check:
    return _list_of(_either(check, _list_of(check, fewest=1)), fewest=1)


_SIZE, _RATIO = _above(0, 1e5), _within(0.001, 1000)
_ITERATIONS = "a whole number of iterations from 1"
_OR_OFF = "a whole number from 0, which is off"
_SHARE = "a number from 0 to 1"
_NOT_RETINANETS = "False, since RetinaNet has boxes alone"

# Key, whether a value is right, what to write.
_RULES: tuple[tuple[str, _Check, str], ...] = (
    ("MODEL.DEVICE", _is_text, "cuda or cpu"),
    ("MODEL.MASK_ON", lambda on: not on, _NOT_RETINANETS),
    ("MODEL.KEYPOINT_ON", lambda on: not on, _NOT_RETINANETS),
    ("MODEL.LOAD_PROPOSALS", lambda on: not on, "False, since RetinaNet has no proposals"),
    ("MODEL.PIXEL_MEAN", _list_of(_is_number, fewest=1), "a number for each channel"),
    ("MODEL.PIXEL_STD", _POSITIVES, "a number above 0 for each channel"),
    ("MODEL.BACKBONE.FREEZE_AT", _whole(0, 5), "a number of stages from 0 to 5"),
    ("MODEL.RESNETS.NUM_GROUPS", _whole(1), "a whole number from 1"),
    ("MODEL.RESNETS.WIDTH_PER_GROUP", _whole(1), "a whole number from 1, such as 64"),
    ("MODEL.RESNETS.STEM_OUT_CHANNELS", _whole(1), "a whole number from 1, such as 64"),
    ("MODEL.RESNETS.RES2_OUT_CHANNELS", _whole(1), "a whole number from 1, such as 256"),
    ("MODEL.RESNETS.RES5_DILATION", _whole(1, 2), "1 or 2"),
    ("MODEL.FPN.FUSE_TYPE", lambda name: name in ("sum", "avg"), "sum or avg"),
    ("MODEL.FPN.OUT_CHANNELS", _whole(1), "a whole number from 1, such as 256"),
    ("MODEL.RETINANET.NUM_CLASSES", _whole(1), "the number of categories, from 1"),
    ("MODEL.RETINANET.IN_FEATURES", _list_of(_is_text, fewest=1), "['p3', 'p4', ...]"),
    ("MODEL.RETINANET.NUM_CONVS", _whole(0), "a whole number from 0, such as 4"),
    ("MODEL.RETINANET.SCORE_THRESH_TEST", _from_below(0, 1), "a score from 0 to below 1"),
    ("MODEL.RETINANET.NMS_THRESH_TEST", _within(0, 1), "an IoU from 0 to 1"),
    ("MODEL.RETINANET.TOPK_CANDIDATES_TEST", _whole(1), "a whole number from 1, such as 1000"),
    ("MODEL.RETINANET.FOCAL_LOSS_ALPHA", _within(-math.inf, 1), "a number up to 1, such as 0.25"),
    ("MODEL.RETINANET.SMOOTH_L1_LOSS_BETA", _within(0), "a number from 0"),
    ("MODEL.RETINANET.BBOX_REG_LOSS_WEIGHT", _within(0), "a number from 0, such as 1.0"),
    ("MODEL.RETINANET.IOU_LOSS_WEIGHT", _within(0), "a number from 0, such as 1.0"),
    ("MODEL.RETINANET.BBOX_REG_WEIGHTS", _list_of(_above(0), 4, 4), "four numbers above 0"),
    ("MODEL.RETINANET.IGNORE_IOA_THRESH", _within(0, 1), f"{_SHARE}, such as 0.5"),
    (
        "MODEL.ANCHOR_GENERATOR.SIZES",
        _of_levels(_SIZE),
        "a list for each level, of pixels above 0, such as [[32], [64], [128], [256], [512]]",
    ),
    (
        "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS",
        _of_levels(_RATIO),
        "a list for each level, or one for all, of heights by widths from 0.001 to 1000",
    ),
    ("MODEL.ANCHOR_GENERATOR.OFFSET", _from_below(0, 1), "a number from 0 to below 1"),
    ("INPUT.MIN_SIZE_TEST", _whole(0), "pixels of the shorter side (0: images are not resized)"),
    ("INPUT.MAX_SIZE_TEST", _whole(1), "pixels of the longer side, such as 1333"),
    ("DATASETS.TRAIN", _list_of(_is_text), "a tuple of names of data sets, such as ('my_train',)"),
    ("DATASETS.TEST", _list_of(_is_text), "a tuple of names of data sets, such as ('my_val',)"),
    # So many for each GPU: of more, starting them alone would take the machine's memory.
    ("DATALOADER.NUM_WORKERS", _whole(0, 256), "a number of processes from 0 to 256, such as 4"),
    ("TEST.DETECTIONS_PER_IMAGE", _whole(1), "a whole number from 1, such as 100"),
    (
        "TEST.EXPECTED_RESULTS",
        _list_of(_is_expected_result),
        f"[['bbox', 'AP', 38.5, 0.2]], with one of {', '.join(COCO_METRICS)} or AP-NAME of a class",
    ),
    ("TEST.AUG.ENABLED", lambda on: not on, "False, since test-time augmentation is not done here"),
    ("SEED", _whole(-(2**31), 2**31 - 1), "a whole number below 2147483648 (below 0: at random)"),
)
_TRAINING_RULES: tuple[tuple[str, _Check, str], ...] = (
    ("INPUT.MIN_SIZE_TRAIN", _list_of(_whole(0), 1), "pixels of the shorter side, such as (800,)"),
    ("INPUT.MAX_SIZE_TRAIN", _whole(1), "pixels of the longer side, such as 1333"),
    ("INPUT.SCALE_JITTER", _is_range_or_off, "[] or two scales above 0, such as [0.5, 2.0]"),
    ("INPUT.BOX_CROP", _within(0, 1), f"a share of width and height: {_SHARE}, which is off at 0"),
    ("DATALOADER.REPEAT_THRESHOLD", _within(0, 1), f"a share of the images: {_SHARE}"),
    ("SOLVER.MAX_ITER", _whole(1), _ITERATIONS),
    ("SOLVER.IMS_PER_BATCH", _whole(1), "a whole number of images from 1"),
    ("SOLVER.BASE_LR", _above(0), "a number above 0, such as 0.01"),
    ("SOLVER.BASE_LR_END", _within(0), "a number from 0 to SOLVER.BASE_LR"),
    ("SOLVER.MOMENTUM", _from_below(0, 1), "a number from 0 to below 1, such as 0.9"),
    ("SOLVER.WEIGHT_DECAY", _within(0), "a number from 0, such as 0.0001"),
    ("SOLVER.WEIGHT_DECAY_NORM", _either(_is_none, _within(0)), "a number from 0"),
    ("SOLVER.WEIGHT_DECAY_BIAS", _either(_is_none, _within(0)), "a number from 0, or None"),
    ("SOLVER.BIAS_LR_FACTOR", _either(_is_none, _within(0)), "a number from 0, such as 1.0"),
    ("SOLVER.GAMMA", _above(0, 1), "a number above 0, up to 1, such as 0.1"),
    ("SOLVER.STEPS", _rises, "rising iterations from 1, such as (60000, 80000)"),
    ("SOLVER.NUM_DECAYS", _whole(1), "a whole number from 1"),
    ("SOLVER.WARMUP_FACTOR", _within(0, 1), _SHARE),
    ("SOLVER.WARMUP_ITERS", _whole(0), _OR_OFF),
    ("SOLVER.CHECKPOINT_PERIOD", _whole(1), _ITERATIONS),
    ("SOLVER.CHECKPOINT_MAX_TO_KEEP", _whole(0), "a whole number from 0, which keeps all"),
    ("SOLVER.DECAY_SHARE", _above(0, 1), "a number above 0, up to 1, such as 0.3"),
    ("SOLVER.LAYER_DECAY", _above(0, 1), "a number above 0, up to 1, which is off"),
    ("SOLVER.WEIGHT_AVERAGE.EMA_DECAY", _between(0, 1), "a number between 0 and 1, such as 0.999"),
    ("SOLVER.WEIGHT_AVERAGE.START", _from_below(0, 1), "a share of the training, such as 0.7"),
    ("SOLVER.WEIGHT_AVERAGE.PERIOD", _whole(1), _ITERATIONS),
    ("SOLVER.REFERENCE_WORLD_SIZE", _whole(0), _OR_OFF),
    ("SOLVER.REFERENCE_IMS_PER_BATCH", _whole(0), _OR_OFF),
    ("SOLVER.ACCUMULATE_STEPS", _whole(1), "a whole number of parts of a batch from 1"),
    ("SOLVER.CLIP_GRADIENTS.CLIP_VALUE", _above(0), "a number above 0"),
    ("SOLVER.CLIP_GRADIENTS.NORM_TYPE", lambda p: p == math.inf or _above(0)(p), "1.0 or 2.0"),
    ("TEST.EVAL_PERIOD", _whole(0), _OR_OFF),
    ("TEST.EARLY_STOP_PATIENCE", _whole(0), _OR_OFF),
    ("TEST.NUM_PICTURES", _whole(0), "a whole number from 0, which draws none"),
    ("TEST.PRECISE_BN.NUM_ITER", _whole(1), _ITERATIONS),
    ("VIS_PERIOD", _whole(0), _OR_OFF),
)
_MAY_BE_NONE = {"DATASETS.COCO_JSON", "SOLVER.WEIGHT_DECAY_NORM", "SOLVER.BIAS_LR_FACTOR"}


def value_errors(cfg: CfgNode, training: bool = True) -> Iterator[str]:
    """A sentence for each key with a value that it must not have.

    Args:
        cfg: any config with the keys of this package.
        training: whether the keys that only training reads count, too.
    """
    wrong = set()
    for key, is_right, right in _RULES + (_TRAINING_RULES if training else ()):
        value = lookup(cfg, key, missing := object())
        if value is not missing and not is_right(value):  # 0.6 lacks some keys of main
            wrong.add(key)
            yield f"{key} is {value!r}: write {right}"
    for key, usual in flattened(load_config("")):
        if key not in wrong | _MAY_BE_NONE and usual is not None and lookup(cfg, key) is None:
            yield f"{key} is None: write a value such as {usual!r}"


def lookup(cfg: CfgNode, key: str, default: Any = None) -> Any:
    """The value of ``key``, such as ``SOLVER.STEPS``; ``default`` where this config lacks it."""
    value: Any = cfg
    for name in key.split("."):
        if name not in value:
            return default
        value = value[name]
    return value
