"""Plan a training on your own images: look at them, decide, write a config for train_net.py.

FOLDER gets config.yaml (short, with the reason for each value), base.yaml (what it builds on),
annotations/ in COCO's format, and plan.html, which shows the data and what was decided. Images stay
where they are. What a step costs is measured: plan on the machine that is to train.
"""

import argparse
import os
import re
import shlex
from collections.abc import Sequence

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog

from ..config import load_config
from ..data.annotations.coco_json import register_coco_json
from ..data.checks import inspect_datasets
from ..data.dataset_facts import DatasetFacts
from ..data.findings import counted
from ..data.images.image_files import count_trained, inspect_image_files
from ..data.planning.choice import Choice, options
from ..data.planning.config_text import config_text
from ..data.planning.detections import choose_detections
from ..data.planning.durations import in_words
from ..data.planning.intake import Intake, take_in
from ..data.planning.network import PRECISION, base_of, base_path, choose_network
from ..data.planning.plan import Wishes, plan_for_data
from ..data.planning.schedule import LEAST_BUDGET, plan_schedule, usual_batch
from ..engine import check_weights
from ..engine.console_log import quiet
from ..engine.other_programs import OtherPrograms
from ..engine.step_cost import measure_fitting_batch, measure_machine
from ..errors import UserError
from ..new_folders import new_folder
from ..report.plan_page import write_plan_page
from ..report.planned_page import page_of
from ..whole_files import write_whole_file
from .browse import sheet_of

_CPU_BUDGET, _GPU_BUDGET = 6 * 60.0, 60 * 60.0
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
# Of the first steps that are measured, before it is known which size is wanted.
_DRAFT_EDGE = 256
# All that is written into FOLDER.
_FILES = (
    "annotations/train.json", "annotations/val.json", "base.yaml", "config.yaml", "plan.html",
)  # fmt: skip
# Images on the plan's page, as the training sees them.
_SHEET = 6
# Classes whose counts are printed.
_MOST_NAMED = 12


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="FOLDER", help="where the plan goes, and the training")
    parser.add_argument(
        "--train", required=True, metavar="DATA",
        help="annotation file or folder: COCO, YOLO, Pascal VOC, LabelMe, CreateML, CSV",
    )  # fmt: skip
    parser.add_argument(
        "--val", metavar="DATA", help="the same for validation (default: a fifth of --train)"
    )
    parser.add_argument(
        "--images", metavar="FOLDER",
        help="where the images of both are (default: looked for beside the annotations)",
    )  # fmt: skip
    parser.add_argument(
        "--budget", type=duration, metavar="TIME",
        help="how long training may take: 10m, 1h, 1d (default: 6m on a CPU, 1h on a GPU)",
    )  # fmt: skip
    parser.add_argument(
        "--no-flip", action="store_true",
        help="mirror no image: for letters, digits, arrows, left and right",
    )  # fmt: skip
    parser.add_argument(
        "--weights", default="", metavar="FILE|URL",
        help="of a ResNet-50, or a RetinaNet on one, to start from (default: none)",
    )  # fmt: skip


