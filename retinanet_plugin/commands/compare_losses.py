"""Compare classification losses in small, as the paper's tables 1a, 1b and 1d do at full size.

Every loss is trained from the same seeds with the same budget. Each has the same choice of
learning rates: the best one for the first seed is used for the others. Finished runs are kept, and
a call that was stopped goes on where it was. Writes results.md and results.png.
"""

import argparse
import contextlib
import itertools
import json
import math
import multiprocessing
import os
import statistics
import time
from typing import Any

import matplotlib
import torch
from detectron2.config import CfgNode
from detectron2.utils.env import seed_all_rng

from ..data.annotations.coco_json import register_coco_json
from ..data.checks import check_datasets, check_evaluator_type
from ..engine import Trainer, check_weights, check_weights_fit
from ..engine.checks.config_checks import check_values
from ..engine.checks.output_dir import check_output_dir
from ..errors import UserError
from ..weights.building import check_model
from .arguments import add_config_arguments, natural_number, positive_number, read_config

_RETINANET = "MODEL.RETINANET."
_Run = tuple[str, float, int]  # a key of ROWS, learning rate, seed
_Scores = dict[str, Any]  # "AP" and "AP50" in percent; of a finished run also its "config"


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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_arguments(parser)
    parser.add_argument(
        "--learning-rates", type=float, nargs="+", default=[0.05, 0.1], metavar="LR"
    )
    parser.add_argument("--seeds", type=natural_number, nargs="+", default=[1, 2, 3])
    parser.add_argument("--jobs", type=positive_number, default=1, help="at a time (default: 1)")


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
    experiment = _Experiment(cfg, args.jobs)
    first, *others = args.seeds
    tried = experiment.train_all(list(itertools.product(ROWS, args.learning_rates, [first])))
    best = {}
    for row in ROWS:
        ap_of = {lr: tried[row, lr, first]["AP"] for lr in args.learning_rates}
        best[row] = max(ap_of, key=ap_of.__getitem__)
    repeated = experiment.train_all([(row, best[row], seed) for row in ROWS for seed in others])
    results = {**tried, **repeated}
    scores = {row: [results[row, best[row], seed] for seed in args.seeds] for row in ROWS}
    _write_table(scores, best, os.path.join(cfg.OUTPUT_DIR, "results.md"))
    _write_plot(scores, os.path.join(cfg.OUTPUT_DIR, "results.png"))
    print(f"wrote results.md and results.png: {cfg.OUTPUT_DIR}")


class _Experiment:
    """Runs (row, learning rate, seed), each in a process and a folder of its own."""

    def __init__(self, cfg: CfgNode, jobs: int) -> None:
        self.cfg = cfg
        self.jobs = jobs

    def train_all(self, runs: list[_Run]) -> dict[_Run, _Scores]:
        """Metrics ``{"AP": ..., "AP50": ...}`` of every run, in percent."""
        results, pending = {}, []
        for r in runs:
            path = os.path.join(self.folder(r), "result.json")
            if not os.path.isfile(path):
                pending.append(r)
                continue
            with open(path) as f:
                results[r] = json.load(f)
            if results[r]["config"] != self.config(r).dump():
                raise UserError(
                    f"{path} is of another config: delete its folder, or choose another OUTPUT_DIR"
                )
        print(f"{len(results)} of {len(runs)} runs are there, {len(pending)} to go", flush=True)
        if not pending:
            return results
        start = time.time()
        # A process a run: Detectron2's loggers and writers end with it.
        with multiprocessing.get_context("spawn").Pool(self.jobs, maxtasksperchild=1) as pool:
            for done, (r, result) in enumerate(pool.imap_unordered(self._train, pending), 1):
                results[r] = result
                left = (time.time() - start) / done * (len(pending) - done) / 60
                row, lr, seed = r
                print(
                    f"[{done}/{len(pending)}] {row}, lr {lr}, seed {seed}: AP {result['AP']:.1f}, "
                    f"about {left:.0f} minutes left",
                    flush=True,
                )
        return results

    def folder(self, r: _Run) -> str:
        row, lr, seed = r
        name = "".join(c if c.isalnum() or c == "." else "_" for c in row)
        return os.path.join(self.cfg.OUTPUT_DIR, f"{name}_lr_{lr}_seed_{seed}")

    def config(self, r: _Run) -> CfgNode:
        row, lr, seed = r
        cfg = self.cfg.clone()
        cfg.merge_from_list(ROWS[row][1])
        cfg.SEED, cfg.SOLVER.BASE_LR, cfg.OUTPUT_DIR = seed, lr, self.folder(r)
        # A process of a pool may have no children of its own.
        cfg.DATALOADER.NUM_WORKERS = 0
        return cfg

    def _train(self, r: _Run) -> tuple[_Run, _Scores]:
        cfg = self.config(r)
        os.makedirs(cfg.OUTPUT_DIR, exist_ok=True)
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // self.jobs))
        register_coco_json(cfg.DATASETS.COCO_JSON)
        log_file = os.path.join(cfg.OUTPUT_DIR, "log.txt")
        with open(log_file, "w") as log, contextlib.redirect_stdout(log):
            result = {**_train_and_evaluate(cfg), "config": cfg.dump()}
        with open(os.path.join(cfg.OUTPUT_DIR, "result.json"), "w") as f:
            json.dump(result, f)
        return r, result


def _train_and_evaluate(cfg: CfgNode) -> _Scores:
    seed_all_rng(cfg.SEED)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    try:
        trainer.train()
    except FloatingPointError as error:
        print(error)  # a diverged run is a result, too
        return {"AP": 0.0, "AP50": 0.0}
    metrics = trainer.storage.latest()
    # COCOEvaluator gives NaN where a model detects nothing.
    return {name: _or_zero(metrics[f"bbox/{name}"][0]) for name in ("AP", "AP50")}


def _or_zero(value: float) -> float:
    return 0.0 if math.isnan(value) else value


def _write_table(scores: dict[str, list[_Scores]], best: dict[str, float], path: str) -> None:
    """Mean and range over the seeds of every row, as Markdown."""
    seeds = len(next(iter(scores.values())))
    lines = [
        f"| loss | learning rate | AP, mean of {seeds} seeds (range) | AP50, mean | paper's AP |",
        "|---|---|---|---|---|",
    ]
    for row, runs in scores.items():
        ap = [r["AP"] for r in runs]
        ap50 = statistics.mean(r["AP50"] for r in runs)
        lines.append(
            f"| {row} | {best[row]} | {statistics.mean(ap):.1f} ({min(ap):.1f} to {max(ap):.1f}) "
            f"| {ap50:.1f} | {ROWS[row][0]} |"
        )
    text = "\n".join(lines) + "\n"
    with open(path, "w") as f:
        f.write(text)
    print(text)


def _write_plot(scores: dict[str, list[_Scores]], path: str) -> None:
    """Every seed a dot, the mean a line."""
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axis = plt.subplots(figsize=(8, 0.45 * len(scores) + 1.2))
    for y, runs in enumerate(scores.values()):
        ap = [r["AP"] for r in runs]
        axis.plot([min(ap), max(ap)], [y, y], color="0.7", linewidth=3, zorder=1)
        axis.scatter(ap, [y] * len(ap), color="tab:blue", zorder=2)
        axis.scatter([statistics.mean(ap)], [y], color="black", marker="|", s=250, zorder=3)
    axis.set_yticks(range(len(scores)))
    axis.set_yticklabels(list(scores))
    axis.invert_yaxis()
    axis.set_xlabel("AP on the val set (dots: seeds, bar: range, tick: mean)")
    axis.grid(axis="x", alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)
