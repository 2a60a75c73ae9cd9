"""One training step by itself: all it depends on, to run it again and look into it."""

import math
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from ...compat import current_iteration


@dataclass
class TrainingStep:
    """What the losses of a step depend on, beside the config and the weights."""

    inputs: list[dict[str, Any]]  # as the mapper made them
    random_state: Tensor  # of the CPU, before the forward
    cuda_random_state: Tensor | None
    loss_normalizer: Any  # before the forward; None: the model has none
    autocast: bool  # in mixed precision, SOLVER.AMP.ENABLED
    iteration: int | None = None  # which some parts depend on; None: a file of before it was kept

    @classmethod
    def before(cls, model: nn.Module, inputs: list[dict[str, Any]]) -> "TrainingStep":
        """The step that the bare ``model`` is about to do: nothing is waited for or written."""
        normalizer = getattr(model, "loss_normalizer", None)
        return cls(
            inputs=inputs,
            random_state=torch.get_rng_state(),
            cuda_random_state=torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None,
            loss_normalizer=normalizer.clone() if isinstance(normalizer, Tensor) else normalizer,
            autocast=torch.is_autocast_enabled(),
            iteration=current_iteration(),
        )

    def prepare(self, model: Any) -> None:
        """Put random states and moving average back to what they were."""
        torch.set_rng_state(self.random_state)
        if self.cuda_random_state is not None and torch.cuda.is_available():
            torch.cuda.set_rng_state(self.cuda_random_state)
        if isinstance(self.loss_normalizer, Tensor):
            with torch.no_grad():
                model.loss_normalizer.copy_(self.loss_normalizer)
        elif self.loss_normalizer is not None:
            model.loss_normalizer = self.loss_normalizer

    def to_plain(self) -> dict[str, Any]:
        """Tensors and plain values alone, for ``torch.load(weights_only=True)``."""
        return {**vars(self), "inputs": [_to_plain(x) for x in self.inputs]}

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> "TrainingStep":
        return cls(**{**plain, "inputs": [_from_plain(x) for x in plain["inputs"]]})

    def names(self) -> list[str]:
        """Of the images."""
        return [str(x.get("file_name", f"image {i}")) for i, x in enumerate(self.inputs)]


@dataclass
class StepReport:
    """What :func:`run_again` has seen."""

    losses: dict[str, float]
    levels: list[dict[str, dict[str, float | None]]] = field(default_factory=list)
    gradient_norm: float | None = None

    def not_finite(self) -> list[str]:
        """Names of the losses that are not finite."""
        return [name for name, loss in self.losses.items() if not math.isfinite(loss)]


def run_again(
    model: nn.Module, step: TrainingStep, *, image: int | None = None, backward: bool = False
) -> StepReport:
    """Run the forward of ``step``, and its backward if asked for.

    Args:
        model: the bare model, with the weights of before the step; its gradients are lost.
        image: of the batch, to be taken alone.

    Returns:
        StepReport: losses; of each level of the pyramid the :func:`statistics` of ``logits`` and
        ``deltas``, if the model has a head of RetinaNet's; the norm of all gradients.
    """
    levels: list[dict[str, dict[str, float | None]]] = []

    def look(head: nn.Module, args: Any, outputs: tuple[list[Tensor], ...]) -> None:
        pred_logits, pred_anchor_deltas, *_ = outputs  # and what IOU_BRANCH adds
        levels.extend(
            {"logits": statistics(logits), "deltas": statistics(deltas)}
            for logits, deltas in zip(pred_logits, pred_anchor_deltas)
        )

    step.prepare(model)
    model.train()
    head = getattr(model, "head", None)
    hook = head.register_forward_hook(look) if isinstance(head, nn.Module) else None
    inputs = step.inputs if image is None else [step.inputs[image]]
    storage = nullcontext() if step.iteration is None else EventStorage(step.iteration)
    try:
        with (
            storage,
            torch.set_grad_enabled(backward),
            torch.autocast("cuda", enabled=step.autocast, dtype=torch.float16),
        ):
            losses = model(inputs)
    finally:
        if hook is not None:
            hook.remove()
    if isinstance(losses, Tensor):
        losses = {"total_loss": losses}
    report = StepReport({name: float(loss.detach()) for name, loss in losses.items()}, levels)
    if backward:
        model.zero_grad()
        sum(losses.values()).backward()
        report.gradient_norm = gradient_norm(model)
    return report


def gradient_norm(model: nn.Module) -> float:
    """The 2-norm of all gradients together."""
    norms = [x.grad.double().norm() for x in model.parameters() if x.grad is not None]
    return float(torch.stack(norms).norm()) if norms else 0.0


def statistics(values: Tensor) -> dict[str, float | None]:
    """Of the finite values: min, max and mean, None if there are none; the share of the others."""
    values = values.detach().float()
    finite = values[torch.isfinite(values)]
    share = 1 - finite.numel() / max(1, values.numel())
    if not finite.numel():
        return {"min": None, "max": None, "mean": None, "not_finite": share}
    return {
        "min": float(finite.min()),
        "max": float(finite.max()),
        "mean": float(finite.mean()),
        "not_finite": share,
    }


def _to_plain(record: dict[str, Any]) -> dict[str, Any]:
    plain: dict[str, Any] = {
        k: v for k, v in record.items() if isinstance(v, (str, int, float, Tensor))
    }
    if "instances" in record:
        fields = record["instances"].get_fields()
        plain["image_size"] = list(record["instances"].image_size)
        plain["gt_boxes"], plain["gt_classes"] = fields["gt_boxes"].tensor, fields["gt_classes"]
    if "ignore_boxes" in record:
        plain["ignore_boxes"] = record["ignore_boxes"].tensor
    return plain


def _from_plain(plain: dict[str, Any]) -> dict[str, Any]:
    record = dict(plain)
    if "gt_boxes" in record:
        instances = Instances(tuple(record.pop("image_size")))
        instances.gt_boxes = Boxes(record.pop("gt_boxes"))
        instances.gt_classes = record.pop("gt_classes")
        record["instances"] = instances
    if "ignore_boxes" in record:
        record["ignore_boxes"] = Boxes(record["ignore_boxes"])
    return record
