"""Time and memory of RetinaNet: this package beside Detectron2's own and torchvision's.

All have the same images and boxes, this package and Detectron2's the same architecture. They run in
turn, several times, in one process; peak memory is measured in processes of their own. Writes
benchmark.json and benchmark.md.
"""

import argparse
import json
import os
import platform
import statistics
from dataclasses import asdict, replace

import torch
from fvcore.nn import FlopCountAnalysis
from measure import in_turn, matmul_rate, parts_of_step, peak_memory
from models import BFLOAT16, OURS, STOCK, TORCHVISION, Subject, Workload
from parity import differences

R50 = "configs/COCO-Detection/retinanet_R_50_FPN_1x.yaml"
MLPERF = "configs/MLPerf/retinanet_X_50_32x4d_FPN.yaml"
STEP, INFERENCE, LOSSES = "training step", "inference", "losses, forward and backward"
PARTS = ("backbone", "head", "matching", "losses", "backward")


def main():
    args = parse_arguments()
    workload = Workload(
        args.config_file, tuple(args.opts), args.device, args.images, tuple(args.size), args.boxes,
        args.classes,
    )  # fmt: skip
    names = subjects(args)
    results = {"machine": describe_machine(workload), "workload": asdict(workload), "rows": []}
    print("\n".join(header(results, names)), flush=True)
    for row in rows(workload, names, args):
        results["rows"].append(row)
        print(markdown_row(row, names), flush=True)
    results["differences"] = differences(workload)
    write(results, names, args.output)


def parse_arguments():
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
    parser.add_argument("--repeats", type=int, default=5, help="default: 5")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--precision", nargs="+", choices=["float32", "bfloat16"],
        help="default: float32, and bfloat16 where the machine multiplies faster in it",
    )  # fmt: skip
    parser.add_argument("--output", default="output/benchmark", metavar="DIR")
    parser.add_argument(
        "--opts", nargs="...", default=[], metavar="KEY VALUE",
        help="config options for this package's model; write them last",
    )  # fmt: skip
    args = parser.parse_args()
    if args.mlperf:
        args.config_file, args.size, args.classes = MLPERF, [800, 800], 264
    return args


def subjects(args):
    rates = {t: matmul_rate(args.device, getattr(torch, t), 512) for t in ("float32", "bfloat16")}
    precisions = args.precision or ["float32"]
    if not args.precision and rates["bfloat16"] > rates["float32"]:
        precisions.append("bfloat16")
    names = []
    for precision in precisions:
        suffix = BFLOAT16 if precision == "bfloat16" else ""
        names += [OURS + suffix, STOCK + suffix]
        if args.config_file == R50 and precision == "float32":
            names.append(TORCHVISION)
    return names


def describe_machine(workload):
    subject = Subject(OURS, replace(workload, opts=()))
    model = subject.model
    images = model.preprocess_image(subject.batch).tensor
    with torch.no_grad():
        flops = FlopCountAnalysis(Predictions(model), images)
        flops.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        gmac = flops.total() / 1e9
        frozen = sum(flops.by_module()[f"model.backbone.bottom_up.{m}"] for m in ("stem", "res2"))
    cuda = workload.device != "cpu"
    return {
        "device": torch.cuda.get_device_name() if cuda else processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "matmul_gflops": matmul_rate(workload.device, torch.float32) / 1e9,
        "backbone_and_head_gmac": gmac,
        # Forward, and backward two products of the same size where anything is trained.
        "training_step_gmac": 3 * gmac - 2 * frozen / 1e9,
    }


