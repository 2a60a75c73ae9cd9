"""Draw detections beside ground truth, from the results that evaluation wrote.

For each of some images, evenly spread over the first of DATASETS.TEST: on the left the truth,
missed boxes in orange; on the right the detections, hits (IoU >= 0.5, right class) in green, false
alarms in red.
"""

import json
import os
from collections import defaultdict

import matplotlib
import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.detection_utils import read_image
from detectron2.structures import Boxes, BoxMode, pairwise_iou

from ..data.checks import check_datasets, check_evaluator_type
from ..engine import inference_folder
from ..errors import UserError
from .arguments import add_config_arguments, positive_number, read_config

HIT, FALSE_ALARM, MISSED = "lime", "red", "orange"


def add_arguments(parser):
    add_config_arguments(parser)
    parser.add_argument("--output", metavar="PNG", help="default: OUTPUT_DIR/detections.png")
    parser.add_argument("--num-images", type=positive_number, default=12, help="default: 12")
    parser.add_argument(
        "--score-thresh", type=float, default=0.4, help="lowest score to draw (default: 0.4)"
    )


def run(args):
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
    chosen = np.unique(np.linspace(0, len(images) - 1, args.num_images).astype(int))
    classes = MetadataCatalog.get(name).thing_classes
    pairs = [
        _draw(images[i], detections_of[images[i]["image_id"]], classes, args.score_thresh)
        for i in chosen
    ]
    output = args.output or os.path.join(cfg.OUTPUT_DIR, "detections.png")
    _write_grid(pairs, output, args.score_thresh)
    print(f"drew {len(pairs)} images of {name}: {output}")


def _read_detections(cfg, name):
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


def _draw(image, detections, classes, score_thresh):
    """Truth and detections of an image side by side, (h, 2 w, 3) uint8 RGB."""
    truth = [a for a in image["annotations"] if not a.get("iscrowd", 0)]
    detections = [d for d in detections if d["score"] >= score_thresh]
    detections.sort(key=lambda d: -d["score"])
    truth_boxes, detected_boxes = _boxes(truth, "bbox_mode"), _boxes(detections)
    matched_truth = _match(detections, detected_boxes, truth, truth_boxes)
    found = set(matched_truth) - {None}

    from detectron2.utils.visualizer import Visualizer  # needs OpenCV, other commands do not

    picture = read_image(image["file_name"], format="RGB")
    left = Visualizer(picture, scale=2).overlay_instances(
        boxes=truth_boxes,
        labels=[classes[a["category_id"]] for a in truth],
        assigned_colors=[HIT if i in found else MISSED for i in range(len(truth))],
    )
    right = Visualizer(picture, scale=2).overlay_instances(
        boxes=detected_boxes,
        labels=[f"{classes[d['category_id']]} {d['score']:.2f}" for d in detections],
        assigned_colors=[FALSE_ALARM if m is None else HIT for m in matched_truth],
    )
    return np.concatenate([left.get_image(), right.get_image()], axis=1)


def _boxes(annotations, mode_key=None):
    """Boxes (x1, y1, x2, y2) in absolute pixels of the image file."""
    boxes = [
        BoxMode.convert(a["bbox"], a.get(mode_key, BoxMode.XYWH_ABS), BoxMode.XYXY_ABS)
        for a in annotations
    ]
    return Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))


def _match(detections, detected_boxes, truth, truth_boxes):
    """Of each detection, best first, the index of the truth that it finds, or None."""
    iou = pairwise_iou(detected_boxes, truth_boxes)
    matches, taken = [], set()
    for d, ious in zip(detections, iou.tolist()):
        candidates = [
            (overlap, i)
            for i, overlap in enumerate(ious)
            if overlap >= 0.5 and i not in taken and truth[i]["category_id"] == d["category_id"]
        ]
        match = max(candidates)[1] if candidates else None
        taken.add(match)
        matches.append(match)
    return matches


def _write_grid(pairs, output, score_thresh, columns=3):
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rows = -(-len(pairs) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(5.4 * columns, 2.8 * rows + 0.6), squeeze=False
    )
    for axis in axes.flat:
        axis.axis("off")
    for axis, pair in zip(axes.flat, pairs):
        axis.imshow(pair)
    figure.suptitle(
        f"left: ground truth ({MISSED}: missed)   right: detections, score >= {score_thresh} "
        f"(green: hit, {FALSE_ALARM}: false alarm)"
    )
    figure.tight_layout()
    os.makedirs(os.path.dirname(output) or ".", exist_ok=True)
    figure.savefig(output, dpi=100)
    plt.close(figure)
