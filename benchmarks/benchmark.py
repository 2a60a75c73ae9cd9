"""Time and memory of RetinaNet: this package beside Detectron2's own and torchvision's.

All are ResNet-50-FPN with the same images and boxes; this package and Detectron2's have the same
weights. They run in turn, several times, in one process, so that a machine whose speed drifts is
the same for all; peak memory is measured in processes of their own. Writes benchmark.json and
benchmark.md.
"""
import argparse
import ctypes
import functools
import json
import multiprocessing
import os
import platform
import statistics
import time

import torch
import torchvision
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from fvcore.nn import FlopCountAnalysis

from retinanet_plugin.config import load_config

CONFIG = "configs/COCO-Detection/retinanet_R_50_FPN_1x.yaml"
OURS, STOCK, TORCHVISION = "retinanet_plugin", "Detectron2", "torchvision"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=2, help="in a batch (default: 2)")
    parser.add_argument("--size", type=int, nargs=2, default=[480, 640], metavar=("H", "W"))
    parser.add_argument("--boxes", type=int, default=10, help="in an image (default: 10)")
    parser.add_argument(
        "--many-boxes", type=int, nargs="*", default=[10, 100, 1000], metavar="M",
        help="numbers of boxes to match in one image of 800x1344 (default: 10 100 1000)",
    )  # fmt: skip
    parser.add_argument("--classes", type=int, default=80)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", default="output/benchmark", metavar="DIR")
    args = parser.parse_args()

    results = {"machine": describe_machine(args), "rows": []}
    for title, functions in workloads(args):
        row = {"what": title, "seconds": measure(functions, args), "peak_mib": {}}
        results["rows"].append(row)
        print(markdown_row(row), flush=True)
    for what in ("training step", "losses, forward and backward"):
        row = next(r for r in results["rows"] if r["what"] == what)
        row["peak_mib"] = {name: peak_memory(what, name, args) for name in row["seconds"]}
    write(results, args.output)


def describe_machine(args):
    matmul = matmul_rate(args.device)
    model, batch = build(OURS, args)
    images = model.preprocess_image(batch).tensor
    with torch.no_grad():
        flops = FlopCountAnalysis(Predictions(model), images)
        flops.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        gmac = flops.total() / 1e9
        frozen = sum(flops.by_module()[f"model.backbone.bottom_up.{m}"] for m in ("stem", "res2"))
    return {
        "device": torch.cuda.get_device_name() if args.device != "cpu" else platform.processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "matmul_gflops": matmul,
        "backbone_and_head_gmac": gmac,
        # Forward, and backward two products of the same size where anything is trained.
        "training_step_gmac": 3 * gmac - 2 * frozen / 1e9,
        "input": f"{args.images} images of {args.size[0]}x{args.size[1]}, {args.boxes} boxes each, "
        f"{args.classes} classes, float32",
    }


