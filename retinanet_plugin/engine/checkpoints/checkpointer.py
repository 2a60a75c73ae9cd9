"""Checkpoints that are whole, hold plain values alone, and are enough to go on or to predict."""

import logging
import math
import os
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from torch import nn

from ...errors import UserError
from ...weights.checkpoint_contents import describe_training, plain
from ...weights.finite_numbers import not_finite
from ...weights.loading import load_weights
from ...weights.safe_pickle import UnreadableError
from ...weights.torch_files import read_checkpoint
from ...weights.weight_files import checked_weights, read_weights
from ...weights.weight_report import WeightReport
from ...whole_files import write_whole_file
from .earlier_checkpoints import FoundCheckpoint, find_checkpoint, periodic_checkpoints
from .file_names import AVERAGED_WEIGHTS, BEST_WEIGHTS, LAST_CHECKPOINT
from .usable_state import usable_state

logger = logging.getLogger("detectron2.checkpointer")

_GO_ON = ", and go on from the last checkpoint with --resume"


class Checkpointer(DetectionCheckpointer):
    """Detectron2's checkpointer; of its files, each is whole at any moment or not there.

    Beside what Detectron2 saves, a file holds what predicting needs: ``class_names``,
    ``preprocessing``, ``config`` (text of YAML), and ``versions``.
    """

    def __init__(
        self,
        model: nn.Module,
        save_dir: str = "",
        *,
        cfg: CfgNode | None = None,
        save_to_disk: bool | None = None,
        **checkpointables: Any,
    ) -> None:
        """
        Args:
            model: its weights are saved and loaded, of a wrapper (DDP) those of the model in it.
            save_dir: a folder; "" for none.
            cfg: what the model was built from, saved with it; ``SOLVER.CHECKPOINT_MAX_TO_KEEP`` is
                read from it.
            save_to_disk: default: in the first process alone.
            checkpointables: objects with ``state_dict`` and ``load_state_dict``, of plain values.
        """
        super().__init__(model, save_dir, save_to_disk=save_to_disk, **checkpointables)
        self.cfg = cfg
        self._newest: str | None = None
        self._found: FoundCheckpoint | None = None  # that one, until its weights are loaded

    def save(self, name: str, **kwargs: Any) -> None:
        """Write ``name``.pth, which ``--resume`` then takes; remove the oldest periodic ones.

        Args:
            name: of the file, without ``.pth``.
            kwargs: plain values to save too.

        Raises:
            UserError: it cannot be written, or weights or states of ``checkpointables`` are not
                finite. All older files are as they were.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        states = {key: x.state_dict() for key, x in self.checkpointables.items()}
        path = self._write(f"{name}.pth", {**states, **kwargs})
        self.tag_last_checkpoint(os.path.basename(path))
        self._newest = path
        self._remove_oldest(path)

    def save_averaged(self, model: nn.Module) -> None:
        """Write model_final_averaged.pth, the weights of ``model``.

        It is to predict with: ``--resume`` never goes on from it.

        Raises:
            UserError: see :meth:`save`.
        """
        if self.save_dir and self.save_to_disk:
            self._write(AVERAGED_WEIGHTS, {}, model)

    def save_best(self, metric: float, model: nn.Module | None = None) -> bool:
        """Write the weights to model_best.pth if ``metric`` is higher than that of the file.

        It is to predict with: ``--resume`` never goes on from it.

        Args:
            metric: of the weights.
            model: whose weights; None: those that are trained.

        Returns:
            bool: whether they were written; never for NaN.

        Raises:
            UserError: see :meth:`save`.
        """
        if not self.save_dir or not self.save_to_disk or not metric > self._saved_best_metric():
            return False
        self._write(BEST_WEIGHTS, {"best_metric": float(metric)}, model)
        return True

    def load(
        self,
        path: str | FoundCheckpoint,
        checkpointables: list[str] | None = None,
        source: str = "MODEL.WEIGHTS",
    ) -> dict[str, Any]:
        """Load weights, and the states of ``checkpointables`` (default: all that are there).

        Args:
            path: as :meth:`load_model` takes it; "": none.
            checkpointables: names, each of which must be there; None: all that are there.
            source: what names the file, for messages.

        Returns:
            dict: what else the file holds.

        Raises:
            UserError: the file cannot be read, lacks a state, or has one that does not fit.
        """
        if not path:
            logger.info("MODEL.WEIGHTS is empty: all weights are new")
            return {}
        report, checkpoint = self.load_model(path, source)
        logger.log(logging.WARNING if report.is_suspicious else logging.INFO, str(report))
        if checkpointables is None:
            checkpointables = [key for key in self.checkpointables if key in checkpoint]
        with usable_state(path.path if isinstance(path, FoundCheckpoint) else path):
            for key in checkpointables:
                if key not in checkpoint:
                    raise LookupError(f"it lacks the state {key!r}")
                self.checkpointables[key].load_state_dict(checkpoint.pop(key))
        return checkpoint

    def load_model(
        self, path: str | FoundCheckpoint, source: str = "MODEL.WEIGHTS"
    ) -> tuple[WeightReport, dict[str, Any]]:
        """Load weights into the model and say nothing.

        Args:
            path: as :func:`retinanet_plugin.weights.weight_files.read_weights` takes it,
                or what :func:`find_checkpoint` has read, which is changed.
            source: what names the file, for the report.

        Returns:
            what came of it, and what else the file holds.

        Raises:
            UserError: the file cannot be read, or fits in more ways than one.
        """
        if isinstance(path, FoundCheckpoint):
            checkpoint = checked_weights(path.content, f"{source} {path.path}")
            path = path.path
        else:
            checkpoint = read_weights(path, source)
        report = load_weights(self.model, checkpoint, f"{source} {path}", path, self.cfg)
        return report, checkpoint

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """Go on from the newest whole checkpoint; if there is none, load the weights of ``path``.

        Raises:
            UserError: see :meth:`load` and :func:`find_checkpoint`.
        """
        newest = self.get_checkpoint_file() if resume else ""
        found, self._found = self._found, None
        if newest:
            states = list(self.checkpointables)
            return self.load(found or newest, states, source="the checkpoint")
        if resume:
            logger.info(f"no checkpoint in {self.save_dir} to go on from: a new training")
        return self.load(path, checkpointables=[])

    def has_checkpoint(self) -> bool:
        return bool(self.get_checkpoint_file())

    def get_checkpoint_file(self) -> str:
        """The checkpoint that ``--resume`` takes, "" for none; see :func:`find_checkpoint`."""
        if self._newest is None:
            self._found = find_checkpoint(self.save_dir)
            self._newest = self._found.path if self._found else ""
        return self._newest

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        path = os.path.join(self.save_dir, LAST_CHECKPOINT)
        write_whole_file(path, lambda file: file.write(last_filename_basename.encode()), _GO_ON)

    def _write(self, name: str, more: dict[str, Any], model: nn.Module | None = None) -> str:
        path = os.path.join(self.save_dir, name)
        content = {
            "model": (model or self.model).state_dict(),
            **plain(more, "checkpoint"),
            **(describe_training(self.cfg) if self.cfg else {}),
        }
        failed = not_finite(content)
        if failed:
            raise UserError(
                f"{failed} has NaN or infinite numbers, so that {path} is not written: lower "
                "SOLVER.BASE_LR, lengthen SOLVER.WARMUP_ITERS, or set "
                "SOLVER.CLIP_GRADIENTS.ENABLED True, and start anew or, from before it failed, "
                "with --resume; all older files are as they were"
            )
        logger.info(f"Saving checkpoint to {path}")
        write_whole_file(path, lambda file: torch.save(content, file), _GO_ON)
        return path

    def _remove_oldest(self, newest: str) -> None:
        most = self.cfg.SOLVER.CHECKPOINT_MAX_TO_KEEP if self.cfg else 0
        if most > 0:
            for path in periodic_checkpoints(self.save_dir)[:-most]:
                if path != newest:
                    os.unlink(path)

    def _saved_best_metric(self) -> float:
        path = os.path.join(self.save_dir, BEST_WEIGHTS)
        try:
            best = read_checkpoint(path, only_header=True).get("best_metric")
        except UnreadableError:
            return -math.inf
        return float(best) if isinstance(best, float) else -math.inf
