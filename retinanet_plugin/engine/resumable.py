"""A training that may be stopped at any moment: resumed, it ends as if it had not been."""

import logging
import os
import weakref
from contextlib import nullcontext
from typing import Any

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer, HookBase, TrainerBase
from detectron2.engine.hooks import PreciseBN
from detectron2.solver import LRMultiplier
from detectron2.utils import comm
from detectron2.utils.events import EventWriter

from ..data.loading.mapper import RetinaNetMapper
from ..data.loading.random_states import seed_generators
from ..data.loading.training_order import Restarted, TrainingLoader
from ..errors import UserError
from .accumulation import PreciseBNOfParts, build_step
from .checkpoints.file_names import FINAL_WEIGHTS
from .checkpoints.usable_state import usable_state
from .failures.writers import DispensableWriter
from .optimizer_state import continue_schedule, load_optimizer_state
from .run_record import check_run, describe_run, say_changed_values
from .scaling import scaled_config
from .signals import Stopped, after_the_step, at_once, has_arrived_anywhere

logger = logging.getLogger("detectron2.resume")

# Parts of the trainer's state, each of which Detectron2 or another version may not write.
_STATES = {
    "run": "the order of the data",
    "_trainer": "the momentum of the optimizer",
    "hooks": "what the hooks remember",
}


