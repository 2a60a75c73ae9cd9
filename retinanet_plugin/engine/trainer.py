"""Detectron2's DefaultTrainer with evaluators, alpha from class counts, and CUDA graphs."""

import logging
import os
from collections.abc import Collection
from typing import Any

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.engine.hooks import EvalHook
from detectron2.evaluation import (
    DatasetEvaluator,
    DatasetEvaluators,
    PascalVOCDetectionEvaluator,
    verify_results,
)
from detectron2.utils import comm
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader

from ..data.annotations.truth import coco_evaluator
from ..data.checks import check_evaluator_type
from ..data.class_alphas import resolve_auto_alpha
from ..data.loading.test_loader import build_test_loader
from ..execution.cuda_graphs import CudaGraphs, check_cuda_graphs
from ..meta_arch import ModularRetinaNet
from .averaging import WeightAverage
from .bare_model import bare_model
from .checkpoints.checkpointer import Checkpointer
from .checkpoints.earlier_checkpoints import (
    prepare_output_dir,
    refuse_weights_of_earlier_training,
    set_aside_earlier_average,
)
from .checkpoints.file_names import FINAL_WEIGHTS, METRICS
from .checkpoints.metrics_file import take_out_metrics
from .ending import log_end, missed_results_in_words
from .failures.failure_record import StepRecorder
from .learning_rate import build_lr_scheduler
from .optimizer import build_optimizer
from .output_lock import only_training_in
from .restarts import note_training
from .resumable import ResumableTrainer
from .signals import at_once
from .validation import (
    DetectionCounter,
    inference_folder,
    share_reached,
    share_statistics,
    validation_losses,
)
from .watch import (
    AVERAGED,
    EarlyStop,
    EvaluationHook,
    average_precision,
    log_detections,
    log_losses,
)

logger = logging.getLogger("detectron2.trainer")


