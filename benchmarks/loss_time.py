"""Processor time of the classification losses, forward and backward: R-50's anchors at 800x1333.

Losses are measured in turn, so that a machine whose speed drifts is the same for all. Medians.
"""

import argparse
import statistics
import time

import torch
from torch import Tensor

from retinanet_plugin.losses import FocalLoss, QualityFocalLoss, VarifocalLoss

NUM_IMAGES, NUM_CLASSES, ANCHORS_AT_A_LOCATION = 2, 80, 9
LEVELS = [(100, 168), (50, 84), (25, 42), (13, 21), (7, 11)]
FOREGROUND, IGNORED = 0.0015, 0.01  # shares of the anchors
LOSSES = {
    "FocalLoss": FocalLoss(alpha=0.25, gamma=2.0),
    "QualityFocalLoss": QualityFocalLoss(),
    "VarifocalLoss": VarifocalLoss(),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=9, help="default: 9")
    args = parser.parse_args()
    torch.manual_seed(0)
    logits, labels, qualities = (list(x) for x in zip(*map(level, LEVELS)))
    seconds: dict[str, list[float]] = {name: [] for name in LOSSES}
    for round_ in range(args.repeats + 1):
        for name, loss in LOSSES.items():
            soft = () if name == "FocalLoss" else (qualities,)
            start = time.process_time()
            gradients = torch.autograd.grad(loss(logits, labels, None, *soft), logits)
            if round_ > 0:  # the first one warms up
                seconds[name].append(time.process_time() - start)
            del gradients
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    for name, median in medians.items():
        print(
            f"{name}: {1000 * median:.0f} ms, {median / medians['FocalLoss']:.2f} times FocalLoss's"
        )


def level(size: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """Logits (N, R, K), labels (N, R) and qualities (N, R) of a level of (Hi, Wi)."""
    shape = (NUM_IMAGES, size[0] * size[1] * ANCHORS_AT_A_LOCATION)
    logits = (torch.randn(*shape, NUM_CLASSES) - 5).requires_grad_()
    labels = torch.full(shape, NUM_CLASSES)
    chance = torch.rand(shape)
    labels[chance < FOREGROUND] = NUM_CLASSES // 2
    labels[chance > 1 - IGNORED] = -1
    return logits, labels, torch.rand(shape) * (chance < FOREGROUND)


if __name__ == "__main__":
    main()
