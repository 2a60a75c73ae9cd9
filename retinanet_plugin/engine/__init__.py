"""Training: Detectron2's trainer, its command line, and what is checked before it starts."""

from .command_line import argument_parser, one_sentence_errors, setup_config
from .startup_checks import check_before_training, check_model, check_weights
from .trainer import Trainer, inference_folder

__all__ = [
    "Trainer",
    "argument_parser",
    "check_before_training",
    "check_model",
    "check_weights",
    "inference_folder",
    "one_sentence_errors",
    "setup_config",
]
