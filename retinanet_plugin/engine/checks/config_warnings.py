"""Keys of a config that are allowed together, and probably not meant."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

from detectron2.config import CfgNode, get_cfg

from ...config import flattened, load_config
from ...errors import listed
from ..learning_rate import STABLE_DECAY
from .config_conflicts import is_reversed_mean

_RGB_STD = (58.395, 57.120, 57.375)
_SMALLEST_SIZE = 32  # pixels
_RATE_OF_SGD = 0.02  # of AdamW 0.016 was the highest that was measured to learn
_QUALITY_LOSSES = ("QualityFocalLoss", "VarifocalLoss")
# What other models read and RetinaNet does not.
_OF_OTHER_MODELS = (
    "MODEL.ROI_",
    "MODEL.RPN.",
    "MODEL.PROPOSAL_GENERATOR.",
    "MODEL.SEM_SEG_HEAD.",
    "MODEL.PANOPTIC_FPN.",
    "DATASETS.PROPOSAL_FILES_",
    "TEST.KEYPOINT_OKS_SIGMAS",
)


def conflict_warnings(cfg: CfgNode, training: bool = True) -> Iterator[str]:
    """A sentence for what is allowed and probably not meant.

    Args:
        cfg, training: as in
            :func:`retinanet_plugin.engine.checks.config_conflicts.conflict_errors`.
    """
    unread = _set_for_other_models(cfg)
    if unread:
        yield f"RetinaNet does not read {listed(unread)}, which the config sets"
    if cfg.MODEL.META_ARCHITECTURE == "RetinaNet":
        yield (
            "MODEL.META_ARCHITECTURE is RetinaNet, Detectron2's own, which does not read "
            f"{', '.join(['regions to ignore', *_unread_by_stock(cfg)])}: set ModularRetinaNet if "
            "they are meant"
        )
    if cfg.MODEL.RETINANET.SCORE_THRESH_TEST >= 0.9:
        yield (
            f"MODEL.RETINANET.SCORE_THRESH_TEST is {cfg.MODEL.RETINANET.SCORE_THRESH_TEST}: "
            "detections of lower scores are dropped, which lowers AP; 0.05 is usual"
        )
    if 0 < cfg.INPUT.MIN_SIZE_TEST < _SMALLEST_SIZE:
        yield _too_small("INPUT.MIN_SIZE_TEST", cfg.INPUT.MIN_SIZE_TEST)
    if cfg.INPUT.MIN_SIZE_TEST > cfg.INPUT.MAX_SIZE_TEST:
        yield (
            f"INPUT.MIN_SIZE_TEST is {cfg.INPUT.MIN_SIZE_TEST}, above INPUT.MAX_SIZE_TEST "
            f"{cfg.INPUT.MAX_SIZE_TEST}, which alone decides the size of images"
        )
    if not training and is_reversed_mean(cfg):
        yield (
            f"INPUT.FORMAT is {cfg.INPUT.FORMAT} but MODEL.PIXEL_MEAN {cfg.MODEL.PIXEL_MEAN} is "
            "in the other order"
        )
    if training:
        yield from _data_warnings(cfg)
        yield from _loss_warnings(cfg.MODEL.RETINANET)
        yield from _solver_warnings(cfg)
        yield from _weight_warnings(cfg)


def _set_for_other_models(cfg: CfgNode) -> list[str]:
    return [key for key in _away_from(get_cfg(), cfg) if key.startswith(_OF_OTHER_MODELS)]


def _unread_by_stock(cfg: CfgNode) -> list[str]:
    """Keys of this package that are set and that Detectron2's own model does not have."""
    known = dict(flattened(get_cfg()))
    return [
        key
        for key in _away_from(load_config(""), cfg)
        if key.startswith("MODEL.RETINANET.") and key not in known
    ]


def _away_from(usual: CfgNode, cfg: CfgNode) -> list[str]:
    """Keys with another value than ``usual`` has."""
    values = dict(flattened(usual))
    return [
        key
        for key, value in flattened(cfg)
        if key in values and _with_lists(value) != _with_lists(values[key])
    ]


def _with_lists(value: Any) -> Any:
    """Files that are written and read again have lists where defaults have tuples."""
    return list(map(_with_lists, value)) if isinstance(value, (list, tuple)) else value


def _too_small(key: str, value: Any) -> str:
    return (
        f"{key} is {value}: images are shrunk to a shorter side of less than {_SMALLEST_SIZE} "
        "pixels, in which little can be found; 800 is usual"
    )


def _data_warnings(cfg: CfgNode) -> Iterator[str]:
    size, most = cfg.INPUT, cfg.SOLVER.MAX_ITER
    for key, names in (("TRAIN", cfg.DATASETS.TRAIN), ("TEST", cfg.DATASETS.TEST)):
        twice = [name for name, count in Counter(names).items() if count > 1]
        if twice:
            yield f"DATASETS.{key} has {twice[0]} {Counter(names)[twice[0]]} times"
    both = [name for name in cfg.DATASETS.TEST if name in cfg.DATASETS.TRAIN]
    if both:
        yield f"{both[0]} is in DATASETS.TRAIN and in DATASETS.TEST: its AP is of trained images"
    if cfg.TEST.EVAL_PERIOD and not cfg.DATASETS.TEST:
        yield f"TEST.EVAL_PERIOD is {cfg.TEST.EVAL_PERIOD} but DATASETS.TEST is empty"
    elif cfg.TEST.EVAL_PERIOD > most:
        yield (
            f"TEST.EVAL_PERIOD is {cfg.TEST.EVAL_PERIOD}, above SOLVER.MAX_ITER {most}: only the "
            "end of the training is evaluated"
        )
    yield from _square_warnings(size) if size.SCALE_JITTER else _size_warnings(size)
    sampler = cfg.DATALOADER.SAMPLER_TRAIN
    if sampler == "RepeatFactorTrainingSampler" and not cfg.DATALOADER.REPEAT_THRESHOLD:
        yield (
            f"DATALOADER.SAMPLER_TRAIN is {sampler} but DATALOADER.REPEAT_THRESHOLD is 0.0, with "
            "which no image is repeated"
        )


