"""Compare classification losses in small, as the paper's tables 1a, 1b and 1d do at full size.

Every loss is trained from the same seeds with the same budget. For the first seed each tries the
same learning rates, and further ones until the best is neither the smallest nor the largest; the
other seeds take the best. Finished runs are kept in results.jsonl, and a call that was stopped goes
on where it was. Writes results.md and results.png.
"""

import argparse
import math
import os
import statistics
from typing import Any

from detectron2.config import CfgNode

from ..data.checks import check_datasets, check_evaluator_type
from ..engine import check_weights, check_weights_fit
from ..engine.checks.config_checks import check_values
from ..engine.checks.output_dir import check_output_dir
from ..errors import UserError
from ..weights.building import check_model
from ..whole_files import write_whole_file
from .arguments import add_config_arguments, natural_number, positive_number, read_config
from .trial_plot import mean_and_range, plot_scores
from .trials import Row, Trials

_RETINANET = "MODEL.RETINANET."


def _loss(name: str, **more: float) -> list[Any]:
    keys = {"CLS_LOSS_NAME": name, **more}
    return [x for key, value in keys.items() for x in (_RETINANET + key, value)]


# The row, the paper's AP for it (ResNet-50 at 600 px; OHEM: ResNet-101), and its config.
ROWS = {
    "CE, prior 0.5": ("diverges", _loss("CrossEntropyLoss", PRIOR_PROB=0.5)),
    "CE, prior 0.01": ("30.2", _loss("CrossEntropyLoss")),
    "alpha-CE, alpha 0.75": ("31.1", _loss("BalancedCrossEntropyLoss", FOCAL_LOSS_ALPHA=0.75)),
    "FL, gamma 0.5, alpha 0.5": (
        "32.9",
        _loss("FocalLoss", FOCAL_LOSS_GAMMA=0.5, FOCAL_LOSS_ALPHA=0.5),
    ),
    "FL, gamma 1, alpha 0.25": ("33.7", _loss("FocalLoss", FOCAL_LOSS_GAMMA=1.0)),
    "FL, gamma 2, alpha 0.25": ("34.0", _loss("FocalLoss", FOCAL_LOSS_GAMMA=2.0)),
    "FL, gamma 5, alpha 0.25": ("32.2", _loss("FocalLoss", FOCAL_LOSS_GAMMA=5.0)),
    "OHEM, batch 128, NMS 0.5": ("32.8", _loss("OHEMLoss", OHEM_BATCH_SIZE_PER_IMAGE=128)),
}


def positive_rate(text: str) -> float:
    """The type of an option that is a learning rate."""
    rate = float(text)
    if not 0 < rate < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is no learning rate: give one above 0")
    return rate


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_arguments(parser)
    parser.add_argument(
        "--learning-rates", type=positive_rate, nargs="+", default=[0.1, 0.2, 0.4], metavar="LR",
        help="each row tries these first (default: 0.1 0.2 0.4)",
    )  # fmt: skip
    parser.add_argument("--seeds", type=natural_number, nargs="+", default=[1, 2, 3])
    parser.add_argument("--jobs", type=positive_number, default=1, help="at a time (default: 1)")
    parser.add_argument(
        "--seconds", type=float, default=math.inf,
        help="end after so many; the same command goes on (default: when all is done)",
    )  # fmt: skip


def run(args: argparse.Namespace) -> None:
    cfg = read_config(args)
    check_values(cfg)
    check_output_dir(cfg.OUTPUT_DIR)
    model = check_model(cfg)
    check_datasets(cfg)
    if len(cfg.DATASETS.TEST) != 1 or check_evaluator_type(cfg.DATASETS.TEST[0]) != "coco":
        raise UserError(f"DATASETS.TEST is {cfg.DATASETS.TEST}: name one data set in COCO's format")
    check_weights(cfg.MODEL.WEIGHTS)
    check_weights_fit(cfg, model, None, eval_only=False)
    rows = {}
    for name, (_, keys) in ROWS.items():
        row = cfg.clone()
        row.merge_from_list(keys)
        rows[name] = Row(row, sorted(set(args.learning_rates)))
    trials = Trials(rows, args.seeds, os.path.join(cfg.OUTPUT_DIR, "results.jsonl"))
    try:
        trials.run(args.jobs, args.seconds)
    finally:
        _write(trials, cfg)


def _write(trials: Trials, cfg: CfgNode) -> None:
    """What there is, also if a row failed."""
    _write_table(trials, os.path.join(cfg.OUTPUT_DIR, "results.md"))
    plot_scores(
        {cfg.DATASETS.TEST[0]: {row: _scores(trials, row, "AP") for row in ROWS}},
        os.path.join(cfg.OUTPUT_DIR, "results.png"),
    )
    print(f"wrote results.md and results.png: {cfg.OUTPUT_DIR}")


def _scores(trials: Trials, row: str, name: str) -> list[float]:
    best = trials.best(row)
    return [scores[name] for scores in best[2]] if best else []


def _write_table(trials: Trials, path: str) -> None:
    """Mean and range over the seeds of every row, as Markdown."""
    lines = [
        "| loss | learning rate | seeds | AP, mean (range) | AP50, mean | paper's AP |",
        "|---|---|---|---|---|---|",
    ]
    for row, (papers, _) in ROWS.items():
        best = trials.best(row)
        if best is None:
            continue
        lr, is_inside, scores = best
        rate = f"{lr:g}" if is_inside else f"{lr:g} (none beyond it was tried)"
        ap50 = statistics.mean(_scores(trials, row, "AP50"))
        aps = mean_and_range(_scores(trials, row, "AP"))
        lines.append(f"| {row} | {rate} | {len(scores)} | {aps} | {ap50:.1f} | {papers} |")
    text = "\n".join(lines) + "\n"
    write_whole_file(path, lambda file: file.write(text.encode()))
    print(text)
