#!/usr/bin/env python
"""Train or evaluate a RetinaNet with Detectron2's trainer.

python train_net.py --config-file configs/COCO-Detection/retinanet_R_50_FPN_1x.yaml \\
    --num-gpus 8 --opts OUTPUT_DIR output/r50

The same options go with torchrun, which starts the processes and, after a failure, anew:

torchrun --standalone --nproc-per-node 8 --max-restarts 3 train_net.py --config-file ...
"""

import argparse
import signal
import warnings
from collections.abc import Sequence
from typing import Any

# Ctrl-C during the seconds that imports take needs no traceback.
if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)

with warnings.catch_warnings():
    # While Detectron2 is imported: it uses what PyTorch calls old, which nobody here can mend.
    warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated")
    from detectron2.evaluation import verify_results
    from detectron2.utils import comm

from retinanet_plugin.engine import (
    Checkpointer,
    Trainer,
    argument_parser,
    check_before_training,
    goes_on_after_restart,
    keep_console_readable,
    launch,
    log_end,
    missed_results_in_words,
    one_sentence_errors,
    set_up,
    setup_config,
    stop_signals,
)


def main(args: argparse.Namespace) -> dict[str, Any]:
    """Runs in every process, one a GPU; returns the metrics of ``DATASETS.TEST``."""
    cfg = setup_config(args)
    set_up(cfg, args)
    if not args.eval_only:
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=args.resume)
        return trainer.train()
    model = Trainer.build_model(cfg)
    checkpointer = Checkpointer(model, save_dir=cfg.OUTPUT_DIR, cfg=cfg)
    checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=args.resume)
    results = Trainer.test(cfg, model)
    if comm.is_main_process():
        with missed_results_in_words(cfg, lambda: results):
            verify_results(cfg, results)
    resumed = checkpointer.get_checkpoint_file() if args.resume else ""
    log_end(cfg, results, resumed or cfg.MODEL.WEIGHTS)
    return results


def run(argv: Sequence[str] | None = None) -> None:
    """Check everything that can be checked, then launch :func:`main`."""
    keep_console_readable()

    def prepare() -> argparse.Namespace:
        args = argument_parser().parse_args(argv)
        cfg = setup_config(args)
        args.resume = args.resume or goes_on_after_restart(cfg)
        check_before_training(cfg, args)
        return args

    with one_sentence_errors(), stop_signals():
        launch(main, prepare)


if __name__ == "__main__":
    run()
