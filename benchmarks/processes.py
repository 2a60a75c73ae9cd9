"""Time a step of training in 1, 2 and 4 processes of torchrun, of one batch in all of them.

python benchmarks/processes.py                                    # a table
torchrun ... --nproc-per-node 2 benchmarks/processes.py           # a line, of these processes

A narrow network on drawn digits, 8 images of 160 pixels a step; or the config of --config-file.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
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
from retinanet_plugin.engine.torchrun import is_torchrun, process_group

DIGITS = "configs/digits/retinanet_narrow_R_50_FPN.yaml"
WARM_UP_STEPS = 5
NUMBERS = (1, 2, 4)


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


def measure(args: argparse.Namespace) -> None:
    """In each process of torchrun; the first one writes what was found."""
    torch.set_num_threads(1)
    with process_group(), tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(make_config(args, folder))
        found = comm.all_gather(times(trainer, args.steps))
        gradients = sum(x.numel() * x.element_size() for x in trainer.model.parameters())
    if comm.is_main_process():
        seconds, of_processor = zip(*found)
        print(json.dumps([len(found), max(seconds), sum(of_processor), gradients]), flush=True)


def in_processes(num: int) -> list[float]:
    """What :func:`measure` prints in so many processes, with the options of this one."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(num), __file__, *sys.argv[1:]]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    printed = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True).stdout
    return json.loads(printed.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config-file", default=DIGITS, help=f"default: {DIGITS}")
    parser.add_argument("--steps", type=int, default=30, help="timed in a round; default: 30")
    parser.add_argument("--rounds", type=int, default=3, help="of 1, 2 and 4; default: 3")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE ... of the config")
    args = parser.parse_args()
    if is_torchrun():
        measure(args)
        return
    # In turn, so that a while in which the machine does other work falls on all of them.
    rounds = [[in_processes(num) for num in NUMBERS] for _ in range(args.rounds)]
    print(f"{os.cpu_count()} cores; of {args.rounds} rounds the median and, in brackets, the range")
    print("| processes | a step | efficiency | processor, in all | beside one | gradients |")
    print("|---|---|---|---|---|---|")
    for i, num in enumerate(NUMBERS):
        columns = [
            _spread([round_[i][1] for round_ in rounds], "{:.3f} s"),
            # Of the same round, which a slower while has slowed alike.
            _spread([100 * x[0][1] / (num * x[i][1]) for x in rounds], "{:.0f} %"),
            _spread([round_[i][2] for round_ in rounds], "{:.3f} s"),
            _spread([100 * x[0][2] / x[i][2] for x in rounds], "{:.0f} %"),
            f"{rounds[0][i][3] / 1e6:.1f} MB",
        ]
        print(f"| {num} | {' | '.join(columns)} |")


def _spread(values: list[float], form: str) -> str:
    median, *ends = (form.format(x) for x in (statistics.median(values), min(values), max(values)))
    return f"{median} ({' to '.join(ends)})"


if __name__ == "__main__":
    main()