class Predictions(torch.nn.Module):
    """Backbone and head alone, for counting."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        features = self.model.backbone(images)
        return self.model.head([features[name] for name in self.model.in_features])


def matmul_rate(device, size=2048):
    """GFLOP/s of a float32 matrix product, the best of several."""
    a = torch.randn(size, size, device=device)
    times = [timed(lambda: a @ a, device) for _ in range(6)]
    return 2 * size**3 / min(times) / 1e9


# ---------------------------------------------------------------------------- what is measured


def workloads(args):
    """Pairs (what, {name: function}); made one after the other, so that memory is freed."""
    models = {name: build(name, args) for name in (OURS, STOCK, TORCHVISION)}
    yield "training step", {n: functools.partial(train_step, *m) for n, m in models.items()}
    yield "inference", {n: functools.partial(infer, *m) for n, m in models.items()}
    del models[TORCHVISION]
    yield (
        "losses, forward and backward",
        {n: losses_function(n, model, batch) for n, (model, batch) in models.items()},
    )
    yield (
        "matching of the batch",
        {n: matching_function(model, batch) for n, (model, batch) in models.items()},
    )
    for boxes in args.many_boxes:
        large = argparse.Namespace(**{**vars(args), "images": 1, "size": (800, 1344)})
        large.boxes = boxes
        batch = make_batch(large)
        yield (
            f"matching at 800x1344, {boxes} boxes",
            {n: matching_function(model, batch) for n, (model, _) in models.items()},
        )


def build(name, args):
    """A model in training mode and its input."""
    torch.manual_seed(0)
    batch = make_batch(args)
    if name == TORCHVISION:
        model = torchvision.models.detection.retinanet_resnet50_fpn(
            weights=None, weights_backbone=None, num_classes=args.classes,
            min_size=min(args.size), max_size=max(args.size),
        )  # fmt: skip
        # As Detectron2 has it, the stem and the first stage are not trained.
        for part in (model.backbone.body.conv1, model.backbone.body.layer1):
            part.requires_grad_(False)
        return model.to(args.device).train(), to_torchvision(batch)
    cfg = load_config(CONFIG, ["MODEL.DEVICE", args.device, "MODEL.WEIGHTS", ""])
    cfg.MODEL.RETINANET.NUM_CLASSES = args.classes
    if name == STOCK:
        cfg.MODEL.META_ARCHITECTURE = "RetinaNet"
        cfg.MODEL.BACKBONE.NAME = "build_retinanet_resnet_fpn_backbone"
    return build_model(cfg).train(), batch


def make_batch(args):
    (height, width), batch = args.size, []
    for _ in range(args.images):
        instances = Instances((height, width))
        size = torch.tensor([width, height])
        corners = torch.rand(args.boxes, 2) * size * 0.8
        extents = 8 + torch.rand(args.boxes, 2) ** 2 * size * 0.2
        instances.gt_boxes = Boxes(torch.cat([corners, corners + extents], dim=1))
        instances.gt_classes = torch.randint(args.classes, (args.boxes,))
        image = torch.randint(256, (3, height, width), dtype=torch.uint8)
        batch.append({"image": image.to(args.device), "instances": instances.to(args.device)})
    return batch


def to_torchvision(batch):
    images = [x["image"].float() / 255 for x in batch]
    targets = [
        {"boxes": x["instances"].gt_boxes.tensor, "labels": x["instances"].gt_classes}
        for x in batch
    ]
    return images, targets


def train_step(model, batch):
    model.train().zero_grad(set_to_none=True)
    losses = model(*batch) if isinstance(batch, tuple) else model(batch)
    sum(losses.values()).backward()


@torch.no_grad()
def infer(model, batch):
    return model.eval()(batch[0] if isinstance(batch, tuple) else batch)


def losses_function(name, model, batch):
    """The losses alone, on what the head gave, with their gradients for it."""
    model.train()
    with torch.no_grad():
        anchors, logits, deltas = predictions(name, model, batch)
        labels, boxes = model.label_anchors(anchors, [x["instances"] for x in batch])

    def run():
        leaves = [x.detach().requires_grad_() for x in (*logits, *deltas)]
        views = leaves
        if name == STOCK:  # from (N, A*K, Hi, Wi), as stock transposes it
            views = [to_rows(x, k) for x, k in zip(leaves, [model.num_classes] * 5 + [4] * 5)]
        losses = model.losses(anchors, views[:5], labels, views[5:], boxes)
        sum(losses.values()).backward()

    return run


def predictions(name, model, batch):
    images = model.preprocess_image(batch).tensor
    if name == OURS:
        return model.predict(images)
    names = getattr(model, "head_in_features", None) or model.in_features
    features = [model.backbone(images)[n] for n in names]
    return (model.anchor_generator(features), *model.head(features))


def to_rows(x, size):
    n, _, h, w = x.shape
    return x.view(n, -1, size, h, w).permute(0, 3, 4, 1, 2).reshape(n, -1, size)


def matching_function(model, batch):
    height, width = batch[0]["image"].shape[1:]
    device = batch[0]["image"].device
    shapes = [(-(-height // s), -(-width // s)) for s in (8, 16, 32, 64, 128)]
    anchors = model.anchor_generator([torch.zeros(1, 1, *s, device=device) for s in shapes])
    return functools.partial(model.label_anchors, anchors, [x["instances"] for x in batch])


# ---------------------------------------------------------------------------- measuring


def timed(function, device):
    if device != "cpu":
        torch.cuda.synchronize()
    start = time.perf_counter()
    function()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def measure(functions, args):
    """Seconds of each function, called in turn; the first round is a warm-up."""
    seconds = {name: [] for name in functions}
    for round_ in range(args.repeats + 1):
        for name, function in functions.items():
            with EventStorage():
                duration = timed(function, args.device)
            if round_ > 0:
                seconds[name].append(duration)
    return seconds


def peak_memory(what, name, args):
    """MiB that a call adds to what is there before it, in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak_memory, (what, name, args))


def _peak_memory(what, name, args):
    model, batch = build(name, args)
    if what == "training step":
        function = functools.partial(train_step, model, batch)
    else:
        function = losses_function(name, model, batch)
    if args.device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        with EventStorage():
            function()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    # What glibc keeps of freed memory would be used again, and not counted.
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    with open("/proc/self/clear_refs", "w") as f:
        f.write("5")  # Linux: the peak starts anew from what is in use
    before = _resident_peak()
    with EventStorage():
        function()
    return (_resident_peak() - before) / 2**20


def _resident_peak():
    with open("/proc/self/status") as f:
        (line,) = [line for line in f if line.startswith("VmHWM:")]
    return int(line.split()[1]) * 1024


# ---------------------------------------------------------------------------- reporting


def markdown_row(row):
    cells, ours = [row["what"]], statistics.median(row["seconds"][OURS])
    for name in (OURS, STOCK, TORCHVISION):
        values = row["seconds"].get(name)
        if values is None:
            cells.append("")
            continue
        cell = f"{statistics.median(values):.3g} s ({min(values):.3g} to {max(values):.3g})"
        if name in row["peak_mib"]:
            cell += f", {row['peak_mib'][name]:,.0f} MiB"
        if name != OURS:
            cell += f", **{statistics.median(values) / ours:.2f}x**"
        cells.append(cell)
    return "| " + " | ".join(cells) + " |"


def write(results, output):
    os.makedirs(output, exist_ok=True)
    with open(os.path.join(output, "benchmark.json"), "w") as f:
        json.dump(results, f, indent=1)
    machine = results["machine"]
    step = statistics.median(results["rows"][0]["seconds"][OURS])
    rate = 2 * machine["training_step_gmac"] / step
    lines = [
        f"{machine['input']}; {machine['device'] or platform.machine()}, {machine['threads']} "
        f"threads, PyTorch {machine['torch']}.",
        "",
        f"Backbone and head: {machine['backbone_and_head_gmac']:.0f} GMAC forward. A training step "
        f"reaches {rate:.0f} GFLOP/s, {100 * rate / machine['matmul_gflops']:.0f} % of this "
        f"machine's float32 matrix product ({machine['matmul_gflops']:.0f} GFLOP/s).",
        "",
        f"| median (range), peak memory added, time against {OURS} | {OURS} | {STOCK} "
        f"| {TORCHVISION} |",
        "|---|---|---|---|",
        *map(markdown_row, results["rows"]),
    ]
    text = "\n".join(lines) + "\n"
    with open(os.path.join(output, "benchmark.md"), "w") as f:
        f.write(text)
    print(text)


if __name__ == "__main__":
    main()
