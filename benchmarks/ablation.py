"""What each ingredient of a modern RetinaNet gives, alone and all together: a table and a plot.

Small trainings of one narrow network from random weights, equal in iterations, on two data sets:
blood cells (https://github.com/Shenggan/BCCD_Dataset, annotations converted to COCO's format) and
the digits of `python -m retinanet_plugin digits`. Every row has the learning rate that is best for
its first seed, of a grid that is widened until the best is inside. Finished trainings are kept in
OUTPUT/results.jsonl, and a call that was stopped goes on where it was.
"""

import argparse
import itertools
import math
import os
import statistics
from typing import Any

import torch

from retinanet_plugin.commands.one_trial import Scores, scores_of
from retinanet_plugin.commands.trial_plot import mean_and_range, plot_scores
from retinanet_plugin.commands.trials import Row, Trials
from retinanet_plugin.config import load_config
from retinanet_plugin.engine import Trainer
from retinanet_plugin.errors import UserError

HERE = os.path.dirname(os.path.abspath(__file__))
SETS = ("bccd", "digits")
# Objects are from 0.6 to 1.5 times as large as in evaluation, in images of 4:3 and in squares.
JITTER = {"bccd": [0.8, 2.0], "digits": [0.6, 1.5]}
SGD_RATES, ADAMW_RATES = (0.05, 0.1, 0.2), (0.0005, 0.001, 0.002)
PLAIN, SWA = "plain", "SWA of the last 30 %, constant rate"


def _retinanet(**keys: Any) -> dict[str, Any]:
    return {f"MODEL.RETINANET.{key}": value for key, value in keys.items()}


GIOU = _retinanet(BBOX_REG_LOSS_TYPE="giou", BBOX_REG_LOSS_WEIGHT=2.0)
QFL = _retinanet(CLS_LOSS_NAME="QualityFocalLoss")
VFL = _retinanet(CLS_LOSS_NAME="VarifocalLoss")
ATSS = _retinanet(MATCHER_NAME="ATSSMatcher")
TAL = _retinanet(MATCHER_NAME="TaskAlignedMatcher")
WEIGHTED = _retinanet(BBOX_REG_LOSS_WEIGHTING="quality")
SCALES = _retinanet(BOX_SCALES=True)
JITTERED = {"INPUT.SCALE_JITTER": JITTER}
BOTH_SUMS = {**GIOU, **WEIGHTED, **SCALES, **JITTERED}
# In the order of their value, should there be no time for all.
INGREDIENTS: dict[str, dict[str, Any]] = {
    PLAIN: {},
    "sum, with TAL and QFL": {**BOTH_SUMS, **TAL, **QFL},
    "sum, with ATSS and VFL": {**BOTH_SUMS, **ATSS, **VFL},
    "GIoU": GIOU,
    "QFL": QFL,
    "VFL": VFL,
    "ATSS": ATSS,
    "TAL with QFL": {**TAL, **QFL},
    "scale jitter": JITTERED,
    "boxes weighted by quality": WEIGHTED,
    "AdamW": {"SOLVER.OPTIMIZER": "AdamW", "SOLVER.WEIGHT_DECAY": 0.05},
    "IoU branch": _retinanet(IOU_BRANCH=True),
    "scales of levels": SCALES,
    "no norms in FPN and head": {"MODEL.FPN.NORM": "", **_retinanet(NORM="")},
    "group norms in FPN and head": {"MODEL.FPN.NORM": "GN", **_retinanet(NORM="GN")},
    "focal loss of gamma 1, alpha 0.5": _retinanet(FOCAL_LOSS_GAMMA=1.0, FOCAL_LOSS_ALPHA=0.5),
    SWA: {
        "SOLVER.LR_SCHEDULER_NAME": "WarmupMultiStepLR",
        "SOLVER.WEIGHT_AVERAGE.NAME": "swa",
    },
}
# What the table says of them: a name, the trainings, and which of their scores.
ENTRIES = [
    (PLAIN, PLAIN, "AP"),
    *((f"{name}, EMA", name, "averaged") for name in INGREDIENTS if name.startswith("sum")),
    *((name, name, "AP") for name in INGREDIENTS if name not in (PLAIN, SWA)),
    (SWA, SWA, "averaged"),
    ("EMA", PLAIN, "averaged"),
    ("score voting", PLAIN, "voted"),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bccd", required=True, metavar="DIR", help="with annotations/train.json")
    parser.add_argument("--digits", required=True, metavar="DIR", help="as the command writes it")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=SETS)
    parser.add_argument("--iterations", type=int, default=600, help="default: 600")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time; default: 1")
    parser.add_argument("--seconds", type=float, default=math.inf, help="end after so many")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", default="output/ablation", metavar="DIR")
    args = parser.parse_args()
    rows = {
        f"{data}: {name}": row(data, name, args)
        for name, data in itertools.product(INGREDIENTS, args.sets)
    }
    trials = Trials(rows, args.seeds, os.path.join(args.output, "results.jsonl"))
    try:
        trials.run(args.jobs, args.seconds, evaluate)
    except UserError as error:
        raise SystemExit(f"error: {error}") from error
    finally:
        write_table(trials, args)
        panels = {
            data: {name: scores(trials, data, name) for name, *_ in ENTRIES} for data in args.sets
        }
        plot_scores(panels, os.path.join(args.output, "ablation.png"))


