"""How the cost of a training step grows with image size, classes, batch and boxes: plots.

This package beside Detectron2's RetinaNet, ResNet-50, float32, on the CPU unless there is a GPU.
One quantity varies at a time; the others are 2 images of 240x320 with 10 boxes each and 80 classes.
Writes scaling.json and scaling.png; less than 10 minutes on two cores.
"""

import argparse
import json
import os
import statistics
from dataclasses import replace
from typing import Any

import torch
from matplotlib.figure import Figure
from measure import in_turn, peak_memory
from models import OURS, R50, STOCK, Subject, Workload, make_matching, make_train_step

STEP, MATCHING = "training step", "matching"
NAMES = (OURS, STOCK)


def experiments(device: str) -> list[tuple[str, str, list[tuple[int, Workload]]]]:
    """(what varies, what is measured, [(value, workload)])."""
    base = Workload(R50, (), device, 2, (240, 320), 10, 80)
    sizes = [(120, 160), (240, 320), (480, 640), (640, 864)]
    crowd = replace(base, num_images=1, image_size=(800, 1344))
    return [
        ("pixels of an image", STEP, [(h * w, replace(base, image_size=(h, w))) for h, w in sizes]),
        ("classes", STEP, [(k, replace(base, num_classes=k)) for k in (1, 20, 80, 365)]),
        ("images in a batch", STEP, [(n, replace(base, num_images=n)) for n in (1, 2, 4, 8)]),
        (
            "boxes in an image of 800x1344",
            MATCHING,
            [(m, replace(crowd, num_boxes=m)) for m in (1, 10, 100, 1000)],
        ),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=2, help="default: 2")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", default="output/benchmark", metavar="DIR")
    args = parser.parse_args()
    os.makedirs(args.output, exist_ok=True)
    results: list[dict[str, Any]] = []
    for varies, what, points in experiments(args.device):
        results.append({"varies": varies, "what": what, "points": []})
        for value, workload in points:
            point = {"value": value, **measure_point(what, workload, args)}
            results[-1]["points"].append(point)
            print(varies, value, what, point["seconds"], point["mib"], flush=True)
    with open(os.path.join(args.output, "scaling.json"), "w") as f:
        json.dump(results, f, indent=1)
    draw(results, os.path.join(args.output, "scaling.png"))


def measure_point(what: str, workload: Workload, args: argparse.Namespace) -> dict[str, Any]:
    make = {STEP: make_train_step, MATCHING: make_matching}[what]
    subjects = {name: Subject(name, workload) for name in NAMES}
    functions = {n: s.train_step if what == STEP else s.matching() for n, s in subjects.items()}
    seconds = in_turn(functions, args.repeats, args.device)
    del subjects, functions
    return {
        "seconds": {name: statistics.median(values) for name, values in seconds.items()},
        "mib": {
            name: peak_memory(make, name, workload, device=args.device) / 2**20 for name in NAMES
        },
    }


def draw(results: list[dict[str, Any]], path: str) -> None:
    figure = Figure(figsize=(4 * len(results), 7), layout="constrained")
    axes = figure.subplots(2, len(results), squeeze=False)
    for column, result in enumerate(results):
        for row, (quantity, label) in enumerate([("seconds", "seconds"), ("mib", "MiB added")]):
            ax = axes[row][column]
            values = [point["value"] for point in result["points"]]
            for name, style in zip(NAMES, ("o-", "s--")):
                ax.plot(values, [p[quantity][name] for p in result["points"]], style, label=name)
            ax.set(xscale="log", yscale="log", xlabel=result["varies"])
            ax.set_xticks(values, [f"{value:,}" for value in values], minor=False)
            ax.set_xticks([], minor=True)
            ax.set_ylabel(f"{result['what']}, {label}")
            ax.grid(True, which="both", alpha=0.3)
    axes[0][0].legend()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