def duration(text: str) -> float:
    """Seconds of ``90s``, ``10m``, ``1h`` or ``1d``."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text)
    if not match or float(match[1]) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no time such as 10m, 1h or 1d")
    return float(match[1]) * _UNITS[match[2]]


def run(args: argparse.Namespace) -> None:
    if args.budget is not None and args.budget < LEAST_BUDGET:
        raise UserError(
            f"--budget {in_words(args.budget)} is no time to train in, to start and to evaluate "
            f"take most of it: give it {in_words(LEAST_BUDGET)} or more"
        )
    check_weights(
        args.weights, key="--weights", without="leave it out to train from random weights"
    )
    if os.path.lexists(os.path.join(args.folder, "config.yaml")):
        raise UserError(f"{args.folder} has a plan already: delete it, or name another folder")
    with new_folder(args.folder, _FILES):
        _plan(args, os.path.abspath(args.folder))


def _plan(args: argparse.Namespace, folder: str) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    wishes = _wishes(args, device)
    intake = take_in(args.train, args.val, args.images)
    named = _name_data(intake, folder)
    detections = choose_detections(intake.most_objects)
    first = [*named, *detections, *choose_network(device, wishes.weights)]
    cfg = _draft(first, wishes, intake)
    train, num_trained, warnings = _checked(cfg)
    cfg.SOLVER.IMS_PER_BATCH = usual_batch(num_trained)
    _print_section(f"{args.train} ({intake.train.format})", [*_facts(intake), *intake.notes])

    print("\nmeasuring what steps cost here, half a minute ...", flush=True)
    others = OtherPrograms()
    machine = measure_machine(cfg, train, PRECISION)
    plan = plan_for_data(train, machine, wishes)
    cfg.merge_from_list(options(plan.choices))
    batch, cost = measure_fitting_batch(cfg)
    busy = _busy_warnings(others.busy_cores())
    sizes = num_trained, len(intake.val.images)
    schedule = plan_schedule(*sizes, batch, plan.learning_rate, cost, wishes.budget)
    choices = [*plan.choices, *detections, *schedule.choices(wishes.budget)]
    _print_section("decided", [f"{x.key} {x.value}: {x.reason}" for x in choices if x.reason])
    of_plan = [*plan.warnings, *schedule.warnings(wishes.budget), *busy]
    for text in of_plan:
        print(f"\nwarning: {text}")

    config_file = os.path.join(args.folder, "config.yaml")
    train_command = f"python train_net.py --config-file {shlex.quote(config_file)}"
    with quiet():
        sheet = sheet_of(cfg, train.class_names, _SHEET)
    times = [
        ("images for validation", f"{len(intake.val.images):,}"),
        ("time allowed", in_words(wishes.budget)),
        ("time expected", in_words(schedule.seconds)),
    ]
    remarks = [*(f"warning: {text}" for text in [*warnings, *of_plan]), *intake.notes]
    page = page_of(plan, train, choices, machine, times, remarks, train_command, sheet)
    write_plan_page(os.path.join(folder, "plan.html"), page)
    _write_config(folder, wishes, [*choices, *named])  # last: with it the plan is whole
    print(f"\nwrote {config_file} and {os.path.join(args.folder, 'plan.html')}")
    print(f"training will take about {in_words(schedule.seconds)}:\n  {train_command}")


def _busy_warnings(busy: float) -> list[str]:
    cores = os.cpu_count() or 1
    if busy < cores / 4:
        return []
    return [
        f"other programs kept {busy:.1f} of {cores} cores busy while steps were measured, which "
        "makes the plan smaller than it has to be: plan again once they have ended"
    ]


def _wishes(args: argparse.Namespace, device: str) -> Wishes:
    budget = args.budget or (_CPU_BUDGET if device == "cpu" else _GPU_BUDGET)
    is_file = os.path.isfile(args.weights)
    weights = os.path.abspath(args.weights) if is_file else args.weights
    return Wishes(budget, not args.no_flip, weights)


def _name_data(intake: Intake, folder: str) -> list[Choice]:
    """Write and register the annotations.

    They are called as the folder is; voc_2007, coco_2017 ... are names of Detectron2's data sets.
    """
    name = os.path.basename(folder)
    if any(f"{name}_{part}" in DatasetCatalog for part in ("train", "val")):
        name = f"{name}_plan"
    entries = intake.write(folder, name)
    (train, *_), (val, *_) = entries
    register_coco_json(entries, dict(zip((train, val), intake.called)))
    return [
        Choice("DATASETS.COCO_JSON", entries, "name, annotation file, image folder"),
        Choice("DATASETS.TRAIN", [train], ""),
        Choice("DATASETS.TEST", [val], ""),
        Choice("OUTPUT_DIR", os.path.join(folder, "output"), ""),
    ]


def _draft(choices: Sequence[Choice], wishes: Wishes, intake: Intake) -> CfgNode:
    """A config to measure with."""
    cfg = load_config(base_path(base_of(wishes.weights)))
    cfg.merge_from_list(options(choices))
    cfg.MODEL.RETINANET.NUM_CLASSES = len(intake.train.class_names)
    cfg.SOLVER.IMS_PER_BATCH = 1  # until it is known how many images can be trained on
    cfg.INPUT.MIN_SIZE_TRAIN = (_DRAFT_EDGE,)
    cfg.INPUT.MIN_SIZE_TEST = _DRAFT_EDGE
    cfg.INPUT.MAX_SIZE_TRAIN = cfg.INPUT.MAX_SIZE_TEST = 2 * _DRAFT_EDGE
    return cfg


def _checked(cfg: CfgNode) -> tuple[DatasetFacts, int, list[str]]:
    """What the training set has, how many of its images are trained on, and warnings, printed.

    Raises:
        UserError: of the first error.
    """
    findings, facts = inspect_datasets(cfg)
    of_files, images = inspect_image_files(facts, cfg)
    findings.extend(of_files)
    warnings = [str(warning) for warning in findings.warnings.values()]
    if warnings:
        _print_section("warnings", warnings)
    for error in findings.errors.values():
        raise UserError(str(error))
    (name,) = cfg.DATASETS.TRAIN
    return facts[name], count_trained(facts[name], images[name], cfg), warnings


def _facts(intake: Intake) -> list[str]:
    train, val = intake.train, intake.val
    lines = [
        f"{counted(len(train.images), 'image', 'images')} to train on, {len(val.images):,} for "
        f"validation; {counted(len(train.class_names), 'class', 'classes')}"
    ]
    counts = train.boxes_per_class()
    named = [f"{name} {counts[name]:,}" for name in list(counts)[:_MOST_NAMED]]
    more = f", {len(counts) - _MOST_NAMED:,} more" if len(counts) > _MOST_NAMED else ""
    return [*lines, f"boxes to train on: {', '.join(named)}{more}"]


def _write_config(folder: str, wishes: Wishes, choices: Sequence[Choice]) -> None:
    """The base beside it, so that the folder needs nothing but the package."""
    with open(base_path(base_of(wishes.weights)), "rb") as file:
        base = file.read()
    write_whole_file(os.path.join(folder, "base.yaml"), lambda file: file.write(base))
    title = "Planned by `python -m retinanet_plugin new`; plan.html shows it with the data."
    text = config_text("base.yaml", title, choices).encode()
    write_whole_file(os.path.join(folder, "config.yaml"), lambda file: file.write(text))


def _print_section(title: str, lines: Sequence[str]) -> None:
    print(f"\n{title}")
    for line in lines:
        print(f"  {line}")
