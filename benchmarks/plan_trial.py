"""What a plan of `python -m retinanet_plugin new` learns in so many seconds of one core.

    OMP_NUM_THREADS=1 taskset -c 0 python benchmarks/plan_trial.py plans/mine/config.yaml \
      --seconds 100 --seed 1 --opts MODEL.RETINANET.NUM_CONVS 2

It trains as the plan says, for seconds of processor time instead of iterations: the learning rate
and task-aligned targets go by the share of the time that has passed. What else the machine does
changes little. Prints a line of JSON with AP at the end.
"""

import argparse
import contextlib
import io
import json
import tempfile
import time

import torch
from detectron2.config import CfgNode
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import EventStorage
from torch import nn

from retinanet_plugin.config import load_config
from retinanet_plugin.data.annotations.coco_json import register_coco_json
from retinanet_plugin.engine import Trainer
from retinanet_plugin.engine.console_log import quiet


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("config", help="config.yaml of a plan")
    parser.add_argument("--seconds", type=float, default=100.0, help="of training (default: 100)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--opts", nargs="...", default=[], metavar="KEY VALUE")
    args = parser.parse_args()
    cfg = load_config(args.config, [*args.opts, "DATALOADER.NUM_WORKERS", "0"])
    cfg.SEED = args.seed
    register_coco_json(cfg.DATASETS.COCO_JSON)
    with quiet(), tempfile.TemporaryDirectory() as cfg.OUTPUT_DIR:
        seed_all_rng(cfg.SEED)
        model = Trainer.build_model(cfg)
        iterations = train(cfg, model, args.seconds)
        with contextlib.redirect_stdout(io.StringIO()):  # COCO's tables
            found = Trainer.test(cfg, model)["bbox"]
    scores = {name: round(found[name], 1) for name in ("AP", "AP50", "AP75")}
    print(json.dumps({"config": args.config, "opts": args.opts, "seed": args.seed,
                      "seconds": args.seconds, "iterations": iterations, **scores}))  # fmt: skip


def train(cfg: CfgNode, model: nn.Module, seconds: float) -> int:
    """Train for ``seconds`` of processor time; returns the iterations."""
    optimizer = Trainer.build_optimizer(cfg, model)
    schedule = Trainer.build_lr_scheduler(cfg, optimizer)
    batches = iter(Trainer.build_train_loader(cfg))
    start, iteration = time.process_time(), 0
    with EventStorage(0) as storage:
        while (share := (time.process_time() - start) / seconds) < 1:
            schedule.last_epoch = storage.iter = int(share * cfg.SOLVER.MAX_ITER)
            for group, rate in zip(optimizer.param_groups, schedule.get_lr()):
                group["lr"] = rate
            loss = torch.stack(list(model(next(batches)).values())).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            iteration += 1
    return iteration


if __name__ == "__main__":
    main()