def row(data: str, name: str, args: argparse.Namespace) -> Row:
    """What is trained for an ingredient on a data set."""
    cfg = load_config(os.path.join(HERE, "ablation", f"{data}.yaml"))
    folder = os.path.abspath(getattr(args, data))
    cfg.DATASETS.COCO_JSON = [
        [f"{data}_{split}", f"{folder}/annotations/{split}.json", f"{folder}/{split}"]
        for split in ("train", "val")
    ]
    cfg.MODEL.DEVICE = args.device
    cfg.SOLVER.MAX_ITER = args.iterations
    cfg.SOLVER.WARMUP_ITERS = args.iterations // 10
    # Of every training, beside it: it changes nothing.
    cfg.SOLVER.WEIGHT_AVERAGE.NAME = "ema"
    for key, value in INGREDIENTS[name].items():
        cfg.merge_from_list([key, value[data] if isinstance(value, dict) else value])
    if cfg.SOLVER.WEIGHT_AVERAGE.NAME == "swa":
        cfg.SOLVER.WEIGHT_AVERAGE.START = int(0.7 * args.iterations)
    return Row(cfg, ADAMW_RATES if cfg.SOLVER.OPTIMIZER == "AdamW" else SGD_RATES)


def evaluate(trainer: Trainer) -> Scores:
    """AP of the averaged weights, and of the weights with score voting."""
    trainer.checkpointer.model.inference.score_voting = True
    voted = Trainer.test(trainer.cfg, trainer.model)
    averaged = trainer._last_eval_results["averaged"]
    return {"averaged": scores_of(averaged)["AP"], "voted": scores_of(voted)["AP"]}


def scores(trials: Trials, data: str, entry: str) -> list[float]:
    """Of an entry of the table, the seeds that have been trained at its best learning rate."""
    ((name, key),) = [(name, key) for label, name, key in ENTRIES if label == entry]
    best = trials.best(f"{data}: {name}")
    return [x.get(key, 0.0) for x in best[2]] if best else []


def write_table(trials: Trials, args: argparse.Namespace) -> None:
    """Markdown: mean and range over the seeds, the gain over the plain one, learning rates and the
    time of a step, which means something where trainings did not share a device."""
    titles = [f"{data}: AP, mean (range) | gain | learning rate | ms a step" for data in args.sets]
    lines = [f"| | {' | '.join(titles)} |", "|---" * (1 + 4 * len(titles)) + "|"]
    for entry, name, _ in ENTRIES:
        cells = [cells_of(trials, data, entry, name) for data in args.sets]
        lines.append(f"| {entry} | {' | '.join(cells)} |")
    text = "\n".join(lines) + "\n"
    os.makedirs(args.output, exist_ok=True)
    with open(os.path.join(args.output, "ablation.md"), "w") as file:
        file.write(text)
    print(f"{text}\nwrote {args.output}/ablation.md and ablation.png")


def cells_of(trials: Trials, data: str, entry: str, name: str) -> str:
    best, plain = trials.best(f"{data}: {name}"), scores(trials, data, PLAIN)
    if best is None or not plain:
        return " | | |"
    lr, is_inside, runs = best
    found = scores(trials, data, entry)
    count = "" if len(found) == len(trials.seeds) else f", {len(found)} seeds"
    gain = statistics.mean(found) - statistics.mean(plain)
    step = statistics.mean(x.get("seconds", math.nan) for x in runs)
    rate = f"{lr:g}" if is_inside else f"{lr:g} (at the end of the grid)"
    return f"{mean_and_range(found)}{count} | {gain:+.1f} | {rate} | {1000 * step:.0f}"


if __name__ == "__main__":
    main()
