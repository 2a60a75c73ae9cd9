"""How a run ends: with the results that were expected, and a line that says what there is now."""

import contextlib
import logging
import math
import os
import shlex
from collections.abc import Callable, Iterator
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.utils import comm

from ..errors import UserError
from .checkpoints.file_names import AVERAGED_WEIGHTS
from .failures.sentences import is_own_exit
from .signals import Stopped
from .validation import inference_folder
from .watch import AVERAGED, average_precision

logger = logging.getLogger("detectron2.trainer")


@contextlib.contextmanager
def missed_results_in_words(
    cfg: CfgNode, results: Callable[[], dict[str, Any] | None]
) -> Iterator[None]:
    """Turn the bare end of the process in Detectron2's ``verify_results`` into a sentence.

    Args:
        cfg: with ``TEST.EXPECTED_RESULTS``.
        results: returns what was verified.

    Raises:
        UserError: a result is missing, or not as expected.
    """
    try:
        yield
    except SystemExit as error:
        if isinstance(error, Stopped) or is_own_exit(error):
            raise
        found = results() or {}
        wrong = [
            f"{task} {metric} is {value:.4g} and not {wanted:g}, up to {tolerance:g}"
            for task, metric, wanted, tolerance in cfg.TEST.EXPECTED_RESULTS
            # NaN is not within any tolerance.
            if not abs((value := found.get(task, {}).get(metric, float("nan"))) - wanted)
            <= tolerance
        ]
        raise UserError(
            f"TEST.EXPECTED_RESULTS are missed on {cfg.DATASETS.TEST[0]} ({'; '.join(wrong)}): "
            "look for what changed, or correct them"
        ) from error


def log_end(cfg: CfgNode, results: dict[str, Any] | None, weights: str) -> None:
    """Say how good the model is and where its weights are, and the commands that come next.

    These commands take the averaged weights where they are better.

    Args:
        cfg: of the run.
        results: of its last evaluation; None: there was none.
        weights: path of the weights.
    """
    if not comm.is_main_process():
        return
    ap = average_precision(results)
    averaged = average_precision((results or {}).get(AVERAGED))
    found_nothing = ap is not None and math.isnan(ap)  # as COCO's evaluation has it
    if found_nothing:
        score = f"no detections on {cfg.DATASETS.TEST[0]}, "
    else:
        score = "" if ap is None else f"AP {ap:.1f} on {cfg.DATASETS.TEST[0]}, "
    said, of_average = f"{score}weights in {weights}", False
    path = os.path.join(cfg.OUTPUT_DIR, AVERAGED_WEIGHTS)
    if averaged is not None and not math.isnan(averaged):
        said += f"; averaged weights: AP {averaged:.1f}, in {path}"
        of_average = found_nothing or (ap is not None and averaged > ap)
        weights = path if of_average else weights
    elif os.path.isfile(path):
        said += f"; averaged weights in {path}"
    has_detections = of_average or (ap is not None and not found_nothing)
    command = _report_command(cfg, of_average) if has_detections else ""
    logger.info(f"done: {said}" + (f"; where it fails: {command}" if command else ""))
    if weights.endswith(".pth") and os.path.isfile(weights):
        _log_uses(cfg, weights)


def _log_uses(cfg: CfgNode, weights: str) -> None:
    name = next(iter(cfg.DATASETS.TEST), "")
    images = (name and MetadataCatalog.get(name).get("image_root")) or "IMAGES"
    output = os.path.join(cfg.OUTPUT_DIR, "predictions")
    options = ["--output", output, "--format", "images"]
    logger.info(f"detect: {_command('predict', weights, images, *options)}")
    target = os.path.join(cfg.OUTPUT_DIR, "model.onnx")
    logger.info(f"use elsewhere: {_command('export', 'onnx', weights, target)}")


def _report_command(cfg: CfgNode, of_average: bool) -> str:
    """Reports what was evaluated; "" where no annotation file in COCO's format says the truth."""
    name = cfg.DATASETS.TEST[0]
    metadata = MetadataCatalog.get(name)
    json_file, image_root = metadata.get("json_file"), metadata.get("image_root")
    if metadata.get("evaluator_type") != "coco" or not json_file or not image_root:
        return ""
    folder = inference_folder(cfg, name, of_average)
    options = {
        "--truth": json_file,
        "--images": image_root,
        "--results": os.path.join(folder, "coco_instances_results.json"),
        "--output": os.path.join(cfg.OUTPUT_DIR, "report"),
    }
    return _command("report", *(word for option in options.items() for word in option))


def _command(*words: str) -> str:
    return shlex.join(["python", "-m", "retinanet_plugin", *words])