class Trainer(ResumableTrainer):
    """Detectron2's trainer; evaluates in COCO's or Pascal VOC's way, as the data set asks."""

    checkpointer: DetectionCheckpointer

    def __init__(self, cfg: CfgNode) -> None:
        """
        Args:
            cfg: ``MODEL.RETINANET.FOCAL_LOSS_ALPHA_PER_CLASS auto`` becomes numbers here, from
                the training data, which evaluation does not need.

        Raises:
            UserError: see :func:`retinanet_plugin.data.class_alphas.resolve_auto_alpha` and
                :func:`retinanet_plugin.execution.cuda_graphs.check_cuda_graphs`.
        """
        check_cuda_graphs(cfg, comm.get_world_size())
        super().__init__(resolve_auto_alpha(cfg))
        if cfg.MODEL.RETINANET.CUDA_GRAPH:
            # The optimizer and the checkpointer have the bare model and keep it, so checkpoints
            # are the same with graphs and without.
            self._trainer.model = CudaGraphs(self._trainer.model)
        self._recorder = StepRecorder(self)

    def run_step(self) -> None:
        """
        Raises:
            UserError: see :meth:`StepRecorder.recording`.
        """
        with self._recorder.recording():
            super().run_step()

    def build_hooks(self) -> list[HookBase]:
        """Detectron2's hooks, with evaluations that are watched: :class:`EvaluationHook`.

        First comes :class:`WeightAverage`, so that checkpoints and evaluations have the average.
        """
        from .tensorboard import ValidationPictures  # and Matplotlib: other commands do without

        # Detectron2's has been made just before; the hooks are to write with this one.
        stock = self.checkpointer
        self.checkpointer = Checkpointer(
            stock.model, stock.save_dir, cfg=self.cfg, **stock.checkpointables
        )
        self._pictures = ValidationPictures(self.cfg)
        evaluation = EvaluationHook(
            self.cfg.TEST.EVAL_PERIOD,
            self._evaluate,
            patience=self.cfg.TEST.EARLY_STOP_PATIENCE,
            on_better=self._save_best,
            on_repeated=self._take_out_metrics,
        )
        self._average = WeightAverage.of_config(self.cfg, self.checkpointer.model)
        hooks = super().build_hooks()
        hooks = [evaluation if isinstance(hook, EvalHook) else hook for hook in hooks]
        return hooks if self._average is None else [self._average, *hooks]

    def resume_or_load(self, resume: bool = True) -> None:
        """As :meth:`ResumableTrainer.resume_or_load`.

        Raises:
            UserError: see there, and :func:`refuse_weights_of_earlier_training`.
        """
        super().resume_or_load(resume)
        if self.start_iter == 0:
            refuse_weights_of_earlier_training(self.cfg.MODEL.WEIGHTS, self.cfg.OUTPUT_DIR)

    def train(self) -> Any:
        """Detectron2's training, which an early stop ends with ``model_final`` as well.

        Before it, room is made for its files: see :func:`prepare_output_dir`.

        Raises:
            UserError: see :func:`only_training_in` and :func:`missed_results_in_words`.
        """
        comm.synchronize()  # the files that are moved may be those that a process is loading
        with (
            only_training_in(self.cfg.OUTPUT_DIR),
            missed_results_in_words(self.cfg, lambda: self._last_eval_results),
        ):
            if comm.is_main_process():
                prepare_output_dir(self.cfg.OUTPUT_DIR, self.start_iter)
            note_training(self.cfg.OUTPUT_DIR)
            try:
                super().train()
            except EarlyStop as stop:
                self.iter = self._num_trained - 1
                self.checkpointer.save("model_final", iteration=self.iter)
                logger.info(f"The training ends early, after iteration {self.iter}: {stop}")
                # A run that is resumed after its early stop evaluates nothing.
                if comm.is_main_process() and hasattr(self, "_last_eval_results"):
                    verify_results(self.cfg, self._last_eval_results)
            if self._average is not None and self._average.num_averaged > 0:
                self.checkpointer.save_averaged(self._average.model)
            elif comm.is_main_process() and self._num_trained > self.start_iter:
                set_aside_earlier_average(self.cfg.OUTPUT_DIR)
        results = getattr(self, "_last_eval_results", None)
        weights = os.path.join(self.cfg.OUTPUT_DIR, FINAL_WEIGHTS)
        if not os.path.isfile(weights):  # more was trained before than was asked for now
            weights = self.checkpointer.get_checkpoint_file()
        log_end(self.cfg, results, weights)
        return results

    def _evaluate(self) -> dict[str, Any]:
        with at_once():
            share_statistics(self.checkpointer.model)
            averaged = self._test_average()
            self._last_eval_results = {**self.test(self.cfg, self.model), **averaged}
            model = self.checkpointer.model
            if self.cfg.TEST.VAL_LOSS and isinstance(model, ModularRetinaNet):
                for name in self.cfg.DATASETS.TEST:
                    losses = validation_losses(self.cfg, model, name)
                    if losses:
                        log_losses(self.cfg, name, losses)
            self._pictures.draw(bare_model(self.model))
        return self._last_eval_results

    def _test_average(self) -> dict[str, Any]:
        """``{"averaged": results}`` on all processes, if there are an average and a test set."""
        if self._average is None or self._average.num_averaged == 0 or not self.cfg.DATASETS.TEST:
            return {}
        share_statistics(self._average.model)
        logger.info(f"Evaluation of the average of {self._average.num_averaged:,} weights:")
        evaluators = [
            self.build_evaluator(self.cfg, name, inference_folder(self.cfg, name, of_average=True))
            for name in self.cfg.DATASETS.TEST
        ]
        return {AVERAGED: self.test(self.cfg, self._average.model, evaluators)}

    def _take_out_metrics(self, names: Collection[str]) -> None:
        if comm.is_main_process():
            path = os.path.join(self.cfg.OUTPUT_DIR, METRICS)
            take_out_metrics(path, self.start_iter - 1, names)

    def _save_best(self, ap: float) -> None:
        """Of the weights and their average, those that have this AP."""
        is_of_average = ap == average_precision(self._last_eval_results.get(AVERAGED))
        average = self._average if is_of_average else None
        self.checkpointer.save_best(ap, average and average.model)

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> Optimizer:
        """See :func:`retinanet_plugin.engine.optimizer.build_optimizer`."""
        return build_optimizer(cfg, model)

    @classmethod
    def build_lr_scheduler(cls, cfg: CfgNode, optimizer: Optimizer) -> LRScheduler:
        """See :func:`retinanet_plugin.engine.learning_rate.build_lr_scheduler`."""
        return build_lr_scheduler(cfg, optimizer)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> DataLoader:
        """See :func:`retinanet_plugin.data.loading.test_loader.build_test_loader`."""
        return build_test_loader(cfg, dataset_name)

    @classmethod
    def test(
        cls, cfg: CfgNode, model: nn.Module, evaluators: list[DatasetEvaluator] | None = None
    ) -> dict[str, Any]:
        """Detectron2's evaluation; then a line for each data set says what was found in it."""
        if evaluators is None:
            evaluators = [cls.build_evaluator(cfg, name) for name in cfg.DATASETS.TEST]
        counters = [DetectionCounter() for _ in evaluators]
        pairs = [DatasetEvaluators(pair) for pair in zip(evaluators, counters)]
        results = super().test(cfg, model, pairs)
        if not comm.is_main_process():
            return results
        for name, counter in zip(cfg.DATASETS.TEST, counters):
            log_detections(cfg, name, counter, share_reached(cfg, bare_model(model), name))
        return results

    @classmethod
    def build_evaluator(
        cls, cfg: CfgNode, dataset_name: str, output_folder: str | None = None
    ) -> DatasetEvaluator:
        """The evaluator that the data set asks for; see :func:`check_evaluator_type`."""
        if check_evaluator_type(dataset_name) == "pascal_voc":
            return PascalVOCDetectionEvaluator(dataset_name)
        return coco_evaluator(
            dataset_name,
            output_folder or inference_folder(cfg, dataset_name),
            cfg.TEST.DETECTIONS_PER_IMAGE,
        )
