"""Training: Detectron2's trainer, its command line, and what is checked before it starts."""

from .checkpoints.checkpointer import Checkpointer
from .checks.startup_checks import (
    check_before_training,
    check_weights,
    check_weights_fit,
)
from .command_line import argument_parser, set_up, setup_config
from .ending import log_end, missed_results_in_words
from .failures.console import keep_console_readable, one_sentence_errors
from .launching import launch
from .restarts import goes_on_after_restart
from .signals import stop_signals
from .trainer import Trainer

__all__ = [
    "Checkpointer",
    "Trainer",
    "argument_parser",
    "check_before_training",
    "check_weights",
    "check_weights_fit",
    "goes_on_after_restart",
    "keep_console_readable",
    "launch",
    "log_end",
    "missed_results_in_words",
    "one_sentence_errors",
    "set_up",
    "setup_config",
    "stop_signals",
]
