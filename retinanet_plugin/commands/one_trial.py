"""One small training of a comparison, from its config to its scores."""

import contextlib
import gc
import json
import math
import os
import tempfile
from collections.abc import Callable
from typing import Any

from detectron2.config import CfgNode
from detectron2.utils.env import seed_all_rng

from ..config import flattened, load_config
from ..data.annotations.coco_json import register_coco_json
from ..engine import Trainer
from ..engine.console_log import quiet
from ..errors import UserError
from ..weights.finite_numbers import parameters_not_finite

Scores = dict[str, Any]  # "AP" and others in percent, "seconds" of a step

# Of a machine, and not of what is compared.
_MAY_DIFFER = ("MODEL.DEVICE", "DATASETS.COCO_JSON", "DATALOADER.NUM_WORKERS", "OUTPUT_DIR")


def changed_values(cfg: CfgNode) -> dict[str, Any]:
    """What is not the default, by keys, without what only this machine is asked for."""
    default = dict(flattened(load_config("")))
    changed = {
        key: x for key, x in flattened(cfg) if key not in _MAY_DIFFER and x != default.get(key)
    }
    return json.loads(json.dumps(changed))  # with lists for tuples


def train(cfg: CfgNode, evaluate: Callable[[Trainer], Scores] | None) -> Scores:
    """A training from its beginning; AP 0 if it diverges."""
    register_coco_json(cfg.DATASETS.COCO_JSON)
    with (
        tempfile.TemporaryDirectory() as folder,
        open(os.devnull, "w") as nowhere,
        contextlib.redirect_stdout(nowhere),
        quiet(),
    ):
        cfg.OUTPUT_DIR = folder
        seed_all_rng(cfg.SEED)
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=False)
        try:
            trainer.train()
        except UserError as error:
            is_not_finite = isinstance(error.__cause__, FloatingPointError)
            if not is_not_finite and not parameters_not_finite(trainer.checkpointer.model):
                raise
            return {"AP": 0.0, "AP50": 0.0, "diverged": True}
        scores = scores_of(trainer._last_eval_results)
        times = trainer.storage.histories().get("time")  # of all but the first few steps
        scores["seconds"] = times.global_avg() if times else math.nan
        if evaluate:
            scores.update(evaluate(trainer))
    del trainer
    gc.collect()  # memory of the GPU, before the next training asks for it
    return scores


def scores_of(results: dict[str, Any]) -> Scores:
    """AP and AP50 in ``results`` of ``Trainer.test``; 0 where nothing is detected, which is NaN."""
    box = results["bbox"]
    return {name: 0.0 if math.isnan(box[name]) else float(box[name]) for name in ("AP", "AP50")}
