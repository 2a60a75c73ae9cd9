"""Run a training step again that failed: replay OUTPUT_DIR/failure-000123.

Prints its losses, what each level of the pyramid gives, which image makes a loss infinite or NaN,
and the norm of the gradient. FOLDER is what a training has left that ended with a loss that is not
finite, or without memory; all it needs is in it.
"""

import argparse
import os
from typing import Any

import torch
from detectron2.modeling import build_model
from torch import nn

from ..config import load_config
from ..engine.failures.failure_record import CONFIG, STEP, WEIGHTS
from ..engine.failures.training_step import StepReport, TrainingStep, run_again
from ..errors import UserError
from ..report.tables import table
from ..weights.finite_numbers import parameters_not_finite


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="FOLDER", help="OUTPUT_DIR/failure-ITERATION")


def run(args: argparse.Namespace) -> None:
    model, step = load(args.folder)
    print(f"{args.folder}: {len(step.inputs)} images, on {model.device}")
    # With the gradient first: it may be what memory does not suffice for.
    report = run_again(model, step, backward=True)
    print("\n".join(_lines(report, step, model)))


def load(folder: str) -> tuple[Any, TrainingStep]:
    """The model as it was before the step, and the step.

    Raises:
        UserError: the folder is not what a training has left.
    """
    for name in (CONFIG, STEP, WEIGHTS):
        if not os.path.isfile(os.path.join(folder, name)):
            raise UserError(
                f"{folder} has no {name}: give a folder failure-ITERATION that a training has left "
                "in its OUTPUT_DIR"
            )
    cfg = load_config(os.path.join(folder, CONFIG))
    if not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"
    model = build_model(cfg)
    model.load_state_dict(_read(folder, WEIGHTS)["model"])
    return model, TrainingStep.from_plain(_read(folder, STEP))


def _read(folder: str, name: str) -> dict[str, Any]:
    return torch.load(os.path.join(folder, name), map_location="cpu", weights_only=True)


def _lines(report: StepReport, step: TrainingStep, model: nn.Module) -> list[str]:
    alone = [run_again(model, step, image=i) for i in range(len(step.inputs))]
    names = list(report.losses)
    per_image = [
        [name, *(f"{seen.losses[name]:.6g}" for seen in [report, *alone])] for name in names
    ]
    boxes = ["boxes", "", *(str(len(x.get("instances", ()))) for x in step.inputs)]
    sizes = ["size", "", *("x".join(map(str, x["image"].shape[:0:-1])) for x in step.inputs)]
    lines = table(["", "the batch", *step.names()], [("losses", per_image), ("", [sizes, boxes])])
    lines += ["", f"norm of the gradient: {report.gradient_norm:.6g}"]
    culprits = [name for name, seen in zip(step.names(), alone) if seen.not_finite()]
    if report.not_finite():
        lines.append(f"not finite: {', '.join(report.not_finite())}")
        lines.append(f"not finite by itself: {', '.join(culprits) or 'no image'}")
    spoiled = parameters_not_finite(model)
    if spoiled:
        lines.append(f"weights that are not finite: {len(spoiled)}, the first is {spoiled[0]}")
    if report.levels:
        levels = ["level", *(str(i) for i in range(len(report.levels)))]
        lines += ["", *table(levels, [_columns(report, kind) for kind in ("logits", "deltas")])]
    return lines


def _columns(report: StepReport, kind: str) -> tuple[str, list[list[str]]]:
    columns = [
        [name, *(_number(level[kind][name]) for level in report.levels)]
        for name in ("min", "mean", "max", "not_finite")
    ]
    return kind, columns


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