def _size_warnings(size: CfgNode) -> Iterator[str]:
    if 0 < min(size.MIN_SIZE_TRAIN) < _SMALLEST_SIZE:
        yield _too_small("INPUT.MIN_SIZE_TRAIN", size.MIN_SIZE_TRAIN)
    if 0 in size.MIN_SIZE_TRAIN:
        yield "INPUT.MIN_SIZE_TRAIN has 0, with which images keep their size"
    elif min(size.MIN_SIZE_TRAIN) > size.MAX_SIZE_TRAIN:
        yield (
            f"INPUT.MIN_SIZE_TRAIN is {size.MIN_SIZE_TRAIN}, above INPUT.MAX_SIZE_TRAIN "
            f"{size.MAX_SIZE_TRAIN}, which alone decides the size of images"
        )


def _square_warnings(size: CfgNode) -> Iterator[str]:
    """Of ``INPUT.SCALE_JITTER``, whose squares have one edge."""
    edge = max(size.MIN_SIZE_TRAIN)
    if edge < _SMALLEST_SIZE:
        yield _too_small("INPUT.MIN_SIZE_TRAIN", size.MIN_SIZE_TRAIN)
    elif min(size.MIN_SIZE_TRAIN) < edge:
        yield (
            f"INPUT.MIN_SIZE_TRAIN is {size.MIN_SIZE_TRAIN}, of which INPUT.SCALE_JITTER reads "
            f"{edge} alone, the edge of its squares"
        )


def _loss_warnings(retinanet: CfgNode) -> Iterator[str]:
    alphas, name = retinanet.FOCAL_LOSS_ALPHA_PER_CLASS, retinanet.CLS_LOSS_NAME
    if alphas is not None and name in _QUALITY_LOSSES:
        yield (
            f"MODEL.RETINANET.FOCAL_LOSS_ALPHA_PER_CLASS is {alphas} but "
            f"MODEL.RETINANET.CLS_LOSS_NAME {name}, which does not read it"
        )


def _solver_warnings(cfg: CfgNode) -> Iterator[str]:
    solver = cfg.SOLVER
    late = [step for step in solver.STEPS if step > solver.MAX_ITER]
    if late and solver.LR_SCHEDULER_NAME == "WarmupMultiStepLR":
        yield (
            f"SOLVER.STEPS is {solver.STEPS}, of which training never reaches {late[0]}: "
            f"SOLVER.MAX_ITER is {solver.MAX_ITER}"
        )
    if solver.WARMUP_ITERS > solver.MAX_ITER:
        yield (
            f"SOLVER.WARMUP_ITERS is {solver.WARMUP_ITERS}, above SOLVER.MAX_ITER "
            f"{solver.MAX_ITER}: SOLVER.BASE_LR is never reached; lower the warmup"
        )
    elif (
        solver.LR_SCHEDULER_NAME == STABLE_DECAY
        and solver.WARMUP_ITERS > (1 - solver.DECAY_SHARE) * solver.MAX_ITER
    ):
        yield (
            f"SOLVER.WARMUP_ITERS is {solver.WARMUP_ITERS} of {solver.MAX_ITER} iterations, over "
            f"the last {100 * solver.DECAY_SHARE:g}% of which the rate falls: SOLVER.BASE_LR is "
            "never reached; lower the warmup"
        )
    if solver.BASE_LR > 1:
        yield f"SOLVER.BASE_LR is {solver.BASE_LR}, with which training probably diverges"
    elif solver.OPTIMIZER == "AdamW" and solver.BASE_LR >= _RATE_OF_SGD:
        yield (
            f"SOLVER.BASE_LR is {solver.BASE_LR}, a rate of SGD, with SOLVER.OPTIMIZER AdamW, of "
            "which 0.0001 (after trained weights) to about 0.01 (after random ones) are usual"
        )
    if solver.OPTIMIZER == "AdamW" and solver.NESTEROV:
        yield "SOLVER.NESTEROV is True but SOLVER.OPTIMIZER AdamW, which does not read it"


def _weight_warnings(cfg: CfgNode) -> Iterator[str]:
    """Of ImageNet's weights by their names in Detectron2's catalog, and how they see images."""
    weights, resnets = cfg.MODEL.WEIGHTS, cfg.MODEL.RESNETS
    if "ImageNetPretrained/torchvision/" in weights:
        right = {
            "INPUT.FORMAT RGB": cfg.INPUT.FORMAT == "RGB",
            "MODEL.RESNETS.STRIDE_IN_1X1 False": not resnets.STRIDE_IN_1X1,
            f"MODEL.PIXEL_STD {list(_RGB_STD)}": min(cfg.MODEL.PIXEL_STD) > 1,
        }
    elif "ImageNetPretrained/MSRA/" in weights:
        right = {
            "INPUT.FORMAT BGR": cfg.INPUT.FORMAT == "BGR",
            "MODEL.RESNETS.STRIDE_IN_1X1 True": resnets.STRIDE_IN_1X1,
            "MODEL.PIXEL_STD [1.0, 1.0, 1.0]": max(cfg.MODEL.PIXEL_STD) == 1,
        }
    else:
        right = {}
    lacking = [option for option, holds in right.items() if not holds]
    if lacking:
        yield f"MODEL.WEIGHTS {weights} were trained with {' '.join(lacking)}, this config has not"
