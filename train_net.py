#!/usr/bin/env python
"""Train or evaluate a RetinaNet with Detectron2's trainer.

python train_net.py --config-file configs/COCO-Detection/retinanet_R_50_FPN_1x.yaml \\
    --num-gpus 8 --opts OUTPUT_DIR output/r50
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
    from detectron2.engine import launch
    from detectron2.evaluation import verify_results
    from detectron2.utils import comm

from retinanet_plugin.engine import (
    Checkpointer,
    Trainer,
    argument_parser,
    check_before_training,
    in_its_own_words,
    keep_console_readable,
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
    args = argument_parser().parse_args(argv)
    with one_sentence_errors(), stop_signals():
        check_before_training(setup_config(args), args)
        launch(
            in_its_own_words,
            args.num_gpus,
            num_machines=args.num_machines,
            machine_rank=args.machine_rank,
            dist_url=args.dist_url,
            args=(main, args),
        )


if __name__ == "__main__":
    run()
