"""A training step that fails leaves a folder from which it can be run again."""

import json
import math
import os
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

import torch
from detectron2.engine import DefaultTrainer
from detectron2.utils import comm
from torch import Tensor, nn

from ...errors import UserError, listed
from ...weights.finite_numbers import parameters_not_finite
from ...whole_files import write_whole_file
from ..bare_model import bare_model
from .kinds import MEMORY_REMEDY
from .sentences import in_one_line, is_out_of_memory, sentence_of
from .training_step import TrainingStep, gradient_norm, run_again

STEP, WEIGHTS, CONFIG, SUMMARY = "step.pth", "model.pth", "config.yaml", "summary.json"


class StepRecorder:
    """Writes ``OUTPUT_DIR/failure-ITERATION`` when a loss is not finite or memory runs out.

    Of a step that goes well, what it begins with is noted, which takes microseconds.
    """

    def __init__(self, trainer: DefaultTrainer) -> None:
        self._trainer: Any = weakref.proxy(trainer)
        self._parts: list[TrainingStep] = []  # of the batch; one, unless it is computed in parts
        self._losses: list[dict[str, Tensor]] = []  # of each, in this process
        self._names_before: list[str] = []  # images of the step before

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Around a step.

        Raises:
            UserError: it failed in one of these ways: what, the remedies, the folder.
        """
        self._parts, self._losses = [], []
        model = self._trainer.model
        hooks = [
            model.register_forward_pre_hook(self._note),
            model.register_forward_hook(self._note_losses),
        ]
        try:
            yield
        except Exception as error:
            if not self._parts:
                raise
            if isinstance(error, FloatingPointError):
                raise self._not_finite(*self._failed_part()) from error
            if is_out_of_memory(error):
                raise self._out_of_memory(self._parts[-1], error) from error
            raise
        finally:
            for hook in hooks:
                hook.remove()
        if self._parts:
            self._names_before = [name for part in self._parts for name in part.names()]

    def _note(self, module: nn.Module, args: tuple[list[dict[str, Any]]]) -> None:
        self._parts.append(TrainingStep.before(bare_model(module), args[0]))

    def _note_losses(self, module: nn.Module, args: Any, losses: Any) -> None:
        losses = losses if isinstance(losses, dict) else {"total_loss": losses}
        self._losses.append({name: loss.detach() for name, loss in losses.items()})

    def _failed_part(self) -> tuple[TrainingStep, dict[str, float]]:
        """That with a loss that is not finite, or the last one; and these losses."""
        for part, losses in zip(self._parts, self._losses):
            wrong = {name: float(x) for name, x in losses.items() if not math.isfinite(float(x))}
            if wrong:
                return part, wrong
        return self._parts[-1], {}

    def _not_finite(self, step: TrainingStep, losses: dict[str, float]) -> UserError:
        trainer, model = self._trainer, bare_model(self._trainer.model)
        scaler = getattr(trainer._trainer, "grad_scaler", None)
        norm = gradient_norm(model) / (scaler.get_scale() if scaler else 1.0)
        weights = _weights(model, step)  # before the model runs again
        spoiled = parameters_not_finite(model)
        summary = {**self._summary(step), "gradient_norm": norm, "weights_not_finite": spoiled}
        named = " and ".join(f"{name} is {value}" for name, value in losses.items())
        said, culprits = named or "a loss is not finite", []
        if comm.get_world_size() > 1:  # which would be waited for
            said += f" in process {comm.get_rank()}"
        else:
            report = run_again(model, step)
            alone = [run_again(model, step, image=i) for i in range(len(step.inputs))]
            summary.update(losses=report.losses, levels=report.levels)
            for image, seen in zip(summary["images"], alone):
                image["losses_alone"] = seen.losses
            culprits = [name for name, seen in zip(step.names(), alone) if seen.not_finite()]
        said += f" in iteration {trainer.iter}"
        if spoiled and self._names_before:
            or_other = " or of another process" if comm.get_world_size() > 1 else ""
            said += (
                f": the weights were not finite before it ({listed(spoiled)}): the losses of the "
                f"step before were finite but its gradient was not, of {listed(self._names_before)}"
                f"{or_other}"
            )
        elif spoiled:
            said += f": the weights that were loaded are not finite ({listed(spoiled)})"
        elif 0 < len(culprits) < len(step.inputs):
            said += f": {listed(culprits)} alone gives that, look at its image and boxes"
        rate = max(summary["learning_rates"])
        remedy = (
            f"lower SOLVER.BASE_LR (the rate was {rate:.3g}), lengthen SOLVER.WARMUP_ITERS, or set "
            "SOLVER.CLIP_GRADIENTS.ENABLED True"
        )
        if spoiled:
            remedy += "; if a loss is of your own, look at its derivative"
        return self._write(step, weights, said, remedy, summary)

    def _out_of_memory(self, step: TrainingStep, error: Exception) -> UserError:
        model = bare_model(self._trainer.model)
        model.zero_grad(set_to_none=True)  # room to write
        *_, height, width = max((x["image"].shape for x in step.inputs), key=lambda s: s[1] * s[2])
        said = (
            f"memory ran out in iteration {self._trainer.iter}, of {len(step.inputs)} images of up "
            f"to {width} x {height} pixels ({in_one_line(str(error))})"
        )
        return self._write(step, _weights(model, step), said, MEMORY_REMEDY, self._summary(step))

    def _summary(self, step: TrainingStep) -> dict[str, Any]:
        return {
            "iteration": self._trainer.iter,
            "learning_rates": sorted({g["lr"] for g in self._trainer.optimizer.param_groups}),
            "images": [_describe(name, x) for name, x in zip(step.names(), step.inputs)],
            "images_of_the_step_before": self._names_before,
        }

    def _write(
        self,
        step: TrainingStep,
        weights: dict[str, Tensor],
        said: str,
        remedy: str,
        summary: dict[str, Any],
    ) -> UserError:
        """Write the folder; returns the error that names it."""
        rank = f"-rank{comm.get_rank()}" if comm.get_rank() else ""
        name = f"failure-{self._trainer.iter:06d}{rank}"
        folder = os.path.join(self._trainer.cfg.OUTPUT_DIR, name)
        command = f"python -m retinanet_plugin replay {folder}"
        summary = {"what": said, "remedy": remedy, "run_it_again": command, **summary}
        summary_text = json.dumps(_readable(summary), indent=1)
        writers: dict[str, Callable[[BinaryIO], Any]] = {
            STEP: lambda file: torch.save(step.to_plain(), file),
            WEIGHTS: lambda file: torch.save({"model": weights}, file),
            CONFIG: lambda file: file.write(self._trainer.cfg.dump().encode()),
            SUMMARY: lambda file: file.write(summary_text.encode()),
        }
        try:
            os.makedirs(folder, exist_ok=True)
            for file_name, write in writers.items():
                write_whole_file(os.path.join(folder, file_name), write)
        except (OSError, UserError, MemoryError, RuntimeError) as error:
            return UserError(f"{said}: {remedy} (the step could not be kept: {sentence_of(error)})")
        of = f" of process {comm.get_rank()}" if comm.get_world_size() > 1 else ""
        return UserError(
            f"{said}: {remedy}; the step{of} is in {folder}, look at it with {command}"
        )


def _weights(model: nn.Module, step: TrainingStep) -> dict[str, Tensor]:
    """Copies of the weights, with the moving average of before the step.

    Statistics of batch norms are those after its forward: nothing in a training step reads them.
    """
    weights = {name: x.detach().to("cpu", copy=True) for name, x in model.state_dict().items()}
    if isinstance(step.loss_normalizer, Tensor):
        weights["loss_normalizer"] = step.loss_normalizer.cpu()
    return weights


def _describe(name: str, image: dict[str, Any]) -> dict[str, Any]:
    """An image of a batch: name, id, size, boxes in the pixels of the resized image, classes."""
    instances = image.get("instances")
    return {
        "file_name": name,
        "image_id": image.get("image_id"),
        "size": list(image["image"].shape[-2:]),
        "boxes": instances.gt_boxes.tensor.tolist() if instances else [],
        "classes": instances.gt_classes.tolist() if instances else [],
    }


def _readable(value: Any) -> Any:
    """JSON has no NaN and no infinity: they become texts."""
    if isinstance(value, dict):
        return {key: _readable(x) for key, x in value.items()}
    if isinstance(value, list):
        return [_readable(x) for x in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
