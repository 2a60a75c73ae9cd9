"""Kill a training again and again, resume it each time, and compare how it ends.

A tiny training (drawn digits, a narrow network with random noise in it, augmentation, evaluations)
runs once without interruption. Then it runs in processes that are killed at random moments: while
they start, in a step, while they write a checkpoint, in an evaluation. At the end its weights and
the state of its optimizer must be the same, bit for bit. About two seconds a kill on one core.
"""

import argparse
import contextlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.utils.env import seed_all_rng
from torch import nn

from retinanet_plugin.config import load_config
from retinanet_plugin.data.annotations.coco_json import register_coco_json
from retinanet_plugin.data.digits import write_digits
from retinanet_plugin.engine import Trainer, stop_signals

CONFIG = Path(__file__).parent.parent / "configs/digits/retinanet_narrow_R_50_FPN.yaml"
# SIGKILL cannot be noticed; the others end a training after its step.
SIGNALS = {signal.SIGKILL: 0.7, signal.SIGTERM: 0.2, signal.SIGINT: 0.1}
STOPPED = {-signal.SIGKILL, 128 + signal.SIGTERM, 128 + signal.SIGINT}


class NoisyTrainer(Trainer):
    """Trains a network that draws random numbers from every generator there is."""

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        model = super().build_model(cfg)
        model.backbone.register_forward_pre_hook(_noise)
        return model


