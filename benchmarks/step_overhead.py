"""What this package's hooks and checks add to a training step: CPU seconds, beside Detectron2's.

One model and one batch; a step of this package's trainer (hooks, log, checks of what is finite) and
one of Detectron2's ``SimpleTrainer`` in turn. Evaluations and checkpoints are not in it.
"""

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import SimpleTrainer
from detectron2.utils.events import EventStorage
from models import R50

from retinanet_plugin.config import load_config
from retinanet_plugin.data.annotations.coco_json import register_coco_json
from retinanet_plugin.data.digits import write_digits
from retinanet_plugin.engine import Trainer

WARM_UP = 2


class OneBatchTrainer(Trainer):
    """Trains on the first batch again and again, so that no image has to be read."""

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Iterator[Any]:  # type: ignore[override]
        return itertools.repeat(next(iter(super().build_train_loader(cfg))))


def make_trainer(folder: Path, device: str, edge: int) -> OneBatchTrainer:
    """ResNet-50 on images whose shorter edge is ``edge``; its data go into ``folder``."""
    digits = folder / "digits"
    write_digits(str(digits), num_images={"train": 4, "val": 2})
    register_coco_json([("few", str(digits / "annotations/train.json"), str(digits / "train"))])
    cfg = load_config(R50)
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("few",), ()
    cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS, cfg.OUTPUT_DIR = device, "", str(folder / "output")
    cfg.MODEL.RESNETS.NORM, cfg.MODEL.BACKBONE.FREEZE_AT = "BN", 0  # there are no weights to freeze
    cfg.INPUT.MIN_SIZE_TRAIN = (edge,)
    cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.BASE_LR = 1, 1e-4
    cfg.TEST.EVAL_PERIOD, cfg.DATALOADER.NUM_WORKERS = 0, 0
    return OneBatchTrainer(cfg)


def measure(trainer: OneBatchTrainer, steps: int) -> list[tuple[float, float]]:
    """CPU seconds of a step, here and of ``SimpleTrainer``, ``steps`` times."""
    seconds = []
    with EventStorage(0) as trainer.storage:
        plain = SimpleTrainer(trainer.model, trainer.data_loader, trainer.optimizer)
        plain.storage = trainer.storage
        trainer.iter = trainer.start_iter = 0
        trainer.before_train()
        for trainer.iter in range(steps + WARM_UP):
            plain.iter = trainer.storage.iter = trainer.iter
            start = time.process_time()
            trainer.before_step()
            trainer.run_step()
            trainer.after_step()
            middle = time.process_time()
            plain.run_step()
            seconds.append((middle - start, time.process_time() - middle))
    return seconds[WARM_UP:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--edge", type=int, default=480, help="shorter edge of the image")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        seconds = measure(make_trainer(Path(folder), args.device, args.edge), args.steps)
    here, plain = (statistics.median(column) for column in zip(*seconds))
    ratio = statistics.median(a / b for a, b in seconds)
    print(f"step: {here:.4f} s here, {plain:.4f} s of Detectron2; median ratio {ratio:.4f}")


if __name__ == "__main__":
    main()
