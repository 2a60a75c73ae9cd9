"""Keys of a config that do not go together."""

import math
from collections.abc import Iterator

from detectron2.config import CfgNode

from ..averaging import average_start
from .config_probes import num_channels

_BGR_MEAN = (103.530, 116.280, 123.675)


def conflict_errors(cfg: CfgNode, training: bool = True) -> Iterator[str]:
    """A sentence for each two keys that cannot both be meant.

    Args:
        cfg: with values that :func:`retinanet_plugin.engine.checks.config_values.value_errors` and
            :func:`retinanet_plugin.engine.checks.config_probes.probe_errors` accept.
        training: whether the keys that only training reads count, too.
    """
    yield from _pixel_errors(cfg)
    expected = cfg.TEST.EXPECTED_RESULTS
    if expected and len(cfg.DATASETS.TEST) != 1:
        yield (
            f"TEST.EXPECTED_RESULTS is {expected} but DATASETS.TEST has "
            f"{len(cfg.DATASETS.TEST)} data sets: give one, or empty TEST.EXPECTED_RESULTS"
        )
    if training:
        yield from _learning_errors(cfg)
        yield from _image_errors(cfg)
        yield from _schedule_errors(cfg)


def _pixel_errors(cfg: CfgNode) -> Iterator[str]:
    mean, std = cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD
    channels = num_channels(cfg)
    for key, values in (("MODEL.PIXEL_MEAN", mean), ("MODEL.PIXEL_STD", std)):
        if len(values) != channels:
            yield (
                f"{key} has {len(values)} values but images of INPUT.FORMAT {cfg.INPUT.FORMAT} "
                f"have {channels} channels: give one value for each"
            )
    if all(0 < value < 1 for value in mean) or any(value < 1 for value in std):
        yield (
            f"MODEL.PIXEL_MEAN is {mean} and MODEL.PIXEL_STD {std}, for pixels from 0 to 1, but "
            "Detectron2's go from 0 to 255: multiply them by 255"
        )


def _learning_errors(cfg: CfgNode) -> Iterator[str]:
    solver = cfg.SOLVER
    labels = list(cfg.MODEL.RETINANET.IOU_LABELS)
    rises = labels == sorted(labels, key=lambda label: label == 1)
    if cfg.MODEL.RETINANET.MATCHER_NAME == "IoUMatcher" and not (
        rises and labels[-1:] == [1] != labels[:1]
    ):
        yield (
            f"MODEL.RETINANET.IOU_LABELS is {labels}, from the smallest IoU to the largest, with "
            "which objects are not learned: write [0, -1, 1], background first and foreground last"
        )
    if solver.AMP.ENABLED and not cfg.MODEL.DEVICE.startswith("cuda"):
        yield (
            f"SOLVER.AMP.ENABLED is True, which needs CUDA, but MODEL.DEVICE is "
            f"{cfg.MODEL.DEVICE}: set SOLVER.AMP.ENABLED False (or MODEL.RETINANET.BFLOAT16 True)"
        )


def _image_errors(cfg: CfgNode) -> Iterator[str]:
    size = cfg.INPUT
    if is_reversed_mean(cfg):
        wanted = sorted(_BGR_MEAN, reverse=size.FORMAT == "RGB")
        yield (
            f"INPUT.FORMAT is {size.FORMAT} but MODEL.PIXEL_MEAN {cfg.MODEL.PIXEL_MEAN} is in the "
            f"order of {'BGR' if size.FORMAT == 'RGB' else 'RGB'}: set MODEL.PIXEL_MEAN "
            f"{wanted}, and MODEL.PIXEL_STD in the same order"
        )
    if size.MIN_SIZE_TRAIN_SAMPLING == "range" and len(size.MIN_SIZE_TRAIN) != 2:
        yield (
            f"INPUT.MIN_SIZE_TRAIN_SAMPLING is 'range' but INPUT.MIN_SIZE_TRAIN is "
            f"{size.MIN_SIZE_TRAIN}: give the smallest and the largest size, such as (640, 800)"
        )
    if size.MIN_SIZE_TRAIN_SAMPLING == "range" and list(size.MIN_SIZE_TRAIN) != sorted(
        size.MIN_SIZE_TRAIN
    ):
        yield f"INPUT.MIN_SIZE_TRAIN is {size.MIN_SIZE_TRAIN}: write the smaller size first"
    if size.SCALE_JITTER and not max(size.MIN_SIZE_TRAIN):
        yield (
            f"INPUT.SCALE_JITTER is {size.SCALE_JITTER} but INPUT.MIN_SIZE_TRAIN "
            f"{size.MIN_SIZE_TRAIN}, the edge of its squares: write pixels, such as (640,)"
        )
    if size.CROP.ENABLED:
        yield from _crop_errors(size.CROP)


