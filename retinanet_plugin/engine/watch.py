"""When a training is evaluated, what is said of it, and when it ends early."""

import logging
import math
from collections.abc import Callable, Collection
from typing import Any

from detectron2.config import CfgNode
from detectron2.engine.hooks import EvalHook
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage

from ..compat import current_iteration
from ..data.loading.random_states import unchanged_random_states
from .validation import DetectionCounter

logger = logging.getLogger("detectron2.watch")


# Of the averaged weights, beside the results of those that are trained.
AVERAGED = "averaged"


class EarlyStop(BaseException):
    """Ends a training from a hook: nothing failed, so Detectron2 is not to log an exception."""


class EvaluationHook(EvalHook):
    """Detectron2's ``EvalHook`` that remembers, in checkpoints, what the evaluations found.

    Checkpoints are written before the evaluation of their iteration. A run that is resumed from one
    does that evaluation first, so that it decides as an uninterrupted one would have.
    """

    def __init__(
        self,
        eval_period: int,
        eval_function: Callable[[], dict[str, Any]],
        *,
        patience: int = 0,
        on_better: Callable[[float], object] = lambda ap: None,
        on_repeated: Callable[[Collection[str]], object] = lambda names: None,
    ) -> None:
        """
        Args:
            eval_period: iterations between evaluations; 0: only after the last one.
            eval_function: returns a nested dict of metrics, on the first process at least, as
                ``Trainer.test`` does.
            patience: evaluations in a row without a better AP after which the training ends;
                0: it does not. It is ended by :class:`EarlyStop`.
            on_better: called with an AP of the first test set that is better than all before, be
                it of the weights or of their average.
            on_repeated: called when an evaluation is done that may have been done, and noted,
                before the training was interrupted: with the names of its metrics.
        """

        def evaluate() -> dict[str, Any]:
            self._results = eval_function()
            return self._results

        super().__init__(eval_period, evaluate)
        self._patience = patience
        self._on_better = on_better
        self._on_repeated = on_repeated
        self.last_evaluated = 0  # iterations that had been trained by the last evaluation
        self.best_ap: float | None = None
        self.evaluations_since_best = 0

    def state_dict(self) -> dict[str, Any]:
        return {
            "last_evaluated": self.last_evaluated,
            "best_ap": self.best_ap,
            "evaluations_since_best": self.evaluations_since_best,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.last_evaluated = state_dict["last_evaluated"]
        self.best_ap = state_dict["best_ap"]
        self.evaluations_since_best = state_dict["evaluations_since_best"]

    def before_train(self) -> None:
        """Do the evaluation that was due when the checkpoint was written."""
        trained, storage = self.trainer.start_iter, self.trainer.storage
        is_due = self._period > 0 and trained > 0 and trained % self._period == 0
        if is_due and self.last_evaluated < trained < self.trainer.max_iter:
            storage.iter = trained - 1  # as if it were still the step before
            self._evaluate(trained)
            self._on_repeated(storage.latest().keys())
            storage.iter = trained
        self._end_if_patience_is_over()

    def after_step(self) -> None:
        trained = self.trainer.iter + 1
        # That of the last iteration is done in after_train.
        if self._period > 0 and trained % self._period == 0 and trained != self.trainer.max_iter:
            self._evaluate(trained)
            self._end_if_patience_is_over()

    def after_train(self) -> None:
        # Detectron2's hook would also evaluate what an exception in the last iteration has left.
        if self.trainer.iter >= self.trainer.max_iter:
            self._evaluate(self.trainer.max_iter)
        del self._func, self._on_better, self._on_repeated  # which hold the trainer

    def _evaluate(self, trained: int) -> None:
        with unchanged_random_states():
            self._do_eval()
        self.last_evaluated = trained
        # All processes are to decide alike, and the first one alone has results.
        ap = comm.all_gather(_best_average_precision(self._results))[0]
        if ap is not None:
            self._compare(ap)

    def _compare(self, ap: float) -> None:
        if self.best_ap is None or ap > self.best_ap:
            self.best_ap, self.evaluations_since_best = ap, 0
            self._on_better(ap)
        else:
            self.evaluations_since_best += 1

    def _end_if_patience_is_over(self) -> None:
        if 0 < self._patience <= self.evaluations_since_best:
            raise EarlyStop(
                f"the AP has not been better than {self.best_ap:.2f} in "
                f"{self.evaluations_since_best} evaluations (TEST.EARLY_STOP_PATIENCE)"
            )


def log_detections(
    cfg: CfgNode, dataset_name: str, counter: DetectionCounter, reached: float | None
) -> None:
    """Say in a line what an evaluation found and could find; in training, note it as metrics.

    Args:
        reached: of :func:`share_reached`.
    """
    found = (
        f"{counter.num_detections:,} detections in {counter.num_images:,} images, "
        f"top score {counter.top_score:.3f}"
        if counter.num_detections
        else f"no detections in {counter.num_images:,} images: none scores above "
        f"MODEL.RETINANET.SCORE_THRESH_TEST {cfg.MODEL.RETINANET.SCORE_THRESH_TEST}"
    )
    scalars = {"num_detections": counter.num_detections, "top_score": counter.top_score}
    if reached is not None:
        found += f"; anchors reach {100 * reached:.1f} % of the boxes"
        scalars["share_reached_by_anchors"] = reached
    logger.info(f"{dataset_name}: {found}")
    _note(cfg, dataset_name, scalars)


def log_losses(cfg: CfgNode, dataset_name: str, losses: dict[str, float]) -> None:
    """Say in a line what :func:`validation_losses` returned, and note it as metrics."""
    said = ", ".join(f"{name.removeprefix('val_')} {loss:.4g}" for name, loss in losses.items())
    logger.info(f"{dataset_name}: losses of validation: {said}")
    _note(cfg, dataset_name, losses)


def _note(cfg: CfgNode, dataset_name: str, scalars: dict[str, float]) -> None:
    """Put scalars into the metrics of a training, if one runs, under Detectron2's kind of names."""
    if current_iteration() is None:  # an evaluation by itself
        return
    storage = get_event_storage()
    prefix = f"{dataset_name}/" if len(cfg.DATASETS.TEST) > 1 else ""
    for name, value in scalars.items():
        # Detectron2 prints the median of the losses it has: here of the last one alone.
        storage.histories().pop(prefix + name, None)
        storage.put_scalar(prefix + name, value, smoothing_hint=False)


def _best_average_precision(results: dict[str, Any] | None) -> float | None:
    """Of the weights that are trained and of their average."""
    found = [average_precision(x) for x in (results, (results or {}).get(AVERAGED))]
    # NaN: there were no detections.
    return max((0.0 if math.isnan(ap) else ap for ap in found if ap is not None), default=None)


def average_precision(results: dict[str, Any] | None) -> float | None:
    """AP of the first test set, as COCO counts it (0 to 100); None: it was not computed."""
    metrics = flatten_results_dict(results or {})
    return next((float(value) for key, value in metrics.items() if key.endswith("bbox/AP")), None)