def _noise(backbone: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    if not backbone.training:
        return inputs
    images, *others = inputs
    shift = random.random() + np.random.rand()
    return (images + 0.1 * shift + 0.1 * torch.randn_like(images), *others)


def make_config(folder: Path, name: str, workers: int, iterations: int) -> CfgNode:
    """The tiny training, with its data in ``folder`` and OUTPUT_DIR ``folder / name``."""
    data = folder / "digits"
    if not data.exists():
        write_digits(str(data), seed=1, num_images={"train": 14, "val": 3})
    sets = [f"{folder.name}_{split}" for split in ("train", "val")]
    register_coco_json(
        [
            (name, str(data / "annotations" / f"{split}.json"), str(data / split))
            for name, split in zip(sets, ("train", "val"))
        ]
    )
    cfg = load_config(str(CONFIG))
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (sets[0],), (sets[1],)
    cfg.DATALOADER.NUM_WORKERS = workers
    cfg.INPUT.MIN_SIZE_TRAIN = (64, 80, 96)
    cfg.INPUT.MIN_SIZE_TEST = 96
    cfg.INPUT.RANDOM_FLIP = "horizontal"
    cfg.SOLVER.IMS_PER_BATCH = 2
    cfg.SOLVER.MAX_ITER = iterations
    cfg.SOLVER.CHECKPOINT_PERIOD = max(1, iterations // 8)
    cfg.SOLVER.CHECKPOINT_MAX_TO_KEEP = 2
    cfg.TEST.EVAL_PERIOD = max(1, iterations // 3)
    cfg.OUTPUT_DIR = str(folder / name)
    os.makedirs(cfg.OUTPUT_DIR, exist_ok=True)
    return cfg


def start(cfg: CfgNode, resume: bool) -> int:
    """Train in a new process; returns its number."""
    sys.stdout.flush()
    process = os.fork()
    if process:
        return process
    status = 1
    try:
        with open(os.path.join(cfg.OUTPUT_DIR, "console.txt"), "a") as console:
            os.dup2(console.fileno(), 1)
            os.dup2(console.fileno(), 2)
        # What a process begins with decides only a training that has no checkpoint yet.
        goes_on = any(name.endswith(".pth") for name in os.listdir(cfg.OUTPUT_DIR))
        seed_all_rng(os.getpid() if goes_on else 0)
        with stop_signals():
            trainer = NoisyTrainer(cfg)
            trainer.resume_or_load(resume=resume)
            trainer.train()
        status = 0
    except SystemExit as stopped:
        status = int(stopped.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def end(process: int) -> int:
    """Wait for a process; its exit status, or the negative number of the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def final_state(cfg: CfgNode) -> dict[str, torch.Tensor]:
    """All tensors of the last checkpoint by name."""
    path = os.path.join(cfg.OUTPUT_DIR, "model_final.pth")
    return dict(_tensors(torch.load(path, weights_only=True), ""))


def _tensors(value: Any, name: str) -> Any:
    if isinstance(value, torch.Tensor):
        yield name, value
    elif isinstance(value, dict):
        for key, x in value.items():
            yield from _tensors(x, f"{name}.{key}")


def differences(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> list[str]:
    """Names of the tensors that are not equal, bit for bit."""
    names = {**found, **wanted}
    return [
        name
        for name in names
        if name not in found or name not in wanted or not torch.equal(found[name], wanted[name])
    ]


class KilledTraining:
    """A training that is killed until it is done, ``done``; ``kills`` counts by signal."""

    def __init__(self, cfg: CfgNode, rng: random.Random, whole_s: float) -> None:
        """
        Args:
            whole_s: seconds that the training takes from its start to its end.
        """
        self.cfg = cfg
        self.rng = rng
        self.whole_s = whole_s
        self.kills: Counter[str] = Counter()
        self.started = False

    def attempt(self) -> bool:
        """Start or resume it, and kill it at a random moment; returns whether it was faster."""
        process = start(self.cfg, resume=self.started)
        self.started = True
        number = self.rng.choices(list(SIGNALS), list(SIGNALS.values()))[0]
        deadline = time.monotonic() + self.rng.uniform(0, 0.7 * self.whole_s)
        while time.monotonic() < deadline:
            ended, status = os.waitpid(process, os.WNOHANG)
            if ended:
                return self._check(os.waitstatus_to_exitcode(status))
            time.sleep(0.002)
        os.kill(process, number)
        self.kills[signal.Signals(number).name] += 1
        return self._check(end(process))

    def finish(self) -> None:
        self._check(end(start(self.cfg, resume=self.started)))

    def _check(self, status: int) -> bool:
        # Before the handlers stand, a signal has its usual effect.
        if status == 0 or status in STOPPED or -status in SIGNALS:
            return status == 0
        with open(os.path.join(self.cfg.OUTPUT_DIR, "console.txt")) as console:
            last = "".join(console.readlines()[-30:])
        raise SystemExit(f"error: a training ended with status {status}:\n{last}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100, help="default: 100")
    parser.add_argument("--workers", type=int, default=0, help="DATALOADER.NUM_WORKERS, default: 0")
    parser.add_argument("--iterations", type=int, default=24, help="of the training, default: 24")
    parser.add_argument("--seed", type=int, default=0, help="of the moments, default: 0")
    args = parser.parse_args()
    torch.set_num_threads(1)  # processes are forked, which threads do not survive
    folder = Path(tempfile.mkdtemp(prefix="kill_and_resume_"))
    rng, began, kills = random.Random(args.seed), time.monotonic(), Counter[str]()
    whole = make_config(folder, "whole", args.workers, args.iterations)
    status = end(start(whole, resume=False))
    whole_s = time.monotonic() - began
    if status:
        raise SystemExit(f"error: {whole.OUTPUT_DIR}/console.txt says why the training failed")
    wanted = final_state(whole)
    print(f"without interruption: {whole_s:.1f} s, {len(wanted)} tensors", flush=True)
    runs, unequal = 0, 0
    while kills.total() < args.kills:
        runs += 1
        killed = KilledTraining(
            make_config(folder, f"run_{runs}", args.workers, args.iterations), rng, whole_s
        )
        is_done = False
        while not is_done and kills.total() + killed.kills.total() < args.kills:
            is_done = killed.attempt()
        if not is_done:
            killed.finish()
        kills += killed.kills
        differing = differences(final_state(killed.cfg), wanted)
        unequal += bool(differing)
        left_s = (time.monotonic() - began) / max(1, kills.total()) * (args.kills - kills.total())
        print(
            f"run {runs}: {killed.kills.total()} kills, "
            + (f"{len(differing)} tensors DIFFER: {differing[:3]}" if differing else "equal")
            + f"; {kills.total()} of {args.kills} kills, about {left_s:.0f} s left",
            flush=True,
        )
    print(
        f"{kills.total()} kills ({', '.join(f'{n} {name}' for name, n in kills.items())}) of "
        f"{runs} trainings with {args.workers} workers: {runs - unequal} ended equal bit for bit, "
        f"{unequal} did not"
    )
    if unequal:
        raise SystemExit(f"error: see {folder}")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