def _schedule_errors(cfg: CfgNode) -> Iterator[str]:
    solver = cfg.SOLVER
    if solver.REFERENCE_WORLD_SIZE and solver.IMS_PER_BATCH % solver.REFERENCE_WORLD_SIZE:
        yield (
            f"SOLVER.IMS_PER_BATCH is {solver.IMS_PER_BATCH}, which SOLVER.REFERENCE_WORLD_SIZE "
            f"{solver.REFERENCE_WORLD_SIZE} does not divide: choose a multiple of it"
        )
    if solver.REFERENCE_WORLD_SIZE and solver.REFERENCE_IMS_PER_BATCH:
        yield (
            f"SOLVER.REFERENCE_WORLD_SIZE is {solver.REFERENCE_WORLD_SIZE} and "
            f"SOLVER.REFERENCE_IMS_PER_BATCH {solver.REFERENCE_IMS_PER_BATCH}, which scale the "
            "same keys: set one of them to 0"
        )
    if solver.ACCUMULATE_STEPS > 1:
        yield from _accumulation_errors(cfg)
    if solver.NESTEROV and not solver.MOMENTUM:
        yield "SOLVER.NESTEROV is True but SOLVER.MOMENTUM is 0: set a momentum, such as 0.9"
    if (
        solver.LR_SCHEDULER_NAME == "WarmupCosineLR"
        and solver.get("BASE_LR_END", 0) > solver.BASE_LR
    ):
        yield (
            f"SOLVER.BASE_LR_END is {solver.BASE_LR_END}, above SOLVER.BASE_LR {solver.BASE_LR}: "
            "choose a smaller one, such as 0.0"
        )
    if solver.LR_SCHEDULER_NAME == "WarmupMultiStepLR" and solver.MAX_ITER in solver.STEPS:
        yield (
            f"SOLVER.STEPS is {solver.STEPS} and has SOLVER.MAX_ITER, {solver.MAX_ITER}, where "
            "nothing is trained any more: take it out"
        )
    yield from _average_errors(cfg)
    patience = cfg.TEST.EARLY_STOP_PATIENCE
    if patience and not (cfg.TEST.EVAL_PERIOD and cfg.DATASETS.TEST):
        yield (
            f"TEST.EARLY_STOP_PATIENCE is {patience} but nothing is evaluated during training: "
            "set TEST.EVAL_PERIOD and DATASETS.TEST, or TEST.EARLY_STOP_PATIENCE 0"
        )


def _average_errors(cfg: CfgNode) -> Iterator[str]:
    solver, average = cfg.SOLVER, cfg.SOLVER.WEIGHT_AVERAGE
    if average.NAME and average_start(cfg) + average.PERIOD > solver.MAX_ITER:
        yield (
            f"SOLVER.WEIGHT_AVERAGE.START is {average.START} and PERIOD {average.PERIOD}, so that "
            f"no weights are averaged by SOLVER.MAX_ITER {solver.MAX_ITER}: set smaller ones"
        )
    if average.NAME and cfg.TEST.PRECISE_BN.ENABLED:
        yield (
            f"TEST.PRECISE_BN.ENABLED is True but SOLVER.WEIGHT_AVERAGE.NAME {average.NAME}, whose "
            "batch norms it would leave as they are: set one of them back, to False or ''"
        )


def _accumulation_errors(cfg: CfgNode) -> Iterator[str]:
    steps = f"SOLVER.ACCUMULATE_STEPS is {cfg.SOLVER.ACCUMULATE_STEPS}"
    retinanet = cfg.MODEL.RETINANET
    if cfg.MODEL.META_ARCHITECTURE == "RetinaNet":
        yield (
            f"{steps} but MODEL.META_ARCHITECTURE RetinaNet, Detectron2's own, divides the losses "
            "of each part by itself: set ModularRetinaNet, or SOLVER.ACCUMULATE_STEPS 1"
        )
    if retinanet.CUDA_GRAPH:
        yield (
            f"{steps} but MODEL.RETINANET.CUDA_GRAPH is True, and graphs write over gradients that "
            "are to be added up: set one of them back, to 1 or False"
        )
    if retinanet.BBOX_REG_LOSS_WEIGHTING != "none":
        yield (
            f"{steps} but MODEL.RETINANET.BBOX_REG_LOSS_WEIGHTING is "
            f"{retinanet.BBOX_REG_LOSS_WEIGHTING}, whose sum over the batch is not known in its "
            "first parts: set it to none, or SOLVER.ACCUMULATE_STEPS 1"
        )


def _crop_errors(crop: CfgNode) -> Iterator[str]:
    relative = crop.TYPE.startswith("relative")
    is_size = (lambda x: 0 < x <= 1) if relative else (lambda x: x >= 1 and float(x).is_integer())
    sizes = crop.SIZE
    if len(sizes) != 2 or not all(isinstance(x, (int, float)) and is_size(x) for x in sizes):
        right = "two shares above 0, up to 1" if relative else "two whole numbers of pixels"
        yield f"INPUT.CROP.SIZE is {sizes} but INPUT.CROP.TYPE {crop.TYPE}: write {right}"
    elif crop.TYPE == "absolute_range" and sizes[0] > sizes[1]:
        yield f"INPUT.CROP.SIZE is {sizes} but INPUT.CROP.TYPE {crop.TYPE}: write the smaller first"


def is_reversed_mean(cfg: CfgNode) -> bool:
    """Whether ``MODEL.PIXEL_MEAN`` is ImageNet's in the other order than ``INPUT.FORMAT``."""
    order = {"BGR": _BGR_MEAN[::-1], "RGB": _BGR_MEAN}.get(cfg.INPUT.FORMAT)
    mean = cfg.MODEL.PIXEL_MEAN
    return order is not None and len(mean) == 3 and all(map(_is_near, mean, order))


def _is_near(value: float, other: float) -> bool:
    return math.isclose(value, other, abs_tol=1.0)