class ResumableTrainer(DefaultTrainer):
    """Detectron2's trainer, of which every step is a function of the checkpoint before it.

    Images, augmentations and random numbers of a step depend on ``seed``, rank and iteration alone,
    and on nothing that happened before: no evaluation, no process, no worker.

    Attributes:
        seed: of this training, drawn when it began; equal in all processes.
    """

    def __init__(self, cfg: CfgNode) -> None:
        self.seed: int = comm.shared_random_seed()
        self._num_trained = 0  # iterations that are complete
        self.iter: int
        self.checkpointer: DetectionCheckpointer
        TrainerBase.__init__(self)
        # As DefaultTrainer does, whose processes are on GPUs and compute a batch at once.
        cfg = scaled_config(cfg, comm.get_world_size())
        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        data_loader = self.build_train_loader(cfg)
        self._trainer = build_step(cfg, model, data_loader, optimizer)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = DetectionCheckpointer(
            model, cfg.OUTPUT_DIR, trainer=weakref.proxy(self)
        )
        self.start_iter, self.max_iter = 0, cfg.SOLVER.MAX_ITER
        self.cfg = cfg
        self.register_hooks(self.build_hooks())

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> TrainingLoader:
        """Detectron2's order of the images, from any iteration on."""
        # Several processes have to stop in the same step.
        waiting = at_once if comm.get_world_size() == 1 else nullcontext
        return TrainingLoader(cfg, RetinaNetMapper(cfg, is_train=True), waiting)

    def build_hooks(self) -> list[HookBase]:
        """Detectron2's hooks; precise BN sees the same images after an interruption."""
        hooks = super().build_hooks()
        if not isinstance(self.data_loader, TrainingLoader):
            return hooks
        trainer = weakref.proxy(self)
        loader = Restarted(self.data_loader, lambda: trainer.iter)
        test, parts = self.cfg.TEST, self.cfg.SOLVER.ACCUMULATE_STEPS
        args = test.EVAL_PERIOD, self.model, loader, test.PRECISE_BN.NUM_ITER
        return [
            (PreciseBN(*args) if parts == 1 else PreciseBNOfParts(*args, parts))
            if isinstance(hook, PreciseBN)
            else hook
            for hook in hooks
        ]

    def build_writers(self) -> list[EventWriter]:
        """Detectron2's; without those whose file cannot be written the training goes on."""
        return [DispensableWriter(x, self.cfg.OUTPUT_DIR) for x in super().build_writers()]

    def after_train(self) -> None:
        """What hooks raise after a failure is not to hide what has failed."""
        if self.iter > self.max_iter:  # no step was left to do
            self.iter = max(self.start_iter, self.max_iter)
        try:
            super().after_train()
        except Exception as error:
            if self.iter >= self.max_iter:
                raise
            logger.warning(f"not all could be completed: {type(error).__name__}: {error}")

    def state_dict(self) -> dict[str, Any]:
        """Plain values and tensors; of Detectron2 0.6 the optimizer as well."""
        return {
            **super().state_dict(),
            "_trainer": self._trainer.state_dict(),
            "run": self._describe_run(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint, with the learning rate and schedule of the present config.

        Raises:
            UserError: it is of another model, optimizer or data set.
            LookupError, TypeError, ValueError, AttributeError: a part is missing or of another
                type; the checkpointer makes a sentence of it.
        """
        path = self.checkpointer.get_checkpoint_file()
        iteration = state_dict["iteration"]
        if type(iteration) is not int or iteration < 0:
            raise ValueError(f"its iteration is {iteration!r}")
        saved, now = state_dict.get("run"), self._describe_run()
        if saved:
            check_run(saved, now, path)
            if type(saved["seed"]) is not int:
                raise ValueError(f"its seed is {saved['seed']!r}")
            self.seed = saved["seed"]
            self._keep_order(saved, now, path)
        lacking = [what for key, what in _STATES.items() if key not in state_dict]
        if lacking:
            logger.warning(
                f"{path} was written by another program or version and lacks "
                f"{' and '.join(lacking)}: this training goes on as well as it can, but not exactly"
            )
        hooks = dict(state_dict.get("hooks", {}))
        if isinstance(self.scheduler, LRMultiplier):
            hooks.pop("LRScheduler", None)  # it has the learning rates of the old config
        TrainerBase.load_state_dict(self, {**state_dict, "hooks": hooks})
        if "_trainer" in state_dict:
            names = (saved or {}).get("parameters")
            model = self.checkpointer.model
            load_optimizer_state(self._trainer, state_dict["_trainer"], names, model, path)
        continue_schedule(self.scheduler, self.optimizer, self.iter + 1)

    def resume_or_load(self, resume: bool = True) -> None:
        """Go on from the last checkpoint in ``OUTPUT_DIR``, or load ``MODEL.WEIGHTS``.

        Raises:
            UserError: see :meth:`load_state_dict`, and the checkpointer's ``resume_or_load``.
        """
        found = self.checkpointer.resume_or_load(self.cfg.MODEL.WEIGHTS, resume=resume)
        if not (resume and self.checkpointer.has_checkpoint()):
            return
        # A checkpoint has the iteration that was complete when it was written.
        self.start_iter = self.iter + 1
        with usable_state(self.checkpointer.get_checkpoint_file()):
            if found.get("iteration", self.iter) != self.iter:
                raise ValueError(
                    f"its iteration is {found['iteration']!r}, and {self.iter} in its trainer"
                )
            if "config" in found:
                say_changed_values(found["config"], self.cfg)

    def train(self) -> Any:
        """Train from ``start_iter`` on.

        Raises:
            Stopped: a signal came, and a checkpoint has been written.
        """
        if isinstance(self.data_loader, TrainingLoader):
            self.data_loader.seed, self.data_loader.start = self.seed, self.start_iter
        else:
            logger.warning(
                f"build_train_loader of {type(self).__name__} makes a loader of its own, of which "
                "checkpoints do not keep the order of the data: a resumed training sees other "
                "images than without the interruption"
            )
        if self.start_iter >= self.max_iter and self.start_iter > 0:
            logger.info(
                f"the training is finished after {self.start_iter} iterations, and is evaluated "
                f"once more: raise SOLVER.MAX_ITER, which is {self.max_iter}, to go on"
            )
            self._complete_final_checkpoint()
        self._num_trained = self.start_iter
        try:
            with after_the_step():
                return super().train()
        except Stopped as stopped:
            stopped.how_to_go_on = self._save_where_it_stands()
            raise

    def run_step(self) -> None:
        seed_generators(self.seed, comm.get_rank(), self.iter)
        super().run_step()

    def after_step(self) -> None:
        self._num_trained = self.iter + 1
        super().after_step()
        arrived = has_arrived_anywhere()
        if arrived is not None:
            raise Stopped(arrived)

    def _describe_run(self) -> dict[str, Any]:
        return describe_run(
            self.cfg, self.seed, self.checkpointer.model, self.optimizer, self.data_loader
        )

    def _keep_order(self, saved: dict[str, Any], now: dict[str, Any], path: str) -> None:
        batch, processes = saved["images_per_batch"], saved["num_processes"]
        if batch != now["images_per_batch"]:
            if self.cfg.SOLVER.REFERENCE_WORLD_SIZE:
                raise UserError(
                    f"{path} is of a training with {processes} processes, with another number of "
                    "which SOLVER.REFERENCE_WORLD_SIZE makes batch and schedule others: go on with "
                    f"{processes} processes, or set SOLVER.REFERENCE_WORLD_SIZE 0 and the values "
                    "that the training began with"
                )
        elif isinstance(self.data_loader, TrainingLoader):
            if batch % processes:
                raise ValueError(f"{processes} processes do not share {batch} images")
            self.data_loader.num_streams = processes

    def _complete_final_checkpoint(self) -> None:
        """The last periodic checkpoint is written just before the final one, and may be alone."""
        newest = os.path.basename(self.checkpointer.get_checkpoint_file())
        if self.start_iter == self.max_iter and newest != FINAL_WEIGHTS:
            self.checkpointer.save("model_final", iteration=self.iter)

    def _save_where_it_stands(self) -> str:
        """Write a checkpoint of the last complete iteration; returns how to go on from it."""
        if self._num_trained > self.start_iter and self._num_trained < self.max_iter:
            self.iter = self._num_trained - 1
            name = f"model_{self.iter:07d}"
            if os.path.basename(self.checkpointer.get_checkpoint_file()) != f"{name}.pth":
                self.checkpointer.save(name, iteration=self.iter)
        if self._num_trained == 0:
            return "no iteration was complete, so that there is nothing to go on from"
        return (
            f"{self._num_trained} of {self.max_iter} iterations are done and saved in "
            f"{self.cfg.OUTPUT_DIR}: the same command with --resume goes on"
        )
