"""Time and memory of RetinaNet: this package beside Detectron2's own and torchvision's.

All have the same images and boxes, this package and Detectron2's the same architecture. They run in
turn, several times, in one process; peak memory is measured in processes of their own. Writes
benchmark.json and benchmark.md.
"""

import argparse
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from typing import Any

import machine
import torch
from host_time import host_time
from measure import in_turn, parts_of_step, peak_memory
from models import (
    BFLOAT16,
    OURS,
    R50,
    STOCK,
    TORCHVISION,
    Subject,
    Workload,
    make_infer,
    make_losses,
    make_matching,
    make_train_step,
)
from parity import differences
from report import header, markdown_row, write

MLPERF = "configs/MLPerf/retinanet_X_50_32x4d_FPN.yaml"
STEP, INFERENCE, LOSSES = "training step", "inference", "losses, forward and backward"
GRAPHS = f"{STEP}, this package's as a CUDA graph"
PARTS = ("backbone", "head", "matching", "losses", "backward")
SATURATED = f"{STEP}, scores saturated"


def main() -> None:
    args = parse_arguments()
    workload = Workload(
        args.config_file, tuple(args.opts), args.device, args.images, tuple(args.size), args.boxes,
        args.classes,
    )  # fmt: skip
    results: dict[str, Any] = {"machine": machine.describe(workload), "workload": asdict(workload)}
    results["rates"] = rates(workload, args.precision)
    names = subjects(args, results["rates"])
    print("\n".join(header(results, names)), flush=True)
    results["rows"] = []
    for row in rows(workload, names, args):
        results["rows"].append(row)
        print(markdown_row(row, names), flush=True)
    # A machine that was busy at first may be faster by now.
    for dtype, after in rates(workload, list(results["rates"])).items():
        before = results["rates"][dtype]
        results["rates"][dtype] = {what: max(before[what], rate) for what, rate in after.items()}
    results["host"] = host_time(workload)
    results["differences"] = differences(workload)
    write(results, names, args.output)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config-file", default=R50, metavar="FILE", help=f"default: {R50}")
    parser.add_argument(
        "--mlperf", action="store_true",
        help="the model of MLPerf Training: ResNeXt-50 32x4d, 264 classes, images of 800x800",
    )  # fmt: skip
    parser.add_argument("--images", type=int, default=2, help="in a batch (default: 2)")
    parser.add_argument("--size", type=int, nargs=2, default=[480, 640], metavar=("H", "W"))
    parser.add_argument("--boxes", type=int, default=10, help="in an image (default: 10)")
    parser.add_argument("--classes", type=int, default=80, help="default: 80")
    parser.add_argument(
        "--many-boxes", type=int, nargs="*", default=[10, 100, 1000], metavar="M",
        help="numbers of boxes to match in one image of 800x1344 (default: 10 100 1000)",
    )  # fmt: skip
    parser.add_argument(
        "--repeats", type=int, help="default: 5; on a GPU, where they are short, 25"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--precision", nargs="+", choices=["float32", "bfloat16"],
        help="default: float32, and bfloat16 where convolutions are faster in it",
    )  # fmt: skip
    parser.add_argument("--output", default="output/benchmark", metavar="DIR")
    parser.add_argument(
        "--opts", nargs="...", default=[], metavar="KEY VALUE",
        help="config options for this package's model; write them last",
    )  # fmt: skip
    args = parser.parse_args()
    if args.repeats is None:
        args.repeats = 5 if args.device == "cpu" else 25
    if args.mlperf:
        args.config_file, args.size, args.classes = MLPERF, [800, 800], 264
    return args


def rates(workload: Workload, precisions: list[str] | None) -> dict[str, dict[str, float]]:
    """Of the types ``precisions``, what :func:`machine.rates` says; None: of those worth it."""
    if precisions is None:
        precisions = ["float32"]
        if machine.small_convolution_is_faster(workload.device, torch.bfloat16):
            precisions.append("bfloat16")
    types = dict.fromkeys(["float32", *precisions])
    return {t: machine.rates(workload, getattr(torch, t)) for t in types}


def subjects(args: argparse.Namespace, rates_of: dict[str, dict[str, float]]) -> list[str]:
    seconds = {dtype: machine.convolution_seconds(rates) for dtype, rates in rates_of.items()}
    precisions = args.precision or ["float32"]
    if not args.precision and seconds.get("bfloat16", math.inf) < seconds["float32"]:
        precisions.append("bfloat16")
    names = []
    for precision in precisions:
        suffix = BFLOAT16 if precision == "bfloat16" else ""
        names += [OURS + suffix, STOCK + suffix]
        if args.config_file == R50 and precision == "float32":
            names.append(TORCHVISION)
    return names


def rows(
    workload: Workload, names: list[str], args: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    """Yield {"what", "seconds": {subject: [...]}, "peak_mib": {subject: MiB}}."""

    def row(
        what: str,
        functions: dict[str, Callable[[], Any]],
        memory_of: Callable[..., Any] | None = None,
        workload: Workload = workload,
    ) -> dict[str, Any]:
        peaks = {}
        if memory_of is not None:
            for name in functions:
                peak = peak_memory(memory_of, name, workload, device=workload.device)
                peaks[name] = peak / 2**20
        seconds = in_turn(functions, args.repeats, workload.device)
        return {"what": what, "seconds": seconds, "peak_mib": peaks}

    all_subjects = {name: Subject(name, workload) for name in names}
    yield row(STEP, {n: s.train_step for n, s in all_subjects.items()}, make_train_step)
    parts = {n: parts_of_step(s, args.repeats) for n, s in all_subjects.items()}
    for part in PARTS:
        seconds = {n: laps[part] for n, laps in parts.items() if part in laps}
        yield {"what": f"- {part}", "seconds": seconds, "peak_mib": {}}
    if args.device != "cpu":
        graphs = replace(workload, opts=(*workload.opts, "MODEL.RETINANET.CUDA_GRAPH", "True"))
        subjects_here = all_subjects | {
            n: Subject(n, graphs) for n, s in all_subjects.items() if s.kind == OURS
        }
        yield row(GRAPHS, {n: s.train_step for n, s in subjects_here.items()})
        del subjects_here
    yield row(INFERENCE, {n: s.infer for n, s in all_subjects.items()}, make_infer)

    with_parts = {n: s for n, s in all_subjects.items() if s.kind != TORCHVISION}
    del all_subjects
    yield row(LOSSES, {n: s.losses() for n, s in with_parts.items()}, make_losses)
    float32 = [n for n in with_parts if not n.endswith(BFLOAT16)]
    del with_parts
    sure = {n: Subject(n, replace(workload, saturated=True)) for n in float32}
    yield row(SATURATED, {n: s.train_step for n, s in sure.items()})
    del sure
    for boxes in args.many_boxes:
        crowd = replace(workload, num_images=1, image_size=(800, 1344), num_boxes=boxes)
        functions = {n: Subject(n, crowd).matching() for n in float32}
        yield row(f"matching at 800x1344, {boxes:,} boxes", functions, make_matching, crowd)


if __name__ == "__main__":
    main()
