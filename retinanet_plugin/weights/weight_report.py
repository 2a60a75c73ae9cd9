"""What of a file of weights a model loads: one line, and when that is too little, one sentence."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from ..errors import UserError, listed
from .finite_numbers import is_finite
from .short_names import groups, prefixes

# What Detectron2 has or has not saved in its time; models compute it from the config.
_NO_WEIGHTS = ("pixel_mean", "pixel_std", "num_batches_tracked", "loss_normalizer")
# Frozen layers of random weights learn nothing, and such a training soon ends in NaN.
FROM_RANDOM_WEIGHTS = (
    "train from random weights with MODEL.WEIGHTS '' MODEL.BACKBONE.FREEZE_AT 0 "
    "MODEL.RESNETS.NORM BN"
)
_CLASS_HEAD = "head.cls_score."
_TORCHVISION = "head.classification_head."


@dataclass
class WeightReport:
    """What came of loading weights into a model. Names are those of ``state_dict``."""

    source: str  # "MODEL.WEIGHTS r50.pkl"
    sizes: dict[str, int]  # of the model's tensors: numbers in each
    new: list[str]  # of the model, missing in the file or of another shape there
    unused: list[str]  # of the file
    # Of those in ``new``: shapes in the file and in the model.
    shapes: dict[str, tuple[Sequence[int], Sequence[int]]]
    num_classes: int | None = None  # K of the model
    class_names: list[str] = field(default_factory=list)  # that the file says
    data_class_names: list[str] = field(default_factory=list)  # of the data sets
    other_pixels: list[str] = field(default_factory=list)  # that the file was trained on
    not_finite: str = ""  # the first tensor of the model that holds a NaN or an infinite number

    @classmethod
    def of(
        cls,
        source: str,
        model: nn.Module,
        incompatible: Any,
        class_names: Sequence[str],
        data_class_names: Sequence[str],
        other_pixels: list[str],
    ) -> "WeightReport":
        """
        Args:
            source: the file, and what says to load it.
            model: with the weights loaded.
            incompatible: what ``DetectionCheckpointer._load_model`` returned.
            class_names, data_class_names: of the file and of the data; empty: unknown.
            other_pixels: of
                :func:`retinanet_plugin.weights.checkpoint_contents.other_pixels`.
        """
        state = model.state_dict()
        sizes = {name: x.numel() for name, x in state.items() if _is_weight(name)}
        shapes = {name: (found, here) for name, found, here in incompatible.incorrect_shapes}
        # Heuristics leave a weight of another shape under its name in the file.
        missing = {*incompatible.missing_keys, *shapes}
        new = [name for name in sizes if name in missing or _norm_of(name) in missing]
        loaded = sizes.keys() - set(new)
        return cls(
            source=source,
            sizes=sizes,
            new=new,
            unused=[name for name in incompatible.unexpected_keys if _is_weight(name)],
            shapes=shapes,
            num_classes=getattr(model, "num_classes", None),
            class_names=[str(name) for name in class_names],
            data_class_names=[str(name) for name in data_class_names],
            other_pixels=other_pixels,
            not_finite=next((n for n in state if n in loaded and not is_finite(state[n])), ""),
        )

    @property
    def share(self) -> float:
        """Of the model's numbers, the share that was loaded."""
        return 1 - sum(self.sizes[name] for name in self.new) / max(1, sum(self.sizes.values()))

    @property
    def another_model(self) -> list[str]:
        """Names of the file that say that it is another backbone or head."""
        return [name for name in self.unused if name.startswith(("backbone.", "head."))]

    @property
    def has_other_classes(self) -> bool:
        """Whether the file and the data say that their classes differ."""
        known = self.class_names and self.data_class_names
        return bool(known) and self.class_names != self.data_class_names

    @property
    def is_suspicious(self) -> bool:
        """Whether more does not fit than what is new for other classes."""
        others = [name for name in self.shapes if not self._is_class_head_of_another_size(name)]
        return bool(others or self.another_model or self.other_pixels)

    def __str__(self) -> str:
        """The one line."""
        if not self.new:
            parts = ["all of the model's parameters load"]
        else:
            loaded = self.sizes.keys() - set(self.new)
            parts = [f"{_percent(self.share)} of the model's parameters load"]
            parts[0] += f" ({groups(loaded, self.sizes)})" if loaded else ""
            others = [n for n in self.new if not self._is_class_head_of_another_size(n)]
            if others:
                size = sum(self.sizes[name] for name in others) / sum(self.sizes.values())
                parts.append(f"{_percent(size)} are new ({groups(others, self.sizes)})")
            if len(others) < len(self.new):
                parts.append(f"{_CLASS_HEAD[:-1]} is new ({self._classes()})")
        if self.unused:
            parts.append(f"the file's {listed(prefixes(self.unused))} are not used")
        if self.has_other_classes and self._loads_class_head():
            parts.append(
                f"its classes are {listed(self.class_names)}, those of the data "
                f"{listed(self.data_class_names)}"
            )
        if self.other_pixels:
            parts.append(f"but it was trained on images with {' and '.join(self.other_pixels)}")
        return f"{self.source}: {', '.join(parts)}"

    def refuse_for_training(self, model: nn.Module) -> None:
        """
        Raises:
            UserError: nothing was loaded, or layers that are never trained were not.
        """
        self._refuse_nothing()
        frozen = [name for name in frozen_weights(model) if name in self.new]
        if frozen:
            names = groups(frozen, self.sizes)
            raise UserError(
                f"{self.source} has nothing for {names}, which would stay as they are, random and "
                "frozen: set MODEL.WEIGHTS to weights of this backbone, or "
                f"{FROM_RANDOM_WEIGHTS}"
            )

    def refuse_unless_it_fits(self, changed: Sequence[str] = ()) -> None:
        """
        Args:
            changed: what differs between the config of the file and the present one.

        Raises:
            UserError: not everything was loaded, the file is of another model, or of other classes.
        """
        self._refuse_nothing()
        remedy = "set MODEL.WEIGHTS to weights of this model, or the config to that of the weights"
        start = f"{self.source} does not fit the model"
        if changed:
            start += f" ({listed(changed)})"
        if any(self._is_class_head_of_another_size(name) for name in self.new):
            raise UserError(
                f"{start}: {_CLASS_HEAD}weight is for other classes ({self._classes()}): set "
                "MODEL.RETINANET.NUM_CLASSES and the data sets to those of the weights, or train"
            )
        if self.new:
            name = self.new[0]
            found = (
                f"{name} is {tuple(self.shapes[name][0])} there and {tuple(self.shapes[name][1])} "
                "here"
                if name in self.shapes
                else f"it has no {name}"
            )
            more = f", and {len(self.new) - 1} more do not fit" if len(self.new) > 1 else ""
            raise UserError(f"{start}: {found}{more}: {remedy}")
        if self.another_model:
            names = listed(self.another_model)
            raise UserError(f"{start}: it also has {names}, which this model lacks: {remedy}")
        if self.has_other_classes:
            raise UserError(
                f"{start}: its classes are {listed(self.class_names)}, and those of the data "
                f"{listed(self.data_class_names)}: use data with the classes of the weights, in "
                "their order"
            )

    def _refuse_nothing(self) -> None:
        if self.not_finite:
            raise UserError(
                f"{self.source} has NaN or infinite numbers in {self.not_finite}: it is of a "
                "training that failed, so take an earlier checkpoint"
            )
        if len(self.new) == len(self.sizes):
            names = self.unused or list(self.shapes)
            remedy = "choose weights of this model or of its backbone"
            if any(name.startswith(_TORCHVISION) for name in names):
                remedy = (
                    "it is torchvision's RetinaNet, which python -m retinanet_plugin "
                    "import-weights torchvision FILE OUTPUT converts"
                )
            raise UserError(
                f"{self.source} fits the model in nothing: its names are {listed(names)}, and the "
                f"model's {listed(list(self.sizes))}: {remedy}"
            )

    def _loads_class_head(self) -> bool:
        return any(n.startswith(_CLASS_HEAD) and n not in self.new for n in self.sizes)

    def _is_class_head_of_another_size(self, name: str) -> bool:
        """Other anchors change the box head too; other channels, more than the first number."""
        if not name.startswith(_CLASS_HEAD) or name not in self.shapes:
            return False
        found, here = self.shapes[name]
        has_other_anchors = any(other.startswith("head.bbox_pred.") for other in self.shapes)
        return list(found[1:]) == list(here[1:]) and not has_other_anchors

    def _classes(self) -> str:
        """How many classes the class head is for, in the file and here."""
        found, here = next(x for n, x in self.shapes.items() if n.startswith(_CLASS_HEAD))
        if not self.num_classes or here[0] % self.num_classes:
            return f"of another size: {tuple(found)} in the file, {tuple(here)} here"
        num_anchors = here[0] // self.num_classes
        if found[0] % num_anchors or list(found[1:]) != list(here[1:]):
            return f"of another size: {tuple(found)} in the file, {tuple(here)} here"
        return f"{found[0] // num_anchors} classes in the file, {self.num_classes} here"


def frozen_weights(model: nn.Module) -> list[str]:
    """Names of what stays as it is in training: frozen parameters and batch norms."""
    names = [name for name, p in model.named_parameters() if not p.requires_grad]
    for prefix, module in model.named_modules():
        if type(module).__name__.startswith("FrozenBatchNorm"):  # of Detectron2, torchvision, timm
            names += [f"{prefix}.{name}" for name, _ in module.named_buffers()]
    return [name for name in names if _is_weight(name)]


def _is_weight(name: str) -> bool:
    return not name.endswith(_NO_WEIGHTS) and "cell_anchors" not in name


def _norm_of(name: str) -> str:
    """The weight beside statistics of a norm, which Detectron2 does not always name if missing."""
    module, _, last = name.rpartition(".")
    return f"{module}.weight" if last in ("running_mean", "running_var") else ""


def _percent(share: float) -> str:
    """Only all is 100 %, and only nothing 0 %."""
    percent = min(99.0, max(1.0, 100 * share)) if 0 < share < 1 else 100 * share
    return f"{percent:.0f} %"
