"""From image files to detections: Predictor and exports beside Detectron2's DefaultPredictor.

All have the same random weights, with which an image has about a hundred detections. Each sees to
all images, in turn, several times; a ratio is of two neighbours in time. Processor time is nearly
the same on a busy machine, the time that passes is not. Exports are compared with PyTorch first;
--rounds 0 does no more than that.
"""

import argparse
import functools
import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data.detection_utils import read_image
from detectron2.engine import DefaultPredictor
from detectron2.modeling import build_model
from machine import processor
from models import R50, make_like_trained

from retinanet_plugin import Predictor
from retinanet_plugin.__main__ import main as run_command
from retinanet_plugin.config import load_config
from retinanet_plugin.deploy.pictures import Preprocessing, images_in
from retinanet_plugin.engine import Checkpointer

STOCK = "Detectron2"
EXPORTS = {
    "onnx": ["onnx", "model.onnx"],
    "openvino": ["openvino", "model.xml"],
    "int8": ["openvino", "small.xml", "--int8"],
}
CANDIDATES = 500  # of an image, before NMS


def write_images(folder: str, count: int, size: tuple[int, int]) -> None:
    """JPEG files of ``size`` (height, width), of coarse and fine noise."""
    rng = np.random.default_rng(0)
    os.makedirs(folder)
    for i in range(count):
        coarse = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        picture = cv2.resize(coarse, size[::-1], interpolation=cv2.INTER_CUBIC)
        picture = picture // 2 + rng.integers(0, 128, (*size, 3), dtype=np.uint8)
        cv2.imwrite(os.path.join(folder, f"{i}.jpg"), picture)


@torch.no_grad()
def write_checkpoint(folder: str, cfg: CfgNode, path: str) -> str:
    """A checkpoint of the model of ``cfg`` that finds something in the image ``path``."""
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    make_like_trained(model)
    batch = [Preprocessing.of(cfg).prepare(path)]

    def logits() -> torch.Tensor:
        _, predictions = model.backbone_and_head(model.preprocess_image(batch).tensor)
        return torch.cat([level.flatten() for level in predictions.pred_logits])

    model.head.cls_score.weight.div_(logits().std())
    threshold = cfg.MODEL.RETINANET.SCORE_THRESH_TEST
    last = logits().topk(CANDIDATES).values[-1]
    model.head.cls_score.bias.add_(math.log(threshold / (1 - threshold)) - last)
    Checkpointer(model, folder, cfg=cfg).save("model")
    return os.path.join(folder, "model.pth")


def default_predictor(config: str) -> Callable[[str], Any]:
    """Detectron2's, of files."""
    cfg = get_cfg()
    cfg.merge_from_file(config)
    predictor = DefaultPredictor(cfg)
    return lambda path: predictor(read_image(path, "BGR"))["instances"]


def measure(
    functions: dict[str, Callable[[], Any]], rounds: int
) -> dict[str, list[tuple[float, float]]]:
    """Seconds that pass, and of the processor, of each function in each round."""
    laps: dict[str, list[tuple[float, float]]] = {name: [] for name in functions}
    for round_ in range(rounds + 1):
        for name, function in functions.items():
            wall, cpu = time.perf_counter(), time.process_time()
            function()
            lap = time.perf_counter() - wall, time.process_time() - cpu
            if round_ > 0:  # the first one warms up
                laps[name].append(lap)
    return laps


def row(name: str, laps: dict[str, list[tuple[float, float]]], num_images: int) -> str:
    cells = [name]
    for i in range(2):
        times, stock = ([lap[i] / num_images for lap in laps[n]] for n in (name, STOCK))
        ratio = statistics.median(b / a for a, b in zip(times, stock))
        cells += [f"{statistics.median(times):.3f} s", f"{ratio:.2f}x"]
    return f"| {' | '.join(cells)} |"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=8, help="default: 8")
    parser.add_argument("--folder", help="images instead of noise, at most 50, of any sizes")
    parser.add_argument("--size", type=int, nargs=2, default=[480, 640], metavar=("H", "W"))
    parser.add_argument("--rounds", type=int, default=5, help="default: 5")
    parser.add_argument("--exports", nargs="*", choices=EXPORTS, default=list(EXPORTS))
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    height, width = args.size
    cfg = load_config(R50)
    cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS = "cpu", ""
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = sorted(args.size)
    with tempfile.TemporaryDirectory() as folder:
        within = functools.partial(os.path.join, folder)
        images = args.folder or within("images")
        if not args.folder:
            write_images(images, args.images, (height, width))
        files = images_in(images)[:50]  # as many as exports are compared on
        weights = write_checkpoint(folder, cfg, files[0])
        plain = within("plain.yaml")
        run_command(["export", "detectron2", weights, plain, "--images", images])
        stock = default_predictor(plain)
        functions: dict[str, Callable[[], Any]] = {STOCK: lambda: [stock(path) for path in files]}
        models = {"Predictor, checkpoint": weights}
        for name in args.exports:
            kind, output, *options = EXPORTS[name]
            models[f"Predictor, {name}"] = within(output)
            arguments = [kind, weights, within(output), *options, "--images", images]
            run_command(["export", *arguments])
        if args.rounds == 0:
            return
        for name, path in models.items():
            functions[name] = functools.partial(Predictor(path), files)
        print(
            f"\n{len(files)} files of {height}x{width}, {processor()}, {torch.get_num_threads()} "
            f"threads, PyTorch {torch.__version__}; seconds of an image, medians of {args.rounds} "
            f"rounds, and the speed in multiples of {STOCK}'s.\n\n"
            "| | passed | | of the processor | |\n|---|---|---|---|---|"
        )
        for name, laps in (found := measure(functions, args.rounds)).items():
            print(row(name, {name: laps, STOCK: found[STOCK]}, len(files)))


if __name__ == "__main__":
    main()
