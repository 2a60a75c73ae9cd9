"""Draw detections beside ground truth, from the results that evaluation wrote.

For each of some images, evenly spread over the first of DATASETS.TEST: on the left the truth, boxes
that were found and boxes that were missed; on the right the detections, hits (IoU >= 0.5, right
class) and false alarms. Crowds and ignored boxes are hatched, detections in them grey: they are
neither.
"""

import argparse
import json
import os
from collections import defaultdict
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from ..data.checks import check_datasets, check_evaluator_type
from ..engine import inference_folder
from ..errors import UserError
from ..report.drawing import evenly_spread, save_figure
from ..report.pictures import SCORE_THRESH, draw_pairs
from .arguments import add_config_arguments, positive_number, read_config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_arguments(parser)
    parser.add_argument("--output", metavar="PNG", help="default: OUTPUT_DIR/detections.png")
    parser.add_argument("--num-images", type=positive_number, default=12, help="default: 12")
    parser.add_argument(
        "--score-thresh",
        type=float,
        default=SCORE_THRESH,
        help=f"lowest score to draw (default: {SCORE_THRESH})",
    )


def run(args: argparse.Namespace) -> None:
    cfg = read_config(args)
    check_datasets(cfg, eval_only=True)
    name = cfg.DATASETS.TEST[0]
    if check_evaluator_type(name) != "coco":
        raise UserError(
            f"the evaluation of {name} writes no detections to draw: register the data in COCO's "
            "format with DATASETS.COCO_JSON"
        )
    # Reading the data set is what completes its metadata.
    images = DatasetCatalog.get(name)
    detections_of = _read_detections(cfg, name)
    chosen = evenly_spread(len(images), args.num_images)
    output = args.output or os.path.join(cfg.OUTPUT_DIR, "detections.png")
    figure, unlabelled = draw_pairs(
        [images[i] for i in chosen],
        [detections_of[images[i]["image_id"]] for i in chosen],
        MetadataCatalog.get(name).thing_classes,
        args.score_thresh,
    )
    save_figure(figure, output)
    without = f" ({unlabelled} boxes without a label, for lack of room)" if unlabelled else ""
    print(f"drew {len(chosen)} images of {name}: {output}{without}")


def _read_detections(cfg: CfgNode, name: str) -> dict[int, list[dict[str, Any]]]:
    """Detections of each image id, as COCOEvaluator wrote them, with contiguous class ids."""
    path = os.path.join(inference_folder(cfg, name), "coco_instances_results.json")
    try:
        with open(path) as f:
            detections = json.load(f)
    except OSError as error:
        raise UserError(
            f"the detections {path} cannot be read ({error.strerror}): run train_net.py with the "
            "same config first, with --eval-only and MODEL.WEIGHTS if the model is trained"
        ) from error
    class_of = MetadataCatalog.get(name).thing_dataset_id_to_contiguous_id
    detections_of = defaultdict(list)
    for d in detections:
        detections_of[d["image_id"]].append({**d, "category_id": class_of[d["category_id"]]})
    return detections_of
