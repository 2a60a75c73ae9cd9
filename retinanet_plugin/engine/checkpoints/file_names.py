"""What the files of a training are called in OUTPUT_DIR."""

import re

LAST_CHECKPOINT = "last_checkpoint"  # a text: the name of the checkpoint that --resume takes
FINAL_WEIGHTS = "model_final.pth"  # as Detectron2 calls it
AVERAGED_WEIGHTS = "model_final_averaged.pth"  # weights to predict with
BEST_WEIGHTS = "model_best.pth"  # weights to predict with
METRICS = "metrics.json"

PERIODIC = re.compile(r"model_(\d+)\.pth")


def is_of_a_training(name: str) -> bool:
    """Whether a training calls one of its checkpoints so."""
    return (
        name in (FINAL_WEIGHTS, AVERAGED_WEIGHTS, BEST_WEIGHTS)
        or PERIODIC.fullmatch(name) is not None
    )
