"""Measure how well anchors reach the boxes of the training data, and propose better ones.

Boxes are those of DATASETS.TRAIN, after the config's own resizing. The proposal, in which sizes are
the same multiples of each level's stride, is written as a config file on top of the given one, with
a picture beside it. It never reaches fewer boxes, nor of a class fewer by more than 1% of them. A
detector that was trained with another number of anchors does not fit it in its last layers.
"""

import argparse
import json
import os
import shlex

from detectron2.config import CfgNode

from ..data.anchor_fit import AnchorFit, fit_anchors
from ..data.anchor_reach import AnchorGrid, foreground_iou, grid_of, has_grid_of_anchors
from ..data.training_boxes import TrainingBoxes, training_boxes
from ..engine.checks.config_checks import check_values
from ..errors import UserError
from ..report.anchor_plot import draw_reach
from ..report.anchor_report import describe_anchors, describe_measure, out_of_reach, reach_table
from ..report.dataset_report import describe_resizing
from ..report.drawing import save_figure
from ..report.tables import facts as fact_lines
from ..weights.building import check_model
from ..whole_files import write_whole_file
from .arguments import add_config_arguments, positive_number, read_config, shown_path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--output", metavar="YAML", help="default: OUTPUT_DIR/anchors.yaml; the picture is .png"
    )
    parser.add_argument(
        "--max-anchors", type=positive_number, default=9, help="most at a location (default: 9)"
    )
    add_config_arguments(parser)


def run(args: argparse.Namespace) -> None:
    cfg = read_config(args)
    output = args.output or os.path.join(cfg.OUTPUT_DIR, "anchors.yaml")
    _check_output(output)
    check_values(cfg)
    threshold = foreground_iou(cfg)
    if threshold is None:
        raise UserError(
            "MODEL.RETINANET.IOU_LABELS has no 1, so that no anchor is foreground: write [0, -1, 1]"
        )
    grid = _grid(cfg)
    boxes = training_boxes(cfg)
    fit = fit_anchors(
        boxes.corners,
        boxes.image_sizes,
        grid.strides,
        classes=boxes.classes,
        sizes=cfg.MODEL.ANCHOR_GENERATOR.SIZES,
        aspect_ratios=cfg.MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS,
        threshold=threshold,
        offset=grid.offset,
        size_divisibility=grid.size_divisibility,
        max_anchors=args.max_anchors,
    )
    is_new = fit.after is not fit.before
    _report(cfg, fit, boxes, min(grid.strides))
    picture = f"{os.path.splitext(output)[0]}.png"
    sets = [("now", fit.before), ("proposed", fit.after)][: 1 + is_new]
    save_figure(draw_reach(boxes.corners, sets), picture)
    if not is_new:
        print(f"\nno better anchors were found, these stay; drew {shown_path(picture)}")
        return
    write_whole_file(output, lambda file: file.write(_yaml(cfg, fit, args, output).encode()))
    # The old anchors, if options gave them, would come after the new file.
    others = [
        text
        for key, value in zip(args.opts[::2], args.opts[1::2])
        if key not in ("MODEL.ANCHOR_GENERATOR.SIZES", "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS")
        for text in (key, value)
    ]
    options = f" --opts {shlex.join(others)}" if others else ""
    output = shown_path(output)
    print(f"\nwrote {output}, and {shown_path(picture)}; to train with these anchors:")
    print(f"  python train_net.py --config-file {shlex.quote(output)}{options}")


def _check_output(output: str) -> None:
    """What is there may be a config that others build on, or the given one itself."""
    if not output.endswith((".yaml", ".yml")):
        raise UserError(f"--output {output} is no config file: name one that ends in .yaml")
    if os.path.lexists(output):
        raise UserError(f"{output} exists already: delete it, or name another with --output")


def _grid(cfg: CfgNode) -> AnchorGrid:
    """Where the anchors of the config's model stand."""
    cfg = cfg.clone()
    cfg.MODEL.DEVICE, cfg.MODEL.RETINANET.CUDA_GRAPH = "cpu", False
    model = check_model(cfg)
    if not has_grid_of_anchors(model):
        raise UserError(
            f"MODEL.ANCHOR_GENERATOR.NAME is {cfg.MODEL.ANCHOR_GENERATOR.NAME}, whose anchors are "
            "not known here: set DefaultAnchorGenerator"
        )
    return grid_of(model)


def _report(cfg: CfgNode, fit: AnchorFit, boxes: TrainingBoxes, stride: float) -> None:
    pairs = [
        ("boxes", f"{len(boxes.corners):,} of {', '.join(cfg.DATASETS.TRAIN)}"),
        ("resized by", describe_resizing(cfg, is_train=True)),
        ("measure", describe_measure(cfg.MODEL.RETINANET.MATCHER_NAME, fit.before.threshold)),
        ("now", describe_anchors(fit.before)),
    ]
    if fit.after is not fit.before:
        pairs.append(("proposed", describe_anchors(fit.after)))
    print("\n".join(fact_lines(pairs)) + "\n")
    print("\n".join(reach_table(fit, boxes.corners, boxes.classes, boxes.class_names)))
    unreachable = out_of_reach(fit, boxes.corners, stride)
    if unreachable:
        print(f"\n{unreachable}")


def _yaml(cfg: CfgNode, fit: AnchorFit, args: argparse.Namespace, output: str) -> str:
    base = args.config_file
    if "://" not in base:
        base = os.path.relpath(base, os.path.dirname(output) or ".")
    before, after = (f"{100 * x.coverage:.1f}%" for x in (fit.before, fit.after))
    lines = [
        f"# Anchors for the boxes of {', '.join(cfg.DATASETS.TRAIN)}: {after} have an IoU of",
        f"# {fit.after.threshold:g} or more with one; {before} with those of the config below.",
        f"_BASE_: {json.dumps(base)}",
        "MODEL:",
        "  ANCHOR_GENERATOR:",
        "    SIZES:",
        *(f"      - {level}" for level in fit.after.sizes),
        f"    ASPECT_RATIOS: [{fit.after.aspect_ratios[0]}]",
    ]
    return "\n".join(lines) + "\n"