class Predictions(torch.nn.Module):
    """Backbone and head alone, for counting."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        features = self.model.backbone(images)
        return self.model.head([features[name] for name in self.model.in_features])


def processor():
    with open("/proc/cpuinfo") as f:
        names = [line.split(": ")[1].strip() for line in f if line.startswith("model name")]
    return names[0] if names else platform.machine()


# ---------------------------------------------------------------------------- what is measured


def rows(workload, names, args):
    """Yield {"what", "seconds": {subject: [...]}, "peak_mib": {subject: MiB}}."""

    def row(what, functions, memory_of=None, workload=workload):
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
    yield row(INFERENCE, {n: s.infer for n, s in all_subjects.items()}, make_infer)

    with_parts = {n: s for n, s in all_subjects.items() if s.kind != TORCHVISION}
    del all_subjects
    yield row(LOSSES, {n: s.losses() for n, s in with_parts.items()}, make_losses)
    for boxes in args.many_boxes:
        crowd = replace(workload, num_images=1, image_size=(800, 1344), num_boxes=boxes)
        matchers = {n: Subject(n, crowd) for n in with_parts if not n.endswith(BFLOAT16)}
        functions = {n: s.matching() for n, s in matchers.items()}
        yield row(f"matching at 800x1344, {boxes:,} boxes", functions, make_matching, crowd)


def make_train_step(name, workload):
    return Subject(name, workload).train_step


def make_infer(name, workload):
    return Subject(name, workload).infer


def make_losses(name, workload):
    return Subject(name, workload).losses()


def make_matching(name, workload):
    return Subject(name, workload).matching()


# ---------------------------------------------------------------------------- reporting


def header(results, names):
    machine, workload = results["machine"], results["workload"]
    height, width = workload["image_size"]
    return [
        f"{workload['config_file']}, {workload['num_images']} images of {height}x{width}, "
        f"{workload['num_boxes']} boxes each, {workload['num_classes']} classes; "
        f"{machine['device']}, {machine['threads']} threads, PyTorch {machine['torch']}. Medians "
        f"(range), peak memory added, and in bold the speed in multiples of {STOCK}'s in float32.",
        "",
        "| | " + " | ".join(names) + " |",
        "|---" * (len(names) + 1) + "|",
    ]


def markdown_row(row, names):
    cells = [row["what"]]
    medians = {name: statistics.median(values) for name, values in row["seconds"].items()}
    for name in names:
        if name not in medians:
            cells.append("")
            continue
        values = row["seconds"][name]
        cell = f"{medians[name]:.3g} s ({min(values):.3g} to {max(values):.3g})"
        if name in row["peak_mib"]:
            cell += f", {row['peak_mib'][name]:,.0f} MiB"
        if name != STOCK and STOCK in medians:
            cell += f", **{medians[STOCK] / medians[name]:.2f}x**"
        cells.append(cell)
    return "| " + " | ".join(cells) + " |"


def share_of_machine(results):
    machine = results["machine"]
    step = results["rows"][0]["seconds"]
    rates = {n: 2 * machine["training_step_gmac"] / statistics.median(s) for n, s in step.items()}
    shares = ", ".join(
        f"{name} {rate:.0f} GFLOP/s ({100 * rate / machine['matmul_gflops']:.0f} %)"
        for name, rate in rates.items()
    )
    return (
        f"Backbone and head: {machine['backbone_and_head_gmac']:.0f} GMAC forward, "
        f"{machine['training_step_gmac']:.0f} in a training step. Rate of that arithmetic in a "
        f"step, and its share of the machine's float32 matrix product "
        f"({machine['matmul_gflops']:.0f} GFLOP/s): {shares}."
    )


def sameness(results):
    return (
        f"With the same weights, {OURS}'s numbers against {STOCK}'s in float32: losses differ by "
        "{loss:.0e} relative, the gradient of no parameter by more than {gradient:.0e} of its "
        "norm; of {detections} detections {lost} have no counterpart within 1e-5 in score and "
        "0.01 px, the others differ by at most {score:.0e} and {box:.0e} px."
    ).format(**results["differences"])


def write(results, names, output):
    os.makedirs(output, exist_ok=True)
    with open(os.path.join(output, "benchmark.json"), "w") as f:
        json.dump(results, f, indent=1)
    lines = header(results, names) + [markdown_row(row, names) for row in results["rows"]]
    lines += ["", share_of_machine(results), "", sameness(results)]
    with open(os.path.join(output, "benchmark.md"), "w") as f:
        f.write("\n".join(lines) + "\n")
    print(f"\n{lines[-3]}\n\n{lines[-1]}\nwrote {output}/benchmark.json and benchmark.md")


if __name__ == "__main__":
    main()
