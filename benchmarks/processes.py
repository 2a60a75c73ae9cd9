"""Time a step of training in as many processes as torchrun starts, of one batch in all of them.

torchrun --standalone --nproc-per-node 2 benchmarks/processes.py

A narrow network on drawn digits, 8 images of 160 pixels a step; or the config of --config-file.
"""

import argparse
import statistics
import tempfile
import time

import torch
from detectron2.config import CfgNode
from detectron2.utils import comm
from detectron2.utils.events import EventStorage

from retinanet_plugin.config import load_config
from retinanet_plugin.data.annotations.coco_json import register_coco_json
from retinanet_plugin.data.digits import write_digits
from retinanet_plugin.engine import Trainer
from retinanet_plugin.engine.torchrun import process_group

DIGITS = "configs/digits/retinanet_narrow_R_50_FPN.yaml"
WARM_UP_STEPS = 5


def make_config(args: argparse.Namespace, folder: str) -> CfgNode:
    cfg = load_config(args.config_file, args.opts)
    if args.config_file == DIGITS:
        folder = f"{folder}/digits"
        write_digits(folder, seed=1, num_images={"train": 64, "val": 1})
        cfg.DATASETS.COCO_JSON = [
            ["scaling", f"{folder}/annotations/train.json", f"{folder}/train"],
        ]
        cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("scaling",), ()
    register_coco_json(cfg.DATASETS.COCO_JSON)
    cfg.OUTPUT_DIR = folder
    return cfg


def times(trainer: Trainer, num_steps: int) -> tuple[float, float]:
    """Medians of the seconds and of the processor's seconds of a step of this process."""
    seconds, of_processor = [], []
    with EventStorage(0):
        for trainer.iter in range(WARM_UP_STEPS + num_steps):
            start, start_of_processor = time.perf_counter(), time.process_time()
            trainer.run_step()
            seconds.append(time.perf_counter() - start)
            of_processor.append(time.process_time() - start_of_processor)
    return tuple(statistics.median(x[WARM_UP_STEPS:]) for x in (seconds, of_processor))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config-file", default=DIGITS, help=f"default: {DIGITS}")
    parser.add_argument("--steps", type=int, default=30, help="default: 30")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE ... of the config")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with process_group(), tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(make_config(args, folder))
        found = comm.all_gather(times(trainer, args.steps))
        gradients = sum(x.numel() * x.element_size() for x in trainer.model.parameters())
    if comm.is_main_process():
        seconds, of_processor = zip(*found)
        print(
            f"{len(found)} processes: {max(seconds):.3f} s a step, {sum(of_processor):.3f} s of "
            f"the processor in all, {gradients / 1e6:.1f} MB of gradients"
        )


if __name__ == "__main__":
    main()
